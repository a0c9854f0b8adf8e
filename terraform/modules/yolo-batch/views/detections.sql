-- One row for each detection of the view `results`. `detection_index` counts from 0, the most
-- confident first.
SELECT
  result.* EXCEPT (detections, classes, metadata, derived, alerts, labels, left_out),
  detection_index,
  detection.*
FROM `${results}` AS result
CROSS JOIN UNNEST(result.detections) AS detection WITH OFFSET AS detection_index
