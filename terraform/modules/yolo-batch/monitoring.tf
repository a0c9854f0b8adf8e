# Metrics from the service's log lines (of service/recorder.py and service/server/app.py), a dashboard,
# and alerts. The alerts use Google's own metrics, which exist before the first log line.

locals {
  log_of_service = "resource.type=\"cloud_run_revision\" AND resource.labels.service_name=\"${local.service_name}\""

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
    gone               = { unit = "1", description = "Images that were deleted or overwritten before they were read." }
    bucket_not_allowed = { unit = "1", description = "Images whose bucket is not in ALLOWED_BUCKETS." }
    ignored            = { unit = "1", description = "Requests that name no image." }
  }
  outcomes = [for key in keys(local.commit_metrics) : key if !contains(["commit_ms", "images"], key)]

  # Counters of log lines, by one of their fields.
  line_metrics = {
    failures = { message = "An image failed", label = "code", description = "Images recorded as failed, by error code." }
    rejected = { message = "Rejected a message", label = "status", description = "Messages rejected with 429 or 503, which are redelivered." }
  }

  dead_letters_id = google_pubsub_subscription.dead_letters.name
  # Eventarc names its subscription eventarc-REGION-TRIGGER-sub-NUMBER.
  work_subscriptions = "${var.name}-(jobs|uploads)|eventarc-${var.region}-${var.name}-uploads-sub-.*"
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
  filter           = "${local.log_of_service} AND jsonPayload.message=\"${each.value.message}\""
  label_extractors = { (each.value.label) = "EXTRACT(jsonPayload.${each.value.label})" }
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

locals {
  # The metrics' names in PromQL: the first / becomes a colon, other special characters become _.
  prom        = { for key in concat(keys(local.commit_metrics), keys(local.line_metrics)) : key => "logging_googleapis_com:user_${replace("${var.name}/${key}", "/[^a-zA-Z0-9_]/", "_")}" }
  of_revision = "monitored_resource=\"cloud_run_revision\""
  of_service  = "${local.of_revision},service_name=\"${local.service_name}\""
  of_work     = "monitored_resource=\"pubsub_subscription\",subscription_id=~\"${local.work_subscriptions}\""
  latencies   = "sum by (le) (rate(run_googleapis_com:request_latencies_bucket{${local.of_service}}[5m]))"
  mean        = { for key in ["commit_ms", "images"] : key => "sum(rate(${local.prom[key]}_sum{${local.of_revision}}[5m])) / sum(rate(${local.prom[key]}_count{${local.of_revision}}[5m]))" }

  tiles = [
    { title = "Images recorded a second", queries = { images = "sum(rate(${local.prom.images}_sum{${local.of_revision}}[5m]))" } },
    { title = "Failed images a second, by code", queries = { failures = "sum by (code) (rate(${local.prom.failures}{${local.of_revision}}[5m]))" } },
    { title = "Images in a commit, mean", queries = { images = local.mean.images } },
    { title = "Outcomes a second", queries = { for key in local.outcomes : key => "sum(rate(${local.prom[key]}_sum{${local.of_revision}}[5m]))" } },
    { title = "Milliseconds of a request", queries = { for share in ["0.5", "0.95"] : share => "histogram_quantile(${share}, ${local.latencies})" } },
    { title = "Milliseconds of a commit, mean", queries = { commit = local.mean.commit_ms } },
    { title = "Requests a second, by status", queries = { requests = "sum by (response_code) (rate(run_googleapis_com:request_count{${local.of_service}}[5m]))" } },
    { title = "Rejected messages a second, by status", queries = { rejected = "sum by (status) (rate(${local.prom.rejected}{${local.of_revision}}[5m]))" } },
    { title = "Instances", queries = { instances = "sum by (state) (run_googleapis_com:container_instance_count{${local.of_service}})" } },
    { title = "Unacknowledged messages", queries = { messages = "sum by (subscription_id) (pubsub_googleapis_com:subscription_num_undelivered_messages{${local.of_work}})" } },
    { title = "Oldest unacknowledged message, s", queries = { age = "max by (subscription_id) (pubsub_googleapis_com:subscription_oldest_unacked_message_age{${local.of_work}})" } },
    { title = "Dead letters", queries = { dead_letters = "sum(pubsub_googleapis_com:subscription_num_undelivered_messages{monitored_resource=\"pubsub_subscription\",subscription_id=\"${local.dead_letters_id}\"})" } },
  ]

  # Without zeros and nulls: the API does not return them, so every plan would show them as a change.
  dashboard = {
    displayName = local.service_name
    mosaicLayout = {
      columns = 12
      tiles = [for index, tile in local.tiles : merge(
        { for key, value in { xPos = 6 * (index % 2), yPos = 4 * floor(index / 2) } : key => value if value > 0 },
        {
          width  = 6
          height = 4
          widget = {
            title = tile.title
            xyChart = {
              dataSets = [for name, query in tile.queries : merge(
                length(tile.queries) > 1 ? { legendTemplate = name } : {},
                {
                  plotType        = "LINE"
                  timeSeriesQuery = { prometheusQuery = query }
                },
              )]
            }
          }
        },
      )]
    }
  }
}

