"""Memory with the worst allowed file in every slot, compared with the plan of `service.memory`.

    python -m devtools.bench.memory --model yolo26n_openvino_model

A process does what the service does: it starts the decoders, loads the model, and compiles it for
every input shape. Then MAX_IN_FLIGHT of the worst files are in flight at once. Each file has
MAX_IMAGE_PIXELS pixels, and MAX_IMAGE_BYTES bytes if its format permits bytes after its end. Files
are read from the disk instead of Cloud Storage. JPEGs are decoded in full. All other settings come
from the environment.

Memory is counted as for a container: shared pages count once, and files in memory (memfd)
count too. It is sampled 20 times per second. The peak of a process is the kernel's figure (VmHWM),
shared pages included.
"""

import argparse
import contextlib
import math
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from tabulate import tabulate

from devtools.bench.accounting import children_of, peak_resident_mb, resident_mb, tree_mb
from devtools.bench.engine import Engine
from devtools.bench.subjects import Process
from service.deadline import NO_DEADLINE
from service.images.decoders import Decoders, build_decoders
from service.images.letterbox import input_shapes
from service.inference.loading import load_model
from service.memory import MemoryPlan, plan_memory
from service.settings import BUNDLED_MODEL, Settings

_MB = 1e6
_SAMPLE_SECONDS = 0.05
_ORIENTATION, _ROTATED = 0x0112, 6  # EXIF: rotate by 90 degrees
_WARM_ROUNDS = 8  # enough for each runner to see each input shape


@dataclass
class Peaks:
    """Peaks, in MB."""

    tree: float = 0.0
    service: float = 0.0
    root: float = 0.0
    decoders: dict[int, float] = field(default_factory=dict)  # by process id
    decoders_at_once: float = 0.0


@dataclass
class _Service:
    """The state of the measured process between two calls."""

    settings: Settings
    decoders: Decoders
    engine: Engine | None = None


_service: _Service | None = None


def start(settings: Settings, file: Path) -> None:
    """Import what the service imports, and start its decoders."""
    global _service  # this process does nothing else
    import gunicorn.workers.gthread  # noqa: F401

    import service.gcp.clients
    import service.inference.openvino
    import service.server.wsgi  # noqa: F401

    _service = _Service(settings, build_decoders(settings))
    for _ in range(2):
        _service.decoders.decode(file.read_bytes(), image_size=64, deadline=NO_DEADLINE)


def load(files: list[Path]) -> MemoryPlan:
    """Load the model, and compile it for the input shapes of the files. Return the memory plan."""
    assert _service
    settings = _service.settings
    detector = load_model(settings).detector
    repeated = files * _WARM_ROUNDS
    _service.engine = Engine(
        detector, settings, lambda number: repeated[number], decoders=_service.decoders
    )
    _service.engine.run(len(repeated))
    return plan_memory(settings, detector)


def work(files: list[Path], count: int) -> None:
    """Handle `count` files, repeating the given files, with as many in flight as fit."""
    assert _service
    assert _service.engine
    _service.engine.file = lambda number: files[number % len(files)]
    _service.engine.run(count)


@contextmanager
def watched(pid: int) -> Iterator[Peaks]:
    """Sample the memory of a process and its descendants until the block ends."""
    peaks, ended = Peaks(), threading.Event()

    def sample() -> None:
        while not ended.wait(_SAMPLE_SECONDS):
            with contextlib.suppress(OSError):  # a decoder has just ended
                peaks.tree = max(peaks.tree, tree_mb(pid))
                peaks.service = max(peaks.service, peak_resident_mb(pid))
                root = min(children_of(pid))
                peaks.root = max(peaks.root, peak_resident_mb(root))
                now = 0.0
                for decoder in children_of(root):
                    peaks.decoders[decoder] = peak_resident_mb(decoder)
                    now += resident_mb(decoder)
                peaks.decoders_at_once = max(peaks.decoders_at_once, now)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield peaks
    finally:
        ended.set()
        thread.join()


