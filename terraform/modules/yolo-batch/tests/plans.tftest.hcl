# Tests the plan of each variant. They need the providers, but no project and no credentials.
# With Eventarc, check.uploads_subscription reads a subscription that only an apply creates, so a plan
# must expect it to fail.

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
      google_storage_bucket.uploads[0].uniform_bucket_level_access
      && google_storage_bucket.uploads[0].public_access_prevention == "enforced"
      && !google_storage_bucket.uploads[0].force_destroy
      && google_firestore_database.main[0].delete_protection_state == "DELETE_PROTECTION_ENABLED"
      && google_firestore_database.main[0].deletion_policy == "DELETE"
    )
    error_message = "The uploads are not public, and a destroy deletes neither them nor the results."
  }

  assert {
    condition = (
      length(google_firestore_field.created_at["results"].index_config[0].indexes) == 0
      && length(google_firestore_field.created_at["results"].ttl_config) == 0
      && length(google_firestore_field.others.index_config[0].indexes) == 0
      && google_firestore_field.others.field == "*"
      && {
        for name, field in google_firestore_field.indexed :
        name => [for index in field.index_config[0].indexes : coalesce(index.order, index.array_config)]
      } == local.single_field_indexes
      && alltrue([
        for index in google_firestore_index.main :
        index.fields[length(index.fields) - 2].field_path == "shard"
        if contains(index.fields[*].field_path, "created_at")
      ])
    )
    error_message = "A field has an index only if a documented query needs it, and created_at only behind shard."
  }

  assert {
    condition = (
      google_storage_bucket_iam_member.service.role == "roles/storage.objectViewer"
      && google_project_iam_member.service.role == "roles/datastore.user"
      && startswith(google_project_iam_member.service.condition[0].expression, "resource.name == \"projects/my-project-1/databases/(default)\" ||")
      && alltrue([for grant in google_cloud_run_v2_service_iam_member.events : grant.role == "roles/run.invoker"])
    )
    error_message = "The service reads one bucket and writes to one database, and two accounts may call it."
  }

  assert {
    condition = (
      alltrue([for field in google_firestore_field.expiring : length(field.index_config[0].indexes) == 0])
      && {
        for key, field in google_firestore_field.expiring : key => [field.collection, field.field, length(field.ttl_config)]
        } == {
        "cooldowns/*"          = ["detections-cooldowns", "*", 0]
        "cooldowns/expires_at" = ["detections-cooldowns", "expires_at", 1]
        "deleted/*"            = ["detections-deleted", "*", 0]
        "deleted/expires_at"   = ["detections-deleted", "expires_at", 1]
      }
    )
    error_message = "Notes of deleted objects and cooldowns expire, and have no index."
  }

  assert {
    condition = (
      { for key, field in google_firestore_field.alerts : key => [for index in field.index_config[0].indexes : index.order] } == {
        "*" = [], suppressed_by = ["ASCENDING"]
      }
      && alltrue([for each in concat(values(google_firestore_field.alerts), values(google_firestore_index.alerts)) : each.collection == "detections-alerts"])
      && google_firestore_field.created_at["alerts"].collection == "detections-alerts"
      && length(google_firestore_field.created_at["alerts"].index_config[0].indexes) == 0
    )
    error_message = "Alerts have the indexes of their queries, and created_at only behind shard."
  }

  assert {
    condition = (
      length(google_storage_bucket.results) == 0
      && length(google_storage_bucket_iam_member.results) == 0
      && length(setintersection(keys(local.service_environment), ["DELETE_RESULTS_WITH_OBJECTS", "RESULTS_BUCKET"])) == 0
    )
    error_message = "The service writes to no bucket, and deletes no result."
  }

  assert {
    condition = (
      length(google_pubsub_topic.outputs) == 0
      && length(setintersection(keys(local.service_environment), ["ALERTS_TOPIC", "ENDPOINTS", "RESULTS_TOPIC"])) == 0
      && length(google_bigquery_dataset.results) == 0
      && length(google_project_service.bigquery) == 0
      && length(google_pubsub_subscription.webhook) == 0
      && length(google_cloud_run_v2_job.silence) == 0
      && length(google_cloud_scheduler_job.silence) == 0
      && length(google_monitoring_alert_policy.source) == 0
      && length(google_cloud_run_v2_service.detect) == 0
      && length(google_cloud_run_v2_service_iam_member.detect) == 0
      && length(google_cloud_run_v2_service.gallery) == 0
      && length(google_firestore_database.verdicts) == 0
      && length(google_project_service.iap) == 0
      && local.substitutions._SERVICES == ""
      && local.substitutions._JOBS == "yolo-batch-reconcile"
    )
    error_message = "Nothing is published, nobody is alerted, and there is no other service."
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
  expect_failures = [check.machine_size, check.quota, check.uploads_subscription]
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

run "deletes_by_eventarc" {
  command         = plan
  expect_failures = [check.uploads_subscription]
  variables {
    delete_results_with_objects = true
  }

  assert {
    condition = (
      { for key, trigger in google_eventarc_trigger.uploads : key => [for each in trigger.matching_criteria : each.value if each.attribute == "type"] }
      == {
        deletes = ["google.cloud.storage.object.v1.deleted"]
        uploads = ["google.cloud.storage.object.v1.finalized"]
      }
      && google_eventarc_trigger.uploads["deletes"].name == "yolo-batch-deletes"
      && keys(terraform_data.tuned_subscription) == ["deletes", "uploads"]
      && local.service_environment["DELETE_RESULTS_WITH_OBJECTS"] == "true"
    )
    error_message = "Deletes cause events of their own, with a configured subscription, and the service acts on them."
  }

  assert {
    condition = (
      can(regex("^(${local.work_subscriptions})$", "eventarc-europe-west4-yolo-batch-deletes-sub-102"))
      && !can(regex("^(${local.uploads_subscriptions})$", "eventarc-europe-west4-yolo-batch-deletes-sub-102"))
    )
    error_message = "The alerts watch the deletes, and the objective is about uploads only."
  }
}

run "deletes_by_notification" {
  command = plan
  variables {
    upload_events               = "notification"
    object_prefix               = "incoming/"
    delete_results_with_objects = true
  }

  assert {
    condition = alltrue([
      for notifications in [google_storage_notification.uploads, google_storage_notification.smoke] :
      { for key, each in notifications : key => one(each.event_types) } == { deletes = "OBJECT_DELETE", uploads = "OBJECT_FINALIZE" }
    ])
    error_message = "Deletes below the same folders as the uploads cause notifications."
  }

  assert {
    condition = (
      { for key, each in google_pubsub_subscription.uploads : key => each.name } == { deletes = "yolo-batch-deletes", uploads = "yolo-batch-uploads" }
      && alltrue([
        for each in google_pubsub_subscription.uploads :
        each.ack_deadline_seconds == 600 && each.dead_letter_policy[0].max_delivery_attempts == 50
      ])
      && can(regex("^(${local.work_subscriptions})$", "yolo-batch-deletes"))
      && !can(regex("^(${local.uploads_subscriptions})$", "yolo-batch-deletes"))
    )
    error_message = "Deletes have a subscription of their own, like that of the uploads."
  }
}

run "uploads_by_notification" {
  command = plan
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
    protect_data   = false
    results_bucket = true
  }

  assert {
    condition = (
      google_storage_bucket.uploads[0].force_destroy
      && google_storage_bucket.results[0].force_destroy
      && google_firestore_database.main[0].delete_protection_state == "DELETE_PROTECTION_DISABLED"
      && google_firestore_database.main[0].deletion_policy == "DELETE"
    )
    error_message = "A destroy deletes everything, so that the next apply succeeds."
  }
}

