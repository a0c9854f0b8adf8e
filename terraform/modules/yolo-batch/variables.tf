variable "accelerator" {
  description = "GPU of the service: none, nvidia-l4 or nvidia-rtx-pro-6000. A service with a GPU is named NAME-ACCELERATOR."
  type        = string
  default     = "none"
  nullable    = false

  validation {
    condition     = contains(["none", "nvidia-l4", "nvidia-rtx-pro-6000"], var.accelerator)
    error_message = "accelerator must be none, nvidia-l4 or nvidia-rtx-pro-6000."
  }
}

variable "agent_grants" {
  description = "Who grants Google's own accounts the two roles in the project that Eventarc needs: leave (the apply grants them with gcloud, and a destroy leaves them, because other triggers need them) or none (an administrator grants them: docs/how-to/share-a-project.md). No effect if upload_events is notification."
  type        = string
  default     = "leave"
  nullable    = false

  validation {
    condition     = contains(["leave", "none"], var.agent_grants)
    error_message = "agent_grants must be leave or none."
  }
}

variable "alert_incidents" {
  description = "Whether Cloud Monitoring opens an incident for each alert of a rule in a source, and notifies notification_channels: email, SMS, Slack or PagerDuty, for example. At most one notification in 5 minutes for each rule and source."
  type        = bool
  default     = false
  nullable    = false
}

variable "alert_webhook_audience" {
  description = "Audience of the token with which Pub/Sub calls alert_webhook_url, as the account NAME-alerts, for example the URL of a Cloud Run service. Grant the account roles/run.invoker there. Null: no token. Then the URL itself must be the secret."
  type        = string
  default     = null

  validation {
    condition     = var.alert_webhook_audience == null ? true : can(regex("^https://[^\\s\"]+$", var.alert_webhook_audience))
    error_message = "alert_webhook_audience must be an https URL."
  }
}

variable "alert_webhook_transform" {
  description = "Body of the requests to alert_webhook_url: json (the alert message), slack (a text for an incoming webhook of Slack), or JavaScript with a function transform(message, metadata): a user-defined function of Pub/Sub."
  type        = string
  default     = "json"
  nullable    = false

  validation {
    condition     = contains(["json", "slack"], var.alert_webhook_transform) || can(regex("function\\s+transform\\s*\\(", var.alert_webhook_transform))
    error_message = "alert_webhook_transform must be json, slack, or JavaScript that contains function transform(message, metadata)."
  }
}

variable "alert_webhook_url" {
  description = "Address that each alert is posted to, https only. Needs alerts_topic. Failed requests are repeated for about seven hours, then the alert is kept as a dead letter. Sensitive: plans do not show it, but the state contains it. Null: no webhook."
  type        = string
  default     = null
  sensitive   = true

  validation {
    condition     = var.alert_webhook_url == null ? true : can(regex("^https://[^\\s\"@/]+(/[^\\s\"]*)?$", var.alert_webhook_url))
    error_message = "alert_webhook_url must be an https URL without a user name, a password and spaces."
  }
}

variable "alerts_topic" {
  description = "Whether to create the topic NAME-alerts, which gets a message for each alert of a rule in a source, and a job that looks for silent sources (silence_schedule). Without it, alerts are documents and log lines only."
  type        = bool
  default     = false
  nullable    = false
}

variable "batch_size" {
  description = "Maximum number of images in one batch, 1 to 64. Null: 8 without a GPU, 32 with one. MAX_IN_FLIGHT and Cloud Run's concurrency are four times this number."
  type        = number
  default     = null

  validation {
    condition = (
      var.batch_size == null
      ? true
      : var.batch_size >= 1 && var.batch_size <= 64 && floor(var.batch_size) == var.batch_size
    )
    error_message = "batch_size must be a whole number from 1 to 64."
  }
}

