# Tests that invalid values fail, one run for each validation and precondition, and that warnings appear.

mock_provider "google" {}
mock_provider "google-beta" {}
mock_provider "time" {}

variables {
  project_id = "my-project-1"
  region     = "europe-west4"
  # Without it, check.build_region warns, and every run fails.
  build_region = "europe-west1"
}

run "accelerator_unknown" {
  command = plan
  variables {
    accelerator = "nvidia-t4"
  }

  expect_failures = [var.accelerator]
}

run "agent_grants_unknown" {
  command = plan
  variables {
    agent_grants = "delete"
  }

  expect_failures = [var.agent_grants]
}

run "batch_size_zero" {
  command = plan
  variables {
    batch_size = 0
  }

  expect_failures = [var.batch_size]
}

run "batch_size_fraction" {
  command = plan
  variables {
    batch_size = 1.5
  }

  expect_failures = [var.batch_size]
}

run "build_region_of_many" {
  command = plan
  variables {
    build_region = "eu"
  }

  expect_failures = [var.build_region]
}

run "bucket_name_with_scheme" {
  command = plan
  variables {
    bucket_name = "gs://uploads"
  }

  expect_failures = [var.bucket_name]
}

run "cpu_odd" {
  command = plan
  variables {
    cpu = 3
  }

  expect_failures = [var.cpu]
}

run "firestore_collection_nested" {
  command = plan
  variables {
    firestore_collection = "a/b"
  }

  expect_failures = [var.firestore_collection]
}

run "firestore_database_upper_case" {
  command = plan
  variables {
    firestore_database = "Results"
  }

  expect_failures = [var.firestore_database]
}

run "image_without_tag" {
  command = plan
  variables {
    image = "europe-west4-docker.pkg.dev/p/r/service"
  }

  expect_failures = [var.image]
}

run "max_instances_zero" {
  command = plan
  variables {
    max_instances = 0
  }

  expect_failures = [var.max_instances]
}

run "calibration_with_space" {
  command = plan
  variables {
    calibration = "my images"
  }

  expect_failures = [var.calibration]
}

run "model_for_tensorrt" {
  command = plan
  variables {
    model = "models/mine.engine"
  }

  expect_failures = [var.model]
}

run "model_with_space" {
  command = plan
  variables {
    model = "my model.pt"
  }

  expect_failures = [var.model]
}

run "name_too_short" {
  command = plan
  variables {
    name = "yolo1"
  }

  expect_failures = [var.name]
}

run "name_too_long" {
  command = plan
  variables {
    name = "yolo-batch-of-the-company"
  }

  expect_failures = [var.name]
}

run "notification_channel_by_mail" {
  command = plan
  variables {
    notification_channels = ["me@example.com"]
  }

  expect_failures = [var.notification_channels]
}

run "project_by_number" {
  command = plan
  variables {
    project_id = "123456789012"
  }

  expect_failures = [var.project_id]
}

run "daily_limit_zero" {
  command = plan
  variables {
    daily_image_limit = 0
  }

  expect_failures = [var.daily_image_limit]
}

run "parked_for_ever" {
  command = plan
  variables {
    daily_image_limit  = 1000
    reconcile_schedule = null
  }

  expect_failures = [check.parked, check.uploads_subscription]
}

run "reconcile_schedule_by_word" {
  command = plan
  variables {
    reconcile_schedule = "daily"
  }

  expect_failures = [var.reconcile_schedule]
}

run "region_of_many" {
  command = plan
  variables {
    region = "eu"
  }

  expect_failures = [var.region]
}

run "results_ttl_zero" {
  command = plan
  variables {
    results_ttl_days = 0
  }

  expect_failures = [var.results_ttl_days]
}

run "created_at_among_the_indexed_fields" {
  command = plan
  variables {
    indexed_fields = ["model.name", "created_at"]
  }

  expect_failures = [var.indexed_fields]
}

run "settings_in_small_letters" {
  command = plan
  variables {
    settings = { min_confidence = "0.4" }
  }

  expect_failures = [var.settings]
}

run "settings_of_another_variable" {
  command = plan
  variables {
    settings = { RESULTS_BUCKET = "my-bucket" }
  }

  expect_failures = [var.settings]
}

run "settings_derived_here" {
  command = plan
  variables {
    settings = { MAX_IN_FLIGHT = "7" }
  }

  expect_failures = [var.settings]
}

run "soft_delete_too_short" {
  command = plan
  variables {
    soft_delete_days = 3
  }

  expect_failures = [var.soft_delete_days]
}

run "upload_events_unknown" {
  command = plan
  variables {
    upload_events = "pubsub"
  }

  expect_failures = [var.upload_events]
}

run "uploads_retention_negative" {
  command = plan
  variables {
    uploads_retention_days = -1
  }

  expect_failures = [var.uploads_retention_days]
}

run "graceful_stop_too_long" {
  command = plan
  variables {
    settings = { GRACEFUL_TIMEOUT_SECONDS = "9" }
  }

  expect_failures = [terraform_data.agreement]
}

