# Tests the plan of each variant. They need the providers, but no project and no credentials.
# check.uploads_subscription reads a subscription that only an apply creates, so a plan must expect it
# to fail.

mock_provider "google" {}
mock_provider "google-beta" {}
mock_provider "time" {}

variables {
  project_id = "my-project-1"
  region     = "europe-west4"
  # Without it, check.build_region warns, and every run fails.
  build_region = "europe-west1"
}

run "cpu" {
  command         = plan
  expect_failures = [check.uploads_subscription]

  assert {
    condition     = google_cloud_run_v2_service.main.name == "yolo-batch"
    error_message = "The CPU service has the plain name."
  }

  assert {
    condition     = google_cloud_run_v2_service.main.ingress == "INGRESS_TRAFFIC_INTERNAL_ONLY"
    error_message = "Only Pub/Sub and Eventarc of the project may reach the service."
  }

  assert {
    condition = (
      google_cloud_run_v2_service.main.template[0].scaling[0].min_instance_count == 0
      && google_cloud_run_v2_service.main.template[0].scaling[0].max_instance_count == 10
    )
    error_message = "The service scales from zero to ten."
  }

  assert {
    condition = (
      google_cloud_run_v2_service.main.template[0].containers[0].resources[0].cpu_idle
      && google_cloud_run_v2_service.main.template[0].containers[0].resources[0].startup_cpu_boost
      && google_cloud_run_v2_service.main.template[0].containers[0].resources[0].limits["cpu"] == "2"
      && google_cloud_run_v2_service.main.template[0].containers[0].resources[0].limits["memory"] == "2Gi"
    )
    error_message = "The service has 2 vCPU and 2 GiB, billed by request, with a CPU boost at the start."
  }

  assert {
    condition     = length(google_cloud_run_v2_service.main.template[0].node_selector) == 0
    error_message = "The service has no GPU."
  }

  assert {
    condition = (
      google_cloud_run_v2_service.main.template[0].max_instance_request_concurrency == 32
      && local.service_environment["MAX_BATCH_SIZE"] == "8"
      && local.service_environment["MAX_IN_FLIGHT"] == "32"
    )
    error_message = "MAX_IN_FLIGHT and Cloud Run's concurrency are four batches."
  }

  assert {
    condition = (
      google_cloud_run_v2_service.main.template[0].timeout == "600s"
      && local.service_environment["ACK_DEADLINE_SECONDS"] == "600"
    )
    error_message = "Cloud Run's request timeout is the ack deadline."
  }

  assert {
    condition = (
      google_cloud_run_v2_service.main.template[0].containers[0].startup_probe[0].http_get[0].path == "/health/ready"
      && google_cloud_run_v2_service.main.template[0].containers[0].liveness_probe[0].http_get[0].path == "/health/live"
    )
    error_message = "The probes use the service's health endpoints."
  }

  assert {
    condition = (
      google_pubsub_subscription.jobs.ack_deadline_seconds == 600
      && google_pubsub_subscription.jobs.dead_letter_policy[0].max_delivery_attempts == 50
      && google_pubsub_subscription.jobs.expiration_policy[0].ttl == ""
      && google_pubsub_subscription.dead_letters.expiration_policy[0].ttl == ""
    )
    error_message = "Jobs have an ack deadline of ten minutes and dead letters, and the subscriptions do not expire."
  }

  assert {
    condition = (
      google_storage_bucket.uploads.uniform_bucket_level_access
      && google_storage_bucket.uploads.public_access_prevention == "enforced"
      && !google_storage_bucket.uploads.force_destroy
      && google_firestore_database.main.delete_protection_state == "DELETE_PROTECTION_ENABLED"
      && google_firestore_database.main.deletion_policy == "DELETE"
    )
    error_message = "The uploads are not public, and a destroy deletes neither them nor the results."
  }

  assert {
    condition = (
      length(google_firestore_field.created_at.index_config[0].indexes) == 0
      && length(google_firestore_field.created_at.ttl_config) == 0
      && keys(google_firestore_field.unindexed) == ["detections", "event_time", "generation"]
      && keys(google_firestore_index.main) == ["bucket_name"]
    )
    error_message = "Fields that grow with time are not indexed, and results by prefix have an index."
  }

  assert {
    condition = (
      google_storage_bucket_iam_member.service.role == "roles/storage.objectViewer"
      && google_project_iam_member.service.role == "roles/datastore.user"
      && alltrue([for grant in google_cloud_run_v2_service_iam_member.events : grant.role == "roles/run.invoker"])
    )
    error_message = "The service reads one bucket and writes documents, and two accounts may call it."
  }
}

