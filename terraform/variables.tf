# Written by `python -m devtools.docs` from modules/yolo-batch. Change it there.

variable "accelerator" {
  description = "GPU of the service: none, nvidia-l4 or nvidia-rtx-pro-6000. A service with a GPU is named NAME-ACCELERATOR."
  type        = string
  default     = "none"
  nullable    = false
}

variable "agent_grants" {
  description = "Who grants Google's own accounts the two roles in the project that Eventarc needs: leave (the apply grants them with gcloud, and a destroy leaves them, because other triggers need them) or none (an administrator grants them: docs/how-to/share-a-project.md). No effect if upload_events is notification."
  type        = string
  default     = "leave"
  nullable    = false
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
}

variable "alert_webhook_transform" {
  description = "Body of the requests to alert_webhook_url: json (the alert message), slack (a text for an incoming webhook of Slack), or JavaScript with a function transform(message, metadata): a user-defined function of Pub/Sub."
  type        = string
  default     = "json"
  nullable    = false
}

variable "alert_webhook_url" {
  description = "Address that each alert is posted to, https only. Needs alerts_topic. Failed requests are repeated for about seven hours, then the alert is kept as a dead letter. Sensitive: plans do not show it, but the state contains it. Null: no webhook."
  type        = string
  default     = null
  sensitive   = true
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
}

variable "budget" {
  description = "Budget of the whole project for a month, for example {billing_account = \"012345-6789AB-CDEF01\", amount = 100}, in the billing account's currency, which currency may name. Google sends a notification at 50, 90 and 100 % of it, and if the forecast exceeds it. It accepts only email channels, so the first five of notification_channels must be of that type. Needs roles/billing.costsManager on the billing account. Null: no budget."
  type = object({
    billing_account = string
    amount          = number
    currency        = optional(string)
  })
  default = null
}

variable "build_region" {
  description = "Region of Cloud Build, for example europe-west1, or global. Null: the value of region. A new project may be restricted to a few regions."
  type        = string
  default     = null
}

variable "calibration" {
  description = "Folder of images in the repository, for example models/calibration. Cloud Build uses them to quantise the model to int8. Empty: the model stays float."
  type        = string
  default     = ""
  nullable    = false
}

variable "cpu" {
  description = "vCPUs of an instance without a GPU: 1, 2, 4 or 8. The instance has 1 GiB of memory for each vCPU, and at least 2 GiB."
  type        = number
  default     = 2
  nullable    = false
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
}

variable "detect_max_instances" {
  description = "Maximum number of instances of the detect service. They count against the same quota as max_instances."
  type        = number
  default     = 2
  nullable    = false
}

variable "detect_min_instances" {
  description = "Number of instances of the detect service that stay started, so that no caller waits for a start. They are billed while idle. 0: it scales to zero."
  type        = number
  default     = 0
  nullable    = false
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
}

variable "firestore_database" {
  description = "Firestore database of the results. Only (default) has the free tier, and a project has only one (default)."
  type        = string
  default     = "(default)"
  nullable    = false
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
}

variable "image" {
  description = "Container image of the first deployment, REGION-docker.pkg.dev/... Null: Cloud Build builds it during the first apply."
  type        = string
  default     = null
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
}

variable "labels" {
  description = "More labels for every resource that can have labels. By default, the label app is the value of name."
  type        = map(string)
  default     = {}
  nullable    = false
}

variable "max_instances" {
  description = "Maximum number of instances. Null: 10 without a GPU, 1 with one. A new project often has a quota of 20 vCPU, 40 GiB and 3 GPUs in each region."
  type        = number
  default     = null
}

variable "min_instances" {
  description = "Number of instances that stay started, and are billed while idle. 0: the service scales to zero."
  type        = number
  default     = 0
  nullable    = false
}

variable "model" {
  description = "Weights that Cloud Build packs into the container image: an official name, for example yolo26n.pt, or a path in the repository."
  type        = string
  default     = "yolo26n.pt"
  nullable    = false
}

variable "name" {
  description = "Prefix of every resource's name. Each deployment in a project needs its own."
  type        = string
  default     = "yolo-batch"
  nullable    = false
}

variable "notification_channels" {
  description = "Notification channels of the alerts: projects/PROJECT/notificationChannels/ID. Empty: alerts appear only in the console."
  type        = list(string)
  default     = []
  nullable    = false
}

variable "object_prefix" {
  description = "Folder of the bucket whose uploads are processed, for example incoming/. Needs upload_events = notification. The reconcile job compares only this folder. The smoke test's folder, smoke/, is processed too. Null: the whole bucket."
  type        = string
  default     = null
}

variable "project_id" {
  description = "Project to deploy into."
  type        = string
  nullable    = false
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
}

variable "region" {
  description = "Region of all regional resources, for example europe-west1."
  type        = string
  nullable    = false
}

variable "repository_name" {
  description = "Name of the Docker repository in Artifact Registry. Null: the value of name."
  type        = string
  default     = null
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
}

variable "silence_schedule" {
  description = "When the silence job looks for sources from which no image came for silent_minutes, as cron in UTC. A run is billed as at least a minute of a vCPU, so the default costs about 5 USD a month without the free tier. Null: never. No effect without alerts_topic."
  type        = string
  default     = "*/10 * * * *"
}

variable "slo_goal" {
  description = "Goal of the service-level objective (SLO), with two alerts: the share of the minutes of 28 days in which no upload waits longer than 60 s. More than 0, at most 0.9999. Null: no SLO."
  type        = number
  default     = 0.99
}

variable "soft_delete_days" {
  description = "Days for which a deleted upload can be restored, and is billed: 0, or 7 to 90."
  type        = number
  default     = 7
  nullable    = false
}

variable "upload_events" {
  description = "How uploads reach the service: eventarc (the apply needs gcloud, to configure Eventarc's subscription), notification (Terraform manages everything) or both. With both, every upload causes two messages: use it only to switch without a gap."
  type        = string
  default     = "eventarc"
  nullable    = false
}

variable "uploads_retention_days" {
  description = "Days after which an upload is deleted. Null: never."
  type        = number
  default     = null
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
}

variable "vpc_network" {
  description = "VPC network that the services and the jobs send traffic to (Direct VPC egress). Null: the network of vpc_subnetwork. If both are null, no network."
  type        = string
  default     = null
}

variable "vpc_subnetwork" {
  description = "Subnetwork in region that the services and the jobs take addresses from. Null: the subnetwork with the name of vpc_network."
  type        = string
  default     = null
}
