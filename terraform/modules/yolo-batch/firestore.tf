resource "google_firestore_database" "main" {
  name             = var.firestore_database
  location_id      = local.firestore_location
  type             = "FIRESTORE_NATIVE"
  database_edition = "STANDARD"
  project          = var.project_id

  # With the provider's default, ABANDON, a destroy would leave the database behind, and the next apply
  # would fail with 409. With delete protection, the destroy fails instead, and loses nothing.
  delete_protection_state           = var.protect_data ? "DELETE_PROTECTION_ENABLED" : "DELETE_PROTECTION_DISABLED"
  deletion_policy                   = "DELETE"
  point_in_time_recovery_enablement = "POINT_IN_TIME_RECOVERY_DISABLED"

  depends_on = [time_sleep.apis]
}

locals {
  # For the queries in docs/how-to/query-results.md that filter by several fields, or sort by another
  # field than they filter by. Firestore creates the indexes for other queries itself.
  composite_indexes = merge(
    {
      # yolo-batch results gs://BUCKET/PREFIX, and reconcile
      bucket_name = [{ path = "bucket", order = "ASCENDING" }, { path = "name", order = "ASCENDING" }]
    },
    var.query_by_time ? {
      status_time = [{ path = "status", order = "ASCENDING" }, { path = "created_at", order = "DESCENDING" }]
      labels_time = [{ path = "labels", array = true }, { path = "created_at", order = "DESCENDING" }]
    } : {},
  )

  # An index on a field that grows with time limits the collection to 500 new documents a second. So
  # event_time and generation are not indexed, because no query needs it. detections is not indexed,
  # because every number in it would cost an index entry. Query labels and counts instead.
  unindexed_fields = toset(["detections", "event_time", "generation"])
}

resource "google_firestore_index" "main" {
  for_each = local.composite_indexes

  database    = google_firestore_database.main.name
  collection  = var.firestore_collection
  query_scope = "COLLECTION"
  project     = var.project_id

  dynamic "fields" {
    for_each = each.value
    content {
      field_path   = fields.value.path
      order        = try(fields.value.order, null)
      array_config = try(fields.value.array, false) ? "CONTAINS" : null
    }
  }
}

resource "google_firestore_field" "unindexed" {
  for_each = local.unindexed_fields

  database   = google_firestore_database.main.name
  collection = var.firestore_collection
  field      = each.key
  project    = var.project_id

  index_config {}
}

# Only query_by_time indexes created_at, because the index limits the write rate (see above). Documents
# expire by created_at, which needs no index.
resource "google_firestore_field" "created_at" {
  database   = google_firestore_database.main.name
  collection = var.firestore_collection
  field      = "created_at"
  project    = var.project_id

  index_config {
    dynamic "indexes" {
      for_each = var.query_by_time ? ["ASCENDING", "DESCENDING"] : []
      content {
        order       = indexes.value
        query_scope = "COLLECTION"
      }
    }
  }

  dynamic "ttl_config" {
    for_each = var.results_ttl_days == null ? [] : [var.results_ttl_days]
    content {
      expiration_offset = "${ttl_config.value * 24 * 3600}s"
    }
  }
}
