resource "google_storage_bucket" "uploads" {
  count = var.create_bucket ? 1 : 0

  name     = local.bucket_name
  location = upper(var.region)
  project  = var.project_id
  labels   = local.labels

  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"
  force_destroy               = !var.protect_data

  dynamic "encryption" {
    for_each = var.kms_key[*]
    content {
      default_kms_key_name = encryption.value
    }
  }

  soft_delete_policy {
    retention_duration_seconds = var.soft_delete_days * 24 * 3600
  }

  # Off by default, because the service does not need it: an upload is read within seconds, and an
  # overwrite has its own event.
  versioning {
    enabled = var.versioning
  }

  lifecycle_rule {
    action {
      type = "AbortIncompleteMultipartUpload"
    }
    condition {
      age = 7
    }
  }

  dynamic "lifecycle_rule" {
    for_each = var.uploads_retention_days == null ? [] : [var.uploads_retention_days]
    content {
      action {
        type = "Delete"
      }
      condition {
        age        = lifecycle_rule.value
        with_state = "LIVE"
      }
    }
  }

  dynamic "lifecycle_rule" {
    for_each = var.versioning ? [30] : []
    content {
      action {
        type = "Delete"
      }
      condition {
        days_since_noncurrent_time = lifecycle_rule.value
        with_state                 = "ARCHIVED"
      }
    }
  }

  depends_on = [time_sleep.apis]
}

data "google_storage_bucket" "uploads" {
  count = var.create_bucket ? 0 : 1

  name    = local.bucket_name
  project = var.project_id

  lifecycle {
    postcondition {
      condition     = var.upload_events == "notification" || lower(self.location) == var.region
      error_message = "The bucket ${local.bucket_name} is in ${self.location}. An Eventarc trigger must be in the location of its bucket, and this one is in ${var.region}. Set region to the bucket's location, or upload_events to notification."
    }

    # Cloud Storage has no conditional roles without it. Cloud Build's role has a condition.
    postcondition {
      condition     = self.uniform_bucket_level_access
      error_message = "The bucket ${local.bucket_name} needs uniform bucket-level access: gcloud storage buckets update gs://${local.bucket_name} --uniform-bucket-level-access"
    }
  }
}

locals {
  # The name, known only when the bucket exists, so that what uses it waits for the bucket.
  uploads_bucket = one(concat(google_storage_bucket.uploads[*].name, data.google_storage_bucket.uploads[*].name))
}

# Parts of results that are too large for a document. They are deleted with their documents, and hold
# nothing that the service could not compute again, so soft delete is off.
resource "google_storage_bucket" "results" {
  count = var.results_bucket ? 1 : 0

  name     = local.results_bucket
  location = upper(var.region)
  project  = var.project_id
  labels   = local.labels

  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"
  force_destroy               = !var.protect_data

  dynamic "encryption" {
    for_each = var.kms_key[*]
    content {
      default_kms_key_name = encryption.value
    }
  }

  soft_delete_policy {
    retention_duration_seconds = 0
  }

  # A day later than the document, because Firestore deletes it within about a day after it expires.
  dynamic "lifecycle_rule" {
    for_each = var.results_ttl_days[*]
    content {
      action {
        type = "Delete"
      }
      condition {
        age = lifecycle_rule.value + 1
      }
    }
  }

  depends_on = [time_sleep.apis]
}
