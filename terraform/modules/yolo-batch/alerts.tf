# Alerts. slo.tf has those of the objective. A first deployment can create all of them: PromQL does not
# require that a metric has values, an alert on log lines needs no metric, and the metric of job executions
# is Google's own.

locals {
  # An incident without new data is closed after this time.
  auto_close = "86400s"

  reconcile_name = google_cloud_run_v2_job.reconcile.name
  # For other schedules, the absence of a run says nothing.
  reconcile_is_daily = can(regex("^\\S+ \\S+ \\* \\* \\*$", coalesce(var.reconcile_schedule, "never")))

  pushes = "pubsub_googleapis_com:subscription_push_request_count"
  age    = "pubsub_googleapis_com:subscription_oldest_unacked_message_age"

  query_alerts = {
    dead_letters = {
      title     = "dead letters"
      severity  = "ERROR"
      condition = "Messages in ${google_pubsub_subscription.dead_letters.name}"
      query     = "sum(pubsub_googleapis_com:subscription_num_undelivered_messages{${local.of_dead_letters}}) > 0"
      duration  = "0s"
      advice    = "Some messages failed ${local.retry.attempts} times. The log of ${local.watched} has the reason, in lines of severity ERROR or WARNING. List the messages with `gcloud pubsub subscriptions pull ${google_pubsub_subscription.dead_letters.name} --project ${var.project_id} --limit 10`, which does not remove them. Repair the cause. Then run `yolo-batch dead-letters --subscription ${google_pubsub_subscription.dead_letters.id} --replay --topic ${google_pubsub_topic.jobs.id}`, which publishes their images again and removes the messages. To drop the remaining messages, run `gcloud pubsub subscriptions seek ${google_pubsub_subscription.dead_letters.name} --project ${var.project_id} --time $(date -u +%Y-%m-%dT%H:%M:%SZ)`."
    }
    backlog = {
      title     = "messages wait too long"
      severity  = "WARNING"
      condition = "Oldest unacknowledged message over 30 min"
      query     = "max by (subscription_id) (${local.age}{${local.of_work}}) > 1800"
      duration  = "300s"
      advice    = "There are two possible causes. If more images are uploaded than ${local.max_instances} instances can process, raise max_instances. If messages fail repeatedly, look for \"Rejected a message\" and for severity ERROR in the log of ${local.watched}. After ${local.retry.attempts} attempts, a message becomes a dead letter."
    }
    errors = {
      title     = "errors"
      severity  = "ERROR"
      condition = "Over 5 % of the deliveries end with 5xx or without a response for 10 min"
      query     = "sum(rate(${local.pushes}{${local.of_work},response_class=~\"remote_server_5xx|unreachable|deadline_exceeded\"}[5m])) / sum(rate(${local.pushes}{${local.of_work}}[5m])) > 0.05"
      duration  = "600s"
      advice    = "No image is lost yet: each message is delivered up to ${local.retry.attempts} times. 503 means that Cloud Storage or Firestore is unavailable, that images waited too long, or that no instance starts. 500 means that the model failed on an image, or that the service has a defect. Error Reporting and the log of ${local.watched} have the reason."
    }
    refused = {
      title     = "deliveries are not authorized"
      severity  = "ERROR"
      condition = "401 or 403 for 20 min"
      query     = "sum(increase(${local.prom.http_errors}{${local.of_revision},status=~\"401|403\"}[15m])) > 0"
      duration  = "1200s"
      advice    = "The images of these deliveries are not processed, and their messages become dead letters after ${local.retry.attempts} attempts. Cloud Run or the service refuses the account that Pub/Sub uses. List the grants with `gcloud run services get-iam-policy ${local.watched} --project ${var.project_id} --region ${var.region}`. The accounts ${var.name}-jobs and ${var.name}-uploads must have roles/run.invoker: `terraform apply` restores it. If the log has \"Received an unauthorized request\", check PUSH_AUDIENCE and PUSH_SERVICE_ACCOUNTS. If it lasted seven hours or longer, replay the dead letters too: see the alert \"dead letters\"."
    }
    overload = {
      title     = "the service is at its limit"
      severity  = "WARNING"
      condition = "Over 20 % of the deliveries end with 429 for 60 min"
      query     = "sum(rate(${local.prom.http_errors}{${local.of_revision},status=\"429\"}[15m])) / sum(rate(${local.pushes}{${local.of_work}}[15m])) > 0.2"
      duration  = "3600s"
      advice    = "Some 429 are normal while instances start. If they last for an hour, all ${local.max_instances} instances are busy, or a quota prevents Cloud Run from starting more. If the dashboard shows fewer instances, look at the quotas of Cloud Run in ${var.region}. Otherwise raise max_instances, or wait. Messages are kept for 7 days, but after ${local.retry.attempts} attempts a message becomes a dead letter."
    }
    restarts = {
      title     = "instances are restarted"
      severity  = "WARNING"
      condition = "Over 2 failed liveness checks in 1 h"
      query     = "sum(increase(run_googleapis_com:container_completed_probe_count{${local.of_service},is_healthy=\"false\",probe_type=~\"(?i)liveness.*\"}[1h])) > 2"
      duration  = "0s"
      advice    = "Cloud Run replaced instances whose /health/live responded with 503: work was stuck for HANG_TIMEOUT_SECONDS, or the model failed on several different images in a row. Their messages are redelivered. Look at the ERROR lines in the log of ${local.watched} before each restart. If the restarts began with a deployment, deploy the previous container image with `gcloud run services update ${local.watched} --project ${var.project_id} --region ${var.region} --image IMAGE`. The console lists the revisions with their images."
    }
  }

  # The services that store results. The detect service does with ?store=true.
  storing = join(" OR ", [for name in concat([local.watched], google_cloud_run_v2_service.detect[*].name) : "\"${name}\""])

  # Alerts of rules in sources (alert_incidents). Each combination of the labels is notified by itself.
  source_alerts = {
    rule = {
      title     = "a rule of a source matched"
      severity  = "WARNING"
      condition = "Log line \"Alert\" of the service or the detect service"
      filter    = "resource.type=\"cloud_run_revision\" AND resource.labels.service_name=(${local.storing}) AND jsonPayload.message=\"Alert\""
    }
    silence = {
      title     = "a source is silent"
      severity  = "WARNING"
      condition = "Log line \"Alert\" of the silence job"
      filter    = "resource.type=\"cloud_run_job\" AND resource.labels.job_name=\"${local.silence_name}\" AND jsonPayload.message=\"Alert\""
    }
  }

  # Each line opens an incident, but one notification in this period is enough.
  log_alerts = {
    canary = {
      title     = "the int8 model failed its canary"
      severity  = "WARNING"
      condition = "Log line \"Fell back to the float model\""
      filter    = "${local.log_of_service} AND jsonPayload.message=\"Fell back to the float model\""
      period    = "86400s"
      advice    = "The int8 model has wrong detections on this machine, so the float model runs instead. The results are right, but each image takes more CPU time. `reason` in the log line has the difference. Build again with another folder of images in the variable calibration, or without calibration."
    }
    reconcile_start = {
      title     = "reconcile cannot be started"
      severity  = "WARNING"
      condition = "Cloud Scheduler reports an error"
      filter    = "resource.type=\"cloud_scheduler_job\" AND resource.labels.job_id=~\"^${local.reconcile_name}\" AND severity>=ERROR"
      period    = "86400s"
      advice    = "Uploads whose event was lost are not found until the job runs. Run the job with `gcloud run jobs execute ${local.reconcile_name} --project ${var.project_id} --region ${var.region}`. Then look at the log of the scheduler's job. 403 means that ${var.name}-scheduler lacks roles/run.invoker on the job. `terraform apply` restores the grant."
    }
    silence_start = {
      title     = "the silence job cannot be started"
      severity  = "WARNING"
      condition = "Cloud Scheduler reports an error"
      filter    = "resource.type=\"cloud_scheduler_job\" AND resource.labels.job_id=\"${local.silence_name}\" AND severity>=ERROR"
      period    = "86400s"
      advice    = "No alert is sent when a source becomes silent. The alerts of images are not affected. Look at the log of the scheduler's job ${local.silence_name}. 403 means that ${var.name}-scheduler lacks roles/run.invoker on the job. `terraform apply` restores the grant. Then run the job with `gcloud run jobs execute ${local.silence_name} --project ${var.project_id} --region ${var.region}`."
    }
  }
}

