resource "google_artifact_registry_repository" "main" {
  repository_id = var.name
  location      = var.region
  format        = "DOCKER"
  description   = "Container images of ${var.name}."
  project       = var.project_id
  labels        = local.labels

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
