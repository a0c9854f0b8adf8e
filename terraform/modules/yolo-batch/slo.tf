# The objective: in slo_goal of the minutes of 28 days, no upload waits longer than slo_seconds. It can be
# measured: Pub/Sub reports the age of the oldest unacknowledged message every minute. Jobs are not part of
# it, because a back-fill waits by design.

locals {
  slo_seconds = 60
  slo         = var.slo_goal == null ? {} : { main = var.slo_goal }

  # Burn rate: the share of minutes that were too slow, divided by the share that the goal allows (the
  # error budget). At 1, the budget lasts 28 days. Each alert needs both periods: the long one shows that
  # the loss is large, the short one that it goes on (https://sre.google/workbook/alerting-on-slos/).
  burn_rates = {
    fast = { title = "uploads wait too long (the SLO's error budget lasts 2 days)", severity = "ERROR", rate = 14.4, long = "3600s", short = "300s" }
    slow = { title = "uploads wait too long (the SLO's error budget lasts 9 days)", severity = "WARNING", rate = 3, long = "86400s", short = "7200s" }
  }
}

resource "google_monitoring_custom_service" "main" {
  for_each = local.slo

  service_id   = var.name
  display_name = local.watched
  user_labels  = local.labels
  project      = var.project_id

  depends_on = [time_sleep.apis]
}

resource "google_monitoring_slo" "uploads" {
  for_each = google_monitoring_custom_service.main

  service             = each.value.service_id
  slo_id              = "uploads"
  display_name        = "No upload waits longer than ${local.slo_seconds} s, in ${100 * var.slo_goal} % of the minutes"
  goal                = var.slo_goal
  rolling_period_days = 28
  user_labels         = local.labels
  project             = var.project_id

  windows_based_sli {
    window_period = "60s"
    metric_mean_in_range {
      time_series = "resource.type = \"pubsub_subscription\" AND resource.labels.subscription_id = monitoring.regex.full_match(\"${local.uploads_subscriptions}\") AND metric.type = \"pubsub.googleapis.com/subscription/oldest_unacked_message_age\""
      range {
        min = 0
        max = local.slo_seconds
      }
    }
  }
}

resource "google_monitoring_alert_policy" "burn_rate" {
  for_each = { for key, alert in local.burn_rates : key => alert if var.slo_goal != null }

  display_name          = "${local.watched}: ${each.value.title}"
  combiner              = "AND"
  severity              = each.value.severity
  notification_channels = var.notification_channels
  user_labels           = local.labels
  project               = var.project_id

  conditions {
    display_name = "Burn rate over ${each.value.rate} for ${each.value.long}"
    condition_threshold {
      filter          = "select_slo_burn_rate(\"${google_monitoring_slo.uploads["main"].name}\", \"${each.value.long}\")"
      comparison      = "COMPARISON_GT"
      threshold_value = each.value.rate
      duration        = "0s"
    }
  }

  conditions {
    display_name = "Burn rate over ${each.value.rate} for ${each.value.short}"
    condition_threshold {
      filter          = "select_slo_burn_rate(\"${google_monitoring_slo.uploads["main"].name}\", \"${each.value.short}\")"
      comparison      = "COMPARISON_GT"
      threshold_value = each.value.rate
      duration        = "0s"
    }
  }

  alert_strategy {
    auto_close = local.auto_close
  }

  documentation {
    mime_type = "text/markdown"
    content   = "In too many minutes, uploads waited longer than ${local.slo_seconds} s, and some still do. Look at the dashboard ${local.watched}. If \"Instances\" shows ${local.max_instances}, all instances run: raise max_instances. If \"Deliveries a second, by response\" shows rejected messages, the other alerts report the cause."
  }
}
