# Written by `python -m devtools.docs` from modules/yolo-batch. Change it there.

output "bucket" {
  description = "Bucket for uploads."
  value       = module.yolo_batch.bucket
}

output "build_command" {
  description = "Command that builds and deploys the repository. Run it in the repository's root."
  value       = module.yolo_batch.build_command
}

output "dashboard" {
  description = "URL of the dashboard."
  value       = module.yolo_batch.dashboard
}

output "dead_letters" {
  description = "Subscription of the dead letters, for yolo-batch dead-letters --subscription."
  value       = module.yolo_batch.dead_letters
}

output "detect_url" {
  description = "URL of the detect service, for POST /v1/detect. Null without detect_service."
  value       = module.yolo_batch.detect_url
}

output "gallery_url" {
  description = "URL of the gallery. Null without gallery."
  value       = module.yolo_batch.gallery_url
}

output "jobs_topic" {
  description = "Topic for jobs, for yolo-batch submit --topic."
  value       = module.yolo_batch.jobs_topic
}

output "results" {
  description = "URL of the documents in the console."
  value       = module.yolo_batch.results
}

output "results_dataset" {
  description = "BigQuery dataset with the views results and detections. Null without bigquery."
  value       = module.yolo_batch.results_dataset
}

output "service_url" {
  description = "URL of the service. Only Pub/Sub and Eventarc of this project can reach it."
  value       = module.yolo_batch.service_url
}

output "upload_command" {
  description = "Command that uploads images."
  value       = module.yolo_batch.upload_command
}
