# The region of Cloud Build. This file needs no provider, so tests/deploy/test_terraform.py can run it.

locals {
  build_region = coalesce(var.build_region, var.region)
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
