# The jobs that users, back-fills and the reconcile job publish, and the dead letters of jobs and
# uploads.

resource "google_pubsub_topic" "jobs" {
  name         = "${var.name}-jobs"
  project      = var.project_id
  labels       = local.labels
  kms_key_name = var.kms_key

  depends_on = [time_sleep.apis]
}

resource "google_pubsub_subscription" "jobs" {
  name    = "${var.name}-jobs"
  topic   = google_pubsub_topic.jobs.id
  project = var.project_id
  labels  = local.labels

  ack_deadline_seconds       = local.ack_deadline_seconds
  message_retention_duration = local.retry.retention

  push_config {
    push_endpoint = google_cloud_run_v2_service.main.uri
    oidc_token {
      service_account_email = google_service_account.events["jobs"].email
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
    ttl = "" # never. By default, a subscription expires after 31 idle days.
  }

  depends_on = [
    google_firestore_database.main,
    google_pubsub_topic_iam_member.dead_letters,
    time_sleep.agent_grants,
    time_sleep.callers,
  ]
}

resource "google_pubsub_subscription_iam_member" "jobs" {
  subscription = google_pubsub_subscription.jobs.name
  role         = "roles/pubsub.subscriber"
  member       = google_project_service_identity.main["pubsub.googleapis.com"].member
  project      = var.project_id
}

resource "google_pubsub_topic" "dead_letters" {
  name         = "${var.name}-dead-letters"
  project      = var.project_id
  labels       = local.labels
  kms_key_name = var.kms_key

  depends_on = [time_sleep.apis]
}

# A topic without a subscription drops its messages.
resource "google_pubsub_subscription" "dead_letters" {
  name    = "${var.name}-dead-letters"
  topic   = google_pubsub_topic.dead_letters.id
  project = var.project_id
  labels  = local.labels

  ack_deadline_seconds       = local.ack_deadline_seconds
  message_retention_duration = "2678400s" # 31 days, the maximum

  expiration_policy {
    ttl = ""
  }
}

resource "google_pubsub_topic_iam_member" "dead_letters" {
  topic   = google_pubsub_topic.dead_letters.name
  role    = "roles/pubsub.publisher"
  member  = google_project_service_identity.main["pubsub.googleapis.com"].member
  project = var.project_id
}
