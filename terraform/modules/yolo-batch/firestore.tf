resource "google_firestore_database" "main" {
  count = var.create_database ? 1 : 0

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

  dynamic "cmek_config" {
    for_each = var.kms_key[*]
    content {
      kms_key_name = cmek_config.value
    }
  }

  depends_on = [time_sleep.apis]
}

locals {
  # The name, known only when the database exists, so that what uses it waits for the database. The
  # provider cannot read a database that exists.
  database = var.create_database ? one(google_firestore_database.main[*].name) : var.firestore_database

  database_path = "projects/${var.project_id}/databases/${var.firestore_database}"

  # Of the roles that read or write documents. Without it, they apply to every database of the project.
  # Source: https://docs.cloud.google.com/firestore/native/docs/manage-databases ("Configure per-database
  # access permissions"). It compares the name of the database. The second part allows for calls that may
  # be checked by the name of a field below it: the reconcile job reads when results expire.
  database_condition = {
    title      = "database"
    expression = "resource.name == \"${local.database_path}\" || resource.name.startsWith(\"${local.database_path}/\")"
  }
}

# Every index is in these locals. tests/deploy/test_indexes.py derives what the queries in the
# documentation, in service/ and in examples/ need. It fails if an index is missing, or is not used.
locals {
  # Indexes of single fields. A map's index covers its subfields, such as counts.car. No other field
  # has an index: each would cost storage and time in every write (index_all_fields). Never index
  # detections, where each number would be an entry, nor a field that grows with time: its index limits
  # the collection to 500 new documents a second. So these have none, even with index_all_fields.
  single_field_indexes = {
    best                 = ["ASCENDING", "DESCENDING"]
    counts               = ["ASCENDING"]
    counts_by_zone       = ["ASCENDING"]
    "error.code"         = ["ASCENDING"]
    labels               = ["CONTAINS"]
    max_confidence       = ["DESCENDING"]
    uncertain_confidence = ["ASCENDING"]

    captured_at = []
    classes     = []
    detections  = []
    event_time  = []
    faint       = []
    generation  = []
  }

  # An index of created_at has shard before it. So ten ranges of the index grow with time. One range
  # would limit the collection to 500 new documents a second (docs/decisions/0018-shards.md).
  composite_indexes = {
    # yolo-batch results gs://BUCKET/PREFIX
    bucket_name = [{ path = "bucket", mode = "ASCENDING" }, { path = "name", mode = "ASCENDING" }]
    # The result of the current object
    uri_generation = [{ path = "uri", mode = "ASCENDING" }, { path = "generation", mode = "DESCENDING" }]

    # The same for a label, and for what became of the images
    name_of_found = [
      { path = "found", mode = "ASCENDING" },
      { path = "bucket", mode = "ASCENDING" },
      { path = "name", mode = "ASCENDING" },
    ]
    name_of_label = [
      { path = "labels", mode = "CONTAINS" },
      { path = "bucket", mode = "ASCENDING" },
      { path = "name", mode = "ASCENDING" },
    ]
    name_of_status = [
      { path = "status", mode = "ASCENDING" },
      { path = "bucket", mode = "ASCENDING" },
      { path = "name", mode = "ASCENDING" },
    ]

    # Firestore merges those that end with the same order. So the conditions can be combined.
    newest = [{ path = "shard", mode = "ASCENDING" }, { path = "created_at", mode = "DESCENDING" }]
    newest_of_day = [
      { path = "day", mode = "ASCENDING" },
      { path = "shard", mode = "ASCENDING" },
      { path = "created_at", mode = "DESCENDING" },
    ]
    newest_of_error = [
      { path = "error.code", mode = "ASCENDING" },
      { path = "shard", mode = "ASCENDING" },
      { path = "created_at", mode = "DESCENDING" },
    ]
    newest_of_found = [
      { path = "found", mode = "ASCENDING" },
      { path = "shard", mode = "ASCENDING" },
      { path = "created_at", mode = "DESCENDING" },
    ]
    newest_of_label = [
      { path = "labels", mode = "CONTAINS" },
      { path = "shard", mode = "ASCENDING" },
      { path = "created_at", mode = "DESCENDING" },
    ]
    newest_of_source = [
      { path = "source.id", mode = "ASCENDING" },
      { path = "shard", mode = "ASCENDING" },
      { path = "created_at", mode = "DESCENDING" },
    ]
    newest_of_status = [
      { path = "status", mode = "ASCENDING" },
      { path = "shard", mode = "ASCENDING" },
      { path = "created_at", mode = "DESCENDING" },
    ]
    newest_of_zone = [
      { path = "zone_labels", mode = "CONTAINS" },
      { path = "shard", mode = "ASCENDING" },
      { path = "created_at", mode = "DESCENDING" },
    ]
    # The next newer image of a source
    oldest_of_source = [
      { path = "source.id", mode = "ASCENDING" },
      { path = "shard", mode = "ASCENDING" },
      { path = "created_at", mode = "ASCENDING" },
    ]

    # By confidence
    confident_of_source = [
      { path = "source.id", mode = "ASCENDING" },
      { path = "max_confidence", mode = "DESCENDING" },
    ]
    uncertain_of_source = [
      { path = "source.id", mode = "ASCENDING" },
      { path = "uncertain_confidence", mode = "ASCENDING" },
    ]
  }

  # Of the alert documents, which have their own collection.
  alert_field_indexes = {
    suppressed_by = ["ASCENDING"]
  }
  alert_composite_indexes = {
    newest = [{ path = "shard", mode = "ASCENDING" }, { path = "created_at", mode = "DESCENDING" }]
    newest_of_source = [
      { path = "source_id", mode = "ASCENDING" },
      { path = "shard", mode = "ASCENDING" },
      { path = "created_at", mode = "DESCENDING" },
    ]
  }
}

