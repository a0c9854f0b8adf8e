# What the service publishes after a commit: results and alerts. Both topics are optional. bigquery.tf and
# webhook.tf have the subscriptions of this module. Other systems add their own.

resource "google_pubsub_topic" "outputs" {
  for_each = local.topics

  name         = "${var.name}-${each.key}"
  project      = var.project_id
  labels       = local.labels
  kms_key_name = var.kms_key

  depends_on = [time_sleep.apis]
}

resource "google_pubsub_topic_iam_member" "service" {
  for_each = google_pubsub_topic.outputs

  topic   = each.value.name
  role    = "roles/pubsub.publisher"
  member  = google_service_account.service.member
  project = var.project_id
}

# Messages that BigQuery or the webhook did not take. They are not among the other dead letters, because
# `yolo-batch dead-letters` expects images.
resource "google_pubsub_topic" "undelivered" {
  for_each = local.delivered

  name         = "${var.name}-${each.key}-undelivered"
  project      = var.project_id
  labels       = local.labels
  kms_key_name = var.kms_key

  depends_on = [time_sleep.apis]
}

resource "google_pubsub_subscription" "undelivered" {
  for_each = google_pubsub_topic.undelivered

  name    = each.value.name
  topic   = each.value.id
  project = var.project_id
  labels  = local.labels

  message_retention_duration = "2678400s" # 31 days, the maximum

  expiration_policy {
    ttl = ""
  }
}

resource "google_pubsub_topic_iam_member" "undelivered" {
  for_each = google_pubsub_topic.undelivered

  topic   = each.value.name
  role    = "roles/pubsub.publisher"
  member  = google_project_service_identity.main["pubsub.googleapis.com"].member
  project = var.project_id
}

resource "google_pubsub_subscription_iam_member" "delivered" {
  for_each = {
    for key, subscriptions in {
      alerts  = google_pubsub_subscription.webhook[*].name
      results = google_pubsub_subscription.bigquery[*].name
    } : key => one(subscriptions) if contains(local.delivered, key)
  }

  subscription = each.value
  role         = "roles/pubsub.subscriber"
  member       = google_project_service_identity.main["pubsub.googleapis.com"].member
  project      = var.project_id
}

resource "google_monitoring_alert_policy" "undelivered" {
  count = length(local.delivered) > 0 ? 1 : 0

  display_name          = "${local.watched}: results or alerts were not delivered"
  combiner              = "OR"
  severity              = "ERROR"
  notification_channels = var.notification_channels
  user_labels           = local.labels
  project               = var.project_id

  conditions {
    display_name = "Messages in ${var.name}-results-undelivered or ${var.name}-alerts-undelivered"
    condition_prometheus_query_language {
      query                     = "sum(pubsub_googleapis_com:subscription_num_undelivered_messages{${local.of_subscription},subscription_id=~\"${var.name}-(alerts|results)-undelivered\"}) > 0"
      duration                  = "0s"
      evaluation_interval       = "60s"
      disable_metric_validation = true
    }
  }

  alert_strategy {
    auto_close = local.auto_close
  }

  documentation {
    mime_type = "text/markdown"
    content   = "BigQuery or the webhook refused some messages ${local.retry.attempts} times. The documents in Firestore are not affected. List the messages with `gcloud pubsub subscriptions pull ${var.name}-results-undelivered --project ${var.project_id} --limit 10`, or with ${var.name}-alerts-undelivered, which does not remove them. For BigQuery, compare the fields with the table's. For the webhook, look at its own log. Repair the cause. `yolo-batch submit gs://BUCKET/IMAGE --topic ${google_pubsub_topic.jobs.id}` publishes a stored result again, and does not run the model. An alert is not published again: `yolo-batch alerts list` shows it. To drop the messages, run `gcloud pubsub subscriptions seek ${var.name}-results-undelivered --project ${var.project_id} --time $(date -u +%Y-%m-%dT%H:%M:%SZ)`, or the same for ${var.name}-alerts-undelivered."
  }
}
