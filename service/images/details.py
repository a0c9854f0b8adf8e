"""What a decoder reports about an image besides its pixels, as JSON in its reply.

A malicious file may control the decoder that reads it. So the service accepts only what is within
limits: lengths, ranges, finite numbers and valid Unicode.
"""

from datetime import datetime, timedelta
from typing import Annotated, Self

import msgspec
from msgspec import Meta

from service.domain import MAX_UTC_OFFSET, Camera, Capture, GeoPoint
from service.images.pixels import DecodedImage

MAX_TEXT_CHARACTERS = 100  # of a camera's make, model and serial number
MAX_LATITUDE, MAX_LONGITUDE = 90, 180  # degrees

_MAX_OFFSET_SECONDS = int(MAX_UTC_OFFSET.total_seconds())
_Text = Annotated[str, Meta(min_length=1, max_length=MAX_TEXT_CHARACTERS)]
_LocalTime = Annotated[datetime, Meta(tz=False)]
_OffsetSeconds = Annotated[int, Meta(ge=-_MAX_OFFSET_SECONDS, le=_MAX_OFFSET_SECONDS)]
_Latitude = Annotated[float, Meta(ge=-MAX_LATITUDE, le=MAX_LATITUDE)]
_Longitude = Annotated[float, Meta(ge=-MAX_LONGITUDE, le=MAX_LONGITUDE)]


class Details(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The format of a decoded file, and what its EXIF data state about the capture."""

    format: Annotated[str, Meta(pattern=r"^[A-Za-z0-9]{1,16}\Z")]
    local_time: _LocalTime | None = None
    utc_offset_seconds: _OffsetSeconds | None = None
    make: _Text | None = None
    model: _Text | None = None
    serial: _Text | None = None
    latitude: _Latitude | None = None
    longitude: _Longitude | None = None

    @classmethod
    def of(cls, image: DecodedImage) -> Self:
        """Return the details of a decoded image."""
        capture = image.capture
        camera, location, offset = capture.camera or Camera(), capture.location, capture.utc_offset
        return cls(
            format=image.info.format,
            local_time=capture.local_time,
            utc_offset_seconds=None if offset is None else int(offset.total_seconds()),
            make=camera.make,
            model=camera.model,
            serial=camera.serial,
            latitude=location.latitude if location else None,
            longitude=location.longitude if location else None,
        )

    @classmethod
    def from_bytes(cls, message: bytes) -> Self:
        """Parse what `to_bytes` encoded.

        Raises:
            ValueError: the message is anything else, or a value exceeds its limits.
        """
        try:
            details = msgspec.json.decode(message, type=cls)
        except (msgspec.MsgspecError, RecursionError) as exc:
            raise ValueError(f"Invalid details of an image: {exc}") from exc
        texts = (details.make, details.model, details.serial)
        if not all(text is None or text.isprintable() for text in texts):
            raise ValueError("A text has control characters")
        return details

    def to_bytes(self) -> bytes:
        """Encode as JSON."""
        return msgspec.json.encode(self)

    @property
    def capture(self) -> Capture:
        """What the EXIF data state about the capture."""
        offset, latitude, longitude = self.utc_offset_seconds, self.latitude, self.longitude
        has_camera = self.make or self.model or self.serial
        location = None
        if latitude is not None and longitude is not None:
            location = GeoPoint(latitude, longitude)
        return Capture(
            local_time=self.local_time,
            utc_offset=None if offset is None else timedelta(seconds=offset),
            camera=Camera(self.make, self.model, self.serial) if has_camera else None,
            location=location,
        )
