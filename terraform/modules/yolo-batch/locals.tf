# Values derived from the variables, and the conditions that they must satisfy.

locals {
  labels = merge({ app = var.name }, var.labels)

  # A service with a GPU has its own name. If a GPU were added to an existing service, max_instances of
  # the old revisions would count against the GPU quota, and the deployment could fail.
  service_name = var.accelerator == "none" ? var.name : "${var.name}-${var.accelerator}"
  bucket_name  = coalesce(var.bucket_name, "${var.project_id}-${var.name}-uploads")
  has_gpu      = var.accelerator != "none"

  results_bucket = "${var.project_id}-${var.name}-results"

  # Topics that the service publishes to, and those whose messages this module also delivers.
  topics    = toset(compact([var.alerts_topic ? "alerts" : "", var.results_topic ? "results" : ""]))
  topic_ids = { for key in local.topics : key => "projects/${var.project_id}/topics/${var.name}-${key}" }
  delivered = setintersection(local.topics, compact([local.has_webhook ? "alerts" : "", var.bigquery ? "results" : ""]))
  # Whether there is an address is no secret.
  has_webhook = nonsensitive(var.alert_webhook_url != null)

  silence_name = "${var.name}-silence"
  silence_args = ["alerts", "check-silence"]

  build_region       = coalesce(var.build_region, var.region)
  firestore_location = coalesce(var.firestore_location, var.region)

  # Without a GPU: enough for the service's memory plan with YOLO26n (docs/evidence/performance.md). With
  # a GPU: the least that Cloud Run accepts.
  machine = {
    none                = { cpu = var.cpu, memory_gib = max(2, var.cpu), batch_size = 8, max_instances = 10 }
    nvidia-l4           = { cpu = 4, memory_gib = 16, batch_size = 32, max_instances = 1 }
    nvidia-rtx-pro-6000 = { cpu = 20, memory_gib = 80, batch_size = 32, max_instances = 1 }
  }[var.accelerator]
  max_instances = coalesce(var.max_instances, local.machine.max_instances)
  all_instances = local.max_instances + (var.detect_service ? var.detect_max_instances : 0)
  limits = merge(
    { cpu = tostring(local.machine.cpu), memory = "${local.machine.memory_gib}Gi" },
    local.has_gpu ? { "nvidia.com/gpu" = "1" } : {},
  )

  # Four batches are in flight: one in inference, one in the commit, and two that are filling. Cloud
  # Run's concurrency is the same, so that an instance gets no more requests than the service has slots.
  batch_size    = coalesce(var.batch_size, local.machine.batch_size)
  max_in_flight = 4 * local.batch_size

  # A caller waits for the response, so the detect service has fewer calls in flight: a batch in inference,
  # and a batch that is filling.
  detect_name      = "${local.service_name}-detect"
  detect_in_flight = 2 * local.batch_size
  detect_seconds   = tonumber(lookup(var.settings, "DETECT_TIMEOUT_SECONDS", "30"))

  # This is Pub/Sub's ack deadline, Cloud Run's request timeout, and the limit of the service's own
  # deadline. 600 s is the longest that Pub/Sub allows.
  ack_deadline_seconds = 600

  hang_seconds      = tonumber(lookup(var.settings, "HANG_TIMEOUT_SECONDS", "300"))
  firestore_seconds = tonumber(lookup(var.settings, "FIRESTORE_TIMEOUT_SECONDS", "6"))
  graceful_seconds  = tonumber(lookup(var.settings, "GRACEFUL_TIMEOUT_SECONDS", "8"))

  # A delivery ends before its ack deadline, and well before it counts as hanging
  # (Settings.delivery_seconds). The last firestore_seconds are reserved for the commit.
  delivery_seconds = min(local.ack_deadline_seconds, 0.75 * local.hang_seconds)
  # Cloud Run kills the instance 10 s after SIGTERM. The server itself needs up to 2 s to end.
  kill_seconds = 10
  stop_seconds = local.graceful_seconds + 2

  # The back-off doubles from 10 s to 600 s, so 50 attempts take about seven hours. Every 429 and 503
  # counts as an attempt. With fewer attempts, messages of a backlog would become dead letters.
  retry = {
    attempts        = 50
    minimum_backoff = "10s"
    maximum_backoff = "600s"
    retention       = "604800s" # 7 days
  }

  # Environment variables of the service and the reconcile job. service/settings.py describes them.
  environment = merge(
    {
      FIRESTORE_COLLECTION = var.firestore_collection
      FIRESTORE_DATABASE   = var.firestore_database
      GOOGLE_CLOUD_PROJECT = var.project_id
    },
    var.daily_image_limit == null ? {} : { DAILY_IMAGE_LIMIT = tostring(var.daily_image_limit) },
  )
  service_environment = merge(
    local.environment,
    var.results_bucket ? { RESULTS_BUCKET = local.results_bucket } : {},
    { for key, id in local.topic_ids : "${upper(key)}_TOPIC" => id },
    var.delete_results_with_objects ? { DELETE_RESULTS_WITH_OBJECTS = "true" } : {},
    {
      ACK_DEADLINE_SECONDS = tostring(local.ack_deadline_seconds)
      ALLOWED_BUCKETS      = local.bucket_name
      # The service would count the CPUs that it sees, and with 1 vCPU it sees two.
      DECODERS                  = tostring(local.machine.cpu)
      DEVICE                    = local.has_gpu ? "0" : "cpu"
      FIRESTORE_TIMEOUT_SECONDS = tostring(local.firestore_seconds)
      GRACEFUL_TIMEOUT_SECONDS  = tostring(local.graceful_seconds)
      HANG_TIMEOUT_SECONDS      = tostring(local.hang_seconds)
      INFERENCE_STREAMS         = tostring(local.machine.cpu)
      MAX_BATCH_SIZE            = tostring(local.batch_size)
      MAX_IN_FLIGHT             = tostring(local.max_in_flight)
    },
    var.settings,
  )
  # Cloud Run checks the tokens of callers, who are not the accounts that push events.
  detect_environment = merge(
    { for key, value in local.service_environment : key => value if !startswith(key, "PUSH_") },
    { ENDPOINTS = "detect", MAX_IN_FLIGHT = tostring(local.detect_in_flight) },
  )
  # Deployments that share a database share its sources. The job checks those of its own bucket.
  silence_environment = merge(
    local.environment,
    { ALLOWED_BUCKETS = local.bucket_name },
    { for key, id in local.topic_ids : "${upper(key)}_TOPIC" => id if key == "alerts" },
  )
}

