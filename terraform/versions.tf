terraform {
  required_version = ">= 1.7" # mock_provider, for the tests

  required_providers {
    google = {
      source  = "hashicorp/google"
      version = "~> 8.0"
    }
    # For google_project_service_identity alone, which the other one does not have.
    google-beta = {
      source  = "hashicorp/google-beta"
      version = "~> 8.0"
    }
    time = {
      source  = "hashicorp/time"
      version = "~> 0.12"
    }
  }
}

provider "google" {
  project        = var.project_id
  region         = var.region
  default_labels = local.labels
}

provider "google-beta" {
  project = var.project_id
  region  = var.region
}