resource "google_monitoring_alert_policy" "query" {
  for_each = local.query_alerts

  display_name          = "${local.watched}: ${each.value.title}"
  combiner              = "OR"
  severity              = each.value.severity
  notification_channels = var.notification_channels
  user_labels           = local.labels
  project               = var.project_id

  conditions {
    display_name = each.value.condition
    condition_prometheus_query_language {
      query                     = each.value.query
      duration                  = each.value.duration
      evaluation_interval       = "60s"
      disable_metric_validation = true
    }
  }

  alert_strategy {
    auto_close = local.auto_close
  }

  documentation {
    mime_type = "text/markdown"
    content   = each.value.advice
  }

  depends_on = [google_logging_metric.line]
}

resource "google_monitoring_alert_policy" "log" {
  for_each = { for key, alert in local.log_alerts : key => alert if key != "silence_start" || var.alerts_topic }

  display_name          = "${local.watched}: ${each.value.title}"
  combiner              = "OR"
  severity              = each.value.severity
  notification_channels = var.notification_channels
  user_labels           = local.labels
  project               = var.project_id

  conditions {
    display_name = each.value.condition
    condition_matched_log {
      filter = each.value.filter
    }
  }

  alert_strategy {
    auto_close = local.auto_close
    notification_rate_limit {
      period = each.value.period
    }
  }

  documentation {
    mime_type = "text/markdown"
    content   = each.value.advice
  }
}