# Makes the plan fail, before the service is changed, if the settings cannot work together. Its input
# makes the plan also fail for invalid variables that the service does not depend on.
resource "terraform_data" "agreement" {
  input = {
    alert_webhook         = [local.has_webhook, var.alert_webhook_audience, sha256(var.alert_webhook_transform)]
    indexed_fields        = var.indexed_fields
    budget                = var.budget
    detect                = [var.detect_invokers, var.detect_max_instances, var.detect_min_instances]
    gallery_viewers       = var.gallery_viewers
    notification_channels = var.notification_channels
    reconcile_schedule    = var.reconcile_schedule
    results_ttl_days      = var.results_ttl_days
    silence_schedule      = var.silence_schedule
    slo_goal              = var.slo_goal
  }

  lifecycle {
    precondition {
      condition     = local.firestore_seconds < local.delivery_seconds
      error_message = "A delivery may take ${local.delivery_seconds} s, and FIRESTORE_TIMEOUT_SECONDS reserves ${local.firestore_seconds} s of it for the commit, so no time is left for the image. Lower FIRESTORE_TIMEOUT_SECONDS or raise HANG_TIMEOUT_SECONDS in settings."
    }

    precondition {
      condition     = !var.detect_service || min(local.detect_seconds, 0.75 * local.hang_seconds) > local.firestore_seconds
      error_message = "A call of the detect service may take ${min(local.detect_seconds, 0.75 * local.hang_seconds)} s, and FIRESTORE_TIMEOUT_SECONDS reserves ${local.firestore_seconds} s of it, so no time is left for the image. Lower FIRESTORE_TIMEOUT_SECONDS or raise DETECT_TIMEOUT_SECONDS in settings."
    }

    precondition {
      condition     = var.delete_results_with_objects || !contains(keys(var.settings), "DELETE_RESULTS_OF_OVERWRITTEN")
      error_message = "DELETE_RESULTS_OF_OVERWRITTEN in settings needs delete_results_with_objects = true. Otherwise the service does not start."
    }

    precondition {
      condition     = local.stop_seconds <= local.kill_seconds
      error_message = "GRACEFUL_TIMEOUT_SECONDS is ${local.graceful_seconds}. It must be at most ${local.kill_seconds - 2}, because Cloud Run kills the instance ${local.kill_seconds} s after SIGTERM."
    }
  }
}