variable "bigquery" {
  description = "Whether result messages are written to a BigQuery dataset in region, with the views results and detections. Its id is the value of name with '_' instead of '-'. Needs results_topic. Rows expire after results_ttl_days. docs/explanation/cost-model.md has the cost."
  type        = bool
  default     = false
  nullable    = false
}

variable "bucket_name" {
  description = "Name of the bucket for uploads. Null: PROJECT-NAME-uploads. If create_bucket is false, the name of a bucket that exists."
  type        = string
  default     = null

  validation {
    condition = (
      var.bucket_name == null
      ? true
      : can(regex("^[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]$", var.bucket_name))
    )
    error_message = "bucket_name must be a bucket's name without gs://: 3 to 63 lower-case letters, digits, '-', '_' and '.'."
  }
}

variable "budget" {
  description = "Budget of the whole project for a month, for example {billing_account = \"012345-6789AB-CDEF01\", amount = 100}, in the billing account's currency, which currency may name. Google sends a notification at 50, 90 and 100 % of it, and if the forecast exceeds it. It accepts only email channels, so the first five of notification_channels must be of that type. Needs roles/billing.costsManager on the billing account. Null: no budget."
  type = object({
    billing_account = string
    amount          = number
    currency        = optional(string)
  })
  default = null

  validation {
    condition     = var.budget == null ? true : can(regex("^[0-9A-F]{6}-[0-9A-F]{6}-[0-9A-F]{6}$", var.budget.billing_account))
    error_message = "budget.billing_account must be the id of a billing account, for example 012345-6789AB-CDEF01."
  }

  validation {
    condition     = var.budget == null ? true : var.budget.amount >= 1 && floor(var.budget.amount) == var.budget.amount
    error_message = "budget.amount must be a whole number of at least 1."
  }

  validation {
    condition     = var.budget == null ? true : can(regex("^[A-Z]{3}$", coalesce(var.budget.currency, "USD")))
    error_message = "budget.currency must be three capital letters, for example EUR: the billing account's currency."
  }
}

variable "build_region" {
  description = "Region of Cloud Build, for example europe-west1, or global. Null: the value of region. A new project may be restricted to a few regions."
  type        = string
  default     = null

  validation {
    condition     = var.build_region == null ? true : can(regex("^(global|[a-z]+-[a-z]+[0-9]+)$", var.build_region))
    error_message = "build_region must be one region, for example europe-west1, or global."
  }
}

variable "calibration" {
  description = "Folder of images in the repository, for example models/calibration. Cloud Build uses them to quantise the model to int8. Empty: the model stays float."
  type        = string
  default     = ""
  nullable    = false

  validation {
    condition     = can(regex("^[A-Za-z0-9._/-]*$", var.calibration))
    error_message = "calibration must be a path of letters, digits, '.', '_', '-' and '/', or empty."
  }
}

variable "cpu" {
  description = "vCPUs of an instance without a GPU: 1, 2, 4 or 8. The instance has 1 GiB of memory for each vCPU, and at least 2 GiB."
  type        = number
  default     = 2
  nullable    = false

  validation {
    condition     = contains([1, 2, 4, 8], var.cpu)
    error_message = "cpu must be 1, 2, 4 or 8."
  }
}

variable "create_bucket" {
  description = "Whether to create the bucket for uploads. False: bucket_name is a bucket of this project that exists. A destroy leaves it alone."
  type        = bool
  default     = true
  nullable    = false
}

variable "create_database" {
  description = "Whether to create the Firestore database. False: firestore_database is a database of this project that exists. A destroy leaves it and its documents alone. firestore_location has no effect then."
  type        = bool
  default     = true
  nullable    = false
}

variable "create_repository" {
  description = "Whether to create the Docker repository in Artifact Registry. False: repository_name is a repository in region that exists. The container images are in its folder NAME, and its own cleanup policies apply."
  type        = bool
  default     = true
  nullable    = false
}

