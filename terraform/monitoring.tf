# Metrics read from the service's log lines (service/pipeline.py and app.py write them), a dashboard
# of them, and alerts. The alerts use Google's own metrics, which exist before the first log line.

locals {
  log_of_service = "resource.type=\"cloud_run_revision\" AND resource.labels.service_name=\"${local.service_name}\""

  # Distributions of numbers in the line of a committed batch. The sum of batch_size is the number
  # of pictures; the stages are means over the batch's pictures, but commit_ms.
  batch_metrics = {
    batch_size   = { unit = "1", description = "Pictures in a committed batch; their sum is the pictures recorded." }
    download_ms  = { unit = "ms", description = "Download of one picture, mean of a batch." }
    decode_ms    = { unit = "ms", description = "Decoding of one picture, mean of a batch." }
    queue_ms     = { unit = "ms", description = "Wait of one picture for its batch, mean of a batch." }
    inference_ms = { unit = "ms", description = "Inference of one picture, mean of a batch." }
    commit_ms    = { unit = "ms", description = "Commit of a batch to Firestore." }
  }

  # Counters of lines, by a field of the line.
  line_metrics = {
    failures   = { message = "A picture failed", label = "code", description = "Pictures recorded as failed, by error code." }
    given_back = { message = "Gave a message back", label = "status", description = "Messages answered 429 or 503, to come again." }
  }

  dead_letters_id = google_pubsub_subscription.dead_letters.name
  # Eventarc names its subscription eventarc-REGION-TRIGGER-sub-NUMBER.
  work_subscriptions = "${var.name}-(jobs|uploads)|eventarc-${var.region}-${var.name}-uploads-sub-.*"
}

resource "google_logging_metric" "batch" {
  for_each = local.batch_metrics

  name            = "${var.name}/${each.key}"
  description     = each.value.description
  filter          = "${local.log_of_service} AND jsonPayload.message=\"Committed a batch\""
  value_extractor = "EXTRACT(jsonPayload.${each.key})"

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
  # PromQL's name of a metric: its first / is a colon, every other special character a _.
  prom         = { for key in concat(keys(local.batch_metrics), keys(local.line_metrics)) : key => "logging_googleapis_com:user_${replace("${var.name}/${key}", "/[^a-zA-Z0-9_]/", "_")}" }
  of_revision  = "monitored_resource=\"cloud_run_revision\""
  of_service   = "${local.of_revision},service_name=\"${local.service_name}\""
  of_work      = "monitored_resource=\"pubsub_subscription\",subscription_id=~\"${local.work_subscriptions}\""
  stages       = [for key in keys(local.batch_metrics) : key if endswith(key, "_ms")]
  mean_in_time = { for key in keys(local.batch_metrics) : key => "sum(rate(${local.prom[key]}_sum{${local.of_revision}}[5m])) / sum(rate(${local.prom[key]}_count{${local.of_revision}}[5m]))" }

  tiles = [
    { title = "Pictures recorded a second", queries = { pictures = "sum(rate(${local.prom.batch_size}_sum{${local.of_revision}}[5m]))" } },
    { title = "Failed pictures a second, by code", queries = { failures = "sum by (code) (rate(${local.prom.failures}{${local.of_revision}}[5m]))" } },
    { title = "Pictures in a batch, mean", queries = { batch = local.mean_in_time.batch_size } },
    { title = "Milliseconds by stage, mean", queries = { for stage in local.stages : trimsuffix(stage, "_ms") => local.mean_in_time[stage] } },
    { title = "Requests a second, by answer", queries = { requests = "sum by (response_code) (rate(run_googleapis_com:request_count{${local.of_service}}[5m]))" } },
    { title = "Messages given back a second, by status", queries = { given_back = "sum by (status) (rate(${local.prom.given_back}{${local.of_revision}}[5m]))" } },
    { title = "Instances", queries = { instances = "sum by (state) (run_googleapis_com:container_instance_count{${local.of_service}})" } },
    { title = "Unacknowledged messages", queries = { messages = "sum by (subscription_id) (pubsub_googleapis_com:subscription_num_undelivered_messages{${local.of_work}})" } },
    { title = "Oldest unacknowledged message, s", queries = { age = "max by (subscription_id) (pubsub_googleapis_com:subscription_oldest_unacked_message_age{${local.of_work}})" } },
    { title = "Dead letters", queries = { dead_letters = "sum(pubsub_googleapis_com:subscription_num_undelivered_messages{monitored_resource=\"pubsub_subscription\",subscription_id=\"${local.dead_letters_id}\"})" } },
  ]

  # The API gives no zero and no null back; written here, each would be a change in every plan.
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

  depends_on = [time_sleep.apis]
}

resource "google_monitoring_alert_policy" "dead_letters" {
  display_name          = "${local.service_name}: dead letters"
  combiner              = "OR"
  severity              = "ERROR"
  notification_channels = var.notification_channels

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
    content   = "Messages failed ${local.retry.attempts} times. Why is in the log of ${local.service_name} (severity ERROR). Look at them with `gcloud pubsub subscriptions pull ${local.dead_letters_id} --project ${var.project_id} --limit 10`, which does not remove them. When the cause is fixed, `yolo-batch dead-letters --subscription ${google_pubsub_subscription.dead_letters.id} --replay --topic ${google_pubsub_topic.jobs.id}` publishes their images again and removes them; `gcloud pubsub subscriptions seek ${local.dead_letters_id} --project ${var.project_id} --time $(date -u +%Y-%m-%dT%H:%M:%SZ)` drops those that are left."
  }

  depends_on = [time_sleep.apis]
}

resource "google_monitoring_alert_policy" "backlog" {
  display_name          = "${local.service_name}: messages wait too long"
  combiner              = "OR"
  severity              = "WARNING"
  notification_channels = var.notification_channels

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
    content   = "Either more is uploaded than ${local.max_instances} instances can do, and max_instances may be raised, or messages fail again and again: the log of ${local.service_name} says which (\"Gave a message back\", or severity ERROR). A message is a dead letter after ${local.retry.attempts} attempts."
  }

  depends_on = [time_sleep.apis]
}

resource "google_monitoring_alert_policy" "errors" {
  display_name          = "${local.service_name}: errors"
  combiner              = "OR"
  severity              = "ERROR"
  notification_channels = var.notification_channels

  conditions {
    display_name = "Over 5 % of the requests answered 5xx for 10 min"
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
    content   = "Nothing is lost yet: each message comes again, ${local.retry.attempts} times in all. 503 means that Cloud Storage, Firestore or the model is unavailable, 500 that the network failed on a picture, or a defect; the log of ${local.service_name} has the reason."
  }

  depends_on = [time_sleep.apis]
}