# A warning, not an error, because most projects may build in every region. The list is that of
# cloud.google.com/build/docs/locations, read in November 2026. Builds in `global` are not in a region.
check "build_region" {
  assert {
    condition = var.image != null || contains([
      "asia-east1", "australia-southeast1", "europe-west1", "global", "southamerica-east1", "us-central1", "us-west2",
    ], local.build_region)
    error_message = "Cloud Build may reject builds of a new project in ${local.build_region} (\"due to quota restrictions, cannot run builds in this region\"). If it does, set build_region to one of asia-east1, australia-southeast1, europe-west1, southamerica-east1, us-central1 and us-west2. The service stays in ${var.region}."
  }
}

# A warning, not an error, because Google adds regions. The list is of August 2026.
check "gpu_region" {
  assert {
    condition = contains(lookup({
      nvidia-l4           = ["asia-south1", "asia-southeast1", "europe-west1", "europe-west4", "us-central1", "us-east4"]
      nvidia-rtx-pro-6000 = ["europe-west4", "us-central1"]
    }, var.accelerator, [var.region]), var.region)
    error_message = "Cloud Run may have no ${var.accelerator} in ${var.region}. Then the deployment fails. The list of regions, in locals.tf, is of August 2026."
  }
}

# Warnings, because a project can have a larger quota. Cloud Run checks the sum over max_instances.
check "quota" {
  assert {
    condition = (
      local.all_instances * local.machine.cpu <= 20
      && local.all_instances * local.machine.memory_gib <= 40
    )
    error_message = "${local.all_instances} instances of ${local.machine.cpu} vCPU and ${local.machine.memory_gib} GiB may exceed the project's quota. A new project often has 20 vCPU and 40 GiB in each region. If the deployment fails, lower max_instances and detect_max_instances, or request more in the console under IAM, Quotas."
  }

  assert {
    condition     = !local.has_gpu || local.all_instances <= 3
    error_message = "${local.all_instances} instances with a GPU may exceed the project's quota. A new project often has 3 GPUs in each region. If the deployment fails, lower max_instances and detect_max_instances, or request more in the console under IAM, Quotas."
  }
}

# A warning, because Cloud Run's pages disagree: a GPU needs 20 vCPU and 80 GiB, a service may have 8 and 32.
check "machine_size" {
  assert {
    condition     = local.machine.cpu <= 8 && local.machine.memory_gib <= 32
    error_message = "${var.accelerator} needs ${local.machine.cpu} vCPU and ${local.machine.memory_gib} GiB, but Google documents at most 8 vCPU and 32 GiB for an instance of a service. If the deployment fails, use nvidia-l4."
  }
}

# Assumes that every image takes at least 20 ms of a vCPU. That is a generous bound, not measured.
check "write_rate" {
  assert {
    condition = (
      length(setintersection(var.indexed_fields, ["captured_at", "event_time", "generation"])) == 0
      || local.max_instances * local.machine.cpu * 50 <= 500
    )
    error_message = "indexed_fields has a field that grows with time (captured_at, event_time or generation). Its index limits the collection to 500 new documents a second. In a burst, ${local.max_instances} instances of ${local.machine.cpu} vCPU may exceed this, and slow down. Lower max_instances, or remove the field."
  }
}

# Parked images wait for the reconcile job.
check "parked" {
  assert {
    condition     = var.daily_image_limit == null || var.reconcile_schedule != null
    error_message = "daily_image_limit is set and reconcile_schedule is null, so nothing continues parked images. Set reconcile_schedule to a time soon after midnight UTC, or run `yolo-batch reconcile --enqueue parked` yourself."
  }
}