resource "google_monitoring_dashboard" "main" {
  dashboard_json = jsonencode(local.dashboard)
  project        = var.project_id

  depends_on = [time_sleep.apis]
}

resource "google_monitoring_alert_policy" "dead_letters" {
  display_name          = "${local.service_name}: dead letters"
  combiner              = "OR"
  severity              = "ERROR"
  notification_channels = var.notification_channels
  project               = var.project_id

  conditions {
    display_name = "Messages in ${local.dead_letters_id}"
    condition_threshold {
      filter          = "resource.type = \"pubsub_subscription\" AND resource.labels.subscription_id = \"${local.dead_letters_id}\" AND metric.type = \"pubsub.googleapis.com/subscription/num_undelivered_messages\""
      comparison      = "COMPARISON_GT"
      threshold_value = 0
      duration        = "0s"
      aggregations {
        alignment_period   = "300s"
        per_series_aligner = "ALIGN_MAX"
      }
    }
  }

  documentation {
    mime_type = "text/markdown"
    content   = "Some messages failed ${local.retry.attempts} times. The log of ${local.service_name} has the reason (severity ERROR or WARNING). List the messages with `gcloud pubsub subscriptions pull ${local.dead_letters_id} --project ${var.project_id} --limit 10`, which does not remove them. After fixing the cause, run `yolo-batch dead-letters --subscription ${google_pubsub_subscription.dead_letters.id} --replay --topic ${google_pubsub_topic.jobs.id}`, which publishes their images again and removes the messages. To drop the remaining messages, run `gcloud pubsub subscriptions seek ${local.dead_letters_id} --project ${var.project_id} --time $(date -u +%Y-%m-%dT%H:%M:%SZ)`."
  }

  depends_on = [time_sleep.apis]
}

resource "google_monitoring_alert_policy" "backlog" {
  display_name          = "${local.service_name}: messages wait too long"
  combiner              = "OR"
  severity              = "WARNING"
  notification_channels = var.notification_channels
  project               = var.project_id

  conditions {
    display_name = "Oldest unacknowledged message over 30 min"
    condition_threshold {
      filter          = "resource.type = \"pubsub_subscription\" AND resource.labels.subscription_id = monitoring.regex.full_match(\"${local.work_subscriptions}\") AND metric.type = \"pubsub.googleapis.com/subscription/oldest_unacked_message_age\""
      comparison      = "COMPARISON_GT"
      threshold_value = 1800
      duration        = "300s"
      aggregations {
        alignment_period   = "60s"
        per_series_aligner = "ALIGN_MAX"
      }
    }
  }

  documentation {
    mime_type = "text/markdown"
    content   = "There are two possible causes. Either more images are uploaded than ${local.max_instances} instances can process: raise max_instances. Or messages fail repeatedly: see the log of ${local.service_name} (\"Rejected a message\", or severity ERROR). After ${local.retry.attempts} attempts, a message becomes a dead letter."
  }

  depends_on = [time_sleep.apis]
}

resource "google_monitoring_alert_policy" "errors" {
  display_name          = "${local.service_name}: errors"
  combiner              = "OR"
  severity              = "ERROR"
  notification_channels = var.notification_channels
  project               = var.project_id

  conditions {
    display_name = "Over 5 % of the responses are 5xx for 10 min"
    condition_threshold {
      filter             = "resource.type = \"cloud_run_revision\" AND resource.labels.service_name = \"${local.service_name}\" AND metric.type = \"run.googleapis.com/request_count\" AND metric.labels.response_code_class = \"5xx\""
      denominator_filter = "resource.type = \"cloud_run_revision\" AND resource.labels.service_name = \"${local.service_name}\" AND metric.type = \"run.googleapis.com/request_count\""
      comparison         = "COMPARISON_GT"
      threshold_value    = 0.05
      duration           = "600s"
      aggregations {
        alignment_period     = "300s"
        per_series_aligner   = "ALIGN_RATE"
        cross_series_reducer = "REDUCE_SUM"
      }
      denominator_aggregations {
        alignment_period     = "300s"
        per_series_aligner   = "ALIGN_RATE"
        cross_series_reducer = "REDUCE_SUM"
      }
    }
  }

  documentation {
    mime_type = "text/markdown"
    content   = "No image is lost yet: each message is delivered up to ${local.retry.attempts} times. 503 means that Cloud Storage or Firestore is unavailable, or that images waited too long. 500 means that the model failed on an image, or that the service has a defect. The log of ${local.service_name} has the reason."
  }

  depends_on = [time_sleep.apis]
}
