# Cloud Build's account, and the first image. It is built before the service and the trigger exist, so
# that nothing except the real service ever acknowledges an upload.

resource "google_service_account" "build" {
  account_id   = "${var.name}-build"
  display_name = "${var.name}: Cloud Build"
  project      = var.project_id

  depends_on = [time_sleep.apis]
}

# Sources that gcloud uploads. A user-specified account cannot read Cloud Build's default bucket.
resource "google_storage_bucket" "build" {
  name     = "${var.project_id}-${var.name}-build"
  location = upper(var.region)
  project  = var.project_id
  labels   = local.labels

  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"
  force_destroy               = true # copies of the repository

  dynamic "encryption" {
    for_each = var.kms_key[*]
    content {
      default_kms_key_name = encryption.value
    }
  }

  soft_delete_policy {
    retention_duration_seconds = 0
  }

  lifecycle_rule {
    action {
      type = "Delete"
    }
    condition {
      age = 7
    }
  }

  depends_on = [time_sleep.apis]
}

resource "google_storage_bucket_iam_member" "build_source" {
  bucket = google_storage_bucket.build.name
  role   = "roles/storage.objectViewer"
  member = google_service_account.build.member
}

resource "google_artifact_registry_repository_iam_member" "build" {
  location   = var.region
  repository = local.repository_id
  role       = "roles/artifactregistry.writer"
  member     = google_service_account.build.member
  project    = var.project_id
}

# To write logs, and to read the document of the smoke test's image.
resource "google_project_iam_member" "build" {
  for_each = {
    "roles/datastore.viewer"  = [local.database_condition]
    "roles/logging.logWriter" = []
  }

  project = var.project_id
  role    = each.key
  member  = google_service_account.build.member

  dynamic "condition" {
    for_each = each.value
    content {
      title      = condition.value.title
      expression = condition.value.expression
    }
  }
}

# To upload and delete the smoke test's image. The account has no access to other objects.
resource "google_storage_bucket_iam_member" "build_smoke" {
  bucket = local.uploads_bucket
  role   = "roles/storage.objectUser"
  member = google_service_account.build.member

  condition {
    title      = "smoke"
    expression = "resource.name.startsWith(\"projects/_/buckets/${local.uploads_bucket}/objects/smoke/\")"
  }
}

# To deploy the service and the reconcile job, and to run all services and jobs as their accounts. detect.tf,
# gallery.tf and silence.tf have the same role for what they create.
resource "google_cloud_run_v2_service_iam_member" "build" {
  location = var.region
  name     = google_cloud_run_v2_service.main.name
  role     = "roles/run.developer"
  member   = google_service_account.build.member
  project  = var.project_id

  lifecycle {
    # Another accelerator creates another service. The old one must remain deployable until then.
    create_before_destroy = true
  }
}

resource "google_cloud_run_v2_job_iam_member" "build" {
  location = var.region
  name     = google_cloud_run_v2_job.reconcile.name
  role     = "roles/run.developer"
  member   = google_service_account.build.member
  project  = var.project_id
}

resource "google_service_account_iam_member" "build" {
  for_each = merge(
    {
      service   = google_service_account.service.name
      reconcile = google_service_account.reconcile.name
    },
    { for account in google_service_account.detect : "detect" => account.name },
    { for account in google_service_account.gallery : "gallery" => account.name },
    { for account in google_service_account.silence : "silence" => account.name },
  )

  service_account_id = each.value
  role               = "roles/iam.serviceAccountUser"
  member             = google_service_account.build.member
}

resource "time_sleep" "build_grants" {
  create_duration = "120s"
  triggers = merge(
    {
      agent    = google_project_service_identity.main["cloudbuild.googleapis.com"].id
      source   = google_storage_bucket_iam_member.build_source.id
      registry = google_artifact_registry_repository_iam_member.build.id
    },
    { for role, grant in google_project_iam_member.build : role => grant.id },
  )
}

locals {
  # The Dockerfile's target. Each target has its own tag, so that a service without a GPU never starts
  # with the image of a service with one.
  target = local.has_gpu ? "gpu" : "cpu"

  # cloudbuild.yaml sets this tag on the first image, and later on each image that passed the smoke
  # test. Only the first deployment uses it.
  built_image = "${var.region}-docker.pkg.dev/${var.project_id}/${local.image_folder}/service:latest-${local.target}"
  first_image = coalesce(var.image, local.built_image)

  substitutions = {
    _BUCKET      = local.bucket_name
    _CALIBRATION = var.calibration
    _COLLECTION  = var.firestore_collection
    _DATABASE    = var.firestore_database
    _JOBS        = join(" ", compact(["${var.name}-reconcile", var.alerts_topic ? local.silence_name : ""]))
    _MODEL       = var.model
    _REGION      = var.region
    _REPOSITORY  = local.image_folder
    _SERVICE     = local.service_name
    _SERVICES    = join(" ", compact([var.detect_service ? local.detect_name : "", var.gallery ? local.gallery_name : ""]))
    _TARGET      = local.target
  }
  # Double quotes work in every shell. No value contains a double quote.
  build_options = join(" ", compact([
    "--project=${var.project_id}",
    "--region=${local.build_region}",
    "--config=cloudbuild.yaml",
    "--service-account=${google_service_account.build.id}",
    "--gcs-source-staging-dir=gs://${google_storage_bucket.build.name}/source",
    # The GPU's image has several GB, which take long to pack on the 1 or 2 vCPU of the default machine.
    local.has_gpu ? "--machine-type=e2-highcpu-8" : "",
    "--substitutions=\"${join(",", [for name, value in local.substitutions : "${name}=${value}"])}",
  ]))
}

# Runs once, and again after a change of accelerator, which needs another image. A new model is deployed
# with build_command, like new code.
resource "terraform_data" "first_image" {
  for_each = var.image == null ? toset(["main"]) : toset([])

  triggers_replace = [local.repository_id, var.accelerator]

  provisioner "local-exec" {
    working_dir = "${path.module}/../../.." # the root of the repository
    command     = "gcloud builds submit ${local.build_options},_DEPLOY=false\" ."
  }

  depends_on = [terraform_data.agreement, time_sleep.build_grants]
}
