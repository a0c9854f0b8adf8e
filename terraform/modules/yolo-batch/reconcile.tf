# The reconcile job finds uploads that have no document, for example after a lost event, a long outage or
# a dead letter, and publishes jobs for them. It compares only uploads since the last run, and none whose
# result may have expired. With a daily limit, it also publishes jobs for parked images, as many as the
# limit leaves of the new day.

locals {
  reconcile_args = [
    "reconcile", local.uploads_uri,
    "--enqueue", "missing",
    "--since", "gs://${google_storage_bucket.reconcile.name}/${local.last_run}",
    "--topic", google_pubsub_topic.jobs.id,
    "--yes",
    # To publish jobs no faster than the service processes them.
    "--instances", tostring(local.max_instances),
    "--vcpu", tostring(local.machine.cpu),
  ]
}

resource "google_service_account" "reconcile" {
  account_id   = "${var.name}-reconcile"
  display_name = "${var.name}: the reconcile job"
  project      = var.project_id

  depends_on = [time_sleep.apis]
}

resource "google_storage_bucket_iam_member" "reconcile" {
  bucket = local.uploads_bucket
  role   = "roles/storage.objectViewer"
  member = google_service_account.reconcile.member
}

resource "google_project_iam_member" "reconcile" {
  project = var.project_id
  role    = "roles/datastore.viewer"
  member  = google_service_account.reconcile.member

  condition {
    title      = local.database_condition.title
    expression = local.database_condition.expression
  }
}

# Contains the start time of the last successful run. A run looks back to that time, but at least two
# days. The bucket is separate, because the job may write to no other bucket.
resource "google_storage_bucket" "reconcile" {
  name     = "${var.project_id}-${var.name}-reconcile"
  location = upper(var.region)
  project  = var.project_id
  labels   = local.labels

  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"
  force_destroy               = true # its one object is written again by the next run

  dynamic "encryption" {
    for_each = var.kms_key[*]
    content {
      default_kms_key_name = encryption.value
    }
  }

  soft_delete_policy {
    retention_duration_seconds = 0
  }

  depends_on = [time_sleep.apis]
}

resource "google_storage_bucket_iam_member" "reconcile_state" {
  bucket = google_storage_bucket.reconcile.name
  role   = "roles/storage.objectUser"
  member = google_service_account.reconcile.member
}

resource "google_pubsub_topic_iam_member" "reconcile" {
  topic   = google_pubsub_topic.jobs.name
  role    = "roles/pubsub.publisher"
  member  = google_service_account.reconcile.member
  project = var.project_id
}

resource "google_cloud_run_v2_job" "reconcile" {
  name     = "${var.name}-reconcile"
  location = var.region
  project  = var.project_id
  labels   = local.labels

  deletion_protection = false

  template {
    task_count = 1

    template {
      service_account = google_service_account.reconcile.email
      timeout         = "3600s"
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
        args    = concat(local.reconcile_args, var.daily_image_limit == null ? [] : ["--enqueue", "parked"])

        resources {
          limits = { cpu = "1", memory = "1Gi" }
        }

        dynamic "env" {
          for_each = local.environment
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
    google_project_iam_member.reconcile,
    google_pubsub_topic_iam_member.reconcile,
    google_storage_bucket_iam_member.reconcile,
    google_storage_bucket_iam_member.reconcile_state,
    terraform_data.first_image,
    time_sleep.accounts,
  ]
}

resource "google_service_account" "scheduler" {
  account_id   = "${var.name}-scheduler"
  display_name = "${var.name}: starts the reconcile job"
  project      = var.project_id

  depends_on = [time_sleep.apis]
}

resource "google_cloud_run_v2_job_iam_member" "scheduler" {
  location = var.region
  name     = google_cloud_run_v2_job.reconcile.name
  role     = "roles/run.invoker"
  member   = google_service_account.scheduler.member
  project  = var.project_id
}

resource "google_cloud_scheduler_job" "reconcile" {
  for_each = var.reconcile_schedule == null ? {} : { main = var.reconcile_schedule }

  name             = "${var.name}-reconcile"
  region           = var.region
  description      = "Enqueues uploads that have no document."
  schedule         = each.value
  time_zone        = "Etc/UTC"
  attempt_deadline = "60s" # it only starts the job
  project          = var.project_id

  http_target {
    http_method = "POST"
    uri         = "https://run.googleapis.com/v2/${google_cloud_run_v2_job.reconcile.id}:run"
    oauth_token {
      service_account_email = google_service_account.scheduler.email
    }
  }

  depends_on = [google_cloud_run_v2_job_iam_member.scheduler]
}
