# Alert messages to a webhook. Only Terraform knows its address: a source cannot name one.

locals {
  webhook_transform = (
    contains(["json", "slack"], var.alert_webhook_transform)
    ? file("${path.module}/transforms/${var.alert_webhook_transform}.js")
    : var.alert_webhook_transform
  )
}

# It has no role. A webhook on Cloud Run may let it in.
resource "google_service_account" "alerts" {
  count = contains(local.delivered, "alerts") && var.alert_webhook_audience != null ? 1 : 0

  account_id   = "${var.name}-alerts"
  display_name = "${var.name}: calls the webhook of the alerts"
  project      = var.project_id

  depends_on = [time_sleep.apis]
}

# As for the callers of the service (service.tf).
resource "google_service_account_iam_member" "alerts" {
  count = length(google_service_account.alerts)

  service_account_id = google_service_account.alerts[count.index].name
  role               = "roles/iam.serviceAccountTokenCreator"
  member             = google_project_service_identity.main["pubsub.googleapis.com"].member
}

resource "google_pubsub_subscription" "webhook" {
  count = contains(local.delivered, "alerts") ? 1 : 0

  name    = "${var.name}-alerts-webhook"
  topic   = google_pubsub_topic.outputs["alerts"].id
  project = var.project_id
  labels  = local.labels

  ack_deadline_seconds       = 60 # for the webhook's response
  message_retention_duration = local.retry.retention

  push_config {
    push_endpoint = var.alert_webhook_url

    # The body is the data of the message. Its attributes become headers, so that the transform can set
    # Content-Type. https://docs.cloud.google.com/pubsub/docs/payload-unwrapping
    no_wrapper {
      write_metadata = true
    }

    dynamic "oidc_token" {
      for_each = google_service_account.alerts
      content {
        service_account_email = oidc_token.value.email
        audience              = var.alert_webhook_audience
      }
    }
  }

  message_transforms {
    javascript_udf {
      function_name = "transform"
      code          = local.webhook_transform
    }
  }

  retry_policy {
    minimum_backoff = local.retry.minimum_backoff
    maximum_backoff = local.retry.maximum_backoff
  }

  dead_letter_policy {
    dead_letter_topic     = google_pubsub_topic.undelivered["alerts"].id
    max_delivery_attempts = local.retry.attempts
  }

  expiration_policy {
    ttl = ""
  }

  depends_on = [
    google_pubsub_topic_iam_member.undelivered,
    google_service_account_iam_member.alerts,
  ]
}
