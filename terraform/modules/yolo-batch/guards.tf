# What must not happen by accident: a change that would delete data, and a destroy of protected data.

locals {
  # A change of any of these would delete the uploads, the results or the container images, or would
  # create a second resource with the name of the first. Google cannot change the key of a database.
  fixed = {
    bucket_name        = local.bucket_name
    create_bucket      = tostring(var.create_bucket)
    create_database    = tostring(var.create_database)
    create_repository  = tostring(var.create_repository)
    firestore_database = var.firestore_database
    firestore_location = local.firestore_location
    kms_key            = coalesce(var.kms_key, "none")
    name               = var.name
    project_id         = var.project_id
    region             = var.region
    repository_name    = local.repository_name
  }
}

# Keeps the values of the first apply. A state without them gets the present values. Only when there is
# something to lose: the values of a first apply that failed before that, for example with a wrong region,
# can be corrected.
resource "terraform_data" "fixed" {
  for_each = local.fixed

  input = each.value

  lifecycle {
    ignore_changes = [input]

    postcondition {
      condition     = self.output == each.value
      error_message = "${each.key} is ${self.output} and cannot become ${each.value}, because uploads, results or container images would be deleted. Set it back. To move, make a second deployment: docs/how-to/move.md."
    }
  }

  depends_on = [
    google_artifact_registry_repository.main,
    google_firestore_database.main,
    google_storage_bucket.uploads,
  ]
}

# As tear_down, if bigquery becomes false. Otherwise the subscription and its undelivered messages would be
# gone before the destroy of the table fails.
resource "terraform_data" "rows" {
  count = length(google_bigquery_table.messages)

  input = { protect_data = var.protect_data }

  provisioner "local-exec" {
    when = destroy
    command = (
      self.input.protect_data
      ? "echo protect_data is true, so no row was deleted. To keep the rows, see docs/how-to/terraform-module.md. To delete them, apply with protect_data=false first. && exit 1"
      : "exit 0"
    )
  }

  depends_on = [
    google_bigquery_table.detections,
    google_monitoring_alert_policy.undelivered,
    google_pubsub_subscription.undelivered,
    google_pubsub_subscription_iam_member.delivered,
  ]
}

# The same, if gallery becomes false: the database of the verdicts is protected.
resource "terraform_data" "verdicts" {
  count = length(google_firestore_database.verdicts)

  input = { protect_data = var.protect_data }

  provisioner "local-exec" {
    when = destroy
    command = (
      self.input.protect_data
      ? "echo protect_data is true, so no verdict was deleted. To keep the verdicts, see docs/how-to/terraform-module.md. To delete them, apply with protect_data=false first. && exit 1"
      : "exit 0"
    )
  }

  depends_on = [
    google_cloud_run_v2_service_iam_member.build_gallery,
    google_cloud_run_v2_service_iam_member.gallery,
    google_iap_web_cloud_run_service_iam_member.gallery,
  ]
}

# A destroy destroys this first, because it depends on everything else. Otherwise a destroy of protected
# data would stop at the database only after it has destroyed the service. The value is that of the last
# apply. The command works in sh and in cmd.
resource "terraform_data" "tear_down" {
  input = { protect_data = var.protect_data }

  provisioner "local-exec" {
    when = destroy
    command = (
      self.input.protect_data
      ? "echo protect_data is true, so nothing was destroyed. Apply with protect_data=false first, then destroy again. && exit 1"
      : "exit 0"
    )
  }

  # Everything that nothing else depends on.
  depends_on = [
    google_billing_budget.main,
    google_cloud_run_v2_job_iam_member.build,
    google_cloud_run_v2_job_iam_member.build_silence,
    google_cloud_run_v2_service_iam_member.build,
    google_cloud_run_v2_service_iam_member.build_detect,
    google_cloud_run_v2_service_iam_member.detect,
    google_cloud_scheduler_job.reconcile,
    google_cloud_scheduler_job.silence,
    google_firestore_field.alerts,
    google_firestore_field.expiring,
    google_firestore_field.others,
    google_firestore_index.alerts,
    google_firestore_index.main,
    google_logging_metric.commit,
    google_logging_metric.line,
    google_logging_project_exclusion.requests,
    google_monitoring_alert_policy.burn_rate,
    google_monitoring_alert_policy.detect,
    google_monitoring_alert_policy.log,
    google_monitoring_alert_policy.query,
    google_monitoring_alert_policy.reconcile_absent,
    google_monitoring_alert_policy.reconcile_failed,
    google_monitoring_alert_policy.silence_failed,
    google_monitoring_alert_policy.source,
    google_monitoring_alert_policy.undelivered,
    google_monitoring_dashboard.main,
    google_project_service.scanning,
    google_pubsub_subscription.undelivered,
    google_pubsub_subscription_iam_member.delivered,
    google_pubsub_subscription_iam_member.jobs,
    google_pubsub_subscription_iam_member.uploads,
    google_service_account_iam_member.build,
    google_storage_bucket_iam_member.build_smoke,
    google_storage_notification.smoke,
    google_storage_notification.uploads,
    terraform_data.combinations,
    terraform_data.fixed,
    terraform_data.rows,
    terraform_data.tuned_subscription,
    terraform_data.verdicts,
  ]
}
