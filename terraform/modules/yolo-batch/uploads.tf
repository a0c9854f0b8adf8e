# How uploads, and deletes if they matter, reach the service: by Eventarc, by notifications to topics of this
# module, or by both while you switch.

locals {
  # Deletes have a subscription of their own, so that uploads do not wait for the deletion of a large folder.
  bucket_events = merge(
    { uploads = { eventarc = "google.cloud.storage.object.v1.finalized", notification = "OBJECT_FINALIZE" } },
    var.delete_results_with_objects
    ? { deletes = { eventarc = "google.cloud.storage.object.v1.deleted", notification = "OBJECT_DELETE" } }
    : {},
  )
  by_eventarc = var.upload_events == "notification" ? {} : local.bucket_events
  by_topic    = var.upload_events == "eventarc" ? {} : local.bucket_events

  # Eventarc chooses the names of its subscriptions.
  eventarc_subscriptions = {
    for key, trigger in google_eventarc_trigger.uploads :
    key => one([for path in flatten(trigger.transport[*].pubsub[*].subscription) : basename(path)])
  }
  tune_subscription = {
    for key, subscription in local.eventarc_subscriptions : key => join(" ", [
      "gcloud pubsub subscriptions update ${coalesce(subscription, "unknown")} --quiet",
      "--project=${var.project_id}",
      "--ack-deadline=${local.ack_deadline_seconds}",
      "--message-retention-duration=${local.retry.retention}",
      "--expiration-period=never",
      "--dead-letter-topic=${google_pubsub_topic.dead_letters.id}",
      "--max-delivery-attempts=${local.retry.attempts}",
      "--min-retry-delay=${local.retry.minimum_backoff}",
      "--max-retry-delay=${local.retry.maximum_backoff}",
    ])
  }
  # Terraform does not wrap an indented line, so the command can be copied.
  repair_subscription = "To repair it, run:\n\n  ${join("\n  ", values(local.tune_subscription))}"
}

# --- Eventarc

resource "google_project_iam_member" "event_receiver" {
  for_each = toset(var.upload_events == "notification" ? [] : ["uploads"])

  project = var.project_id
  role    = "roles/eventarc.eventReceiver"
  member  = google_service_account.events["uploads"].member
}

# No retry_policy is set, because its only possible value, max_attempts = 1, would disable retries.
resource "google_eventarc_trigger" "uploads" {
  for_each = local.by_eventarc

  name            = "${var.name}-${each.key}"
  location        = var.region
  service_account = google_service_account.events["uploads"].email
  project         = var.project_id
  labels          = local.labels

  matching_criteria {
    attribute = "type"
    value     = each.value.eventarc
  }

  matching_criteria {
    attribute = "bucket"
    value     = local.uploads_bucket
  }

  destination {
    cloud_run_service {
      service = google_cloud_run_v2_service.main.name
      region  = var.region
    }
  }

  depends_on = [
    google_firestore_database.main,
    time_sleep.agent_grants,
    time_sleep.callers,
  ]
}

# Eventarc creates its subscription with an ack deadline of 10 s, without dead letters, and with a
# retention of one day. The provider cannot change a subscription that it did not create, so gcloud does.
# A new trigger has a new subscription.
resource "terraform_data" "tuned_subscription" {
  for_each = local.by_eventarc

  input = local.eventarc_subscriptions[each.key]
  triggers_replace = {
    subscription = local.eventarc_subscriptions[each.key]
    trigger      = google_eventarc_trigger.uploads[each.key].uid
    commands = [
      local.tune_subscription[each.key],
      join(" ", [
        "gcloud pubsub subscriptions add-iam-policy-binding ${coalesce(local.eventarc_subscriptions[each.key], "unknown")} --quiet",
        "--project=${var.project_id}",
        "--member=${google_project_service_identity.main["pubsub.googleapis.com"].member}",
        "--role=roles/pubsub.subscriber",
      ]),
    ]
  }

  provisioner "local-exec" {
    command = join(" && ", self.triggers_replace.commands)
  }

  depends_on = [google_pubsub_topic_iam_member.dead_letters]
}

# Read in every plan, because nothing else shows that somebody changed the subscription. Outside of the
# check, because a plan with a data source inside of a check is never empty.
data "google_pubsub_subscription" "uploads" {
  for_each = terraform_data.tuned_subscription

  name    = each.value.output
  project = var.project_id
}