run "nvidia_l4" {
  command         = plan
  expect_failures = [check.uploads_subscription]
  variables {
    accelerator = "nvidia-l4"
  }

  assert {
    condition = (
      google_cloud_run_v2_service.main.name == "yolo-batch-nvidia-l4"
      && google_cloud_run_v2_service.main.template[0].node_selector[0].accelerator == "nvidia-l4"
      && google_cloud_run_v2_service.main.template[0].gpu_zonal_redundancy_disabled
      && !google_cloud_run_v2_service.main.template[0].containers[0].resources[0].cpu_idle
      && google_cloud_run_v2_service.main.template[0].containers[0].resources[0].limits["nvidia.com/gpu"] == "1"
      && google_cloud_run_v2_service.main.template[0].containers[0].resources[0].limits["memory"] == "16Gi"
      && google_cloud_run_v2_service.main.template[0].scaling[0].max_instance_count == 1
    )
    error_message = "The service has its own name and one L4 without zonal redundancy, billed by instance."
  }

  assert {
    condition = (
      local.service_environment["DEVICE"] == "0"
      && local.service_environment["MAX_BATCH_SIZE"] == "32"
      && google_cloud_run_v2_service.main.template[0].max_instance_request_concurrency == 128
    )
    error_message = "The model runs on the GPU, in batches of 32."
  }
}

run "nvidia_rtx_pro_6000" {
  command         = plan
  expect_failures = [check.uploads_subscription]
  variables {
    accelerator = "nvidia-rtx-pro-6000"
  }

  assert {
    condition = (
      google_cloud_run_v2_service.main.name == "yolo-batch-nvidia-rtx-pro-6000"
      && google_cloud_run_v2_service.main.template[0].node_selector[0].accelerator == "nvidia-rtx-pro-6000"
      && google_cloud_run_v2_service.main.template[0].containers[0].resources[0].limits["cpu"] == "20"
      && google_cloud_run_v2_service.main.template[0].containers[0].resources[0].limits["memory"] == "80Gi"
    )
    error_message = "The service has one RTX PRO 6000, with the CPU and memory that Cloud Run requires."
  }
}

run "uploads_by_eventarc" {
  command         = plan
  expect_failures = [check.uploads_subscription]

  assert {
    condition = (
      toset([for criterion in google_eventarc_trigger.uploads["uploads"].matching_criteria : criterion.value])
      == toset(["google.cloud.storage.object.v1.finalized", "my-project-1-yolo-batch-uploads"])
      && length(google_eventarc_trigger.uploads["uploads"].retry_policy) == 0
      && length(terraform_data.tuned_subscription) == 1
    )
    error_message = "Finalized objects of one bucket cause events, with retries and a configured subscription."
  }

  assert {
    condition     = length(google_storage_notification.uploads) == 0 && length(google_pubsub_subscription.uploads) == 0
    error_message = "No upload causes two messages."
  }
}