run "expiring" {
  command         = plan
  expect_failures = [check.uploads_subscription]
  variables {
    results_bucket         = true
    results_ttl_days       = 30
    uploads_retention_days = 7
    versioning             = true
    soft_delete_days       = 0
    reconcile_schedule     = null
  }

  assert {
    condition = (
      length(google_firestore_field.created_at["results"].index_config[0].indexes) == 0
      && google_firestore_field.created_at["results"].ttl_config[0].expiration_offset == "2592000s"
      && google_firestore_field.created_at["alerts"].ttl_config[0].expiration_offset == "2592000s"
      && google_firestore_field.created_at["results"].deletion_policy == "DELETE"
      && google_storage_bucket.results[0].lifecycle_rule[0].condition[0].age == 31
    )
    error_message = "Documents expire by created_at, which has no index, and their large parts a day later."
  }

  assert {
    condition = (
      length(google_storage_bucket.uploads[0].lifecycle_rule) == 3
      && google_storage_bucket.uploads[0].versioning[0].enabled
      && google_storage_bucket.uploads[0].soft_delete_policy[0].retention_duration_seconds == 0
      && length(google_cloud_scheduler_job.reconcile) == 0
    )
    error_message = "Uploads and their old versions expire, and the reconcile job has no schedule."
  }
}

