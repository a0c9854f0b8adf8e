-- One row for each image that has a result: the newest one. Messages may repeat and arrive in any
-- order. A deleted image has no row, even if an older message of it arrives later. If the settings
-- of a source were applied to a stored result, only `source_version` is newer.
SELECT *
FROM `${table}`
WHERE TRUE
QUALIFY
  ROW_NUMBER() OVER (
    PARTITION BY document_id
    ORDER BY status = 'deleted' DESC, created_at DESC, source_version DESC
  ) = 1
  AND status != 'deleted'