variable "daily_image_limit" {
  description = "Maximum number of images that are processed in a day (UTC). Further images are parked: they get a document, and the reconcile job continues them on another day. Null: no limit."
  type        = number
  default     = null

  validation {
    condition = (
      var.daily_image_limit == null
      ? true
      : var.daily_image_limit >= 1 && var.daily_image_limit <= 1000000000 && floor(var.daily_image_limit) == var.daily_image_limit
    )
    error_message = "daily_image_limit must be a whole number from 1 to 1000000000."
  }
}

variable "delete_results_with_objects" {
  description = "Whether the result of an image is deleted when its object is deleted. The results of overwritten objects stay, unless settings has DELETE_RESULTS_OF_OVERWRITTEN = \"true\". With versioning, a version's result stays until the version itself is deleted."
  type        = bool
  default     = false
  nullable    = false
}

variable "detect_invokers" {
  description = "Who may call the detect service, for example [\"serviceAccount:web@my-project-1.iam.gserviceaccount.com\"]. Never everybody: each call costs CPU time. Empty: nobody."
  type        = set(string)
  default     = []
  nullable    = false

  validation {
    condition     = alltrue([for member in var.detect_invokers : can(regex("^(user|group|serviceAccount|domain|principal|principalSet):\\S+$", member))])
    error_message = "detect_invokers must be user:, group:, serviceAccount:, domain:, principal: or principalSet: followed by a name. allUsers and allAuthenticatedUsers are refused, because anybody could then spend your CPU time."
  }
}

variable "detect_max_instances" {
  description = "Maximum number of instances of the detect service. They count against the same quota as max_instances."
  type        = number
  default     = 2
  nullable    = false

  validation {
    condition     = var.detect_max_instances >= 1 && floor(var.detect_max_instances) == var.detect_max_instances
    error_message = "detect_max_instances must be a whole number of at least 1."
  }
}

variable "detect_min_instances" {
  description = "Number of instances of the detect service that stay started, so that no caller waits for a start. They are billed while idle. 0: it scales to zero."
  type        = number
  default     = 0
  nullable    = false

  validation {
    condition     = var.detect_min_instances >= 0 && floor(var.detect_min_instances) == var.detect_min_instances
    error_message = "detect_min_instances must be a whole number of at least 0."
  }
}

variable "detect_service" {
  description = "Whether to create the detect service, a second Cloud Run service of the same container image, which responds to POST /v1/detect with the detections. It receives no events. detect_invokers says who may call it."
  type        = bool
  default     = false
  nullable    = false
}

variable "firestore_collection" {
  description = "Firestore collection of the results."
  type        = string
  default     = "detections"
  nullable    = false

  validation {
    condition     = can(regex("^[A-Za-z][A-Za-z0-9_-]*$", var.firestore_collection))
    error_message = "firestore_collection must be the name of a top-level collection: letters, digits, '-' and '_', starting with a letter."
  }
}

variable "firestore_database" {
  description = "Firestore database of the results. Only (default) has the free tier, and a project has only one (default)."
  type        = string
  default     = "(default)"
  nullable    = false

  validation {
    condition     = var.firestore_database == "(default)" || can(regex("^[a-z][a-z0-9-]{2,61}[a-z0-9]$", var.firestore_database))
    error_message = "firestore_database must be (default), or 4 to 63 lower-case letters, digits and '-', starting with a letter."
  }
}

variable "firestore_location" {
  description = "Location of the database, for example eur3. Null: the value of region. It can never be changed."
  type        = string
  default     = null
}

variable "gallery" {
  description = "Whether to create the gallery, a Cloud Run service that shows the results to people, and a Firestore database for their verdicts. IAP authenticates them: gallery_viewers says who may open it. The project must be in an organization, or have an OAuth client for IAP."
  type        = bool
  default     = false
  nullable    = false
}

variable "gallery_originals" {
  description = "Whether the gallery may read the uploads. Otherwise it shows only derived images, so the sources should ask for thumbnails. Where a source asks for a redaction, only redacted copies are shown in any case."
  type        = bool
  default     = false
  nullable    = false
}

