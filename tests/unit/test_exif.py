"""When, where and with what an image was taken, as its EXIF data state it."""

import io
import struct
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from service.deadline import NO_DEADLINE
from service.domain import Camera, Capture, GeoPoint
from service.images.decode import decode
from service.images.decoders import Decoders
from service.images.details import MAX_TEXT_CHARACTERS, Details
from service.images.exif import capture_of_bytes

Base, Gps, Ifd = ExifTags.Base, ExifTags.GPS, ExifTags.IFD

MAIN: dict[int, Any] = {Base.Make: "Axis", Base.Model: "P1448-LE", Base.Orientation: 1}
DETAILS: dict[int, Any] = {
    Base.DateTimeOriginal: "2026:07:01 14:30:05",
    Base.SubsecTimeOriginal: "25",
    Base.OffsetTimeOriginal: "+05:30",
    Base.BodySerialNumber: "ACCC8E000001",
}
GPS: dict[int, Any] = {
    Gps.GPSLatitudeRef: "S",
    Gps.GPSLatitude: (33.0, 51.0, 24.5),
    Gps.GPSLongitudeRef: "E",
    Gps.GPSLongitude: (151.0, 12.0, 55.0),
}
CAPTURE = Capture(
    local_time=datetime(2026, 7, 1, 14, 30, 5, 250_000),
    utc_offset=timedelta(hours=5, minutes=30),
    camera=Camera("Axis", "P1448-LE", "ACCC8E000001"),
    location=GeoPoint(-33.8568056, 151.2152778),
)


def exif(
    main: dict[int, Any] = MAIN, details: dict[int, Any] = DETAILS, gps: dict[int, Any] = GPS
) -> bytes:
    """Return EXIF data. None removes a tag."""
    tags = Image.Exif()
    for directory, values in ((tags, main), (tags.get_ifd(Ifd.Exif), details)):
        directory.update({tag: value for tag, value in values.items() if value is not None})
    tags.get_ifd(Ifd.GPSInfo).update({tag: v for tag, v in gps.items() if v is not None})
    return tags.tobytes()


def saved(kind: str, data: bytes, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), "teal").save(buffer, kind, exif=data, **options)
    return buffer.getvalue()


def tiff(data: bytes) -> bytes:
    """Return a TIFF, whose own directory has the tags."""
    tags = Image.Exif()
    tags.load(data)
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), "teal").save(buffer, "TIFF", exif=tags)
    return buffer.getvalue()


FORMATS: dict[str, Callable[[bytes], bytes]] = {
    "JPEG": lambda data: saved("JPEG", data),
    "MPO": lambda data: saved(
        "MPO", data, save_all=True, append_images=[Image.new("RGB", (64, 48), "red")]
    ),
    "PNG": lambda data: saved("PNG", data),
    "WEBP": lambda data: saved("WEBP", data),
    "TIFF": tiff,
    "AVIF": lambda data: saved("AVIF", data),
}


@pytest.fixture(scope="module")
def decoders() -> Any:
    pool = Decoders(1, max_pixels=10**6, max_decompressed_bytes=10**6)
    yield pool
    pool.close()


@pytest.mark.parametrize("kind", FORMATS)
def test_capture_is_read_from_each_format(kind: str, decoders: Decoders) -> None:
    data = FORMATS[kind](exif())
    image = decoders.decode(data, image_size=32, deadline=NO_DEADLINE)
    assert image.info.format == kind
    assert image.capture == CAPTURE
    assert decode(data, max_pixels=10**6).capture == CAPTURE


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF", "GIF", "BMP", "PPM"])
def test_image_without_exif_has_an_empty_capture(kind: str) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), "teal").save(buffer, kind)
    assert decode(buffer.getvalue(), max_pixels=10**6).capture == Capture()


def details(**changes: Any) -> Capture:
    """Return the capture of the EXIF data above, with changes in the tags of the Exif directory."""
    return capture_of_bytes(exif(details=DETAILS | {Base[tag]: v for tag, v in changes.items()}))


NO_ORIGINAL = {"DateTimeOriginal": None, "SubsecTimeOriginal": None, "OffsetTimeOriginal": None}


def test_time_of_digitising_is_used_without_the_original_time() -> None:
    capture = details(
        **NO_ORIGINAL,
        DateTimeDigitized="2026:01:02 03:04:05",
        SubsecTimeDigitized="007",
        OffsetTimeDigitized="-08:00",
    )
    assert capture.local_time == datetime(2026, 1, 2, 3, 4, 5, 7_000)
    assert capture.utc_offset == timedelta(hours=-8)


def test_offset_of_another_time_is_not_used() -> None:
    capture = details(OffsetTimeOriginal=None, OffsetTimeDigitized="-08:00", OffsetTime="-08:00")
    assert (capture.local_time, capture.utc_offset) == (CAPTURE.local_time, None)


def test_time_of_the_last_change_is_not_used() -> None:
    without = DETAILS | {Base[tag]: value for tag, value in NO_ORIGINAL.items()}
    tags = exif(MAIN | {Base.DateTime: "2026:01:02 03:04:05"}, without)
    assert capture_of_bytes(tags).local_time is None


@pytest.mark.parametrize(
    "text",
    [
        "0000:00:00 00:00:00", "    :  :     :  :  ", "2026:02:30 10:00:00", "2026:07:01 24:00:00",
        "2026:07:01 10:00:60", "2026:07:01", "2026:07:01 10:00", "x" * 5000, "", "\0",
        "٢٠٢٦:07:01 10:00:00",
    ],
)  # fmt: skip
def test_invalid_time_counts_as_absent(text: str) -> None:
    capture = details(DateTimeOriginal=text.encode())
    assert capture == replace(CAPTURE, local_time=None, utc_offset=None)


