# What happens after an image: rows in BigQuery, thumbnails, alerts to people and to a webhook, and a
# service that responds to its caller.

terraform {
  required_version = ">= 1.7"

  required_providers {
    google = {
      source  = "hashicorp/google"
      version = "~> 8.0"
    }
    google-beta = {
      source  = "hashicorp/google-beta"
      version = "~> 8.0"
    }
  }
}

provider "google" {
  project               = var.project_id
  billing_project       = var.project_id
  user_project_override = true
}

provider "google-beta" {
  project               = var.project_id
  billing_project       = var.project_id
  user_project_override = true
}

variable "project_id" {
  description = "Project to deploy into."
  type        = string
}

variable "region" {
  description = "Region of all regional resources."
  type        = string
  default     = "europe-west1"
}

variable "channels" {
  description = "Notification channels: projects/PROJECT/notificationChannels/ID."
  type        = list(string)
  default     = []
}

variable "webhook_url" {
  description = "Address that alerts are posted to, for example an incoming webhook of Slack. Give it as TF_VAR_webhook_url."
  type        = string
  sensitive   = true
}

module "yolo_batch" {
  source = "../../modules/yolo-batch"

  project_id = var.project_id
  region     = var.region

  # Results
  results_topic  = true
  bigquery       = true
  results_bucket = true

  # Alerts. The rules are in the sources: yolo-batch sources apply.
  alerts_topic            = true
  alert_incidents         = true
  notification_channels   = var.channels
  alert_webhook_url       = var.webhook_url
  alert_webhook_transform = "slack"

  # Calls
  detect_service  = true
  detect_invokers = ["serviceAccount:web@${var.project_id}.iam.gserviceaccount.com"]
  # The instances of both services count against one quota.
  max_instances = 8
}

output "detect_url" {
  description = "URL of the detect service."
  value       = module.yolo_batch.detect_url
}

output "results_dataset" {
  description = "BigQuery dataset with the views results and detections."
  value       = module.yolo_batch.results_dataset
}