variable "gallery_try_again" {
  description = "Whether viewers of the gallery may have a failed image processed again. The gallery's account may then publish to the jobs topic."
  type        = bool
  default     = false
  nullable    = false
}

variable "gallery_viewers" {
  description = "Who may open the gallery, for example [\"group:cameras@example.com\"]. They see every result, and give verdicts. Empty: nobody."
  type        = set(string)
  default     = []
  nullable    = false

  validation {
    condition     = alltrue([for member in var.gallery_viewers : can(regex("^(user|group|serviceAccount|domain|principal|principalSet):\\S+$", member))])
    error_message = "gallery_viewers must be user:, group:, serviceAccount:, domain:, principal: or principalSet: followed by a name. allUsers and allAuthenticatedUsers are refused, because anybody could then see your images."
  }
}

variable "image" {
  description = "Container image of the first deployment, REGION-docker.pkg.dev/... Null: Cloud Build builds it during the first apply."
  type        = string
  default     = null

  validation {
    condition     = var.image == null ? true : can(regex("^[a-z0-9.-]+\\.[a-z]+/.+[:@].+$", var.image))
    error_message = "image must be HOST/PATH:TAG or HOST/PATH@sha256:DIGEST."
  }
}

variable "index_all_fields" {
  description = "Whether Firestore indexes almost every field, as it does by default. A document and its index entries then need three times the storage. Arrays of detections and fields that grow with time are not indexed even then."
  type        = bool
  default     = false
  nullable    = false
}

variable "indexed_fields" {
  description = "More fields to index, for your own queries, for example [\"model.name\", \"top_label\"]. docs/reference/document.md lists the fields that are always indexed."
  type        = set(string)
  default     = []
  nullable    = false

  validation {
    condition     = !anytrue([for field in var.indexed_fields : contains(["", "*", "created_at"], field)])
    error_message = "indexed_fields must contain paths of fields. Instead of *, set index_all_fields. created_at has indexes with shard: docs/how-to/query-results.md."
  }
}

variable "keep_request_logs" {
  description = "Whether Cloud Logging stores the requests that the service handled (2xx). The service logs its own line for each commit in any case."
  type        = bool
  default     = false
  nullable    = false
}

variable "kms_key" {
  description = "Cloud KMS key in region, projects/PROJECT/locations/REGION/keyRings/RING/cryptoKeys/KEY, that encrypts the buckets, topics, database, registry, dataset, services and jobs that this module creates. Null: Google's keys. Set it at the first apply. The plan refuses a later change, because the key of a database or a registry cannot be changed."
  type        = string
  default     = null

  validation {
    condition     = var.kms_key == null ? true : can(regex("^projects/[^/]+/locations/[^/]+/keyRings/[^/]+/cryptoKeys/[^/]+$", var.kms_key))
    error_message = "kms_key must be projects/PROJECT/locations/REGION/keyRings/RING/cryptoKeys/KEY, without a version."
  }
}

variable "labels" {
  description = "More labels for every resource that can have labels. By default, the label app is the value of name."
  type        = map(string)
  default     = {}
  nullable    = false

  validation {
    condition     = alltrue([for key, value in var.labels : can(regex("^[a-z][a-z0-9_-]{0,62}=[a-z0-9_-]{0,63}$", "${key}=${value}"))])
    error_message = "labels must have keys and values of at most 63 lower-case letters, digits, '-' and '_'. A key starts with a letter."
  }
}

variable "max_instances" {
  description = "Maximum number of instances. Null: 10 without a GPU, 1 with one. A new project often has a quota of 20 vCPU, 40 GiB and 3 GPUs in each region."
  type        = number
  default     = null

  validation {
    condition     = var.max_instances == null ? true : var.max_instances >= 1 && floor(var.max_instances) == var.max_instances
    error_message = "max_instances must be a whole number of at least 1."
  }
}

