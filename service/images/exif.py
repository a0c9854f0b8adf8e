"""Orientation, by Pillow's view of EXIF and XMP."""

from pathlib import Path
from typing import Any

from PIL import ExifTags, Image


def orientation_of(image: Any) -> int:
    """Return the orientation of a Pillow image, 1 to 8; 1 where what it says cannot be read."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - damaged EXIF raises many kinds; the image is whole
        return 1
    return orientation if orientation in range(1, 9) else 1


def orientation_of_file(path: Path) -> int:
    """Return the orientation of a file, 1 to 8; 1 where Pillow cannot read it."""
    try:
        with Image.open(path) as image:
            return orientation_of(image)
    except Exception:  # noqa: BLE001 - Pillow raises many kinds; other decoders may read the image
        return 1
