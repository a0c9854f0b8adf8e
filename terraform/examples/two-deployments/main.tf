# Two deployments in one project, for two models. Each has its own name and database. The free tier of
# Firestore applies to the database (default) only.

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

locals {
  deployments = {
    yolo-traffic = { database = "(default)", model = "yolo26n.pt" }
    yolo-retail  = { database = "yolo-retail", model = "yolo26m.pt" }
  }
}

module "yolo_batch" {
  source   = "../../modules/yolo-batch"
  for_each = local.deployments

  project_id = var.project_id
  region     = var.region
  name       = each.key

  firestore_database = each.value.database
  model              = each.value.model
  labels             = { deployment = each.key }
}

output "upload_commands" {
  description = "Commands that upload images, by deployment."
  value       = { for name, deployment in module.yolo_batch : name => deployment.upload_command }
}