locals {
  # What Firestore would do by itself. CONTAINS applies to arrays, the other two to all other values.
  automatic_indexes = ["ASCENDING", "DESCENDING", "CONTAINS"]

  field_indexes = merge(
    {
      for field, modes in local.single_field_indexes :
      field => length(modes) > 0 && var.index_all_fields ? local.automatic_indexes : modes
    },
    { for field in var.indexed_fields : field => local.automatic_indexes },
  )

  alerts_collection = "${var.firestore_collection}-alerts"
}

# No operation on an index is waited for: it may take hours in a large collection, and only queries need
# the index.
resource "google_firestore_index" "main" {
  for_each = local.composite_indexes

  database    = local.database
  collection  = var.firestore_collection
  query_scope = "COLLECTION"
  project     = var.project_id
  skip_wait   = true

  dynamic "fields" {
    for_each = each.value
    content {
      field_path   = fields.value.path
      order        = fields.value.mode == "CONTAINS" ? null : fields.value.mode
      array_config = fields.value.mode == "CONTAINS" ? "CONTAINS" : null
    }
  }
}

resource "google_firestore_field" "indexed" {
  for_each = local.field_indexes

  database   = local.database
  collection = var.firestore_collection
  field      = each.key
  project    = var.project_id
  skip_wait  = true

  # A deleted field takes the configuration of "*". So a field that leaves indexed_fields loses its
  # index. The others keep theirs when the deployment is destroyed, for documents that stay.
  deletion_policy = var.index_all_fields || contains(keys(local.single_field_indexes), each.key) ? "ABANDON" : "DELETE"

  index_config {
    dynamic "indexes" {
      for_each = each.value
      content {
        order        = indexes.value == "CONTAINS" ? null : indexes.value
        array_config = indexes.value == "CONTAINS" ? "CONTAINS" : null
        query_scope  = "COLLECTION"
      }
    }
  }
}

