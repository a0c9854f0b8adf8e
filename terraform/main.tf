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

  accelerator            = var.accelerator
  batch_size             = var.batch_size
  bucket_name            = var.bucket_name
  build_region           = var.build_region
  calibration            = var.calibration
  cpu                    = var.cpu
  daily_image_limit      = var.daily_image_limit
  firestore_collection   = var.firestore_collection
  firestore_database     = var.firestore_database
  firestore_location     = var.firestore_location
  image                  = var.image
  max_instances          = var.max_instances
  model                  = var.model
  name                   = var.name
  notification_channels  = var.notification_channels
  project_id             = var.project_id
  protect_data           = var.protect_data
  query_by_time          = var.query_by_time
  reconcile_schedule     = var.reconcile_schedule
  region                 = var.region
  results_ttl_days       = var.results_ttl_days
  settings               = var.settings
  soft_delete_days       = var.soft_delete_days
  upload_events          = var.upload_events
  uploads_retention_days = var.uploads_retention_days
  versioning             = var.versioning
}
