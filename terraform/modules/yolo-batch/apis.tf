# APIs, their service agents, and the waits that a first apply needs. An API, an agent or a grant takes
# effect only some time after its creation.

resource "google_project_service" "main" {
  for_each = toset([
    "artifactregistry.googleapis.com",
    "cloudbuild.googleapis.com",
    "cloudresourcemanager.googleapis.com",
    "cloudscheduler.googleapis.com",
    "containeranalysis.googleapis.com", # stores the provenance of the container images
    "eventarc.googleapis.com",
    "firestore.googleapis.com",
    "iam.googleapis.com",
    "iamcredentials.googleapis.com",
    "logging.googleapis.com",
    "monitoring.googleapis.com",
    "pubsub.googleapis.com",
    "run.googleapis.com",
    "storage.googleapis.com",
  ])

  service = each.key
  project = var.project_id
  # Other parts of the project may use them.
  disable_on_destroy = false
}

resource "time_sleep" "apis" {
  create_duration = "60s"
  triggers        = { apis = join(",", sort(keys(google_project_service.main))) }

  depends_on = [google_project_service.main]
}

# Enabling an API does not create its agent, and a grant to an agent that does not exist fails.
resource "google_project_service_identity" "main" {
  for_each = toset([
    "cloudbuild.googleapis.com",
    "eventarc.googleapis.com",
    "pubsub.googleapis.com",
    "run.googleapis.com",
  ])
  provider = google-beta

  service = each.key
  project = var.project_id

  depends_on = [time_sleep.apis]
}

# Reading this agent creates it.
data "google_storage_project_service_account" "main" {
  depends_on = [time_sleep.apis]
  project    = var.project_id
}

locals {
  # Not read from the data source: if it is delayed, by another API in apis.tf or by a caller's depends_on,
  # the grants would be replaced, and there would be none for a moment.
  storage_agent = "serviceAccount:service-${google_storage_bucket.reconcile.project_number}@gs-project-accounts.iam.gserviceaccount.com"
}

# Eventarc needs these grants, and so does every other trigger in the project. google_project_iam_member
# would remove them in a destroy. A grant by gcloud stays, and changes nothing if it exists.
resource "terraform_data" "agent_grants" {
  for_each = toset(var.agent_grants == "leave" ? keys(google_project_iam_member.event_receiver) : [])

  triggers_replace = [
    for role, member in {
      "roles/eventarc.serviceAgent" = google_project_service_identity.main["eventarc.googleapis.com"].member
      "roles/pubsub.publisher"      = local.storage_agent
      } : join(" ", [
        "gcloud projects add-iam-policy-binding ${var.project_id} --quiet",
        "--member=${member}",
        "--role=${role}",
        "--condition=None",
    ])
  ]

  provisioner "local-exec" {
    command = join(" && ", self.triggers_replace)
  }

  # gcloud fails if another grant changes the project's policy at the same time.
  depends_on = [
    data.google_storage_project_service_account.main,
    google_project_iam_member.build,
    google_project_iam_member.detect,
    google_project_iam_member.event_receiver,
    google_project_iam_member.gallery,
    google_project_iam_member.gallery_verdicts,
    google_project_iam_member.reconcile,
    google_project_iam_member.service,
    google_project_iam_member.silence,
  ]
}

# Earlier versions of this module removed these grants in a destroy. They stay.
removed {
  from = google_project_iam_member.eventarc_agent

  lifecycle {
    destroy = false
  }
}

removed {
  from = google_project_iam_member.storage_agent

  lifecycle {
    destroy = false
  }
}

# Cloud Run rejects an account that has not propagated yet. If Cloud Build builds the image, that takes
# longer than this wait anyway.
resource "time_sleep" "accounts" {
  create_duration = "20s"
  triggers = {
    reconcile = google_service_account.reconcile.id
    run_agent = google_project_service_identity.main["run.googleapis.com"].id
    service   = google_service_account.service.id
  }
}

# Every grant that the processing of an upload needs. According to Google, a grant can take seven minutes
# to take effect. Cloud Build builds the first image meanwhile.
resource "time_sleep" "agent_grants" {
  create_duration = "420s"
  triggers = merge(
    {
      service_reads  = google_storage_bucket_iam_member.service.id
      service_writes = google_project_iam_member.service.id
      service_stores = join(",", google_storage_bucket_iam_member.results[*].id)
      token_creator  = join(",", [for grant in google_service_account_iam_member.token_creator : grant.id])
    },
    { for key, grants in terraform_data.agent_grants : "agent_grants_${key}" => grants.id },
    { for key, grant in google_pubsub_topic_iam_member.storage_agent : "storage_agent_topic_${key}" => grant.id },
    { for key, grant in google_project_iam_member.event_receiver : "event_receiver_${key}" => grant.id },
    { for key, grant in google_pubsub_topic_iam_member.service : "service_publishes_${key}" => grant.id },
  )
}