variable "min_instances" {
  description = "Number of instances that stay started, and are billed while idle. 0: the service scales to zero."
  type        = number
  default     = 0
  nullable    = false

  validation {
    condition     = var.min_instances >= 0 && floor(var.min_instances) == var.min_instances
    error_message = "min_instances must be a whole number of at least 0."
  }
}

variable "model" {
  description = "Weights that Cloud Build packs into the container image: an official name, for example yolo26n.pt, or a path in the repository."
  type        = string
  default     = "yolo26n.pt"
  nullable    = false

  validation {
    condition     = can(regex("^[A-Za-z0-9._/-]+$", var.model))
    error_message = "model must be a name or a path of letters, digits, '.', '_', '-' and '/'."
  }

  validation {
    condition     = !can(regex("\\.(engine|onnx)$", var.model))
    error_message = "The container image has neither TensorRT nor ONNX Runtime, so model must not be an .engine or .onnx file. Set it to the .pt file."
  }
}

variable "name" {
  description = "Prefix of every resource's name. Each deployment in a project needs its own."
  type        = string
  default     = "yolo-batch"
  nullable    = false

  validation {
    condition     = !can(regex("-(alerts|build|detect|gallery|jobs|reconcile|scheduler|silence|uploads|verdicts)$", var.name))
    error_message = "name must not end in -alerts, -build, -detect, -gallery, -jobs, -reconcile, -scheduler, -silence, -uploads or -verdicts. Another deployment in the project may have an account or a database with this name."
  }

  validation {
    condition     = !can(regex("-nvidia-(l4|rtx-pro-6000)$", var.name))
    error_message = "name must not end in -nvidia-l4 or -nvidia-rtx-pro-6000. Another deployment in the project may have a service with this name."
  }

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{4,15}[a-z0-9]$", var.name))
    error_message = "name must be 6 to 17 lower-case letters, digits and '-', starting with a letter and not ending in '-'. It is the id of the service's account, which needs 6 characters, and a part of longer names."
  }
}

variable "notification_channels" {
  description = "Notification channels of the alerts: projects/PROJECT/notificationChannels/ID. Empty: alerts appear only in the console."
  type        = list(string)
  default     = []
  nullable    = false

  validation {
    condition     = alltrue([for channel in var.notification_channels : can(regex("^projects/[^/]+/notificationChannels/[^/]+$", channel))])
    error_message = "notification_channels must be projects/PROJECT/notificationChannels/ID."
  }
}

variable "object_prefix" {
  description = "Folder of the bucket whose uploads are processed, for example incoming/. Needs upload_events = notification. The reconcile job compares only this folder. The smoke test's folder, smoke/, is processed too. Null: the whole bucket."
  type        = string
  default     = null

  validation {
    condition     = var.object_prefix == null ? true : can(regex("^[^/\"\\s][^\"\\s]{0,510}/$", var.object_prefix)) && !startswith(var.object_prefix, "smoke/")
    error_message = "object_prefix must be a folder that ends in '/' and does not start with '/', without spaces and quotation marks. It must not be in smoke/, which the smoke test uses."
  }
}

variable "project_id" {
  description = "Project to deploy into."
  type        = string
  nullable    = false

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{4,28}[a-z0-9]$", var.project_id))
    error_message = "project_id must be the project's id, not its name or number."
  }
}

variable "protect_data" {
  description = "Whether a destroy fails instead of deleting the results and the uploads. To tear down, apply with false first, then destroy."
  type        = bool
  default     = true
  nullable    = false
}

variable "reconcile_schedule" {
  description = "When the reconcile job runs, as cron in UTC. It enqueues uploads that have no document, and parked images. With daily_image_limit, choose a time soon after midnight. Null: only when you run it."
  type        = string
  default     = "23 3 * * *"

  validation {
    condition     = var.reconcile_schedule == null ? true : can(regex("^\\S+( \\S+){4}$", var.reconcile_schedule))
    error_message = "reconcile_schedule must have the five fields of cron, for example \"23 3 * * *\"."
  }
}

