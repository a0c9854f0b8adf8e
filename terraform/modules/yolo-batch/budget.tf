# A budget of the whole project, because Google filters a budget by at most one label, and the costs of
# Firestore, Pub/Sub and Cloud Logging have no label. A budget only notifies. It stops nothing.

locals {
  budgets = var.budget == null ? {} : { main = var.budget }
}

# Not in apis.tf: another API there starts its wait again, and everything that depends on the wait.
resource "google_project_service" "budget" {
  for_each = local.budgets

  service            = "billingbudgets.googleapis.com"
  project            = var.project_id
  disable_on_destroy = false
}

resource "time_sleep" "budget" {
  for_each = google_project_service.budget

  create_duration = "60s"
}

resource "google_billing_budget" "main" {
  for_each = local.budgets

  billing_account = each.value.billing_account
  display_name    = "${local.service_name}: project ${var.project_id}"

  budget_filter {
    # The API returns the project's number. Its id would show up as a change in every plan.
    projects               = ["projects/${google_storage_bucket.reconcile.project_number}"]
    calendar_period        = "MONTH"
    credit_types_treatment = "INCLUDE_ALL_CREDITS"
  }

  amount {
    specified_amount {
      currency_code = each.value.currency
      units         = tostring(each.value.amount)
    }
  }

  dynamic "threshold_rules" {
    for_each = [0.5, 0.9, 1]
    content {
      threshold_percent = threshold_rules.value
      spend_basis       = "CURRENT_SPEND"
    }
  }

  threshold_rules {
    threshold_percent = 1
    spend_basis       = "FORECASTED_SPEND"
  }

  # Notifies also the administrators and payers of the billing account, and the project's owners. The API
  # takes at most five channels.
  all_updates_rule {
    monitoring_notification_channels = slice(var.notification_channels, 0, min(5, length(var.notification_channels)))
    disable_default_iam_recipients   = false
    enable_project_level_recipients  = true
  }

  depends_on = [time_sleep.budget]
}
