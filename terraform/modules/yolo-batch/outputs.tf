output "bucket" {
  description = "Bucket for uploads."
  value       = local.uploads_bucket
}

output "build_command" {
  description = "Command that builds and deploys the repository. Run it in the repository's root."
  value       = "gcloud builds submit ${local.build_options}\" ."
}

output "dashboard" {
  description = "URL of the dashboard."
  value       = "https://console.cloud.google.com/monitoring/dashboards/builder/${basename(google_monitoring_dashboard.main.id)}?project=${var.project_id}"
}

output "dead_letters" {
  description = "Subscription of the dead letters, for yolo-batch dead-letters --subscription."
  value       = google_pubsub_subscription.dead_letters.id
}

output "detect_url" {
  description = "URL of the detect service, for POST /v1/detect. Null without detect_service."
  value       = one(google_cloud_run_v2_service.detect[*].uri)
}

output "gallery_url" {
  description = "URL of the gallery. Null without gallery."
  value       = one(google_cloud_run_v2_service.gallery[*].uri)
}

output "jobs_topic" {
  description = "Topic for jobs, for yolo-batch submit --topic."
  value       = google_pubsub_topic.jobs.id
}

output "results" {
  description = "URL of the documents in the console."
  value       = "https://console.cloud.google.com/firestore/databases/${var.firestore_database == "(default)" ? "-default-" : var.firestore_database}/data/panel/${var.firestore_collection}?project=${var.project_id}"
}

output "results_dataset" {
  description = "BigQuery dataset with the views results and detections. Null without bigquery."
  value       = one([for dataset in google_bigquery_dataset.results : "${var.project_id}.${dataset.dataset_id}"])
}

output "service_url" {
  description = "URL of the service. Only Pub/Sub and Eventarc of this project can reach it."
  value       = google_cloud_run_v2_service.main.uri
}

# Depends on the trigger and its subscription, so that it is known only when uploads cause events.
output "upload_command" {
  description = "Command that uploads images."
  value       = "gcloud storage cp *.jpg gs://${local.uploads_bucket}/${join("", compact([var.object_prefix]))}"

  depends_on = [
    google_eventarc_trigger.uploads,
    google_storage_notification.uploads,
    terraform_data.tuned_subscription,
  ]
}
