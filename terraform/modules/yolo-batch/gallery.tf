# The gallery: the same container image, which shows the results to people. IAP decides who may open it, and
# the gallery itself verifies IAP's signature. docs/decisions/0028-the-gallery.md has the reasons.

locals {
  gallery_name  = "${var.name}-gallery"
  verdicts_path = "projects/${var.project_id}/databases/${local.verdicts_name}"

  # service/gallery/settings.py describes the variables that begin with GALLERY_.
  gallery_environment = merge(
    local.environment,
    var.results_bucket ? { RESULTS_BUCKET = local.results_bucket } : {},
    var.gallery_try_again ? { GALLERY_JOBS_TOPIC = google_pubsub_topic.jobs.id } : {},
    {
      ALLOWED_BUCKETS = local.bucket_name
      DECODERS        = "1" # for thumbnails
      # The audience of IAP's assertions.
      # Source: https://docs.cloud.google.com/iap/docs/signed-headers-howto
      GALLERY_AUDIENCE          = "/projects/${google_storage_bucket.reconcile.project_number}/locations/${var.region}/services/${local.gallery_name}"
      GALLERY_ORIGINALS         = tostring(var.gallery_originals)
      GALLERY_VERDICTS_DATABASE = local.verdicts_name
    },
  )
}

resource "google_project_service" "iap" {
  count = var.gallery ? 1 : 0

  service = "iap.googleapis.com"
  project = var.project_id
  # Other parts of the project may use it.
  disable_on_destroy = false
}

resource "time_sleep" "iap" {
  count = length(google_project_service.iap)

  create_duration = "60s"
  triggers        = { api = google_project_service.iap[count.index].id }
}

# Enabling an API does not create its agent.
resource "google_project_service_identity" "iap" {
  count    = length(google_project_service.iap)
  provider = google-beta

  service = "iap.googleapis.com"
  project = var.project_id

  depends_on = [time_sleep.iap]
}

resource "google_service_account" "gallery" {
  count = var.gallery ? 1 : 0

  account_id   = local.gallery_name
  display_name = "${var.name}: the gallery"
  project      = var.project_id

  depends_on = [time_sleep.apis]
}

# People's verdicts have a database of their own, so that the gallery can never change a result.
resource "google_firestore_database" "verdicts" {
  count = var.gallery ? 1 : 0

  name             = local.verdicts_name
  location_id      = local.firestore_location
  type             = "FIRESTORE_NATIVE"
  database_edition = "STANDARD"
  project          = var.project_id

  # As for the results (firestore.tf).
  delete_protection_state           = var.protect_data ? "DELETE_PROTECTION_ENABLED" : "DELETE_PROTECTION_DISABLED"
  deletion_policy                   = "DELETE"
  point_in_time_recovery_enablement = "POINT_IN_TIME_RECOVERY_DISABLED"

  dynamic "cmek_config" {
    for_each = var.kms_key[*]
    content {
      kms_key_name = cmek_config.value
    }
  }

  depends_on = [time_sleep.apis]
}

# To read the results, and no other database.
resource "google_project_iam_member" "gallery" {
  count = length(google_service_account.gallery)

  project = var.project_id
  role    = "roles/datastore.viewer"
  member  = google_service_account.gallery[count.index].member

  condition {
    title      = local.database_condition.title
    expression = local.database_condition.expression
  }
}

resource "google_project_iam_member" "gallery_verdicts" {
  count = length(google_service_account.gallery)

  project = var.project_id
  role    = "roles/datastore.user"
  member  = google_service_account.gallery[count.index].member

  condition {
    title      = "verdicts"
    expression = "resource.name == \"${local.verdicts_path}\" || resource.name.startsWith(\"${local.verdicts_path}/\")"
  }
}

# Derived images, and the detections of large results.
resource "google_storage_bucket_iam_member" "gallery_results" {
  count = var.results_bucket ? length(google_service_account.gallery) : 0

  bucket = google_storage_bucket.results[0].name
  role   = "roles/storage.objectViewer"
  member = google_service_account.gallery[count.index].member
}