resource "google_monitoring_alert_policy" "source" {
  for_each = { for key, alert in local.source_alerts : key => alert if var.alert_incidents && (key != "silence" || var.alerts_topic) }

  display_name          = "${local.watched}: ${each.value.title}"
  combiner              = "OR"
  severity              = each.value.severity
  notification_channels = var.notification_channels
  user_labels           = local.labels
  project               = var.project_id

  conditions {
    display_name = each.value.condition
    condition_matched_log {
      filter = each.value.filter
      label_extractors = {
        rule   = "EXTRACT(jsonPayload.rule)"
        source = "EXTRACT(jsonPayload.source)"
      }
    }
  }

  alert_strategy {
    auto_close = local.auto_close
    notification_rate_limit {
      period = "300s"
    }
  }

  documentation {
    mime_type = "text/markdown"
    content   = "The log line of the incident has the text of the alert, the document and the link to it. The alert documents have all alerts, also those that the rule's cooldown suppressed: `yolo-batch alerts list`. If a rule matches too often, change its conditions or its cooldown in the source, and try it on stored results first (docs/how-to/alerts.md)."
  }
}

# An execution that was retried and then succeeded does not count as failed.
resource "google_monitoring_alert_policy" "reconcile_failed" {
  display_name          = "${local.watched}: reconcile failed"
  combiner              = "OR"
  severity              = "WARNING"
  notification_channels = var.notification_channels
  user_labels           = local.labels
  project               = var.project_id

  conditions {
    display_name = "A failed execution of ${local.reconcile_name}"
    condition_threshold {
      filter          = "resource.type = \"cloud_run_job\" AND resource.labels.job_name = \"${local.reconcile_name}\" AND metric.type = \"run.googleapis.com/job/completed_execution_count\" AND metric.labels.result = \"failed\""
      comparison      = "COMPARISON_GT"
      threshold_value = 0
      duration        = "0s"
      aggregations {
        alignment_period     = "3600s"
        per_series_aligner   = "ALIGN_DELTA"
        cross_series_reducer = "REDUCE_SUM"
      }
    }
  }

  alert_strategy {
    auto_close = local.auto_close
  }

  documentation {
    mime_type = "text/markdown"
    content   = "No upload is lost: the next run starts where the last successful run started. Read the log with `gcloud logging read 'resource.type=cloud_run_job AND resource.labels.job_name=${local.reconcile_name}' --project ${var.project_id} --limit 50`, repair the cause, and run `gcloud run jobs execute ${local.reconcile_name} --project ${var.project_id} --region ${var.region}`."
  }
}

# 25 h is the longest alignment period of an alert. With the duration it makes 26 h. Cloud Monitoring sees
# an absence only after a first success: until then, the alerts above report what goes wrong.
resource "google_monitoring_alert_policy" "reconcile_absent" {
  display_name          = "${local.watched}: reconcile does not run"
  combiner              = "OR"
  severity              = "WARNING"
  enabled               = local.reconcile_is_daily
  notification_channels = var.notification_channels
  user_labels           = local.labels
  project               = var.project_id

  conditions {
    display_name = "No successful execution of ${local.reconcile_name} for 26 h, if reconcile_schedule is daily"
    condition_threshold {
      filter                  = "resource.type = \"cloud_run_job\" AND resource.labels.job_name = \"${local.reconcile_name}\" AND metric.type = \"run.googleapis.com/job/completed_execution_count\" AND metric.labels.result = \"succeeded\""
      comparison              = "COMPARISON_LT"
      threshold_value         = 1
      duration                = "3600s"
      evaluation_missing_data = "EVALUATION_MISSING_DATA_ACTIVE"
      aggregations {
        alignment_period     = "90000s"
        per_series_aligner   = "ALIGN_DELTA"
        cross_series_reducer = "REDUCE_SUM"
      }
    }
  }

  alert_strategy {
    auto_close = local.auto_close
  }

  documentation {
    mime_type = "text/markdown"
    content   = "Uploads whose event was lost are not found until the job succeeds. Look whether Cloud Scheduler's job ${local.reconcile_name} is paused. List the executions with `gcloud run jobs executions list --job ${local.reconcile_name} --project ${var.project_id} --region ${var.region}`. Run the job with `gcloud run jobs execute ${local.reconcile_name} --project ${var.project_id} --region ${var.region}`."
  }
}
