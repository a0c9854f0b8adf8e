# Only uploads to one folder of the bucket are processed. Cloud Storage filters them, which Eventarc
# cannot, so the uploads come by notification.

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

module "yolo_batch" {
  source = "../../modules/yolo-batch"

  project_id = var.project_id
  region     = var.region

  upload_events = "notification"
  object_prefix = "incoming/"
}
