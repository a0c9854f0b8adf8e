# The service, its account, and the accounts that may call it.

resource "google_service_account" "service" {
  account_id   = var.name
  display_name = "${var.name}: the service"
  project      = var.project_id

  depends_on = [time_sleep.apis]
}

resource "google_storage_bucket_iam_member" "service" {
  bucket = local.uploads_bucket
  # With objects.list: without it, Cloud Storage reports a deleted object as 403, which may also mean a
  # missing role, instead of 404 (docs/decisions/0012-access.md).
  role   = "roles/storage.objectViewer"
  member = google_service_account.service.member
}

# It creates, reads and deletes. The role also permits listing, for the same reason as above.
resource "google_storage_bucket_iam_member" "results" {
  count = length(google_storage_bucket.results)

  bucket = google_storage_bucket.results[count.index].name
  role   = "roles/storage.objectUser"
  member = google_service_account.service.member
}

resource "google_project_iam_member" "service" {
  project = var.project_id
  role    = "roles/datastore.user"
  member  = google_service_account.service.member

  condition {
    title      = local.database_condition.title
    expression = local.database_condition.expression
  }
}

resource "google_cloud_run_v2_service" "main" {
  name     = local.service_name
  location = var.region
  project  = var.project_id
  labels   = local.labels

  # Only Pub/Sub and Eventarc of this project can reach the service. IAM authenticates them.
  ingress              = "INGRESS_TRAFFIC_INTERNAL_ONLY"
  invoker_iam_disabled = false
  # The service stores nothing. protect_data protects the bucket and the database.
  deletion_protection = false

  template {
    service_account                  = google_service_account.service.email
    timeout                          = "${local.ack_deadline_seconds}s"
    max_instance_request_concurrency = local.max_in_flight
    execution_environment            = "EXECUTION_ENVIRONMENT_GEN2"
    gpu_zonal_redundancy_disabled    = local.has_gpu ? true : null
    encryption_key                   = var.kms_key

    scaling {
      min_instance_count = var.min_instances
      max_instance_count = local.max_instances
    }

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

    dynamic "node_selector" {
      for_each = local.has_gpu ? [var.accelerator] : []
      content {
        accelerator = node_selector.value
      }
    }

    containers {
      image = local.first_image

      ports {
        container_port = 8080
      }

      resources {
        limits = local.limits
        # Request-based billing without a GPU, instance-based billing with a GPU. Unset means false.
        cpu_idle          = !local.has_gpu
        startup_cpu_boost = true
      }

      dynamic "env" {
        for_each = local.service_environment
        content {
          name  = env.key
          value = env.value
        }
      }

      # The server does not respond until the model is loaded and its canary has passed.
      startup_probe {
        period_seconds    = 1
        timeout_seconds   = 1
        failure_threshold = 240 # 240 s, the longest that Cloud Run allows
        http_get {
          path = "/health/ready"
        }
      }

      # If work hangs or the model fails on every image, the response is 503, and Cloud Run replaces the
      # instance. Each probe is billed, so the period is long. But it must not exceed 60 s, because the
      # service counts at most 60 s between two probes (service/health.py).
      liveness_probe {
        period_seconds    = 60
        timeout_seconds   = 10
        failure_threshold = 3
        http_get {
          path = "/health/live"
        }
      }
    }
  }

  lifecycle {
    # A change of accelerator creates another service. Create it before the old one is destroyed.
    create_before_destroy = true
    # Cloud Build deploys images. Terraform manages everything else.
    ignore_changes = [
      client,
      client_version,
      template[0].annotations,
      template[0].containers[0].image,
      template[0].labels,
    ]
  }

  # It does not depend on its grants. The subscription and the trigger wait for the grants instead.
  depends_on = [
    google_pubsub_topic.outputs,
    google_storage_bucket.results,
    terraform_data.agreement,
    terraform_data.first_image,
    time_sleep.accounts,
  ]
}

# One account for jobs and one for uploads, so that each can be disabled alone.
resource "google_service_account" "events" {
  for_each = toset(["jobs", "uploads"])

  account_id   = "${var.name}-${each.key}"
  display_name = "${var.name}: calls the service with ${each.key}"
  project      = var.project_id

  depends_on = [time_sleep.apis]
}

resource "google_cloud_run_v2_service_iam_member" "events" {
  for_each = google_service_account.events

  location = var.region
  name     = google_cloud_run_v2_service.main.name
  role     = "roles/run.invoker"
  member   = each.value.member
  project  = var.project_id

  lifecycle {
    # Another accelerator creates another service. The old one must process uploads until then.
    create_before_destroy = true
  }
}

# Before the events move to the service. A call without a grant in effect fails with 403.
resource "time_sleep" "callers" {
  create_duration = "120s"
  triggers        = { for key, grant in google_cloud_run_v2_service_iam_member.events : key => grant.id }

  lifecycle {
    create_before_destroy = true
  }
}

# Needed by Pub/Sub agents that were created before April 2021. It has no effect on other agents.
resource "google_service_account_iam_member" "token_creator" {
  for_each = google_service_account.events

  service_account_id = each.value.name
  role               = "roles/iam.serviceAccountTokenCreator"
  member             = google_project_service_identity.main["pubsub.googleapis.com"].member
}
