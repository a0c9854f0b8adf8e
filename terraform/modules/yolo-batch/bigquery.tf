# Result messages as rows. The service does not know BigQuery: Pub/Sub writes the rows. A message may come
# twice, so the table has each message, and the view `results` the newest row of each document.

locals {
  dataset = replace(var.name, "-", "_")
  # For SQL and Pub/Sub, which need more than a table's own name.
  dataset_path = "${var.project_id}.${local.dataset}"
}

# Enabled by default in new projects, and needed only here.
resource "google_project_service" "bigquery" {
  count = contains(local.delivered, "results") ? 1 : 0

  service = "bigquery.googleapis.com"
  project = var.project_id
  # Other parts of the project may use it.
  disable_on_destroy = false
}

resource "time_sleep" "bigquery" {
  count = length(google_project_service.bigquery)

  create_duration = "60s"
  triggers        = { api = google_project_service.bigquery[count.index].id }
}

resource "google_bigquery_dataset" "results" {
  count = length(time_sleep.bigquery)

  dataset_id  = local.dataset
  location    = var.region
  description = "Results of ${var.name}."
  project     = var.project_id
  labels      = local.labels

  delete_contents_on_destroy = !var.protect_data

  dynamic "default_encryption_configuration" {
    for_each = var.kms_key[*]
    content {
      kms_key_name = default_encryption_configuration.value
    }
  }
}

resource "google_bigquery_table" "messages" {
  count = length(google_bigquery_dataset.results)

  dataset_id  = google_bigquery_dataset.results[count.index].dataset_id
  table_id    = "messages"
  description = "One row for each result message."
  project     = var.project_id
  labels      = local.labels

  # Written from the message by `python -m devtools.docs`.
  schema     = file("${path.module}/results_table.json")
  clustering = ["source_id"]

  # guards.tf protects it earlier.
  deletion_protection = var.protect_data

  time_partitioning {
    type  = "DAY"
    field = "created_at"
    # Not null, because the provider would then keep an earlier value.
    expiration_ms = var.results_ttl_days == null ? 0 : var.results_ttl_days * 24 * 3600 * 1000
  }

  dynamic "encryption_configuration" {
    for_each = var.kms_key[*]
    content {
      kms_key_name = encryption_configuration.value
    }
  }
}

# Views have no data of their own, so nothing protects them.
resource "google_bigquery_table" "results" {
  count = length(google_bigquery_table.messages)

  dataset_id          = google_bigquery_table.messages[count.index].dataset_id
  table_id            = "results"
  description         = "The newest result of each image. Deleted results are left out."
  project             = var.project_id
  labels              = local.labels
  deletion_protection = false

  view {
    query          = templatefile("${path.module}/views/results.sql", { table = "${local.dataset_path}.${google_bigquery_table.messages[count.index].table_id}" })
    use_legacy_sql = false
  }
}

resource "google_bigquery_table" "detections" {
  count = length(google_bigquery_table.results)

  dataset_id          = google_bigquery_table.results[count.index].dataset_id
  table_id            = "detections"
  description         = "One row for each detection of the view results."
  project             = var.project_id
  labels              = local.labels
  deletion_protection = false

  view {
    query          = templatefile("${path.module}/views/detections.sql", { results = "${local.dataset_path}.${google_bigquery_table.results[count.index].table_id}" })
    use_legacy_sql = false
  }
}

# On this table only. https://docs.cloud.google.com/pubsub/docs/create-bigquery-subscription
resource "google_bigquery_table_iam_member" "pubsub" {
  count = length(google_bigquery_table.messages)

  dataset_id = google_bigquery_table.messages[count.index].dataset_id
  table_id   = google_bigquery_table.messages[count.index].table_id
  role       = "roles/bigquery.dataEditor"
  member     = google_project_service_identity.main["pubsub.googleapis.com"].member
  project    = var.project_id
}

# Pub/Sub refuses a subscription whose table it cannot write to yet.
resource "time_sleep" "bigquery_grant" {
  count = length(google_bigquery_table_iam_member.pubsub)

  create_duration = "120s"
  triggers        = { grant = google_bigquery_table_iam_member.pubsub[count.index].id }
}

resource "google_pubsub_subscription" "bigquery" {
  count = length(time_sleep.bigquery_grant)

  name    = "${var.name}-results-bigquery"
  topic   = google_pubsub_topic.outputs["results"].id
  project = var.project_id
  labels  = local.labels

  message_retention_duration = local.retry.retention

  bigquery_config {
    table            = "${local.dataset_path}.${google_bigquery_table.messages[count.index].table_id}"
    use_table_schema = true
    # A newer service may publish a field before the table has it.
    drop_unknown_fields = true
  }

  retry_policy {
    minimum_backoff = local.retry.minimum_backoff
    maximum_backoff = local.retry.maximum_backoff
  }

  dead_letter_policy {
    dead_letter_topic     = google_pubsub_topic.undelivered["results"].id
    max_delivery_attempts = local.retry.attempts
  }

  expiration_policy {
    ttl = ""
  }

  depends_on = [google_pubsub_topic_iam_member.undelivered]
}
