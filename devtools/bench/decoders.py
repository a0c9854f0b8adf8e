"""The service's JPEG decoder compared with OpenCV: CPU time, and whether the pixels are equal.

    python -m devtools.bench.decoders path/to/folder

Both decoders decode each JPEG in turn. They also decode it enlarged to 12 megapixels, in full and
at a quarter of the scale. The service's column includes its reading of segments, EXIF and all
checks.
"""

import argparse
import io
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from tabulate import tabulate

from service.images.decode import decode

LARGE = (4000, 3000)
Decoder = Callable[[bytes], object]


def opencv(data: bytes, flags: int) -> object:
    return cv2.imdecode(np.frombuffer(data, np.uint8), flags)


def ours(data: bytes, image_size: int | None) -> object:
    return decode(data, max_pixels=2**30, image_size=image_size).pixels


def enlarged(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        image.convert("RGB").resize(LARGE).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def cpu_ms(decoder: Decoder, files: list[bytes]) -> float:
    started = time.process_time()
    for data in files:
        decoder(data)
    return (time.process_time() - started) * 1000 / len(files)


def row(name: str, files: list[bytes], a: Decoder, b: Decoder, rounds: int) -> list[object]:
    """Return medians of paired rounds, the median ratio of the pairs, and how many are equal."""
    pairs = [(cpu_ms(a, files), cpu_ms(b, files)) for _ in range(rounds)]
    equal = sum(np.array_equal(a(data), b(data)) for data in files)  # type: ignore[arg-type]
    medians = [statistics.median(side) for side in zip(*pairs, strict=True)]
    ratio = statistics.median(x / y for x, y in pairs)
    return [name, *medians, ratio, f"{equal} of {len(files)}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    files = [file.read_bytes() for file in sorted(options.folder.glob("*.jpg"))]
    large = [enlarged(data) for data in files[:8]]
    full = (partial(ours, image_size=None), partial(opencv, flags=cv2.IMREAD_COLOR))
    quarter = (partial(ours, image_size=1000), partial(opencv, flags=cv2.IMREAD_REDUCED_COLOR_4))
    rows = [
        row("as they are", files, *full, options.rounds),
        row("12 megapixels, in full", large, *full, options.rounds),
        row("12 megapixels, a quarter", large, *quarter, options.rounds),
    ]
    headers = ["", "service, CPU-ms", "OpenCV, CPU-ms", "ratio", "equal pixels"]
    print(tabulate(rows, headers, tablefmt="github", floatfmt=".2f"))


if __name__ == "__main__":
    main()
