resource "google_artifact_registry_repository" "main" {
  count = var.create_repository ? 1 : 0

  repository_id = local.repository_name
  location      = var.region
  format        = "DOCKER"
  description   = "Container images of ${var.name}."
  project       = var.project_id
  labels        = local.labels
  kms_key_name  = var.kms_key

  # Scans each new image if the project has the Container Scanning API (scan_images).
  vulnerability_scanning_config {
    enablement_config = "INHERITED"
  }

  # KEEP policies have precedence over DELETE policies.
  cleanup_policies {
    id     = "keep-recent"
    action = "KEEP"
    most_recent_versions {
      keep_count = 10
    }
  }

  # The images with the tags latest-cpu and latest-gpu, and the build cache.
  cleanup_policies {
    id     = "keep-in-use"
    action = "KEEP"
    condition {
      tag_state    = "TAGGED"
      tag_prefixes = ["cache-", "latest-"]
    }
  }

  # Any tag state, because each build has its own tag.
  cleanup_policies {
    id     = "delete-old"
    action = "DELETE"
    condition {
      tag_state  = "ANY"
      older_than = "2592000s" # 30 days
    }
  }

  depends_on = [time_sleep.apis]
}

data "google_artifact_registry_repository" "main" {
  count = var.create_repository ? 0 : 1

  repository_id = local.repository_name
  location      = var.region
  project       = var.project_id

  lifecycle {
    postcondition {
      condition     = upper(self.format) == "DOCKER"
      error_message = "The repository ${local.repository_name} has the format ${self.format}. It must be DOCKER."
    }
  }
}

locals {
  repository_name = coalesce(var.repository_name, var.name)
  # Known only when the repository exists, so that what uses it waits for the repository. Of the data
  # source only its own argument: if a caller's depends_on delays the reading, an id that is not known
  # would replace the first image.
  repository_id = one(concat(
    google_artifact_registry_repository.main[*].id,
    [for found in data.google_artifact_registry_repository.main : "projects/${found.project}/locations/${found.location}/repositories/${found.repository_id}"],
  ))
  # Others may have an image with the name service in a repository that exists.
  image_folder = var.create_repository ? local.repository_name : "${local.repository_name}/${var.name}"
}

# Enabling this API has an effect on the whole project: each new image of every repository is scanned and
# billed. So it is not among the APIs that are always enabled.
resource "google_project_service" "scanning" {
  count = var.scan_images ? 1 : 0

  service = "containerscanning.googleapis.com"
  project = var.project_id
  # Other parts of the project may use it.
  disable_on_destroy = false
}
