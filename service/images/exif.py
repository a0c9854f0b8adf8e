"""What EXIF data state about an image: its orientation, and when, where and with what it was taken.

EXIF data are untrusted, and often damaged. Each value is read on its own. A value that is damaged
or out of range counts as absent. Pillow finds the data in a file, and parses their directories.

Tags: EXIF 2.32 (CIPA DC-008), 4.6.
"""

import math
import re
import warnings
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from PIL import ExifTags, Image, TiffImagePlugin

from service.domain import MAX_UTC_OFFSET, Camera, Capture, GeoPoint
from service.images.details import (
    MAX_LATITUDE,
    MAX_LONGITUDE,
    MAX_TEXT_CHARACTERS,
)

_T = TypeVar("_T")
_Tags = Callable[[int], Any]  # returns a tag's value, or None

# Time, fraction of a second and UTC offset. A digital camera digitises an image when it takes it.
# So the time of digitising is used if the time of the original is missing. `DateTime` is not used:
# it is the time of the last change, and programs that edit images set it.
_TIME_TAGS = (
    (
        ExifTags.Base.DateTimeOriginal,
        ExifTags.Base.SubsecTimeOriginal,
        ExifTags.Base.OffsetTimeOriginal,
    ),
    (
        ExifTags.Base.DateTimeDigitized,
        ExifTags.Base.SubsecTimeDigitized,
        ExifTags.Base.OffsetTimeDigitized,
    ),
)
# Some programs write the separators of ISO 8601.
_TIME = re.compile(r"(\d{4})[:-](\d\d)[:-](\d\d)[ T](\d\d):(\d\d):(\d\d)", re.ASCII)
_OFFSET = re.compile(r"([+-])(\d\d):([0-5]\d)", re.ASCII)
_FRACTION = re.compile(r"\d{1,9}", re.ASCII)
_VOID = "V"  # GPSStatus: the receiver had no position
_DECIMALS = 7  # of degrees: about 1 cm
_MAX_TEXT_BYTES = 4 * MAX_TEXT_CHARACTERS + 100


def orientation_of(image: Any) -> int:
    """Return the EXIF orientation of a Pillow image, 1 to 8. Unreadable metadata count as 1."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - damaged EXIF raises errors of many kinds
        return 1
    return orientation if orientation in range(1, 9) else 1


def orientation_of_file(path: Path) -> int:
    """Return the EXIF orientation of a file, 1 to 8. Files that Pillow cannot read count as 1."""
    try:
        with Image.open(path) as image:
            return orientation_of(image)
    except Exception:  # noqa: BLE001 - unreadable files raise errors of many kinds
        return 1


def capture_of(image: Any) -> Capture:
    """Return what the EXIF data of a Pillow image state about its capture.

    Args:
        image: a Pillow image, from which nothing was decoded yet.

    Raises:
        MemoryError: there is not enough memory now.
    """
    exif = _or_none(image.getexif)
    if not exif:
        return Capture()
    details = _directory(exif, ExifTags.IFD.Exif)
    local_time, utc_offset = _time(details)
    return Capture(
        local_time=local_time,
        utc_offset=utc_offset,
        camera=_camera(_reader(exif), details),
        location=_location(_directory(exif, ExifTags.IFD.GPSInfo)),
    )


def capture_of_bytes(exif: bytes) -> Capture:
    """Return what EXIF data state about a capture.

    Raises:
        MemoryError: there is not enough memory now.
    """
    image = Image.new("1", (1, 1))
    image.info = {"exif": exif}
    return capture_of(image)


def _or_none(read: Callable[[], _T]) -> _T | None:
    """Return what `read` returns, or None if the data are damaged."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of damage
            return read()
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - damaged EXIF raises errors of many kinds
        return None


