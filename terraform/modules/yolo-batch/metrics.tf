# Metrics from the service's log lines (of service/recorder.py and service/server/app.py) and from Cloud
# Run's request logs. dashboard.tf and alerts.tf use them.

locals {
  # The name of the service that exists. Another accelerator means another name, and what watches the service
  # must not follow before the new service has been created.
  watched = google_cloud_run_v2_service.main.name

  log_of_service = "resource.type=\"cloud_run_revision\" AND resource.labels.service_name=\"${local.watched}\""

  # Distributions of the numbers in the log line of a commit. Outcomes are counted since the previous
  # line. A line that lacks an outcome adds nothing to the metric of that outcome.
  commit_metrics = {
    images             = { unit = "1", description = "Images in a commit." }
    commit_ms          = { unit = "ms", description = "Duration of a commit to Firestore." }
    done               = { unit = "1", description = "Images recorded with their detections." }
    failed             = { unit = "1", description = "Images recorded as failed." }
    parked             = { unit = "1", description = "Deliveries of images that were parked, because the day's limit was reached." }
    already_recorded   = { unit = "1", description = "Deliveries of images that already had a final document." }
    superseded         = { unit = "1", description = "Results that were dropped, because another delivery committed its document first." }
    deleted            = { unit = "1", description = "Results that were deleted, because their objects were deleted." }
    disabled           = { unit = "1", description = "Images of disabled sources, which are recorded nowhere." }
    gone               = { unit = "1", description = "Images that were deleted or overwritten before they were read." }
    bucket_not_allowed = { unit = "1", description = "Images whose bucket is not in ALLOWED_BUCKETS." }
    ignored            = { unit = "1", description = "Requests that name no image." }
  }
  outcomes = [for key in keys(local.commit_metrics) : key if !contains(["commit_ms", "images"], key)]

  # Counters of log lines, by one of their fields.
  line_metrics = {
    failures    = { filter = "jsonPayload.message=\"An image failed\"", label = "code", field = "jsonPayload.code", description = "Images recorded as failed, by error code." }
    http_errors = { filter = "log_id(\"run.googleapis.com/requests\") AND httpRequest.status>=400", label = "status", field = "httpRequest.status", description = "Responses of Cloud Run and of the service, by HTTP status from 400." }
    rejected    = { filter = "jsonPayload.message=\"Rejected a message\"", label = "status", field = "jsonPayload.status", description = "Messages rejected with 429 or 503, which are redelivered." }
  }
}

resource "google_logging_metric" "commit" {
  for_each = local.commit_metrics

  name            = "${var.name}/${each.key}"
  description     = each.value.description
  filter          = "${local.log_of_service} AND jsonPayload.message=(\"Committed\" OR \"Outcomes\")"
  value_extractor = "EXTRACT(jsonPayload.${each.key})"
  project         = var.project_id

  metric_descriptor {
    metric_kind = "DELTA"
    value_type  = "DISTRIBUTION"
    unit        = each.value.unit
  }

  bucket_options {
    exponential_buckets {
      num_finite_buckets = 32
      growth_factor      = 1.5
      scale              = 1
    }
  }

  depends_on = [time_sleep.apis]
}

resource "google_logging_metric" "line" {
  for_each = local.line_metrics

  name             = "${var.name}/${each.key}"
  description      = each.value.description
  filter           = "${local.log_of_service} AND ${each.value.filter}"
  label_extractors = { (each.value.label) = "EXTRACT(${each.value.field})" }
  project          = var.project_id

  metric_descriptor {
    metric_kind = "DELTA"
    value_type  = "INT64"
    unit        = "1"
    labels {
      key        = each.value.label
      value_type = "STRING"
    }
  }

  depends_on = [time_sleep.apis]
}

# The parts of PromQL queries.
locals {
  # The metrics' names in PromQL: the first / becomes a colon, other special characters become _.
  prom = { for key in concat(keys(local.commit_metrics), keys(local.line_metrics)) : key => "logging_googleapis_com:user_${replace("${var.name}/${key}", "/[^a-zA-Z0-9_]/", "_")}" }

  of_revision     = "monitored_resource=\"cloud_run_revision\""
  of_service      = "${local.of_revision},service_name=\"${local.watched}\""
  of_detect       = "${local.of_revision},service_name=\"${local.detect_name}\""
  of_subscription = "monitored_resource=\"pubsub_subscription\""
  of_dead_letters = "${local.of_subscription},subscription_id=\"${google_pubsub_subscription.dead_letters.name}\""
  of_uploads      = "${local.of_subscription},subscription_id=~\"${local.uploads_subscriptions}\""
  of_work         = "${local.of_subscription},subscription_id=~\"${local.work_subscriptions}\""

  # Eventarc names a subscription eventarc-REGION-TRIGGER-sub-NUMBER.
  uploads_subscriptions = "${var.name}-uploads|eventarc-${var.region}-${var.name}-uploads-sub-.*"
  deletes_subscriptions = "${var.name}-deletes|eventarc-${var.region}-${var.name}-deletes-sub-.*"
  work_subscriptions    = "${var.name}-jobs|${local.uploads_subscriptions}|${local.deletes_subscriptions}"
}
