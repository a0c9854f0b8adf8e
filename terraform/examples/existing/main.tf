# A bucket, a Firestore database and a Docker repository that exist in the project. A destroy leaves them
# alone. With Eventarc, the bucket must be in the region. The repository always must.

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

variable "bucket_name" {
  description = "Bucket for uploads, with uniform bucket-level access."
  type        = string
}

variable "firestore_database" {
  description = "Firestore database in native mode. The collection must not be another deployment's."
  type        = string
  default     = "(default)"
}

variable "repository_name" {
  description = "Docker repository in Artifact Registry."
  type        = string
}

module "yolo_batch" {
  source = "../../modules/yolo-batch"

  project_id = var.project_id
  region     = var.region

  name                 = "yolo-cameras"
  create_bucket        = false
  bucket_name          = var.bucket_name
  create_database      = false
  firestore_database   = var.firestore_database
  firestore_collection = "cameras"
  create_repository    = false
  repository_name      = var.repository_name
}