run "uploads_by_notification" {
  command         = plan
  expect_failures = [check.uploads_subscription]
  variables {
    upload_events = "notification"
  }

  assert {
    condition = (
      google_storage_notification.uploads["uploads"].payload_format == "JSON_API_V1"
      && google_storage_notification.uploads["uploads"].event_types == toset(["OBJECT_FINALIZE"])
      && google_pubsub_subscription.uploads["uploads"].ack_deadline_seconds == 600
      && google_pubsub_subscription.uploads["uploads"].dead_letter_policy[0].max_delivery_attempts == 50
      && google_pubsub_subscription.uploads["uploads"].expiration_policy[0].ttl == ""
    )
    error_message = "Uploads cause notifications to a topic whose push subscription is like that of the jobs."
  }

  assert {
    condition     = length(google_eventarc_trigger.uploads) == 0 && length(terraform_data.tuned_subscription) == 0
    error_message = "No upload causes two messages, and no gcloud is needed."
  }
}

run "given_image" {
  command         = plan
  expect_failures = [check.uploads_subscription]
  variables {
    image = "europe-west4-docker.pkg.dev/my-project-1/yolo-batch/service@sha256:0123"
  }

  assert {
    condition = (
      length(terraform_data.first_image) == 0
      && google_cloud_run_v2_service.main.template[0].containers[0].image == var.image
    )
    error_message = "The given image is deployed, and none is built."
  }
}

run "disposable" {
  command         = plan
  expect_failures = [check.uploads_subscription]
  variables {
    protect_data = false
  }

  assert {
    condition = (
      google_storage_bucket.uploads.force_destroy
      && google_firestore_database.main.delete_protection_state == "DELETE_PROTECTION_DISABLED"
      && google_firestore_database.main.deletion_policy == "DELETE"
    )
    error_message = "A destroy deletes everything, so that the next apply succeeds."
  }
}

run "by_time_and_expiring" {
  command         = plan
  expect_failures = [check.uploads_subscription]
  variables {
    query_by_time          = true
    max_instances          = 5
    results_ttl_days       = 30
    uploads_retention_days = 7
    versioning             = true
    soft_delete_days       = 0
    reconcile_schedule     = null
  }

  assert {
    condition = (
      length(google_firestore_field.created_at.index_config[0].indexes) == 2
      && google_firestore_field.created_at.ttl_config[0].expiration_offset == "2592000s"
      && length(google_firestore_index.main) == 3
    )
    error_message = "created_at is indexed, and documents expire by it."
  }

  assert {
    condition = (
      length(google_storage_bucket.uploads.lifecycle_rule) == 3
      && google_storage_bucket.uploads.versioning[0].enabled
      && google_storage_bucket.uploads.soft_delete_policy[0].retention_duration_seconds == 0
      && length(google_cloud_scheduler_job.reconcile) == 0
    )
    error_message = "Uploads and their old versions expire, and the reconcile job has no schedule."
  }
}

run "reconcile" {
  command         = plan
  expect_failures = [check.uploads_subscription]

  assert {
    condition = (
      slice(google_cloud_run_v2_job.reconcile.template[0].template[0].containers[0].args, 0, 6)
      == tolist([
        "reconcile", "gs://my-project-1-yolo-batch-uploads", "--enqueue", "missing",
        "--since", "gs://my-project-1-yolo-batch-reconcile/last-run",
      ])
      && google_cloud_scheduler_job.reconcile["main"].schedule == "23 3 * * *"
    )
    error_message = "Every night, uploads without a document since the last run are enqueued."
  }

  assert {
    condition = (
      google_storage_bucket_iam_member.reconcile.role == "roles/storage.objectViewer"
      && google_project_iam_member.reconcile.role == "roles/datastore.viewer"
      && google_pubsub_topic_iam_member.reconcile.role == "roles/pubsub.publisher"
      && google_storage_bucket_iam_member.reconcile_state.role == "roles/storage.objectUser"
      && google_storage_bucket_iam_member.reconcile_state.bucket == "my-project-1-yolo-batch-reconcile"
    )
    error_message = "The reconcile job reads uploads and documents, and writes only to its topic and its bucket."
  }
}
