# Values derived from several variables, and the combinations that are refused. Like locals.tf, this file
# needs no provider, so that tests can read it alone.

locals {
  vpc_access = (
    var.vpc_network == null && var.vpc_subnetwork == null
    ? []
    : [{
      network    = var.vpc_network
      subnetwork = var.vpc_subnetwork
      egress     = upper(replace(var.vpc_egress, "-", "_"))
    }]
  )

  verdicts_name = "${var.name}-verdicts"

  # What the reconcile job compares, and where it notes the time of its last run. A run refuses the note
  # of a run over other objects, so those have another note.
  uploads_uri = "gs://${join("/", compact([local.bucket_name, var.object_prefix]))}"
  last_run = (
    var.bucket_name == null && var.object_prefix == null
    ? "last-run"
    : "last-run-${substr(sha256(local.uploads_uri), 0, 8)}"
  )

  # The parts of projects/PROJECT/locations/LOCATION/keyRings/RING/cryptoKeys/KEY
  kms_location = var.kms_key == null ? var.region : split("/", var.kms_key)[3]
}

resource "terraform_data" "combinations" {
  lifecycle {
    precondition {
      condition     = var.min_instances <= local.max_instances
      error_message = "min_instances is ${var.min_instances}, and max_instances is ${local.max_instances}. Raise max_instances or lower min_instances."
    }

    precondition {
      condition     = var.detect_min_instances <= var.detect_max_instances
      error_message = "detect_min_instances is ${var.detect_min_instances}, and detect_max_instances is ${var.detect_max_instances}. Raise detect_max_instances or lower detect_min_instances."
    }

    precondition {
      condition     = length(local.vpc_access) == 1 || var.vpc_egress == "private-ranges-only"
      error_message = "vpc_egress needs a network: set vpc_network, vpc_subnetwork or both."
    }

    precondition {
      condition     = local.kms_location == var.region
      error_message = "kms_key is in ${local.kms_location}. Cloud Run, the registry and the bucket need a key in their own location, ${var.region}."
    }

    precondition {
      condition     = var.kms_key == null || !var.create_database || coalesce(var.firestore_location, var.region) == var.region
      error_message = "kms_key is in ${local.kms_location}, so it cannot encrypt a database in ${coalesce(var.firestore_location, var.region)}. Leave firestore_location out, or create the database yourself and set create_database to false."
    }

    precondition {
      condition     = var.object_prefix == null || var.upload_events == "notification"
      error_message = "Eventarc cannot filter by object_prefix. Set upload_events to notification, or leave object_prefix out."
    }

    precondition {
      condition     = var.create_bucket || var.bucket_name != null
      error_message = "create_bucket is false, so bucket_name must name the bucket that exists."
    }

    precondition {
      condition     = var.create_bucket || (var.uploads_retention_days == null && !var.versioning && var.soft_delete_days == 7)
      error_message = "create_bucket is false, so uploads_retention_days, versioning and soft_delete_days would have no effect. Leave them out, and set them on the bucket itself."
    }

    precondition {
      condition     = !contains(concat(["${var.project_id}-${var.name}-build", "${var.project_id}-${var.name}-reconcile"], var.results_bucket ? [local.results_bucket] : []), local.bucket_name)
      error_message = "bucket_name is ${local.bucket_name}, which is another bucket of this deployment. What the service or a job writes there would be taken for uploads. Choose another bucket for uploads."
    }

    precondition {
      condition     = var.results_topic || !var.bigquery
      error_message = "bigquery needs the result messages: set results_topic to true."
    }

    precondition {
      condition     = var.alerts_topic || !local.has_webhook
      error_message = "alert_webhook_url needs the alert messages: set alerts_topic to true."
    }

    precondition {
      condition     = local.has_webhook || (var.alert_webhook_audience == null && var.alert_webhook_transform == "json")
      error_message = "alert_webhook_audience and alert_webhook_transform have no effect without alert_webhook_url. Set it, or leave them out."
    }

    precondition {
      condition     = var.detect_service || length(var.detect_invokers) == 0
      error_message = "detect_invokers has no effect without the detect service. Set detect_service to true, or leave it out."
    }

    precondition {
      condition     = var.detect_service || var.detect_min_instances == 0
      error_message = "detect_min_instances has no effect without the detect service. Set detect_service to true, or leave it out."
    }

    precondition {
      condition     = var.gallery || !(var.gallery_originals || var.gallery_try_again || length(var.gallery_viewers) > 0)
      error_message = "gallery_originals, gallery_try_again and gallery_viewers have no effect without the gallery. Set gallery to true, or leave them out."
    }

    precondition {
      condition     = !var.gallery || var.gallery_originals || var.results_bucket
      error_message = "The gallery would have no images to show. Set results_bucket to true, for derived images, or gallery_originals to true."
    }

    precondition {
      condition     = !var.gallery || var.firestore_database != local.verdicts_name
      error_message = "firestore_database is ${local.verdicts_name}, which is the database of the gallery's verdicts. Choose another database for the results."
    }

    precondition {
      condition     = var.create_repository || var.repository_name != null
      error_message = "create_repository is false, so repository_name must name the repository that exists."
    }
  }
}
