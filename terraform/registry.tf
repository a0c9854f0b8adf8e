resource "google_artifact_registry_repository" "main" {
  repository_id = var.name
  location      = var.region
  format        = "DOCKER"
  description   = "Images of ${var.name}."

  # What is kept wins over what is deleted.
  cleanup_policies {
    id     = "keep-recent"
    action = "KEEP"
    most_recent_versions {
      keep_count = 10
    }
  }

  # The next deployment's start, and the layers of the next build.
  cleanup_policies {
    id     = "keep-in-use"
    action = "KEEP"
    condition {
      tag_state    = "TAGGED"
      tag_prefixes = ["cache-", "latest"]
    }
  }

  # Each build has a tag of its own, so that age decides.
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
