"""When and where an image was taken: pure functions of its EXIF data and its source's settings."""

from dataclasses import replace
from datetime import UTC, date, datetime
from datetime import timezone as fixed_timezone
from zoneinfo import ZoneInfo

from service.domain import MAX_UTC_OFFSET, Capture, CapturedAtSource, ImageResult

# Cameras without a set clock write the year 1904, 1970 or 1980, or a year beyond 2100.
_FIRST_YEAR, _LAST_YEAR = 1970, 2100


def with_capture(
    result: ImageResult, capture: Capture, *, timezone: ZoneInfo | None, store_location: bool
) -> ImageResult:
    """Return the result with when, where and with what its image was taken.

    Args:
        result: the result of an image.
        capture: what the file's EXIF data state.
        timezone: of the image's source. It is used if the file has no UTC offset.
        store_location: whether the source allows that the position is recorded.
    """
    captured_at, captured_at_source = captured_at_of(capture, timezone)
    return replace(
        result,
        captured_at=captured_at,
        captured_at_source=captured_at_source,
        camera=capture.camera,
        location=capture.location if store_location else None,
    )


def captured_at_of(
    capture: Capture, timezone: ZoneInfo | None
) -> tuple[datetime | None, CapturedAtSource]:
    """Return when an image was taken, in UTC, and how that is known.

    When clocks go back, an hour happens twice. A local time in this hour counts as the first one.
    When clocks go forward, an hour does not happen. A local time in this hour counts with the UTC
    offset that was valid before. Both are `fold=0` of PEP 495.

    Args:
        capture: what the file's EXIF data state. A time before 1970 or after 2100 is ignored.
        timezone: used if the file has no valid UTC offset. None: the time is then unknown.
    """
    local, offset = capture.local_time, capture.utc_offset
    if not local or not _FIRST_YEAR <= local.year <= _LAST_YEAR:
        return None, CapturedAtSource.NONE
    local = local.replace(fold=0)
    if offset is not None and abs(offset) <= MAX_UTC_OFFSET:
        zoned = local.replace(tzinfo=fixed_timezone(offset))
        return zoned.astimezone(UTC), CapturedAtSource.EXIF_OFFSET
    if timezone:
        zoned = local.replace(tzinfo=timezone)
        return zoned.astimezone(UTC), CapturedAtSource.EXIF_WITH_SOURCE_TIMEZONE
    return None, CapturedAtSource.NONE


def day_of(
    captured_at: datetime | None, event_time: datetime | None, timezone: ZoneInfo | None = None
) -> date | None:
    """Return the day of an image: when it was taken, otherwise when it was uploaded.

    Args:
        captured_at: when it was taken. None: not known.
        event_time: when it was uploaded. None: not known.
        timezone: of the image's source. None: UTC.
    """
    time = captured_at or event_time
    if not time:
        return None
    try:
        return time.astimezone(timezone or UTC).date()
    except OverflowError:  # the event's time is untrusted: it may be in the year 1 or 9999
        return time.date()
