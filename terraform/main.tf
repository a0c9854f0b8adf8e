# Written by `python -m devtools.docs` from modules/yolo-batch. Change it there.

# A user's own credentials name no project whose quota a call uses, so some APIs would reject it.
provider "google" {
  project               = var.project_id
  region                = var.region
  billing_project       = var.project_id
  user_project_override = true
}

provider "google-beta" {
  project               = var.project_id
  region                = var.region
  billing_project       = var.project_id
  user_project_override = true
}

module "yolo_batch" {
  source = "./modules/yolo-batch"

  accelerator                 = var.accelerator
  agent_grants                = var.agent_grants
  alert_incidents             = var.alert_incidents
  alert_webhook_audience      = var.alert_webhook_audience
  alert_webhook_transform     = var.alert_webhook_transform
  alert_webhook_url           = var.alert_webhook_url
  alerts_topic                = var.alerts_topic
  batch_size                  = var.batch_size
  bigquery                    = var.bigquery
  bucket_name                 = var.bucket_name
  budget                      = var.budget
  build_region                = var.build_region
  calibration                 = var.calibration
  cpu                         = var.cpu
  create_bucket               = var.create_bucket
  create_database             = var.create_database
  create_repository           = var.create_repository
  daily_image_limit           = var.daily_image_limit
  delete_results_with_objects = var.delete_results_with_objects
  detect_invokers             = var.detect_invokers
  detect_max_instances        = var.detect_max_instances
  detect_min_instances        = var.detect_min_instances
  detect_service              = var.detect_service
  firestore_collection        = var.firestore_collection
  firestore_database          = var.firestore_database
  firestore_location          = var.firestore_location
  gallery                     = var.gallery
  gallery_originals           = var.gallery_originals
  gallery_try_again           = var.gallery_try_again
  gallery_viewers             = var.gallery_viewers
  image                       = var.image
  index_all_fields            = var.index_all_fields
  indexed_fields              = var.indexed_fields
  keep_request_logs           = var.keep_request_logs
  kms_key                     = var.kms_key
  labels                      = var.labels
  max_instances               = var.max_instances
  min_instances               = var.min_instances
  model                       = var.model
  name                        = var.name
  notification_channels       = var.notification_channels
  object_prefix               = var.object_prefix
  project_id                  = var.project_id
  protect_data                = var.protect_data
  reconcile_schedule          = var.reconcile_schedule
  region                      = var.region
  repository_name             = var.repository_name
  results_bucket              = var.results_bucket
  results_topic               = var.results_topic
  results_ttl_days            = var.results_ttl_days
  scan_images                 = var.scan_images
  settings                    = var.settings
  silence_schedule            = var.silence_schedule
  slo_goal                    = var.slo_goal
  soft_delete_days            = var.soft_delete_days
  upload_events               = var.upload_events
  uploads_retention_days      = var.uploads_retention_days
  versioning                  = var.versioning
  vpc_egress                  = var.vpc_egress
  vpc_network                 = var.vpc_network
  vpc_subnetwork              = var.vpc_subnetwork
}
