"""The orientation of an image, as Pillow reads it from EXIF and XMP."""

from pathlib import Path
from typing import Any

from PIL import ExifTags, Image


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
