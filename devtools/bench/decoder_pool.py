"""Compare the CPU time of decoding in decoder processes, in other pools, and without a pool.

    python -m devtools.bench.decoder_pool path/to/folder

Each pool has one worker and one caller. The CPU time is that of all processes. The folder's JPEGs
are decoded as they are. They are also enlarged to 12 megapixels, and then decoded at reduced scale
and in full. pebble and loky are measured if they are installed
(`pip install pebble loky`).
"""

import argparse
import importlib
import io
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, closing, suppress
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from PIL import Image
from tabulate import tabulate

from devtools.bench.accounting import own_tree_seconds
from service.deadline import NO_DEADLINE
from service.images.decode import decode
from service.images.decoders import Decoders
from service.images.letterbox import shrink
from service.images.pixels import DecodedImage

LARGE = (4000, 3000)
IMAGE_SIZE = 640
MAX_PIXELS = 50_000_000

Decode = Callable[[bytes, bool], object]


def in_process(data: bytes, reduced: bool) -> DecodedImage:
    decoded = decode(data, max_pixels=MAX_PIXELS, image_size=IMAGE_SIZE if reduced else None)
    return DecodedImage(shrink(decoded.pixels, image_size=IMAGE_SIZE), decoded.info)


def pools(stack: ExitStack) -> dict[str, Decode]:
    """Start each pool. The stack ends them."""
    started: dict[str, Decode] = {"in process": in_process}
    decoders = {
        reduced: stack.enter_context(
            closing(
                Decoders(1, max_pixels=MAX_PIXELS, max_decompressed_bytes=2**25, reduced=reduced)
            )
        )
        for reduced in (True, False)
    }
    started["Decoders"] = lambda data, reduced: decoders[reduced].decode(
        data, image_size=IMAGE_SIZE, deadline=NO_DEADLINE
    )
    executor = stack.enter_context(ProcessPoolExecutor(1, get_context("spawn")))
    started["concurrent.futures"] = partial(decode_with, executor.submit)
    with suppress(ImportError):
        pebble = importlib.import_module("pebble")
        pool = stack.enter_context(pebble.ProcessPool(1, context=get_context("spawn")))
        started["pebble"] = partial(decode_with, pool.submit, None)
    with suppress(ImportError):
        loky = importlib.import_module("loky")
        reusable = stack.enter_context(loky.ProcessPoolExecutor(1))
        started["loky"] = partial(decode_with, reusable.submit)
    return started


def decode_with(submit: Callable[..., object], *arguments: object) -> object:
    *first, data, reduced = arguments
    return submit(in_process, *first, data, reduced).result()  # type: ignore[attr-defined]


def cpu_ms(decode: Decode, files: Sequence[bytes], reduced: bool) -> float:
    before = own_tree_seconds()
    for data in files:
        decode(data, reduced)
    return (own_tree_seconds() - before) * 1000 / len(files)


def enlarged(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        image.convert("RGB").resize(LARGE).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    files = [file.read_bytes() for file in sorted(options.folder.glob("*.jpg"))[:60]]
    large = [enlarged(data) for data in files[:8]]
    cases = {
        "as they are": (files * 4, True),
        "12 megapixels, reduced": (large * 5, True),
        "12 megapixels, in full": (large * 5, False),
    }
    rows = []
    with ExitStack() as stack:
        started = pools(stack)
        for name in {"pebble", "loky"} - {*started}:
            print(f"{name} is not installed, so it is not measured.")
        for decode in started.values():
            decode(files[0], True)
        for case, (data, reduced) in cases.items():
            rounds = [
                {name: cpu_ms(decode, data, reduced) for name, decode in started.items()}
                for _ in range(options.rounds)
            ]
            medians = (statistics.median(r[name] for r in rounds) for name in started)
            rows.append([case, *medians])
    headers = ["CPU-ms per image", *started]
    print(tabulate(rows, headers, tablefmt="github", floatfmt=".2f"))


if __name__ == "__main__":
    main()
