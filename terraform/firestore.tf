resource "google_firestore_database" "main" {
  name             = var.firestore_database
  location_id      = coalesce(var.firestore_location, var.region)
  type             = "FIRESTORE_NATIVE"
  database_edition = "STANDARD"

  # With the provider's default, ABANDON, a destroy would leave the database behind and the next
  # apply fail with 409. Protected, a destroy fails instead, and loses nothing.
  delete_protection_state           = var.protect_data ? "DELETE_PROTECTION_ENABLED" : "DELETE_PROTECTION_DISABLED"
  deletion_policy                   = "DELETE"
  point_in_time_recovery_enablement = "POINT_IN_TIME_RECOVERY_DISABLED"

  depends_on = [time_sleep.apis]
}

locals {
  # Each query of docs/how-to/query-results.md that filters by more than one field, or by one and sorts by another.
  # The others need only the indexes that Firestore makes by itself.
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

  # An index on a field that grows with time caps the collection at 500 new documents a second:
  # event_time is never queried, nor is generation without the document's id. detections would
  # cost an index entry for every number in it; labels and counts are what is queried.
  unindexed_fields = toset(["detections", "event_time", "generation"])
}

resource "google_firestore_index" "main" {
  for_each = local.composite_indexes

  database    = google_firestore_database.main.name
  collection  = var.firestore_collection
  query_scope = "COLLECTION"

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

  index_config {}
}

# created_at: not indexed unless query_by_time asks for it, which has its price (above). Documents
# expire by it, which needs no index.
resource "google_firestore_field" "created_at" {
  database   = google_firestore_database.main.name
  collection = var.firestore_collection
  field      = "created_at"

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