resource "google_storage_bucket_iam_member" "gallery_originals" {
  count = var.gallery_originals ? length(google_service_account.gallery) : 0

  bucket = local.uploads_bucket
  role   = "roles/storage.objectViewer"
  member = google_service_account.gallery[count.index].member
}

resource "google_pubsub_topic_iam_member" "gallery" {
  count = var.gallery_try_again ? length(google_service_account.gallery) : 0

  topic   = google_pubsub_topic.jobs.name
  role    = "roles/pubsub.publisher"
  member  = google_service_account.gallery[count.index].member
  project = var.project_id
}

# Cloud Run rejects an account that has not propagated yet.
resource "time_sleep" "gallery" {
  count = length(google_service_account.gallery)

  create_duration = "20s"
  triggers        = { account = google_service_account.gallery[count.index].id }
}

resource "google_cloud_run_v2_service" "gallery" {
  count = length(google_service_account.gallery)

  name     = local.gallery_name
  location = var.region
  project  = var.project_id
  labels   = local.labels

  # People may be anywhere. IAP authenticates them, and only IAP's agent may call the service.
  ingress              = "INGRESS_TRAFFIC_ALL"
  iap_enabled          = true
  invoker_iam_disabled = false
  deletion_protection  = false # it stores nothing itself

  template {
    service_account                  = google_service_account.gallery[count.index].email
    timeout                          = "300s" # an export
    max_instance_request_concurrency = 80     # a page requests 60 thumbnails at once
    execution_environment            = "EXECUTION_ENVIRONMENT_GEN2"
    encryption_key                   = var.kms_key

    scaling {
      min_instance_count = 0
      max_instance_count = 2
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

    containers {
      image   = local.first_image
      command = ["python", "-m", "gunicorn"]
      args    = ["--config", "python:service.gallery.gunicorn_conf", "service.gallery.wsgi:build_app()"]

      ports {
        container_port = 8080
      }

      resources {
        limits            = { cpu = "1", memory = "1Gi" }
        cpu_idle          = true
        startup_cpu_boost = true
      }

      dynamic "env" {
        for_each = local.gallery_environment
        content {
          name  = env.key
          value = env.value
        }
      }

      # Cloud Run's own probe does not go through IAP. The response shows nothing.
      startup_probe {
        period_seconds    = 1
        timeout_seconds   = 1
        failure_threshold = 60
        http_get {
          path = "/health/ready"
        }
      }
    }
  }

  lifecycle {
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
    google_firestore_database.verdicts,
    google_project_iam_member.gallery,
    google_project_iam_member.gallery_verdicts,
    google_project_service_identity.iap,
    google_pubsub_topic_iam_member.gallery,
    google_storage_bucket_iam_member.gallery_originals,
    google_storage_bucket_iam_member.gallery_results,
    terraform_data.agreement,
    terraform_data.first_image,
    time_sleep.accounts,
    time_sleep.gallery,
  ]
}

# IAP calls the service as its own agent, after it has checked the person.
resource "google_cloud_run_v2_service_iam_member" "gallery" {
  count = length(google_cloud_run_v2_service.gallery)

  location = var.region
  name     = google_cloud_run_v2_service.gallery[count.index].name
  role     = "roles/run.invoker"
  member   = google_project_service_identity.iap[count.index].member
  project  = var.project_id
}

resource "google_iap_web_cloud_run_service_iam_member" "gallery" {
  for_each = var.gallery ? var.gallery_viewers : toset([])

  location               = var.region
  cloud_run_service_name = google_cloud_run_v2_service.gallery[0].name
  role                   = "roles/iap.httpsResourceAccessor"
  member                 = each.key
  project                = var.project_id
}

resource "google_cloud_run_v2_service_iam_member" "build_gallery" {
  count = length(google_cloud_run_v2_service.gallery)

  location = var.region
  name     = google_cloud_run_v2_service.gallery[count.index].name
  role     = "roles/run.developer"
  member   = google_service_account.build.member
  project  = var.project_id
}