variable "region" {
  description = "Region of all regional resources, for example europe-west1."
  type        = string
  nullable    = false

  validation {
    condition     = can(regex("^[a-z]+-[a-z]+[0-9]+$", var.region))
    error_message = "region must be one region, for example europe-west1, because the bucket and its trigger must be in the same location."
  }
}

variable "repository_name" {
  description = "Name of the Docker repository in Artifact Registry. Null: the value of name."
  type        = string
  default     = null

  validation {
    condition     = var.repository_name == null ? true : can(regex("^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$", var.repository_name))
    error_message = "repository_name must be the name alone: at most 63 lower-case letters, digits and '-', starting with a letter."
  }
}

variable "results_bucket" {
  description = "Whether to create a private bucket, PROJECT-NAME-results, for derived images and for the parts of results that are too large for a Firestore document, for example hundreds of masks. Each image then gets a thumbnail, unless its source says otherwise: about 5 USD a million images to write, plus CPU time and storage (docs/explanation/cost-model.md). Without it, nothing is derived, and masks are simplified until they fit."
  type        = bool
  default     = false
  nullable    = false
}

variable "results_topic" {
  description = "Whether to create the topic NAME-results, which gets a message for each recorded, replaced and deleted result."
  type        = bool
  default     = false
  nullable    = false
}

variable "results_ttl_days" {
  description = "Days after which a result expires. Firestore deletes it within about a day after that. Null: never."
  type        = number
  default     = null

  validation {
    condition     = var.results_ttl_days == null ? true : var.results_ttl_days >= 1 && floor(var.results_ttl_days) == var.results_ttl_days
    error_message = "results_ttl_days must be a whole number of at least 1."
  }
}

variable "scan_images" {
  description = "Whether to enable the Container Scanning API, which scans each new container image for vulnerabilities, for 0.26 USD. It scans all repositories of the project, and stays enabled after a destroy."
  type        = bool
  default     = false
  nullable    = false
}

variable "settings" {
  description = "More settings of the service, for example {MIN_CONFIDENCE = \"0.4\"}. docs/reference/settings.md lists them."
  type        = map(string)
  default     = {}
  nullable    = false

  validation {
    condition     = alltrue([for key in keys(var.settings) : can(regex("^[A-Z][A-Z_]*$", key))])
    error_message = "settings must have the names of environment variables, in capitals."
  }

  validation {
    condition = length(setintersection(keys(var.settings), [
      "ACK_DEADLINE_SECONDS", "ALERTS_TOPIC", "ALLOWED_BUCKETS", "BIND_ADDRESS", "DAILY_IMAGE_LIMIT", "DELETE_RESULTS_WITH_OBJECTS", "DEVICE",
      "ENDPOINTS", "FIRESTORE_COLLECTION", "FIRESTORE_DATABASE", "GOOGLE_CLOUD_PROJECT", "MAX_BATCH_SIZE", "MAX_IN_FLIGHT", "PORT",
      "RESULTS_BUCKET", "RESULTS_TOPIC",
    ])) == 0
    error_message = "settings must not have variables that Terraform sets. Instead of MAX_BATCH_SIZE and MAX_IN_FLIGHT, set batch_size. Instead of DEVICE, set accelerator. Instead of ALERTS_TOPIC, ALLOWED_BUCKETS, DAILY_IMAGE_LIMIT, DELETE_RESULTS_WITH_OBJECTS, ENDPOINTS, FIRESTORE_COLLECTION, FIRESTORE_DATABASE, GOOGLE_CLOUD_PROJECT, RESULTS_BUCKET and RESULTS_TOPIC, set alerts_topic, bucket_name, daily_image_limit, delete_results_with_objects, detect_service, firestore_collection, firestore_database, project_id, results_bucket and results_topic. ACK_DEADLINE_SECONDS, BIND_ADDRESS and PORT are fixed."
  }
}

