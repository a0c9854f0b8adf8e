"""When and where an image was taken, from its EXIF data and its source's settings."""

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.capture import captured_at_of, day_of, with_capture
from service.domain import Camera, Capture, CapturedAtSource, GeoPoint, ImageRef, ImageResult

BERLIN, KOLKATA = ZoneInfo("Europe/Berlin"), ZoneInfo("Asia/Kolkata")
NOON = datetime(2026, 7, 1, 12)
RESULT = ImageResult(ImageRef("uploads", "cat.jpg", 1))
OFFSET, ZONE, NONE = (
    CapturedAtSource.EXIF_OFFSET,
    CapturedAtSource.EXIF_WITH_SOURCE_TIMEZONE,
    CapturedAtSource.NONE,
)


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[arg-type,misc]


@pytest.mark.parametrize("zone", [None, BERLIN, KOLKATA])
def test_offset_in_the_file_decides(zone: ZoneInfo | None) -> None:
    capture = Capture(NOON, timedelta(hours=-9, minutes=-30))
    assert captured_at_of(capture, zone) == (utc(2026, 7, 1, 21, 30), OFFSET)


@pytest.mark.parametrize(
    ("local", "expected"),
    [
        (datetime(2026, 7, 1, 12, 0, 0, 250_000), utc(2026, 7, 1, 10, 0, 0, 250_000)),
        (datetime(2026, 1, 1, 0, 30), utc(2025, 12, 31, 23, 30)),
        # On 25 October, 2:00 to 3:00 happens twice. The first one counts.
        (datetime(2026, 10, 25, 2, 30), utc(2026, 10, 25, 0, 30)),
        (datetime(2026, 10, 25, 2, 30, fold=1), utc(2026, 10, 25, 0, 30)),
        (datetime(2026, 10, 25, 3, 0), utc(2026, 10, 25, 2, 0)),
        # On 29 March, 2:00 to 3:00 does not happen. The offset from before counts.
        (datetime(2026, 3, 29, 2, 30), utc(2026, 3, 29, 1, 30)),
    ],
)
def test_local_time_counts_in_the_time_zone_of_its_source(
    local: datetime, expected: datetime
) -> None:
    assert captured_at_of(Capture(local), BERLIN) == (expected, ZONE)


def test_local_time_without_offset_and_zone_is_not_a_time() -> None:
    assert captured_at_of(Capture(NOON), None) == (None, NONE)


@pytest.mark.parametrize("year", [1, 1904, 1969, 2101, 9999])
def test_year_that_no_upload_has_is_ignored(year: int) -> None:
    capture = Capture(NOON.replace(year=year), timedelta(0))
    assert captured_at_of(capture, BERLIN) == (None, NONE)


@pytest.mark.parametrize("hours", [-15, 15])
def test_offset_that_no_place_has_is_ignored(hours: int) -> None:
    assert captured_at_of(Capture(NOON, timedelta(hours=hours)), None) == (None, NONE)


@given(
    st.datetimes(),
    st.none() | st.timedeltas(timedelta(days=-2), timedelta(days=2)),
    st.sampled_from([None, BERLIN, KOLKATA, ZoneInfo("Pacific/Kiritimati")]),
)
def test_every_local_time_gives_a_utc_time_or_none(
    local: datetime, offset: timedelta | None, zone: ZoneInfo | None
) -> None:
    captured_at, known_from = captured_at_of(Capture(local, offset), zone)
    assert (captured_at is None) == (known_from is NONE)
    if captured_at:
        assert captured_at.tzinfo is UTC
        assert abs(captured_at.replace(tzinfo=None) - local) <= timedelta(hours=14)


@pytest.mark.parametrize("store_location", [True, False])
def test_position_is_recorded_only_if_the_source_allows_it(store_location: bool) -> None:
    place, camera = GeoPoint(52.5, 13.4), Camera("Axis", "P1448-LE", "ACCC8E000001")
    capture = Capture(NOON, timedelta(0), camera, place)
    result = with_capture(RESULT, capture, timezone=None, store_location=store_location)
    assert result.location == (place if store_location else None)
    assert (result.captured_at, result.captured_at_source) == (utc(2026, 7, 1, 12), OFFSET)
    assert result.camera == camera


def test_empty_capture_gives_no_time_and_no_place() -> None:
    result = with_capture(RESULT, Capture(), timezone=BERLIN, store_location=True)
    assert result == RESULT


@pytest.mark.parametrize(
    ("captured_at", "event_time", "zone", "day"),
    [
        (utc(2026, 6, 30, 22, 30), utc(2026, 7, 9), BERLIN, date(2026, 7, 1)),
        (utc(2026, 6, 30, 22, 30), utc(2026, 7, 9), None, date(2026, 6, 30)),
        (None, utc(2026, 6, 30, 22, 30), BERLIN, date(2026, 7, 1)),
        (None, utc(2026, 6, 30, 22, 30), None, date(2026, 6, 30)),
        (None, None, BERLIN, None),
        (None, utc(9999, 12, 31, 23, 30), BERLIN, date(9999, 12, 31)),
    ],
)
def test_day_is_that_of_the_capture_or_of_the_upload(
    captured_at: datetime | None,
    event_time: datetime | None,
    zone: ZoneInfo | None,
    day: date | None,
) -> None:
    assert day_of(captured_at, event_time, zone) == day