check "uploads_subscription" {
  assert {
    condition = alltrue([
      for subscription in data.google_pubsub_subscription.uploads :
      subscription.ack_deadline_seconds == local.ack_deadline_seconds
    ])
    error_message = "A subscription of Eventarc does not have an ack deadline of ${local.ack_deadline_seconds} s, so uploads will be delivered and inferred more than once. ${local.repair_subscription}"
  }

  assert {
    condition = alltrue([
      for subscription in data.google_pubsub_subscription.uploads : endswith(
        join(",", subscription.dead_letter_policy[*].dead_letter_topic),
        "/topics/${google_pubsub_topic.dead_letters.name}",
      )
    ])
    error_message = "A subscription of Eventarc does not have the dead-letter topic ${google_pubsub_topic.dead_letters.name}, so messages that fail repeatedly will be lost. ${local.repair_subscription}"
  }

  assert {
    condition = alltrue([
      for subscription in data.google_pubsub_subscription.uploads :
      subscription.message_retention_duration == local.retry.retention
      && join(",", subscription.retry_policy[*].minimum_backoff) == local.retry.minimum_backoff
      && join(",", subscription.retry_policy[*].maximum_backoff) == local.retry.maximum_backoff
      && join(",", subscription.dead_letter_policy[*].max_delivery_attempts) == tostring(local.retry.attempts)
    ])
    error_message = "A subscription of Eventarc does not have a retention of ${local.retry.retention} and ${local.retry.attempts} attempts with a back-off from ${local.retry.minimum_backoff} to ${local.retry.maximum_backoff}, so a long outage may lose uploads. ${local.repair_subscription}"
  }
}

# --- Notification

resource "google_pubsub_topic" "uploads" {
  for_each = local.by_topic

  name         = "${var.name}-${each.key}"
  project      = var.project_id
  labels       = local.labels
  kms_key_name = var.kms_key

  depends_on = [time_sleep.apis]
}

resource "google_pubsub_topic_iam_member" "storage_agent" {
  for_each = google_pubsub_topic.uploads

  topic   = each.value.name
  role    = "roles/pubsub.publisher"
  member  = local.storage_agent
  project = var.project_id

  depends_on = [data.google_storage_project_service_account.main]
}

resource "google_storage_notification" "uploads" {
  for_each = google_pubsub_topic.uploads

  bucket             = local.uploads_bucket
  topic              = each.value.id
  payload_format     = "JSON_API_V1"
  event_types        = [local.by_topic[each.key].notification]
  object_name_prefix = var.object_prefix

  # Its creation fails until the grant takes effect. Messages are lost if there is no subscription yet.
  depends_on = [
    google_pubsub_subscription.uploads,
    time_sleep.agent_grants,
  ]
}

# The smoke test uploads objects below smoke/, which object_prefix does not cover.
resource "google_storage_notification" "smoke" {
  for_each = var.object_prefix == null ? {} : google_pubsub_topic.uploads

  bucket             = local.uploads_bucket
  topic              = each.value.id
  payload_format     = "JSON_API_V1"
  event_types        = [local.by_topic[each.key].notification]
  object_name_prefix = "smoke/"

  depends_on = [
    google_pubsub_subscription.uploads,
    time_sleep.agent_grants,
  ]
}

resource "google_pubsub_subscription" "uploads" {
  for_each = google_pubsub_topic.uploads

  name    = "${var.name}-${each.key}"
  topic   = each.value.id
  project = var.project_id
  labels  = local.labels

  ack_deadline_seconds       = local.ack_deadline_seconds
  message_retention_duration = local.retry.retention

  push_config {
    push_endpoint = google_cloud_run_v2_service.main.uri
    oidc_token {
      service_account_email = google_service_account.events["uploads"].email
      audience              = google_cloud_run_v2_service.main.uri
    }
  }

  retry_policy {
    minimum_backoff = local.retry.minimum_backoff
    maximum_backoff = local.retry.maximum_backoff
  }

  dead_letter_policy {
    dead_letter_topic     = google_pubsub_topic.dead_letters.id
    max_delivery_attempts = local.retry.attempts
  }

  expiration_policy {
    ttl = ""
  }

  depends_on = [
    google_firestore_database.main,
    google_pubsub_topic_iam_member.dead_letters,
    time_sleep.agent_grants,
    time_sleep.callers,
  ]
}

resource "google_pubsub_subscription_iam_member" "uploads" {
  for_each = google_pubsub_subscription.uploads

  subscription = each.value.name
  role         = "roles/pubsub.subscriber"
  member       = google_project_service_identity.main["pubsub.googleapis.com"].member
  project      = var.project_id
}
