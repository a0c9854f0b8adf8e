# Tests a bucket, a database and a repository that exist, in their own file because the data sources need
# a provider.

mock_provider "google" {
  mock_data "google_storage_bucket" {
    defaults = {
      location                    = "EUROPE-WEST1"
      uniform_bucket_level_access = true
    }
  }
  mock_data "google_artifact_registry_repository" {
    defaults = {
      id     = "projects/my-project-1/locations/europe-west1/repositories/images"
      format = "DOCKER"
    }
  }
}
mock_provider "google-beta" {}
mock_provider "time" {}

variables {
  project_id         = "my-project-1"
  region             = "europe-west1"
  create_bucket      = false
  bucket_name        = "cameras"
  create_database    = false
  firestore_database = "shared"
  create_repository  = false
  repository_name    = "images"
  # Without it, check.build_region warns, and every run fails.
  build_region = "europe-west1"
}

run "existing" {
  command         = plan
  expect_failures = [check.uploads_subscription]

  assert {
    condition = (
      length(google_storage_bucket.uploads) == 0
      && length(google_firestore_database.main) == 0
      && length(google_artifact_registry_repository.main) == 0
    )
    error_message = "What exists is not created."
  }

  assert {
    condition = (
      local.service_environment["ALLOWED_BUCKETS"] == "cameras"
      && google_storage_bucket_iam_member.service.bucket == "cameras"
      && google_firestore_field.created_at["results"].database == "shared"
      && startswith(google_project_iam_member.service.condition[0].expression, "resource.name == \"projects/my-project-1/databases/shared\" ||")
      && local.substitutions._REPOSITORY == "images/yolo-batch"
      && google_artifact_registry_repository_iam_member.build.repository == "projects/my-project-1/locations/europe-west1/repositories/images"
    )
    error_message = "What exists is used, and the images are in a folder of their own."
  }
}

run "bucket_elsewhere" {
  command         = plan
  expect_failures = [data.google_storage_bucket.uploads]

  override_data {
    target = data.google_storage_bucket.uploads
    values = { location = "EU", uniform_bucket_level_access = true }
  }
}

run "bucket_elsewhere_by_notification" {
  command = plan
  variables {
    upload_events = "notification"
  }

  override_data {
    target = data.google_storage_bucket.uploads
    values = { location = "EU", uniform_bucket_level_access = true }
  }

  assert {
    condition     = google_storage_notification.uploads["uploads"].bucket == "cameras"
    error_message = "Notifications need no common location."
  }
}

run "bucket_with_object_acls" {
  command         = plan
  expect_failures = [data.google_storage_bucket.uploads]

  override_data {
    target = data.google_storage_bucket.uploads
    values = { location = "EUROPE-WEST1", uniform_bucket_level_access = false }
  }
}

run "repository_of_other_format" {
  command         = plan
  expect_failures = [data.google_artifact_registry_repository.main]

  override_data {
    target = data.google_artifact_registry_repository.main
    values = { format = "NPM" }
  }
}

run "bucket_without_name" {
  command         = plan
  expect_failures = [terraform_data.combinations, check.uploads_subscription]
  variables {
    bucket_name = null
  }
}

run "bucket_with_retention" {
  command         = plan
  expect_failures = [terraform_data.combinations, check.uploads_subscription]
  variables {
    uploads_retention_days = 30
  }
}

run "repository_without_name" {
  command         = plan
  expect_failures = [terraform_data.combinations, check.uploads_subscription]
  variables {
    repository_name = null
  }
}