variable "silence_schedule" {
  description = "When the silence job looks for sources from which no image came for silent_minutes, as cron in UTC. A run is billed as at least a minute of a vCPU, so the default costs about 5 USD a month without the free tier. Null: never. No effect without alerts_topic."
  type        = string
  default     = "*/10 * * * *"

  validation {
    condition     = var.silence_schedule == null ? true : can(regex("^\\S+( \\S+){4}$", var.silence_schedule))
    error_message = "silence_schedule must have the five fields of cron, for example \"*/10 * * * *\"."
  }
}

variable "slo_goal" {
  description = "Goal of the service-level objective (SLO), with two alerts: the share of the minutes of 28 days in which no upload waits longer than 60 s. More than 0, at most 0.9999. Null: no SLO."
  type        = number
  default     = 0.99

  validation {
    condition     = var.slo_goal == null ? true : var.slo_goal > 0 && var.slo_goal <= 0.9999
    error_message = "slo_goal must be more than 0 and at most 0.9999, for example 0.99."
  }
}

variable "soft_delete_days" {
  description = "Days for which a deleted upload can be restored, and is billed: 0, or 7 to 90."
  type        = number
  default     = 7
  nullable    = false

  validation {
    condition     = var.soft_delete_days == 0 || (var.soft_delete_days >= 7 && var.soft_delete_days <= 90)
    error_message = "soft_delete_days must be 0, or 7 to 90."
  }
}

variable "upload_events" {
  description = "How uploads reach the service: eventarc (the apply needs gcloud, to configure Eventarc's subscription), notification (Terraform manages everything) or both. With both, every upload causes two messages: use it only to switch without a gap."
  type        = string
  default     = "eventarc"
  nullable    = false

  validation {
    condition     = contains(["both", "eventarc", "notification"], var.upload_events)
    error_message = "upload_events must be eventarc, notification or both."
  }
}

variable "uploads_retention_days" {
  description = "Days after which an upload is deleted. Null: never."
  type        = number
  default     = null

  validation {
    condition     = var.uploads_retention_days == null ? true : var.uploads_retention_days >= 1 && floor(var.uploads_retention_days) == var.uploads_retention_days
    error_message = "uploads_retention_days must be a whole number of at least 1."
  }
}

variable "versioning" {
  description = "Whether the bucket keeps overwritten uploads for 30 days. Each generation has its own event and result in any case."
  type        = bool
  default     = false
  nullable    = false
}

variable "vpc_egress" {
  description = "Which traffic of the services and the jobs goes through the VPC network: private-ranges-only or all-traffic. With all-traffic, the subnetwork needs Private Google Access."
  type        = string
  default     = "private-ranges-only"
  nullable    = false

  validation {
    condition     = contains(["all-traffic", "private-ranges-only"], var.vpc_egress)
    error_message = "vpc_egress must be private-ranges-only or all-traffic."
  }
}

variable "vpc_network" {
  description = "VPC network that the services and the jobs send traffic to (Direct VPC egress). Null: the network of vpc_subnetwork. If both are null, no network."
  type        = string
  default     = null

  validation {
    condition     = var.vpc_network == null ? true : can(regex("^(projects/[^/]+/global/networks/)?[a-z]([a-z0-9-]*[a-z0-9])?$", var.vpc_network))
    error_message = "vpc_network must be a name, or projects/PROJECT/global/networks/NAME."
  }
}

variable "vpc_subnetwork" {
  description = "Subnetwork in region that the services and the jobs take addresses from. Null: the subnetwork with the name of vpc_network."
  type        = string
  default     = null

  validation {
    condition     = var.vpc_subnetwork == null ? true : can(regex("^(projects/[^/]+/regions/[^/]+/subnetworks/)?[a-z]([a-z0-9-]*[a-z0-9])?$", var.vpc_subnetwork))
    error_message = "vpc_subnetwork must be a name, or projects/PROJECT/regions/REGION/subnetworks/NAME."
  }
}