def _directory(exif: Any, pointer: int) -> _Tags:
    """Return the reader of a subdirectory. Pillow's `get_ifd` drops all of it for one bad value."""

    def load() -> Any:
        directory = TiffImagePlugin.ImageFileDirectory_v2(exif.head)
        exif.fp.seek(exif[pointer])
        directory.load(exif.fp)
        return directory

    return _reader(_or_none(load) or {})


def _reader(directory: Any) -> _Tags:
    return lambda tag: _or_none(lambda: directory.get(tag))


def _text(value: Any) -> str | None:
    """Return the first `MAX_TEXT_CHARACTERS` of a text, or None if it is blank.

    EXIF texts are ASCII and end with NUL. Some cameras write UTF-8, which Pillow reads as Latin-1.
    """
    if isinstance(value, str):
        value = value.encode("latin-1", errors="replace")
    if not isinstance(value, bytes):
        return None
    text = value.partition(b"\0")[0][:_MAX_TEXT_BYTES].decode(errors="ignore")
    text = "".join(character for character in text if character.isprintable())
    return text.strip()[:MAX_TEXT_CHARACTERS].strip() or None


def _camera(main: _Tags, details: _Tags) -> Camera | None:
    camera = Camera(
        make=_text(main(ExifTags.Base.Make)),
        model=_text(main(ExifTags.Base.Model)),
        serial=_text(details(ExifTags.Base.BodySerialNumber)),
    )
    return None if camera == Camera() else camera


def _time(details: _Tags) -> tuple[datetime | None, timedelta | None]:
    """Return the local time of the capture, and its difference to UTC."""
    for time_tag, fraction_tag, offset_tag in _TIME_TAGS:
        if time := _local_time(_text(details(time_tag))):
            fraction = _FRACTION.fullmatch(_text(details(fraction_tag)) or "")
            microsecond = int(fraction[0].ljust(6, "0")[:6]) if fraction else 0
            return time.replace(microsecond=microsecond), _offset(_text(details(offset_tag)))
    return None, None


def _local_time(text: str | None) -> datetime | None:
    match = _TIME.fullmatch(text or "")
    if not match:
        return None
    year, month, day, hour, minute, second = map(int, match.groups())
    return _or_none(lambda: datetime(year, month, day, hour, minute, second))


def _offset(text: str | None) -> timedelta | None:
    match = _OFFSET.fullmatch(text or "")
    if not match:
        return None
    sign, hours, minutes = match.groups()
    offset = timedelta(hours=int(hours), minutes=int(minutes))
    return None if offset > MAX_UTC_OFFSET else -offset if sign == "-" else offset


def _location(gps: _Tags) -> GeoPoint | None:
    """Return the position, or None if it is incomplete, out of range or at 0, 0.

    Receivers without a position write 0, 0, which is in the sea.
    """
    if _text(gps(ExifTags.GPS.GPSStatus)) == _VOID:
        return None
    latitude = _degrees(gps(ExifTags.GPS.GPSLatitude), gps(ExifTags.GPS.GPSLatitudeRef), "NS")
    longitude = _degrees(gps(ExifTags.GPS.GPSLongitude), gps(ExifTags.GPS.GPSLongitudeRef), "EW")
    if latitude is None or longitude is None or latitude == longitude == 0:
        return None
    if abs(latitude) > MAX_LATITUDE or abs(longitude) > MAX_LONGITUDE:
        return None
    return GeoPoint(latitude, longitude)


def _degrees(value: Any, reference: Any, directions: str) -> float | None:
    """Return degrees from degrees, minutes and seconds. South and west are negative."""
    direction = _text(reference) or ""
    parts = _or_none(lambda: [float(part) for part in value])
    if not parts or len(parts) > 3 or len(direction) != 1 or direction not in directions:
        return None
    if not all(0 <= part < math.inf for part in parts) or max(parts[1:], default=0) > 60:
        return None
    degrees = math.fsum(part / (1, 60, 3600)[power] for power, part in enumerate(parts))
    return round(-degrees if direction == directions[1] else degrees, _DECIMALS)
