"""Draws the HEIC files in this folder. It needs pillow-heif 1.4, which has an encoder.

pip install pillow-heif==1.4.0 numpy, then: python tests/data/heic/make.py. Every file shows the
same image: four quarters, red and green above blue and white.
"""

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
from PIL import ExifTags, Image

HERE = Path(__file__).parent
WIDTH, HEIGHT = 96, 64
TILE = 64
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def quarters(width: int = WIDTH, height: int = HEIGHT) -> Any:
    """Return uint8 RGB pixels."""
    pixels = np.empty((height, width, 3), np.uint8)
    middle, centre = height // 2, width // 2
    pixels[:middle, :centre], pixels[:middle, centre:] = RED, GREEN
    pixels[middle:, :centre], pixels[middle:, centre:] = BLUE, WHITE
    return pixels


def encoded(pixels: Any, mode: str = "RGB", **options: Any) -> bytes:
    """Return a HEIC file of uint8 or uint16 pixels."""
    height, width = pixels.shape[:2]
    buffer = io.BytesIO()
    file = pillow_heif.from_bytes(mode, (width, height), pixels.tobytes())
    file.save(buffer, **{"quality": 80} | options)
    return buffer.getvalue()


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[ExifTags.Base.Orientation] = orientation
    tags[ExifTags.Base.Make] = "Apple"
    details = tags.get_ifd(ExifTags.IFD.Exif)
    details[ExifTags.Base.DateTimeOriginal] = "2026:07:01 14:30:05"
    details[ExifTags.Base.OffsetTimeOriginal] = "+02:00"
    return tags.tobytes()


def turned(orientation: int) -> bytes:
    """Return a file whose stored pixels are turned, as a camera stores them.

    The encoder writes the orientation as `irot` and `imir`, and EXIF repeats it.
    """
    image = Image.fromarray(quarters())
    match orientation:
        case 6:
            image = image.transpose(Image.Transpose.ROTATE_90)
        case 7:
            image = image.transpose(Image.Transpose.TRANSVERSE)
    return encoded(np.asarray(image), exif=exif(orientation))


def several() -> bytes:
    """Return a file with three images, the second of which is the primary one."""
    file = pillow_heif.HeifFile()
    file.add_from_pillow(Image.new("RGB", (48, 48), "gray"))
    file.add_from_pillow(Image.fromarray(quarters()))
    file.add_from_pillow(Image.new("RGB", (200, 200), "black"))
    buffer = io.BytesIO()
    file.save(buffer, quality=80, primary_index=1)
    return buffer.getvalue()


def box(kind: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I", 8 + len(body)) + kind + body


def full_box(kind: bytes, version: int, flags: int, *parts: bytes) -> bytes:
    return box(kind, struct.pack(">I", version << 24 | flags), *parts)


def found_box(data: bytes, kind: bytes) -> bytes:
    start = data.index(kind) - 4
    return data[start : start + int.from_bytes(data[start : start + 4])]


def grid(width: int = 120, height: int = 90) -> bytes:
    """Return a file of 2x2 tiles, as phones write them, from four files of one tile.

    The grid is cropped on the right and at the bottom (ISO/IEC 23008-12, 6.6.2.3).
    """
    canvas = quarters(2 * TILE, 2 * TILE)
    canvas[:height, :width] = quarters(width, height)
    corners = [(y, x) for y in (0, TILE) for x in (0, TILE)]
    files = [encoded(canvas[y : y + TILE, x : x + TILE]) for y, x in corners]
    tiles = [found_box(file, b"mdat")[8:] for file in files]
    ids = range(2, 2 + len(tiles))
    properties = (
        found_box(files[0], b"hvcC"),
        full_box(b"ispe", 0, 0, struct.pack(">II", TILE, TILE)),
        full_box(b"ispe", 0, 0, struct.pack(">II", width, height)),
        found_box(files[0], b"colr"),
    )
    items = [full_box(b"infe", 2, 0, struct.pack(">HH4sx", 1, 0, b"grid"))]
    items += [full_box(b"infe", 2, 1, struct.pack(">HH4sx", item, 0, b"hvc1")) for item in ids]
    layout = struct.pack(">BBBBHH", 0, 0, 1, 1, width, height)

    def meta(start: int) -> bytes:
        places = struct.pack(">HHHHII", 1, 1, 0, 1, 0, len(layout))  # in idat
        for item, tile in zip(ids, tiles, strict=True):
            places += struct.pack(">HHHHII", item, 0, 0, 1, start, len(tile))
            start += len(tile)
        of_tiles = b"".join(struct.pack(">HBBBB", item, 3, 0x81, 2, 4) for item in ids)
        return full_box(
            b"meta",
            0,
            0,
            full_box(b"hdlr", 0, 0, bytes(4), b"pict", bytes(13)),
            full_box(b"pitm", 0, 0, struct.pack(">H", 1)),
            full_box(b"iinf", 0, 0, struct.pack(">H", len(items)), *items),
            full_box(b"iref", 0, 0, box(b"dimg", struct.pack(">HH4H", 1, len(ids), *ids))),
            box(
                b"iprp",
                box(b"ipco", *properties),
                full_box(
                    b"ipma", 0, 0, struct.pack(">I", len(items)),
                    struct.pack(">HBBB", 1, 2, 3, 4), of_tiles,
                ),
            ),
            full_box(b"iloc", 1, 0, struct.pack(">HH", 0x4400, len(items)), places),
            box(b"idat", layout),
        )  # fmt: skip

    file_type = box(b"ftyp", b"heic", bytes(4), b"mif1heic")
    data_start = len(file_type) + len(meta(0)) + 8
    return file_type + meta(data_start) + box(b"mdat", *tiles)


def main() -> None:
    pixels = quarters()
    opaque = np.full((HEIGHT, WIDTH, 1), 255, np.uint8)
    deep = pixels.astype(np.uint16) * 257
    grey = np.dot(pixels, (0.299, 0.587, 0.114)).round().astype(np.uint8)
    files = {
        "plain": encoded(pixels, chroma=444),
        "rotated": turned(6),
        "transverse": turned(7),
        "alpha": encoded(np.dstack([pixels, opaque // 2]), "RGBA"),
        "grey": encoded(grey, "L"),
        "ten-bit": encoded(deep, "RGB;16"),
        "ten-bit-grey": encoded(grey.astype(np.uint16) * 257, "I;16"),
        "bt709-limited": encoded(
            pixels, color_primaries=1, transfer_characteristics=1, matrix_coefficients=1,
            full_range_flag=0,
        ),
        "several": several(),
        "grid": grid(),
    }  # fmt: skip
    for name, data in files.items():
        (HERE / f"{name}.heic").write_bytes(data)


if __name__ == "__main__":
    main()
