# What follows from the variables alone, and what it has to satisfy.

locals {
  labels = { app = var.name }

  # A GPU's service has a name of its own: added to an existing service, the old revisions'
  # max_instances would count against the GPU quota, and the deployment can fail.
  service_name = var.accelerator == "none" ? var.name : "${var.name}-${var.accelerator}"
  bucket_name  = coalesce(var.bucket_name, "${var.project_id}-${var.name}-uploads")
  has_gpu      = var.accelerator != "none"

  # Without a GPU: what the service's memory plan takes with YOLO26n (docs/evidence/performance.md). With one: the
  # least that Cloud Run takes.
  machine = {
    none                = { cpu = var.cpu, memory_gib = max(2, var.cpu), batch_size = 8, max_instances = 10 }
    nvidia-l4           = { cpu = 4, memory_gib = 16, batch_size = 32, max_instances = 1 }
    nvidia-rtx-pro-6000 = { cpu = 20, memory_gib = 80, batch_size = 32, max_instances = 1 }
  }[var.accelerator]
  max_instances = coalesce(var.max_instances, local.machine.max_instances)
  limits = merge(
    { cpu = tostring(local.machine.cpu), memory = "${local.machine.memory_gib}Gi" },
    local.has_gpu ? { "nvidia.com/gpu" = "1" } : {},
  )

  # Images in flight: enough for a batch under way, one in commit and two that form. Also Cloud Run's
  # concurrency, so that it sends an instance no more than the service admits.
  batch_size    = coalesce(var.batch_size, local.machine.batch_size)
  max_in_flight = 4 * local.batch_size

  # One number for Pub/Sub's ack deadline, Cloud Run's request timeout and the service's own deadline.
  # The service answers before it. 600 is the longest that Pub/Sub allows.
  ack_deadline_seconds = 600

  hang_seconds      = tonumber(lookup(var.settings, "HANG_TIMEOUT_SECONDS", "300"))
  firestore_seconds = tonumber(lookup(var.settings, "FIRESTORE_TIMEOUT_SECONDS", "6"))
  graceful_seconds  = tonumber(lookup(var.settings, "GRACEFUL_TIMEOUT_SECONDS", "8"))

  # A delivery ends before its ack deadline and well before it counts as hanging
  # (Settings.delivery_seconds). Its last firestore_seconds are reserved for the commit.
  delivery_seconds = min(local.ack_deadline_seconds, 0.75 * local.hang_seconds)
  # Cloud Run kills 10 s after SIGTERM; the server's own end takes up to 2.
  kill_seconds = 10
  stop_seconds = local.graceful_seconds + 2

  # Redeliveries, from 10 s doubling to 600 s: 50 attempts last about seven hours. Every 429 and 503
  # counts as an attempt, so few attempts would turn a backlog into dead letters.
  retry = {
    attempts        = 50
    minimum_backoff = "10s"
    maximum_backoff = "600s"
    retention       = "604800s" # 7 days; Eventarc's own subscriptions have one
  }

  # Environment of the service and of the reconcile job: names are fields of service/settings.py.
  environment = {
    FIRESTORE_COLLECTION = var.firestore_collection
    FIRESTORE_DATABASE   = var.firestore_database
    GOOGLE_CLOUD_PROJECT = var.project_id
  }
  service_environment = merge(
    local.environment,
    {
      ACK_DEADLINE_SECONDS      = tostring(local.ack_deadline_seconds)
      ALLOWED_BUCKETS           = local.bucket_name
      DEVICE                    = local.has_gpu ? "0" : "cpu"
      FIRESTORE_TIMEOUT_SECONDS = tostring(local.firestore_seconds)
      GRACEFUL_TIMEOUT_SECONDS  = tostring(local.graceful_seconds)
      HANG_TIMEOUT_SECONDS      = tostring(local.hang_seconds)
      MAX_BATCH_SIZE            = tostring(local.batch_size)
      MAX_IN_FLIGHT             = tostring(local.max_in_flight)
    },
    var.settings,
  )
}

# The plan fails here, before the service is changed, if settings cannot work; or if a variable is
# refused that has no other way to the service.
resource "terraform_data" "agreement" {
  input = {
    notification_channels = var.notification_channels
    reconcile_schedule    = var.reconcile_schedule
    results_ttl_days      = var.results_ttl_days
  }

  lifecycle {
    precondition {
      condition     = local.firestore_seconds < local.delivery_seconds
      error_message = "A delivery may take ${local.delivery_seconds} s, and its last ${local.firestore_seconds} s are reserved for the commit: nothing is left for the work. Lower FIRESTORE_TIMEOUT_SECONDS or raise HANG_TIMEOUT_SECONDS in settings."
    }

    precondition {
      condition     = local.stop_seconds <= local.kill_seconds
      error_message = "GRACEFUL_TIMEOUT_SECONDS is ${local.graceful_seconds}, but Cloud Run kills ${local.kill_seconds} s after SIGTERM: it must be at most ${local.kill_seconds - 2}."
    }
  }
}

# A warning, not an error: Google adds regions. Known in August 2026.
check "gpu_region" {
  assert {
    condition = contains(lookup({
      nvidia-l4           = ["asia-south1", "asia-southeast1", "europe-west1", "europe-west4", "us-central1", "us-east4"]
      nvidia-rtx-pro-6000 = ["europe-west4", "us-central1"]
    }, var.accelerator, [var.region]), var.region)
    error_message = "${var.region} was not known to have ${var.accelerator} on Cloud Run; the deployment may fail."
  }
}

# Assumes that no image takes less than 20 ms of a vCPU: a generous bound, not measured.
check "write_rate" {
  assert {
    condition     = !var.query_by_time || local.max_instances * local.machine.cpu * 50 <= 500
    error_message = "query_by_time indexes created_at, which caps the collection at 500 new documents a second; ${local.max_instances} instances of ${local.machine.cpu} vCPU may commit more in a burst, and would be slowed down. Lower max_instances, or leave query_by_time off."
  }
}