run "commit_leaves_no_time_for_the_work" {
  command = plan
  variables {
    settings = { FIRESTORE_TIMEOUT_SECONDS = "225" }
  }

  expect_failures = [terraform_data.agreement]
}

run "commit_leaves_no_time_for_the_call" {
  command = plan
  variables {
    detect_service = true
    max_instances  = 8
    settings       = { DETECT_TIMEOUT_SECONDS = "6" }
  }

  expect_failures = [terraform_data.agreement]
}

run "overwritten_without_deleted" {
  command = plan
  variables {
    settings = { DELETE_RESULTS_OF_OVERWRITTEN = "true" }
  }

  expect_failures = [terraform_data.agreement]
}

run "build_in_a_restricted_region" {
  command = plan
  variables {
    build_region = null
  }

  expect_failures = [check.build_region, check.uploads_subscription]
}

run "gpu_in_a_region_without" {
  command = plan
  variables {
    accelerator = "nvidia-rtx-pro-6000"
    region      = "europe-north1"
  }

  expect_failures = [check.gpu_region, check.machine_size, check.quota, check.uploads_subscription]
}

run "machine_larger_than_documented" {
  command = plan
  variables {
    accelerator = "nvidia-rtx-pro-6000"
  }

  expect_failures = [check.machine_size, check.quota, check.uploads_subscription]
}

run "more_vcpu_than_a_new_project_has" {
  command = plan
  variables {
    cpu = 4
  }

  expect_failures = [check.quota, check.uploads_subscription]
}

run "more_gpus_than_a_new_project_has" {
  command = plan
  variables {
    accelerator   = "nvidia-l4"
    max_instances = 4
  }

  expect_failures = [check.quota, check.uploads_subscription]
}

run "kms_key_with_version" {
  command = plan
  variables {
    kms_key = "projects/p/locations/europe-west4/keyRings/r/cryptoKeys/k/cryptoKeyVersions/1"
  }

  expect_failures = [var.kms_key]
}

run "kms_key_elsewhere" {
  command = plan
  variables {
    kms_key = "projects/p/locations/europe-west1/keyRings/r/cryptoKeys/k"
  }

  expect_failures = [terraform_data.combinations, check.uploads_subscription]
}

run "kms_key_for_database_elsewhere" {
  command = plan
  variables {
    kms_key            = "projects/p/locations/europe-west4/keyRings/r/cryptoKeys/k"
    firestore_location = "eur3"
  }

  expect_failures = [terraform_data.combinations, check.uploads_subscription]
}

run "labels_in_capitals" {
  command = plan
  variables {
    labels = { Team = "vision" }
  }

  expect_failures = [var.labels]
}

run "min_instances_negative" {
  command = plan
  variables {
    min_instances = -1
  }

  expect_failures = [var.min_instances]
}

run "min_instances_over_max_instances" {
  command = plan
  variables {
    min_instances = 3
    max_instances = 2
  }

  expect_failures = [terraform_data.combinations, check.uploads_subscription]
}

run "name_of_anothers_account" {
  command = plan
  variables {
    name = "yolo-batch-jobs"
  }

  expect_failures = [var.name]
}

run "name_of_anothers_service" {
  command = plan
  variables {
    name = "cameras-nvidia-l4"
  }

  expect_failures = [var.name]
}

run "object_prefix_of_smoke_test" {
  command = plan
  variables {
    object_prefix = "smoke/"
    upload_events = "notification"
  }

  expect_failures = [var.object_prefix]
}

run "object_prefix_by_eventarc" {
  command = plan
  variables {
    object_prefix = "incoming/"
  }

  expect_failures = [terraform_data.combinations, check.uploads_subscription]
}

run "repository_name_with_path" {
  command = plan
  variables {
    repository_name = "images/yolo"
  }

  expect_failures = [var.repository_name]
}

run "vpc_egress_unknown" {
  command = plan
  variables {
    vpc_egress = "all"
  }

  expect_failures = [var.vpc_egress]
}

run "vpc_egress_without_network" {
  command = plan
  variables {
    vpc_egress = "all-traffic"
  }

  expect_failures = [terraform_data.combinations, check.uploads_subscription]
}

run "vpc_network_as_url" {
  command = plan
  variables {
    vpc_network = "https://www.googleapis.com/compute/v1/projects/p/global/networks/n"
  }

  expect_failures = [var.vpc_network]
}

run "vpc_subnetwork_as_url" {
  command = plan
  variables {
    vpc_subnetwork = "https://www.googleapis.com/compute/v1/projects/p/regions/r/subnetworks/s"
  }

  expect_failures = [var.vpc_subnetwork]
}

run "budget_without_a_billing_account" {
  command = plan
  variables {
    budget = { billing_account = "billingAccounts/012345", amount = 100 }
  }

  expect_failures = [var.budget]
}

run "budget_of_a_fraction" {
  command = plan
  variables {
    budget = { billing_account = "012345-6789AB-CDEF01", amount = 0.5 }
  }

  expect_failures = [var.budget]
}

