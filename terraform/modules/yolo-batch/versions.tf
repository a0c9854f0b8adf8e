# No provider blocks: the root module that calls this one configures the providers.
terraform {
  required_version = ">= 1.7" # mock_provider, for the tests

  required_providers {
    google = {
      source  = "hashicorp/google"
      version = "~> 8.0"
    }
    # Only for google_project_service_identity, which the google provider lacks.
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
