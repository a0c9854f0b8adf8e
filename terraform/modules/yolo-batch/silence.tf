# The silence job looks for sources with silent_minutes from which no image came, and alerts once for each
# silence. It is created with the alerts topic.

resource "google_service_account" "silence" {
  count = var.alerts_topic ? 1 : 0

  account_id   = "${var.name}-silence"
  display_name = "${var.name}: the silence job"
  project      = var.project_id

  depends_on = [time_sleep.apis]
}

# It reads sources and results, and writes alert documents.
resource "google_project_iam_member" "silence" {
  count = length(google_service_account.silence)

  project = var.project_id
  role    = "roles/datastore.user"
  member  = google_service_account.silence[count.index].member

  condition {
    title      = local.database_condition.title
    expression = local.database_condition.expression
  }
}

resource "google_pubsub_topic_iam_member" "silence" {
  count = length(google_service_account.silence)

  topic   = google_pubsub_topic.outputs["alerts"].name
  role    = "roles/pubsub.publisher"
  member  = google_service_account.silence[count.index].member
  project = var.project_id
}

# Cloud Run rejects an account that has not propagated yet.
resource "time_sleep" "silence" {
  count = length(google_service_account.silence)

  create_duration = "20s"
  triggers        = { account = google_service_account.silence[count.index].id }
}

resource "google_cloud_run_v2_job" "silence" {
  count = length(google_service_account.silence)

  name     = local.silence_name
  location = var.region
  project  = var.project_id
  labels   = local.labels

  deletion_protection = false

  template {
    task_count = 1

    template {
      service_account = google_service_account.silence[count.index].email
      timeout         = "300s"
      max_retries     = 1
      encryption_key  = var.kms_key

      dynamic "vpc_access" {
        for_each = local.vpc_access
        content {
          egress = vpc_access.value.egress
          network_interfaces {
            network    = vpc_access.value.network
            subnetwork = vpc_access.value.subnetwork
          }
        }
      }

      containers {
        image   = local.first_image
        command = ["yolo-batch"]
        args    = local.silence_args

        resources {
          limits = { cpu = "1", memory = "512Mi" }
        }

        dynamic "env" {
          for_each = local.silence_environment
          content {
            name  = env.key
            value = env.value
          }
        }
      }
    }
  }

  lifecycle {
    # Cloud Build deploys the job's image too.
    ignore_changes = [
      client,
      client_version,
      template[0].annotations,
      template[0].labels,
      template[0].template[0].containers[0].image,
    ]
  }

  depends_on = [
    google_project_iam_member.silence,
    google_pubsub_topic_iam_member.silence,
    terraform_data.first_image,
    time_sleep.accounts,
    time_sleep.silence,
  ]
}

resource "google_cloud_run_v2_job_iam_member" "build_silence" {
  count = length(google_cloud_run_v2_job.silence)

  location = var.region
  name     = google_cloud_run_v2_job.silence[count.index].name
  role     = "roles/run.developer"
  member   = google_service_account.build.member
  project  = var.project_id
}

resource "google_cloud_run_v2_job_iam_member" "scheduler_silence" {
  count = length(google_cloud_run_v2_job.silence)

  location = var.region
  name     = google_cloud_run_v2_job.silence[count.index].name
  role     = "roles/run.invoker"
  member   = google_service_account.scheduler.member
  project  = var.project_id
}

resource "google_cloud_scheduler_job" "silence" {
  count = var.silence_schedule == null ? 0 : length(google_cloud_run_v2_job.silence)

  name             = local.silence_name
  region           = var.region
  description      = "Looks for silent sources."
  schedule         = var.silence_schedule
  time_zone        = "Etc/UTC"
  attempt_deadline = "60s" # it only starts the job
  project          = var.project_id

  http_target {
    http_method = "POST"
    uri         = "https://run.googleapis.com/v2/${google_cloud_run_v2_job.silence[count.index].id}:run"
    oauth_token {
      service_account_email = google_service_account.scheduler.email
    }
  }

  depends_on = [google_cloud_run_v2_job_iam_member.scheduler_silence]
}

# An execution that was retried and then succeeded does not count as failed. Two failures, because the next
# run repeats what one run missed. In 25 h, the longest period, so that a daily schedule has two runs.
resource "google_monitoring_alert_policy" "silence_failed" {
  count = length(google_cloud_run_v2_job.silence)

  display_name          = "${local.watched}: the silence job failed"
  combiner              = "OR"
  severity              = "WARNING"
  notification_channels = var.notification_channels
  user_labels           = local.labels
  project               = var.project_id

  conditions {
    display_name = "More than one failed execution of ${local.silence_name} in 25 h"
    condition_threshold {
      filter          = "resource.type = \"cloud_run_job\" AND resource.labels.job_name = \"${local.silence_name}\" AND metric.type = \"run.googleapis.com/job/completed_execution_count\" AND metric.labels.result = \"failed\""
      comparison      = "COMPARISON_GT"
      threshold_value = 1
      duration        = "0s"
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
    content   = "No alert is sent when a source becomes silent. The alerts of images are not affected. Read the log with `gcloud logging read 'resource.type=cloud_run_job AND resource.labels.job_name=${local.silence_name}' --project ${var.project_id} --limit 50`, repair the cause, and run `gcloud run jobs execute ${local.silence_name} --project ${var.project_id} --region ${var.region}`."
  }
}
