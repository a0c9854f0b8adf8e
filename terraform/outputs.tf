output "bucket" {
  description = "Bucket for uploads."
  value       = google_storage_bucket.uploads.name
}

output "build_command" {
  description = "Builds and deploys what is in the repository; to be run in its root."
  value       = "gcloud builds submit ${local.build_options}\" ."
}

output "dashboard" {
  description = "Dashboard in the console."
  value       = "https://console.cloud.google.com/monitoring/dashboards/builder/${basename(google_monitoring_dashboard.main.id)}?project=${var.project_id}"
}

output "dead_letters" {
  description = "Subscription that holds what failed for good."
  value       = google_pubsub_subscription.dead_letters.id
}

output "jobs_topic" {
  description = "Topic for jobs, as yolo-batch submit --topic takes it."
  value       = google_pubsub_topic.jobs.id
}

output "results" {
  description = "Documents in the console."
  value       = "https://console.cloud.google.com/firestore/databases/${var.firestore_database == "(default)" ? "-default-" : var.firestore_database}/data/panel/${var.firestore_collection}?project=${var.project_id}"
}

output "service_url" {
  description = "URL of the service; it answers Pub/Sub and Eventarc of this project alone."
  value       = google_cloud_run_v2_service.main.uri
}

# Not before an image would be noticed.
output "upload_command" {
  description = "Uploads images; their documents follow."
  value       = "gcloud storage cp *.jpg gs://${google_storage_bucket.uploads.name}/"

  depends_on = [
    google_eventarc_trigger.uploads,
    google_storage_notification.uploads,
    terraform_data.tuned_subscription,
  ]
}
