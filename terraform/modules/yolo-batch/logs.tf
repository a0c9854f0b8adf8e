# Cloud Run logs each request. Those of handled messages are most of the logs, and say less than the
# service's own lines. Metrics do not need them.

resource "google_logging_project_exclusion" "requests" {
  for_each = var.keep_request_logs ? {} : { main = "${var.name}-handled-requests" }

  name        = each.value
  description = "Requests that ${local.watched} handled (2xx)."
  filter      = "${local.log_of_service} AND log_id(\"run.googleapis.com/requests\") AND httpRequest.status>=200 AND httpRequest.status<300"
  project     = var.project_id

  depends_on = [time_sleep.apis]
}