run "results_bucket" {
  command         = plan
  expect_failures = [check.uploads_subscription]
  variables {
    results_bucket = true
  }

  assert {
    condition = (
      google_storage_bucket.results[0].name == "my-project-1-yolo-batch-results"
      && google_storage_bucket.results[0].uniform_bucket_level_access
      && google_storage_bucket.results[0].public_access_prevention == "enforced"
      && google_storage_bucket.results[0].soft_delete_policy[0].retention_duration_seconds == 0
      && !google_storage_bucket.results[0].force_destroy
      && length(google_storage_bucket.results[0].lifecycle_rule) == 0
    )
    error_message = "Large parts of results are private, gone when they are deleted, and no destroy deletes them."
  }

  assert {
    condition = (
      local.service_environment["RESULTS_BUCKET"] == "my-project-1-yolo-batch-results"
      && google_storage_bucket_iam_member.results[0].bucket == "my-project-1-yolo-batch-results"
      && google_storage_bucket_iam_member.results[0].role == "roles/storage.objectUser"
    )
    error_message = "The service may write, read and delete objects of this bucket."
  }
}

run "own_indexes" {
  command         = plan
  expect_failures = [check.uploads_subscription]
  variables {
    indexed_fields = ["model.name", "best"]
  }

  assert {
    condition = (
      length(google_firestore_field.indexed["model.name"].index_config[0].indexes) == 3
      && google_firestore_field.indexed["model.name"].deletion_policy == "DELETE"
      && length(google_firestore_field.indexed["best"].index_config[0].indexes) == 3
      && google_firestore_field.indexed["best"].deletion_policy == "ABANDON"
      && length(google_firestore_field.indexed["counts"].index_config[0].indexes) == 1
      && length(google_firestore_field.others.index_config[0].indexes) == 0
    )
    error_message = "Own fields are indexed for every query, and lose their index with the variable."
  }
}

