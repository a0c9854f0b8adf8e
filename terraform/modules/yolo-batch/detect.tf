# The detect service: the same container image with ENDPOINTS=detect. It is a service of its own, because
# roles/run.invoker applies to a whole service: a caller of the first service could send it events.

resource "google_service_account" "detect" {
  count = var.detect_service ? 1 : 0

  account_id   = "${var.name}-detect"
  display_name = "${var.name}: the detect service"
  project      = var.project_id

  depends_on = [time_sleep.apis]
}

# To read the images that callers name by URI.
resource "google_storage_bucket_iam_member" "detect" {
  count = length(google_service_account.detect)

  bucket = local.uploads_bucket
  role   = "roles/storage.objectViewer" # with objects.list, as the service (service.tf)
  member = google_service_account.detect[count.index].member
}

# The remaining roles are those of the service, because ?store=true stores a result as an upload does.
resource "google_storage_bucket_iam_member" "detect_results" {
  count = var.results_bucket ? length(google_service_account.detect) : 0

  bucket = google_storage_bucket.results[0].name
  role   = "roles/storage.objectUser"
  member = google_service_account.detect[count.index].member
}

resource "google_project_iam_member" "detect" {
  count = length(google_service_account.detect)

  project = var.project_id
  role    = "roles/datastore.user"
  member  = google_service_account.detect[count.index].member

  condition {
    title      = local.database_condition.title
    expression = local.database_condition.expression
  }
}

resource "google_pubsub_topic_iam_member" "detect" {
  for_each = var.detect_service ? google_pubsub_topic.outputs : {}

  topic   = each.value.name
  role    = "roles/pubsub.publisher"
  member  = google_service_account.detect[0].member
  project = var.project_id
}

# Cloud Run rejects an account that has not propagated yet.
resource "time_sleep" "detect" {
  count = length(google_service_account.detect)

  create_duration = "20s"
  triggers        = { account = google_service_account.detect[count.index].id }
}

resource "google_cloud_run_v2_service" "detect" {
  count = length(google_service_account.detect)

  name     = local.detect_name
  location = var.region
  project  = var.project_id
  labels   = local.labels

  # Callers may be anywhere. IAM authenticates them (detect_invokers).
  ingress              = "INGRESS_TRAFFIC_ALL"
  invoker_iam_disabled = false
  deletion_protection  = false # it stores nothing itself

  template {
    service_account                  = google_service_account.detect[count.index].email
    timeout                          = "${local.detect_seconds + 30}s" # a call may wait for an instance that starts
    max_instance_request_concurrency = local.detect_in_flight
    execution_environment            = "EXECUTION_ENVIRONMENT_GEN2"
    gpu_zonal_redundancy_disabled    = local.has_gpu ? true : null
    encryption_key                   = var.kms_key

    scaling {
      min_instance_count = var.detect_min_instances
      max_instance_count = var.detect_max_instances
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
        limits            = local.limits
        cpu_idle          = !local.has_gpu
        startup_cpu_boost = true
      }

      dynamic "env" {
        for_each = local.detect_environment
        content {
          name  = env.key
          value = env.value
        }
      }

      # As in service.tf.
      startup_probe {
        period_seconds    = 1
        timeout_seconds   = 1
        failure_threshold = 240
        http_get {
          path = "/health/ready"
        }
      }

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

  depends_on = [
    google_firestore_database.main,
    google_project_iam_member.detect,
    google_pubsub_topic_iam_member.detect,
    google_storage_bucket_iam_member.detect,
    google_storage_bucket_iam_member.detect_results,
    terraform_data.agreement,
    terraform_data.first_image,
    time_sleep.accounts,
    time_sleep.detect,
  ]
}

resource "google_cloud_run_v2_service_iam_member" "detect" {
  for_each = var.detect_service ? var.detect_invokers : toset([])

  location = var.region
  name     = google_cloud_run_v2_service.detect[0].name
  role     = "roles/run.invoker"
  member   = each.key
  project  = var.project_id

  lifecycle {
    # Another accelerator creates another service. The old one must respond until then.
    create_before_destroy = true
  }
}

resource "google_cloud_run_v2_service_iam_member" "build_detect" {
  count = length(google_cloud_run_v2_service.detect)

  location = var.region
  name     = google_cloud_run_v2_service.detect[count.index].name
  role     = "roles/run.developer"
  member   = google_service_account.build.member
  project  = var.project_id

  lifecycle {
    create_before_destroy = true
  }
}

resource "google_monitoring_alert_policy" "detect" {
  count = length(google_cloud_run_v2_service.detect)

  display_name          = "${local.watched}: errors of the detect service"
  combiner              = "OR"
  severity              = "ERROR"
  notification_channels = var.notification_channels
  user_labels           = local.labels
  project               = var.project_id

  conditions {
    display_name = "Over 5 % of the calls end with 5xx for 10 min"
    condition_prometheus_query_language {
      query                     = "sum(rate(run_googleapis_com:request_count{${local.of_detect},response_code_class=\"5xx\"}[5m])) / sum(rate(run_googleapis_com:request_count{${local.of_detect}}[5m])) > 0.05"
      duration                  = "600s"
      evaluation_interval       = "60s"
      disable_metric_validation = true
    }
  }

  alert_strategy {
    auto_close = local.auto_close
  }

  documentation {
    mime_type = "text/markdown"
    content   = "Callers of the detect service get no detections, and must repeat their calls. Uploads are not affected. 503 means that Cloud Storage or Firestore is unavailable, or that no instance starts. 504 means that a call took too long. Read the log with `gcloud logging read 'resource.type=cloud_run_revision AND resource.labels.service_name=${local.detect_name} AND severity>=WARNING' --project ${var.project_id} --limit 50`."
  }
}