run "budget_currency_in_small_letters" {
  command = plan
  variables {
    budget = { billing_account = "012345-6789AB-CDEF01", amount = 100, currency = "eur" }
  }

  expect_failures = [var.budget]
}

run "slo_goal_of_all_minutes" {
  command = plan
  variables {
    slo_goal = 1
  }

  expect_failures = [var.slo_goal]
}

run "captured_at_indexed_at_a_high_rate" {
  command = plan
  variables {
    indexed_fields = ["captured_at"]
  }

  expect_failures = [check.write_rate, check.uploads_subscription]
}

run "webhook_without_https" {
  command = plan
  variables {
    alerts_topic      = true
    alert_webhook_url = "http://alerts.example.com/a"
  }

  expect_failures = [var.alert_webhook_url]
}

run "webhook_with_a_password" {
  command = plan
  variables {
    alerts_topic      = true
    alert_webhook_url = "https://me:secret@alerts.example.com/a"
  }

  expect_failures = [var.alert_webhook_url]
}

run "webhook_audience_as_a_name" {
  command = plan
  variables {
    alert_webhook_audience = "my-webhook"
  }

  expect_failures = [var.alert_webhook_audience]
}

run "webhook_transform_unknown" {
  command = plan
  variables {
    alert_webhook_transform = "teams"
  }

  expect_failures = [var.alert_webhook_transform]
}

run "webhook_without_the_alerts_topic" {
  command = plan
  variables {
    alert_webhook_url = "https://alerts.example.com/a"
  }

  expect_failures = [terraform_data.combinations, check.uploads_subscription]
}

run "webhook_transform_without_a_webhook" {
  command = plan
  variables {
    alerts_topic            = true
    alert_webhook_transform = "slack"
  }

  expect_failures = [terraform_data.combinations, check.uploads_subscription]
}

run "bigquery_without_the_results_topic" {
  command = plan
  variables {
    bigquery = true
  }

  expect_failures = [terraform_data.combinations, check.uploads_subscription]
}

run "uploads_in_the_bucket_of_results" {
  command = plan
  variables {
    bucket_name    = "my-project-1-yolo-batch-results"
    results_bucket = true
  }

  expect_failures = [terraform_data.combinations, check.uploads_subscription]
}

run "detect_service_for_everybody" {
  command = plan
  variables {
    detect_invokers = ["allUsers"]
  }

  expect_failures = [var.detect_invokers]
}

run "detect_service_for_every_google_account" {
  command = plan
  variables {
    detect_invokers = ["allAuthenticatedUsers"]
  }

  expect_failures = [var.detect_invokers]
}

run "detect_invokers_without_the_service" {
  command = plan
  variables {
    detect_invokers = ["group:a@example.com"]
  }

  expect_failures = [terraform_data.combinations, check.uploads_subscription]
}

run "detect_max_instances_zero" {
  command = plan
  variables {
    detect_max_instances = 0
  }

  expect_failures = [var.detect_max_instances]
}

run "detect_min_instances_negative" {
  command = plan
  variables {
    detect_min_instances = -1
  }

  expect_failures = [var.detect_min_instances]
}

run "detect_min_instances_without_the_service" {
  command = plan
  variables {
    detect_min_instances = 1
  }

  expect_failures = [terraform_data.combinations, check.uploads_subscription]
}

run "detect_min_instances_over_the_maximum" {
  command = plan
  variables {
    detect_service       = true
    detect_max_instances = 1
    detect_min_instances = 2
    max_instances        = 2
  }

  expect_failures = [terraform_data.combinations, check.uploads_subscription]
}

run "gallery_for_everybody" {
  command = plan
  variables {
    gallery_viewers = ["allUsers"]
  }

  expect_failures = [var.gallery_viewers]
}

run "gallery_viewers_without_the_gallery" {
  command = plan
  variables {
    gallery_viewers = ["group:a@example.com"]
  }

  expect_failures = [terraform_data.combinations, check.uploads_subscription]
}

run "gallery_without_images" {
  command = plan
  variables {
    gallery = true
  }

  expect_failures = [terraform_data.combinations, check.uploads_subscription]
}

run "gallery_with_results_among_the_verdicts" {
  command = plan
  variables {
    firestore_database = "yolo-batch-verdicts"
    gallery            = true
    gallery_originals  = true
  }

  expect_failures = [terraform_data.combinations, check.uploads_subscription]
}

run "silence_schedule_by_word" {
  command = plan
  variables {
    silence_schedule = "hourly"
  }

  expect_failures = [var.silence_schedule]
}

run "settings_of_another_topic" {
  command = plan
  variables {
    settings = { ALERTS_TOPIC = "my-topic" }
  }

  expect_failures = [var.settings]
}

run "settings_of_the_detect_service" {
  command = plan
  variables {
    settings = { ENDPOINTS = "detect" }
  }

  expect_failures = [var.settings]
}
