locals {
  latencies = "sum by (le) (rate(run_googleapis_com:request_latencies_bucket{${local.of_service}}[5m]))"
  mean      = { for key in ["commit_ms", "images"] : key => "sum(rate(${local.prom[key]}_sum{${local.of_revision}}[5m])) / sum(rate(${local.prom[key]}_count{${local.of_revision}}[5m]))" }

  tiles = concat(local.first_tiles, local.detect_tiles)

  first_tiles = [
    { title = "Images recorded a second", queries = { images = "sum(rate(${local.prom.images}_sum{${local.of_revision}}[5m]))" } },
    { title = "Failed images a second, by code", queries = { failures = "sum by (code) (rate(${local.prom.failures}{${local.of_revision}}[5m]))" } },
    { title = "Outcomes of deliveries a second", queries = { for key in local.outcomes : key => "sum(rate(${local.prom[key]}_sum{${local.of_revision}}[5m]))" } },
    # 1 without redeliveries.
    { title = "Deliveries for each recorded image", queries = { deliveries = "sum(rate(pubsub_googleapis_com:subscription_push_request_count{${local.of_work}}[30m])) / sum(rate(${local.prom.images}_sum{${local.of_revision}}[30m]))" } },
    { title = "Deliveries a second, by response", queries = { deliveries = "sum by (response_class, response_code) (rate(pubsub_googleapis_com:subscription_push_request_count{${local.of_work}}[5m]))" } },
    { title = "Error responses a second, by status", queries = { errors = "sum by (status) (rate(${local.prom.http_errors}{${local.of_revision}}[5m]))" } },
    { title = "Rejected messages a second, by status", queries = { rejected = "sum by (status) (rate(${local.prom.rejected}{${local.of_revision}}[5m]))" } },
    { title = "Instances", queries = { instances = "sum by (state) (run_googleapis_com:container_instance_count{${local.of_service}})" } },
    { title = "Unacknowledged messages", queries = { messages = "sum by (subscription_id) (pubsub_googleapis_com:subscription_num_undelivered_messages{${local.of_work}})" } },
    { title = "Oldest unacknowledged message, s", queries = { age = "max by (subscription_id) (pubsub_googleapis_com:subscription_oldest_unacked_message_age{${local.of_work}})" } },
    # Of the minutes that have a value. slo.tf has the objective.
    { title = "Minutes with no upload older than ${local.slo_seconds} s, share of 6 h", queries = { minutes = "avg_over_time((max(pubsub_googleapis_com:subscription_oldest_unacked_message_age{${local.of_uploads}}) < bool ${local.slo_seconds})[6h:1m])" } },
    { title = "Dead letters", queries = { dead_letters = "sum(pubsub_googleapis_com:subscription_num_undelivered_messages{${local.of_dead_letters}})" } },
    { title = "Milliseconds of a request", queries = { for share in ["0.5", "0.95"] : share => "histogram_quantile(${share}, ${local.latencies})" } },
    { title = "Milliseconds of a commit, mean", queries = { commit = local.mean.commit_ms } },
    { title = "Images in a commit, mean", queries = { images = local.mean.images } },
    { title = "Bytes of logs a second, by log", queries = { bytes = "sum by (log) (rate(logging_googleapis_com:byte_count{${local.of_service}}[5m]))" } },
  ]

  detect_tiles = [
    for tile in [
      { title = "Calls of the detect service a second, by status", queries = { calls = "sum by (response_code) (rate(run_googleapis_com:request_count{${local.of_detect}}[5m]))" } },
      { title = "Milliseconds of a call of the detect service", queries = { for share in ["0.5", "0.95"] : share => "histogram_quantile(${share}, sum by (le) (rate(run_googleapis_com:request_latencies_bucket{${local.of_detect}}[5m])))" } },
    ] : tile if var.detect_service
  ]

  # Without zeros and nulls: the API does not return them, so every plan would show them as a change.
  dashboard = {
    displayName = local.watched
    mosaicLayout = {
      columns = 12
      tiles = [for index, tile in local.tiles : merge(
        { for key, value in { xPos = 6 * (index % 2), yPos = 4 * floor(index / 2) } : key => value if value > 0 },
        {
          width  = 6
          height = 4
          widget = {
            title = tile.title
            xyChart = {
              dataSets = [for name, query in tile.queries : merge(
                length(tile.queries) > 1 ? { legendTemplate = name } : {},
                {
                  plotType        = "LINE"
                  timeSeriesQuery = { prometheusQuery = query }
                },
              )]
            }
          }
        },
      )]
    }
  }
}

resource "google_monitoring_dashboard" "main" {
  dashboard_json = jsonencode(local.dashboard)
  project        = var.project_id

  depends_on = [time_sleep.apis]
}