resource "google_firestore_index" "alerts" {
  for_each = local.alert_composite_indexes

  database    = local.database
  collection  = local.alerts_collection
  query_scope = "COLLECTION"
  project     = var.project_id
  skip_wait   = true

  dynamic "fields" {
    for_each = each.value
    content {
      field_path = fields.value.path
      order      = fields.value.mode
    }
  }
}

# All other fields. Last, so that a field that keeps its index does not lose it for a moment. ABANDON,
# because a reset would make Firestore index every field of the documents that stay.
resource "google_firestore_field" "others" {
  database        = local.database
  collection      = var.firestore_collection
  field           = "*"
  project         = var.project_id
  skip_wait       = true
  deletion_policy = "ABANDON"

  index_config {
    dynamic "indexes" {
      for_each = var.index_all_fields ? local.automatic_indexes : []
      content {
        order        = indexes.value == "CONTAINS" ? null : indexes.value
        array_config = indexes.value == "CONTAINS" ? "CONTAINS" : null
        query_scope  = "COLLECTION"
      }
    }
  }

  depends_on = [google_firestore_field.indexed, google_firestore_field.created_at]
}

# The fields of alert documents: as those of results, but index_all_fields has no effect on them.
resource "google_firestore_field" "alerts" {
  for_each = merge({ "*" = [] }, local.alert_field_indexes)

  database        = local.database
  collection      = local.alerts_collection
  field           = each.key
  project         = var.project_id
  skip_wait       = true
  deletion_policy = "ABANDON"

  index_config {
    dynamic "indexes" {
      for_each = each.value
      content {
        order       = indexes.value
        query_scope = "COLLECTION"
      }
    }
  }
}

# Results and alerts expire by created_at, which needs no index of its own.
#
# The provider replaces the field whenever results_ttl_days changes. The first value must not reset the
# field, so the field without a TTL is abandoned: creating it again adds the TTL to what is there. A
# field with a TTL is deleted first, because only that certainly removes the TTL. It then takes the
# configuration of "*".
resource "google_firestore_field" "created_at" {
  for_each = {
    alerts  = local.alerts_collection
    results = var.firestore_collection
  }

  database        = local.database
  collection      = each.value
  field           = "created_at"
  project         = var.project_id
  skip_wait       = true
  deletion_policy = var.results_ttl_days == null ? "ABANDON" : "DELETE"

  index_config {}

  dynamic "ttl_config" {
    for_each = var.results_ttl_days == null ? [] : [var.results_ttl_days]
    content {
      expiration_offset = "${ttl_config.value * 24 * 3600}s"
    }
  }

  timeouts {
    delete = "2h"
  }
}

# Tombstones of deleted objects, and the cooldowns of rules, each in a collection of their own. The service
# reads them by id, so no field has an index. An index of expires_at would limit the collection to 500
# deleted objects a second.
resource "google_firestore_field" "expiring" {
  for_each = {
    for pair in setproduct(["cooldowns", "deleted"], ["*", "expires_at"]) :
    join("/", pair) => { collection = pair[0], field = pair[1] }
  }

  database        = local.database
  collection      = "${var.firestore_collection}-${each.value.collection}"
  field           = each.value.field
  project         = var.project_id
  skip_wait       = true
  deletion_policy = "ABANDON"

  index_config {}

  dynamic "ttl_config" {
    for_each = each.value.field == "expires_at" ? [each.key] : []
    content {}
  }
}

moved {
  from = google_firestore_field.created_at
  to   = google_firestore_field.created_at["results"]
}

moved {
  from = google_firestore_field.tombstones["*"]
  to   = google_firestore_field.expiring["deleted/*"]
}

moved {
  from = google_firestore_field.tombstones["expires_at"]
  to   = google_firestore_field.expiring["deleted/expires_at"]
}

moved {
  from = google_firestore_field.unindexed
  to   = google_firestore_field.indexed
}