@pytest.mark.parametrize("text", ["+14:01", "-99:00", "+05:60", "   :  ", "+0530", "+05", "ten"])
def test_invalid_offset_counts_as_absent(text: str) -> None:
    assert details(OffsetTimeOriginal=text) == replace(CAPTURE, utc_offset=None)


@pytest.mark.parametrize(("text", "microsecond"), [("", 0), ("5 ", 500_000), ("1234567", 123_456),
                                                   ("-5", 0), ("1.5", 0)])  # fmt: skip
def test_fraction_of_a_second_is_read(text: str, microsecond: int) -> None:
    time = details(SubsecTimeOriginal=text).local_time
    assert time and time.microsecond == microsecond


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (b"  Axis \0\0", "Axis"),
        (b"Axis\0garbage", "Axis"),
        (b"A\x07x\x1b[31mis", "Ax[31mis"),
        ("小米".encode(), "小米"),
        (b"\xff\xfeAxis", "Axis"),
        (b"A" * 5000, "A" * MAX_TEXT_CHARACTERS),
        (("😀" * 200).encode(), "😀" * MAX_TEXT_CHARACTERS),
        (b" \0", None),
    ],
)  # fmt: skip
def test_text_is_short_and_printable(written: bytes, read: str | None) -> None:
    camera = capture_of_bytes(exif({Base.Make: written})).camera
    assert camera == Camera(read, None, "ACCC8E000001")


@pytest.mark.parametrize(
    "changes",
    [
        {"GPSLatitudeRef": None},
        {"GPSLatitudeRef": "E"},
        {"GPSLongitudeRef": "W" * 50},
        {"GPSLatitude": None},
        {"GPSLatitude": (91.0, 0.0, 0.0)},
        {"GPSLongitude": (180.0, 0.0, 1.0)},
        {"GPSLatitude": (1.0, 61.0, 0.0)},
        {"GPSLatitude": (1.0, 1.0, 1.0, 1.0)},
        {"GPSLatitude": (0.0, 0.0, 0.0), "GPSLongitude": (0.0, 0.0, 0.0)},
        {"GPSStatus": "V"},
    ],
    ids=str,
)
def test_invalid_position_counts_as_absent(changes: dict[str, Any]) -> None:
    gps = GPS | {Gps[tag]: value for tag, value in changes.items()}
    assert capture_of_bytes(exif(gps=gps)) == replace(CAPTURE, location=None)


def test_position_with_a_zero_denominator_counts_as_absent() -> None:
    data = exif()
    for numerator in (33, 51):
        latitude = struct.pack(">II", numerator, 1)
        little = struct.pack("<II", numerator, 1)
        assert latitude in data or little in data
        data = data.replace(latitude, struct.pack(">II", numerator, 0))
        data = data.replace(little, struct.pack("<II", numerator, 0))
    assert capture_of_bytes(data) == replace(CAPTURE, location=None)


@pytest.mark.parametrize("share", range(0, 100, 4))
def test_truncated_exif_is_read_as_far_as_it_goes(share: int) -> None:
    data = exif()
    capture = capture_of_bytes(data[: len(data) * share // 100])
    assert capture.camera is None or capture.camera.make in (None, "Axis")
    times = (CAPTURE.local_time, datetime(2026, 7, 1, 14, 30, 5), None)
    assert capture.local_time in times


@settings(deadline=None, database=None)
@given(st.binary(max_size=300), st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255))))
def test_damaged_exif_never_raises_or_exceeds_limits(
    tail: bytes, changes: list[tuple[int, int]]
) -> None:
    data = bytearray(exif() + tail)
    for position, value in changes:
        data[position % len(data)] = value
    for damaged in (bytes(data), tail, b"Exif\0\0" + tail, b"Exif\0\0II*\0\x08\0\0\0" + tail):
        image = decode(JPEG, max_pixels=10**6)
        image = replace(image, capture=capture_of_bytes(damaged))
        assert Details.from_bytes(Details.of(image).to_bytes()).capture == image.capture


JPEG = saved("JPEG", b"")


def with_type(data: bytes, tag: int, kind: int) -> bytes:
    """Return EXIF data in which a tag's value has another type (TIFF 6.0, section 2)."""
    order = "<" if data[6:8] == b"II" else ">"
    [written] = (k for k in range(1, 13) if data.count(struct.pack(order + "HH", tag, k)) == 1)
    return data.replace(
        struct.pack(order + "HH", tag, written), struct.pack(order + "HH", tag, kind)
    )


@pytest.mark.parametrize("kind", [1, 3, 7, 99])
def test_value_of_another_type_leaves_the_others(kind: int) -> None:
    camera = capture_of_bytes(with_type(exif(), Base.Model, kind)).camera
    assert camera and (camera.make, camera.serial) == ("Axis", "ACCC8E000001")
    retimed = capture_of_bytes(with_type(exif(), Base.DateTimeOriginal, kind))
    assert (retimed.camera, retimed.location) == (CAPTURE.camera, CAPTURE.location)
    moved = capture_of_bytes(with_type(exif(), Gps.GPSLatitude, kind))
    assert replace(moved, location=None) == replace(CAPTURE, location=None)