def write_worst(directory: Path, max_pixels: int, max_bytes: int) -> list[Path]:
    """Write the largest file that the settings permit, for each format."""
    directory.mkdir()
    side = math.isqrt(max_pixels)
    small = np.random.default_rng(0).integers(0, 256, (side // 50 + 1,) * 2 + (3,), np.uint8)
    pixels = cv2.resize(small, (side, side), interpolation=cv2.INTER_LINEAR)
    # Compresses well. Otherwise a file of so many pixels would exceed MAX_IMAGE_BYTES.
    tiles = cv2.resize(small, (side, side), interpolation=cv2.INTER_NEAREST)
    image = Image.fromarray(pixels)
    rotated = Image.Exif()
    rotated[_ORIENTATION] = _ROTATED
    jpeg: dict[str, Any] = {"quality": 85, "subsampling": 0, "exif": rotated}
    half = image.crop((0, 0, side, side // 2))
    writers: dict[str, Callable[[Path], object]] = {
        "rotated.jpg": lambda file: image.save(file, **jpeg),
        "progressive.jpg": lambda file: image.save(file, progressive=True, **jpeg),
        "16-bit.png": lambda file: cv2.imwrite(
            str(file), tiles.astype(np.uint16) * 257, [cv2.IMWRITE_PNG_COMPRESSION, 1]
        ),
        "deflate.tiff": lambda file: Image.fromarray(tiles).save(file, compression="tiff_deflate"),
        "lossy.webp": lambda file: image.save(file, quality=50, method=0),
        "half.avif": lambda file: half.save(file, quality=50, speed=10),
    }
    for name, write in writers.items():
        write(directory / name)
    files = sorted(file for file in directory.iterdir() if file.stat().st_size <= max_bytes)
    for name in {*writers} - {file.name for file in files}:
        print(f"skipped {name}: it has more than MAX_IMAGE_BYTES", file=sys.stderr)
    for file in files:
        if file.suffix in (".jpg", ".png", ".tiff"):  # bytes after their end are ignored
            os.truncate(file, max_bytes)
    return files


def write_shapes(directory: Path, image_size: int) -> list[Path]:
    """Write one image for each input shape."""
    directory.mkdir()
    files = []
    for height, width in input_shapes(image_size, stride=32):
        files.append(directory / f"{width}x{height}.png")
        cv2.imwrite(str(files[-1]), np.full((height, width, 3), 114, np.uint8))
    return files


def report(plan: MemoryPlan, base: float, loaded: float, service: float, peaks: Peaks) -> str:
    """Tabulate the plan beside the measurement."""
    largest = sorted(peaks.decoders.values(), reverse=True)
    rows = [
        ("base: libraries of all processes", plan.base, base),
        ("model, compiled for every input shape", plan.model, loaded - base),
        ("decoders, large file", plan.decoders + plan.large_file, peaks.decoders_at_once),
        (
            "files, pixels in flight, derived images",
            plan.buffered + plan.in_flight + plan.derived,
            peaks.service - service,
        ),
        ("sum", plan.total, peaks.tree),
    ]
    table = [(name, f"{planned / _MB:.0f}", f"{mb:.0f}") for name, planned, mb in rows]
    parts = tabulate(table, ["", "plan, MB", "measured, MB"], "github", disable_numparse=True)
    processes = tabulate(
        [
            ("service", f"{peaks.service:.0f}"),
            ("root of the decoders", f"{peaks.root:.0f}"),
            *((f"decoder {n + 1} of {len(largest)}", f"{mb:.0f}") for n, mb in
              enumerate(largest[:6])),
        ],
        ["peak of a process", "MB"], "github", disable_numparse=True,
    )  # fmt: skip
    return f"{parts}\n\n{processes}\n\nPlan: {plan}"


def measure(settings: Settings, count: int, directory: Path) -> str:
    """Measure in a separate process, and return the report."""
    started = time.monotonic()

    def report_progress(text: str) -> None:
        print(f"[{time.monotonic() - started:4.0f} s] {text}", file=sys.stderr, flush=True)

    report_progress("writing the files")
    files = write_worst(directory / "worst", settings.max_image_pixels, settings.max_image_bytes)
    with Process(frozenset(os.sched_getaffinity(0))) as process:
        size = process.call(image_size, settings)
    shapes = write_shapes(directory / "shapes", size)
    with Process(frozenset(os.sched_getaffinity(0))) as process:
        pid = process.call(os.getpid)
        process.call(start, settings, shapes[0])
        base = tree_mb(pid)
        report_progress("loading the model")
        plan = process.call(load, shapes)
        loaded, service = tree_mb(pid), resident_mb(pid)
        report_progress(f"{count} files at once: {', '.join(file.name for file in files)}")
        with watched(pid) as peaks:
            process.call(work, files, count)
        report_progress("done")
        return report(plan, base, loaded, service, peaks)


def image_size(settings: Settings) -> int:
    """Return the longer side that the model sees, in pixels."""
    return load_model(settings).detector.info.image_size


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=BUNDLED_MODEL, help="exported model")
    parser.add_argument("--count", type=int, help="files at once (default: MAX_IN_FLIGHT)")
    options = parser.parse_args()
    settings = replace(Settings.from_env(), model_path=options.model, reduced_decode=False)
    with tempfile.TemporaryDirectory(prefix="memory-") as directory:
        print(measure(settings, options.count or settings.max_in_flight, Path(directory)))


if __name__ == "__main__":
    main()