run "all_fields_indexed" {
  command         = plan
  expect_failures = [check.uploads_subscription]
  variables {
    index_all_fields = true
    indexed_fields   = ["model.name"]
  }

  assert {
    condition = (
      length(google_firestore_field.others.index_config[0].indexes) == 3
      && length(google_firestore_field.indexed["labels"].index_config[0].indexes) == 3
      && length(google_firestore_field.indexed["detections"].index_config[0].indexes) == 0
      && length(google_firestore_field.indexed["captured_at"].index_config[0].indexes) == 0
      && length(google_firestore_field.created_at["results"].index_config[0].indexes) == 0
      && alltrue([for field in google_firestore_field.indexed : field.deletion_policy == "ABANDON"])
    )
    error_message = "Fields that grow with time and detections stay without an index, and no reset adds one."
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

run "daily_limit" {
  command         = plan
  expect_failures = [check.uploads_subscription]
  variables {
    daily_image_limit = 10000
  }

  assert {
    condition     = local.service_environment["DAILY_IMAGE_LIMIT"] == "10000" && local.environment["DAILY_IMAGE_LIMIT"] == "10000"
    error_message = "The service and the reconcile job know the daily limit."
  }

  assert {
    condition = alltrue([
      contains(google_cloud_run_v2_job.reconcile.template[0].template[0].containers[0].args, "parked"),
      contains(google_cloud_run_v2_job.reconcile.template[0].template[0].containers[0].args, "missing"),
    ])
    error_message = "The nightly job continues parked images, and still finds missing ones."
  }
}

run "labels_and_min_instances" {
  command         = plan
  expect_failures = [check.uploads_subscription]
  variables {
    labels        = { team = "vision", app = "cameras" }
    min_instances = 2
    max_instances = 2
  }

  assert {
    condition = (
      google_storage_bucket.uploads[0].labels == tomap({ app = "cameras", team = "vision" })
      && google_cloud_run_v2_service.main.labels == google_storage_bucket.uploads[0].labels
      && google_cloud_run_v2_service.main.template[0].scaling[0].min_instance_count == 2
    )
    error_message = "Your labels are merged over ours, and two instances stay started."
  }
}

run "kms_key" {
  command = plan
  variables {
    kms_key        = "projects/keys-1/locations/europe-west4/keyRings/ring/cryptoKeys/key"
    results_bucket = true
    upload_events  = "notification"
  }

  assert {
    condition = alltrue([
      for key in [
        google_storage_bucket.uploads[0].encryption[0].default_kms_key_name,
        google_storage_bucket.build.encryption[0].default_kms_key_name,
        google_storage_bucket.reconcile.encryption[0].default_kms_key_name,
        google_storage_bucket.results[0].encryption[0].default_kms_key_name,
        google_pubsub_topic.jobs.kms_key_name,
        google_pubsub_topic.dead_letters.kms_key_name,
        google_pubsub_topic.uploads["uploads"].kms_key_name,
        google_firestore_database.main[0].cmek_config[0].kms_key_name,
        google_artifact_registry_repository.main[0].kms_key_name,
        google_cloud_run_v2_service.main.template[0].encryption_key,
        google_cloud_run_v2_job.reconcile.template[0].template[0].encryption_key,
      ] : key == var.kms_key
    ])
    error_message = "The key encrypts whatever stores data."
  }
}

run "vpc" {
  command         = plan
  expect_failures = [check.uploads_subscription]
  variables {
    vpc_network    = "net-1"
    vpc_subnetwork = "projects/my-project-1/regions/europe-west4/subnetworks/sub-1"
    vpc_egress     = "all-traffic"
  }

  assert {
    condition = alltrue([
      for access in [
        google_cloud_run_v2_service.main.template[0].vpc_access[0],
        google_cloud_run_v2_job.reconcile.template[0].template[0].vpc_access[0],
      ]
      : access.egress == "ALL_TRAFFIC" && access.network_interfaces[0].network == "net-1"
      && access.network_interfaces[0].subnetwork == var.vpc_subnetwork
    ])
    error_message = "The service and the job send all traffic through the network."
  }
}

run "object_prefix" {
  command = plan
  variables {
    upload_events = "notification"
    object_prefix = "incoming/"
  }

  assert {
    condition = (
      google_storage_notification.uploads["uploads"].object_name_prefix == "incoming/"
      && google_storage_notification.smoke["uploads"].object_name_prefix == "smoke/"
    )
    error_message = "Uploads to the folder cause notifications, and so does the image of the smoke test."
  }

  assert {
    condition = (
      google_cloud_run_v2_job.reconcile.template[0].template[0].containers[0].args[1] == "gs://my-project-1-yolo-batch-uploads/incoming/"
      && can(regex("/last-run-[0-9a-f]{8}$", google_cloud_run_v2_job.reconcile.template[0].template[0].containers[0].args[5]))
    )
    error_message = "The reconcile job compares only this folder, with a note of its own."
  }
}

run "scan_images" {
  command         = plan
  expect_failures = [check.uploads_subscription]
  variables {
    scan_images     = true
    repository_name = "images"
  }

  assert {
    condition = (
      google_project_service.scanning[0].service == "containerscanning.googleapis.com"
      && !google_project_service.scanning[0].disable_on_destroy
      && google_artifact_registry_repository.main[0].vulnerability_scanning_config[0].enablement_config == "INHERITED"
      && google_artifact_registry_repository.main[0].repository_id == "images"
      && local.substitutions._REPOSITORY == "images"
    )
    error_message = "New images of this registry are scanned."
  }
}

run "results_topic" {
  command         = plan
  expect_failures = [check.uploads_subscription]
  variables {
    results_topic = true
  }

  assert {
    condition = (
      { for key, topic in google_pubsub_topic.outputs : key => topic.name } == { results = "yolo-batch-results" }
      && local.service_environment["RESULTS_TOPIC"] == "projects/my-project-1/topics/yolo-batch-results"
      && google_pubsub_topic_iam_member.service["results"].topic == "yolo-batch-results"
      && google_pubsub_topic_iam_member.service["results"].role == "roles/pubsub.publisher"
    )
    error_message = "The service publishes to its topic, and may publish to no other."
  }

  assert {
    condition     = length(google_pubsub_topic.undelivered) == 0 && length(google_pubsub_subscription.bigquery) == 0
    error_message = "Without BigQuery, the topic has no subscription."
  }
}

run "bigquery" {
  command         = plan
  expect_failures = [check.uploads_subscription]
  variables {
    results_topic = true
    bigquery      = true
    labels        = { team = "vision" }
  }

  assert {
    condition = (
      google_bigquery_dataset.results[0].dataset_id == "yolo_batch"
      && google_bigquery_dataset.results[0].location == "europe-west4"
      && google_bigquery_dataset.results[0].labels["team"] == "vision"
      && !google_bigquery_dataset.results[0].delete_contents_on_destroy
      && google_bigquery_table.messages[0].deletion_protection
      && length(google_bigquery_dataset.results[0].default_encryption_configuration) == 0
      && !google_project_service.bigquery[0].disable_on_destroy
    )
    error_message = "The dataset is in the region, with the labels, and no destroy deletes rows."
  }

  assert {
    condition = (
      google_bigquery_table.messages[0].time_partitioning[0].field == "created_at"
      && google_bigquery_table.messages[0].time_partitioning[0].type == "DAY"
      && google_bigquery_table.messages[0].time_partitioning[0].expiration_ms == 0
      && google_bigquery_table.messages[0].clustering == tolist(["source_id"])
      && length(setsubtract(["created_at", "source_id"], jsondecode(google_bigquery_table.messages[0].schema)[*].name)) == 0
    )
    error_message = "The table has a partition for each day and is sorted by source, and its rows stay."
  }

  assert {
    condition = (
      google_pubsub_subscription.bigquery[0].bigquery_config[0].table == "my-project-1.yolo_batch.messages"
      && google_pubsub_subscription.bigquery[0].bigquery_config[0].use_table_schema
      && google_pubsub_subscription.bigquery[0].bigquery_config[0].drop_unknown_fields
      && google_pubsub_subscription.bigquery[0].expiration_policy[0].ttl == ""
      && google_pubsub_subscription.bigquery[0].dead_letter_policy[0].max_delivery_attempts == 50
      && google_pubsub_topic.undelivered["results"].name == "yolo-batch-results-undelivered"
      && google_pubsub_subscription.undelivered["results"].expiration_policy[0].ttl == ""
      && google_pubsub_subscription_iam_member.delivered["results"].subscription == "yolo-batch-results-bigquery"
    )
    error_message = "Pub/Sub writes the fields that the table has, and keeps what BigQuery refuses."
  }

  assert {
    condition = (
      google_bigquery_table_iam_member.pubsub[0].table_id == "messages"
      && google_bigquery_table_iam_member.pubsub[0].role == "roles/bigquery.dataEditor"
    )
    error_message = "Pub/Sub may write to this table only."
  }

  assert {
    condition = (
      strcontains(google_bigquery_table.results[0].view[0].query, "FROM `my-project-1.yolo_batch.messages`")
      && strcontains(google_bigquery_table.detections[0].view[0].query, "FROM `my-project-1.yolo_batch.results`")
      && !google_bigquery_table.results[0].view[0].use_legacy_sql
      && !google_bigquery_table.detections[0].view[0].use_legacy_sql
    )
    error_message = "The views read the table of this deployment."
  }
}

run "bigquery_disposable" {
  command         = plan
  expect_failures = [check.uploads_subscription]
  variables {
    results_topic    = true
    bigquery         = true
    protect_data     = false
    results_ttl_days = 30
    kms_key          = "projects/keys-1/locations/europe-west4/keyRings/ring/cryptoKeys/key"
  }

  assert {
    condition = (
      google_bigquery_dataset.results[0].delete_contents_on_destroy
      && !google_bigquery_table.messages[0].deletion_protection
      && google_bigquery_table.messages[0].time_partitioning[0].expiration_ms == 2592000000
    )
    error_message = "Rows expire like documents, and a destroy deletes everything."
  }

  assert {
    condition = alltrue([
      for key in [
        google_bigquery_dataset.results[0].default_encryption_configuration[0].kms_key_name,
        google_bigquery_table.messages[0].encryption_configuration[0].kms_key_name,
        google_pubsub_topic.outputs["results"].kms_key_name,
        google_pubsub_topic.undelivered["results"].kms_key_name,
      ] : key == var.kms_key
    ])
    error_message = "The key encrypts the rows and the messages."
  }
}

run "alerts_topic" {
  command         = plan
  expect_failures = [check.uploads_subscription]
  variables {
    alerts_topic = true
    vpc_network  = "net-1"
    kms_key      = "projects/keys-1/locations/europe-west4/keyRings/ring/cryptoKeys/key"
  }

  assert {
    condition = (
      local.service_environment["ALERTS_TOPIC"] == "projects/my-project-1/topics/yolo-batch-alerts"
      && keys(google_pubsub_topic.outputs) == ["alerts"]
      && google_pubsub_topic_iam_member.service["alerts"].role == "roles/pubsub.publisher"
      && length(google_pubsub_subscription.webhook) == 0
      && length(google_monitoring_alert_policy.source) == 0
      && length(google_monitoring_alert_policy.undelivered) == 0
    )
    error_message = "The service publishes alerts, and nobody but other systems gets them."
  }

  assert {
    condition = (
      google_cloud_run_v2_job.silence[0].name == "yolo-batch-silence"
      && google_cloud_run_v2_job.silence[0].template[0].template[0].containers[0].args == tolist(["alerts", "check-silence"])
      && google_cloud_run_v2_job.silence[0].template[0].template[0].encryption_key == var.kms_key
      && google_cloud_run_v2_job.silence[0].template[0].template[0].vpc_access[0].network_interfaces[0].network == "net-1"
      && local.silence_environment == merge(local.environment, { ALERTS_TOPIC = "projects/my-project-1/topics/yolo-batch-alerts", ALLOWED_BUCKETS = local.bucket_name })
      && google_cloud_scheduler_job.silence[0].schedule == "*/10 * * * *"
      && local.substitutions._JOBS == "yolo-batch-reconcile yolo-batch-silence"
      && contains(keys(google_monitoring_alert_policy.log), "silence_start")
    )
    error_message = "A job looks for silent sources every ten minutes, and is deployed with the service."
  }

  assert {
    condition = (
      google_project_iam_member.silence[0].role == "roles/datastore.user"
      && startswith(google_project_iam_member.silence[0].condition[0].expression, "resource.name == \"projects/my-project-1/databases/(default)\" ||")
      && google_pubsub_topic_iam_member.silence[0].topic == "yolo-batch-alerts"
      && google_cloud_run_v2_job_iam_member.scheduler_silence[0].role == "roles/run.invoker"
      && google_cloud_run_v2_job_iam_member.build_silence[0].role == "roles/run.developer"
      && contains(keys(google_service_account_iam_member.build), "silence")
    )
    error_message = "The job has an account of its own, for one database and one topic."
  }
}

run "alerts_without_silence" {
  command         = plan
  expect_failures = [check.uploads_subscription]
  variables {
    alerts_topic     = true
    silence_schedule = null
  }

  assert {
    condition     = length(google_cloud_run_v2_job.silence) == 1 && length(google_cloud_scheduler_job.silence) == 0
    error_message = "The silence job has no schedule. You can run it."
  }
}

run "alert_incidents" {
  command         = plan
  expect_failures = [check.uploads_subscription]
  variables {
    alert_incidents       = true
    notification_channels = ["projects/my-project-1/notificationChannels/1"]
  }

  assert {
    condition     = keys(google_monitoring_alert_policy.source) == ["rule"]
    error_message = "Without the alerts topic, no job looks for silent sources."
  }

  assert {
    condition = alltrue([
      for policy in google_monitoring_alert_policy.source :
      policy.alert_strategy[0].notification_rate_limit[0].period == "300s"
      && policy.notification_channels == tolist(var.notification_channels)
      && policy.conditions[0].condition_matched_log[0].label_extractors == tomap({
        rule = "EXTRACT(jsonPayload.rule)", source = "EXTRACT(jsonPayload.source)"
      })
    ])
    error_message = "Each rule and source notifies the channels at most every five minutes."
  }
}

run "webhook" {
  command         = plan
  expect_failures = [check.uploads_subscription]
  variables {
    alerts_topic      = true
    alert_webhook_url = "https://hooks.example.com/services/T0/B0/secret"
  }

  assert {
    condition = (
      google_pubsub_subscription.webhook[0].push_config[0].push_endpoint == var.alert_webhook_url
      && google_pubsub_subscription.webhook[0].push_config[0].no_wrapper[0].write_metadata
      && length(google_pubsub_subscription.webhook[0].push_config[0].oidc_token) == 0
      && google_pubsub_subscription.webhook[0].message_transforms[0].javascript_udf[0].function_name == "transform"
      && google_pubsub_subscription.webhook[0].message_transforms[0].javascript_udf[0].code == file("./transforms/json.js")
      && google_pubsub_subscription.webhook[0].expiration_policy[0].ttl == ""
      && google_pubsub_subscription.webhook[0].dead_letter_policy[0].max_delivery_attempts == 50
      && google_pubsub_subscription_iam_member.delivered["alerts"].subscription == "yolo-batch-alerts-webhook"
      && keys(google_pubsub_topic.undelivered) == ["alerts"]
      && length(google_service_account.alerts) == 0
    )
    error_message = "Alerts are posted as they are, without a token, and kept if the webhook refuses them."
  }
}

run "webhook_with_token" {
  command         = plan
  expect_failures = [check.uploads_subscription]
  variables {
    alerts_topic            = true
    alert_webhook_url       = "https://alerts.example.com/hook"
    alert_webhook_audience  = "https://alerts.example.com"
    alert_webhook_transform = "slack"
  }

  assert {
    condition = (
      google_pubsub_subscription.webhook[0].push_config[0].oidc_token[0].audience == "https://alerts.example.com"
      && google_service_account.alerts[0].account_id == "yolo-batch-alerts"
      && google_pubsub_subscription.webhook[0].message_transforms[0].javascript_udf[0].code == file("./transforms/slack.js")
    )
    error_message = "Pub/Sub calls the webhook as an account of its own, with a text for Slack."
  }
}

run "webhook_with_own_transform" {
  command         = plan
  expect_failures = [check.uploads_subscription]
  variables {
    alerts_topic            = true
    alert_webhook_url       = "https://alerts.example.com/hook"
    alert_webhook_transform = "function transform(message, metadata) { return message; }"
  }

  assert {
    condition     = google_pubsub_subscription.webhook[0].message_transforms[0].javascript_udf[0].code == var.alert_webhook_transform
    error_message = "Your own function makes the body."
  }
}

run "detect_service" {
  command         = plan
  expect_failures = [check.quota, check.uploads_subscription]
  variables {
    detect_service  = true
    detect_invokers = ["group:a@example.com", "serviceAccount:web@my-project-1.iam.gserviceaccount.com"]
    results_bucket  = true
    results_topic   = true
  }

  assert {
    condition = (
      google_cloud_run_v2_service.detect[0].name == "yolo-batch-detect"
      && google_cloud_run_v2_service.detect[0].ingress == "INGRESS_TRAFFIC_ALL"
      && !google_cloud_run_v2_service.detect[0].invoker_iam_disabled
      && google_cloud_run_v2_service.detect[0].template[0].scaling[0].max_instance_count == 2
      && google_cloud_run_v2_service.detect[0].template[0].max_instance_request_concurrency == 16
      && google_cloud_run_v2_service.detect[0].template[0].timeout == "60s"
      && google_cloud_run_v2_service.detect[0].template[0].containers[0].image == google_cloud_run_v2_service.main.template[0].containers[0].image
      && local.detect_environment == merge(local.service_environment, { ENDPOINTS = "detect", MAX_IN_FLIGHT = "16" })
    )
    error_message = "The detect service is the same image with other endpoints, instances and concurrency."
  }

  assert {
    condition = (
      toset(keys(google_cloud_run_v2_service_iam_member.detect)) == var.detect_invokers
      && alltrue([for grant in google_cloud_run_v2_service_iam_member.detect : grant.role == "roles/run.invoker" && grant.name == "yolo-batch-detect"])
      && toset(keys(google_cloud_run_v2_service_iam_member.events)) == toset(["jobs", "uploads"])
      && alltrue([for grant in google_cloud_run_v2_service_iam_member.events : grant.name == "yolo-batch"])
    )
    error_message = "Callers may call the detect service only, and events reach the first service only."
  }

  assert {
    condition = (
      google_service_account.detect[0].account_id == "yolo-batch-detect"
      && google_storage_bucket_iam_member.detect[0].role == "roles/storage.objectViewer"
      && google_storage_bucket_iam_member.detect_results[0].bucket == "my-project-1-yolo-batch-results"
      && google_project_iam_member.detect[0].role == "roles/datastore.user"
      && startswith(google_project_iam_member.detect[0].condition[0].expression, "resource.name == \"projects/my-project-1/databases/(default)\" ||")
      && keys(google_pubsub_topic_iam_member.detect) == ["results"]
      && google_cloud_run_v2_service_iam_member.build_detect[0].role == "roles/run.developer"
      && contains(keys(google_service_account_iam_member.build), "detect")
      && local.substitutions._SERVICES == "yolo-batch-detect"
    )
    error_message = "It has an account of its own with the roles that store=true needs, and is deployed with the service."
  }
}

run "detect_service_with_gpu" {
  command         = plan
  expect_failures = [check.uploads_subscription]
  variables {
    accelerator          = "nvidia-l4"
    detect_service       = true
    detect_max_instances = 1
    detect_min_instances = 1
    settings             = { DETECT_TIMEOUT_SECONDS = "20", PUSH_AUDIENCE = "https://a.example.com", PUSH_SERVICE_ACCOUNTS = "a@example.com" }
  }

  assert {
    condition = (
      google_cloud_run_v2_service.detect[0].name == "yolo-batch-nvidia-l4-detect"
      && google_cloud_run_v2_service.detect[0].template[0].node_selector[0].accelerator == "nvidia-l4"
      && google_cloud_run_v2_service.detect[0].template[0].timeout == "50s"
      && google_cloud_run_v2_service.detect[0].template[0].scaling[0].min_instance_count == 1
      && length(google_cloud_run_v2_service_iam_member.detect) == 0
      && length([for key in keys(local.detect_environment) : key if startswith(key, "PUSH_")]) == 0
      && local.service_environment["PUSH_AUDIENCE"] == "https://a.example.com"
    )
    error_message = "The detect service has the same accelerator, one instance stays started, and nobody may call it by default."
  }
}

run "gallery" {
  command         = plan
  expect_failures = [check.uploads_subscription]
  variables {
    gallery         = true
    gallery_viewers = ["group:a@example.com", "user:b@example.com"]
    results_bucket  = true
  }

  assert {
    condition = (
      google_cloud_run_v2_service.gallery[0].name == "yolo-batch-gallery"
      && google_cloud_run_v2_service.gallery[0].iap_enabled
      && !google_cloud_run_v2_service.gallery[0].invoker_iam_disabled
      && google_cloud_run_v2_service.gallery[0].template[0].scaling[0].min_instance_count == 0
      && google_cloud_run_v2_service.gallery[0].template[0].containers[0].image == google_cloud_run_v2_service.main.template[0].containers[0].image
      && google_cloud_run_v2_service.gallery[0].template[0].containers[0].args[2] == "service.gallery.wsgi:build_app()"
      && length([for key in ["ALERTS_TOPIC", "GALLERY_JOBS_TOPIC", "MODEL_PATH", "PUSH_AUDIENCE"] : key if contains([for env in google_cloud_run_v2_service.gallery[0].template[0].containers[0].env : env.name], key)]) == 0
    )
    error_message = "The gallery is the same image with another command, behind IAP, and scales to zero."
  }

  assert {
    condition = (
      toset([for grant in google_iap_web_cloud_run_service_iam_member.gallery : grant.member]) == var.gallery_viewers
      && alltrue([for grant in google_iap_web_cloud_run_service_iam_member.gallery : grant.role == "roles/iap.httpsResourceAccessor" && grant.cloud_run_service_name == "yolo-batch-gallery"])
      && google_cloud_run_v2_service_iam_member.gallery[0].role == "roles/run.invoker"
      && toset(keys(google_cloud_run_v2_service_iam_member.events)) == toset(["jobs", "uploads"])
    )
    error_message = "IAP decides who may open the gallery, and only IAP's agent may call it."
  }

  assert {
    condition = (
      google_project_iam_member.gallery[0].role == "roles/datastore.viewer"
      && startswith(google_project_iam_member.gallery[0].condition[0].expression, "resource.name == \"projects/my-project-1/databases/(default)\" ||")
      && google_project_iam_member.gallery_verdicts[0].role == "roles/datastore.user"
      && startswith(google_project_iam_member.gallery_verdicts[0].condition[0].expression, "resource.name == \"projects/my-project-1/databases/yolo-batch-verdicts\" ||")
      && google_storage_bucket_iam_member.gallery_results[0].role == "roles/storage.objectViewer"
      && google_storage_bucket_iam_member.gallery_results[0].bucket == "my-project-1-yolo-batch-results"
      && length(google_storage_bucket_iam_member.gallery_originals) == 0
      && length(google_pubsub_topic_iam_member.gallery) == 0
    )
    error_message = "Its account reads the results, writes verdicts to a database of their own, and may do nothing else."
  }

  assert {
    condition = (
      google_firestore_database.verdicts[0].name == "yolo-batch-verdicts"
      && google_firestore_database.verdicts[0].delete_protection_state == "DELETE_PROTECTION_ENABLED"
      && google_cloud_run_v2_service_iam_member.build_gallery[0].role == "roles/run.developer"
      && contains(keys(google_service_account_iam_member.build), "gallery")
      && local.substitutions._SERVICES == "yolo-batch-gallery"
    )
    error_message = "The verdicts are protected, and Cloud Build deploys the gallery with the service."
  }
}

run "gallery_with_originals_and_try_again" {
  command         = plan
  expect_failures = [check.uploads_subscription]
  variables {
    accelerator          = "nvidia-l4"
    detect_max_instances = 1
    detect_service       = true
    gallery              = true
    gallery_originals    = true
    gallery_try_again    = true
    protect_data         = false
  }

  assert {
    condition = (
      google_storage_bucket_iam_member.gallery_originals[0].role == "roles/storage.objectViewer"
      && google_storage_bucket_iam_member.gallery_originals[0].bucket == "my-project-1-yolo-batch-uploads"
      && google_pubsub_topic_iam_member.gallery[0].role == "roles/pubsub.publisher"
      && google_pubsub_topic_iam_member.gallery[0].topic == "yolo-batch-jobs"
      && contains([for env in google_cloud_run_v2_service.gallery[0].template[0].containers[0].env : env.name], "GALLERY_JOBS_TOPIC")
      && length(google_storage_bucket_iam_member.gallery_results) == 0
      && length(google_iap_web_cloud_run_service_iam_member.gallery) == 0
      && google_firestore_database.verdicts[0].delete_protection_state == "DELETE_PROTECTION_DISABLED"
      && local.substitutions._SERVICES == "yolo-batch-nvidia-l4-detect yolo-batch-gallery"
      && length(google_cloud_run_v2_service.gallery[0].template[0].node_selector) == 0
    )
    error_message = "Each right is turned on by its own variable. The gallery needs no GPU, and nobody may open it by default."
  }
}
