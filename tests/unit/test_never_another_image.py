"""A result never depends on earlier images: no pixels of one image appear in another."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from devtools.fuzz.corpus import CASES, PLAIN, saved
from service.domain import Detection
from service.errors import BadImageError
from service.images.decode import decode
from service.images.letterbox import Letterbox, fit, input_shapes, shrink
from service.images.pixels import Pixels
from service.inference.loading import load_detector
from service.inference.openvino import OpenVINODetector
from service.settings import BUNDLED_MODEL
from tests.boxes import found_in

# Pillow warns of damaged headers.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

IMAGE_SIZE = 64
SHAPES = input_shapes(IMAGE_SIZE, stride=32)
EXAMPLES = 1500

Samples = Any


def through_pillow(kind: str) -> Callable[[Samples], bytes]:
    def make(samples: Samples) -> bytes:
        eight_bits = np.clip(np.nan_to_num(samples.astype(np.float64)), 0, 255).astype(np.uint8)
        squeezed = eight_bits[:, :, 0] if eight_bits.shape[2] in (1, 2) else eight_bits[:, :, :4]
        image = Image.fromarray(squeezed)
        return saved(kind, image.convert("RGB") if kind in ("JPEG", "PPM", "BMP") else image)

    return make


def tiff(samples: Samples) -> bytes:
    """A TIFF of any sample type and any number of channels."""
    buffer = io.BytesIO()
    if samples.shape[2] == 1:
        tifffile.imwrite(buffer, samples[:, :, 0], photometric="minisblack")
    else:
        photometric = "rgb" if samples.shape[2] >= 3 else "minisblack"
        tifffile.imwrite(buffer, samples, photometric=photometric, planarconfig="contig")
    return buffer.getvalue()


def pfm(samples: Samples) -> bytes:
    channels = 3 if samples.shape[2] >= 3 else 1
    floats: bytes = np.nan_to_num(samples[:, :, :channels].astype("<f4")).tobytes()
    height, width = samples.shape[:2]
    return b"P%c\n%d %d\n-1.0\n" % (b"F" if channels == 3 else b"f", width, height) + floats


def pgm(samples: Samples) -> bytes:
    """A PGM of samples of one byte, or of two bytes if needed."""
    grey = np.abs(np.nan_to_num(samples[:, :, 0].astype(np.float64))) % 65536
    top = 255 if grey.max() < 256 else 65535
    body: bytes = grey.astype("u1" if top == 255 else ">u2").tobytes()
    return b"P5 %d %d %d\n" % (samples.shape[1], samples.shape[0], top) + body


FORMATS: dict[str, Callable[[Samples], bytes]] = {
    "TIFF": tiff,
    "PFM": pfm,
    "PGM": pgm,
    **{kind: through_pillow(kind) for kind in ("JPEG", "PNG", "WEBP", "BMP", "PPM", "GIF")},
}
TYPES = ("u1", "i1", "u2", "i2", "u4", "i4", "f2", "f4", "f8")


@st.composite
def files(draw: st.DrawFn) -> tuple[str, bytes]:
    """A file of any format, any sample type, and one to five channels."""
    name = draw(st.sampled_from(sorted(FORMATS)))
    shape = draw(st.tuples(st.integers(2, 40), st.integers(2, 40), st.integers(1, 5)))
    kind = np.dtype(draw(st.sampled_from(TYPES)))
    seed = draw(st.integers(0, 2**16))
    raw = np.random.default_rng(seed).integers(0, 256, (*shape, kind.itemsize), np.uint8)
    with np.errstate(all="ignore"):  # of floats that no integer holds
        return name, FORMATS[name](raw.reshape(*shape[:2], -1).view(kind))


def letterbox_of(pixels: Pixels) -> Letterbox:
    return fit(pixels.shape[1], pixels.shape[0], image_size=IMAGE_SIZE, shapes=SHAPES)


def used_memory(fitted: Letterbox, before: int) -> Pixels:
    """A model's input with the pixels of an earlier image."""
    shape = fitted.input_height, fitted.input_width, 3
    return np.random.default_rng(before).integers(0, 256, shape, np.uint8)


@settings(max_examples=EXAMPLES, deadline=None)
@given(files(), st.integers(0, 3))
def test_model_input_shows_nothing_of_an_earlier_file(file: tuple[str, bytes], before: int) -> None:
    try:
        pixels = decode(file[1], max_pixels=10_000).pixels
    except BadImageError:
        return
    small = shrink(pixels, image_size=IMAGE_SIZE)
    fitted = letterbox_of(small)
    out = used_memory(fitted, before)
    fitted.apply(small, out=out)
    assert np.array_equal(out, fitted.apply(small))


PLAIN_TEXT = {
    "plain PPM": lambda: b"P3 96 64 255\n" + b"9 99 199 " * (96 * 64),
    "plain PGM": lambda: b"P2 96 64 1023\n" + b"999 " * (96 * 64),
    "plain PBM": lambda: b"P1 96 64\n" + b"01" * (48 * 64),
}
WHOLE = {name: make() for name, make in (PLAIN | PLAIN_TEXT).items()}


def read_over(data: bytes, value: int) -> Pixels | None:
    """Decode into memory that held other pixels just before. None if the file is rejected."""
    before = [np.full(96 * 64 * size, value, np.uint8) for size in (1, 3, 4, 8, 24) * 4]
    del before
    try:
        return decode(data, max_pixels=10_000).pixels
    except BadImageError:
        return None


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.sampled_from(sorted(WHOLE)), st.integers(0, 2**32), st.integers(0, 3), st.booleans())
def test_damaged_file_shows_nothing_of_an_earlier_one(
    name: str, seed: int, flips: int, is_cut: bool
) -> None:
    """No decoder returns uninitialised memory as part of an image."""
    data = bytearray(WHOLE[name])
    random = np.random.default_rng(seed)
    for place in random.integers(0, len(data), flips):
        data[place] ^= 1 << (seed % 8)
    damaged = bytes(data[: random.integers(8, len(data))] if is_cut else data)
    first, second = read_over(damaged, 0), read_over(damaged, 255)
    assert (first is None) == (second is None)
    assert first is None or second is None or np.array_equal(first, second)


ARRAYS = hnp.arrays(
    dtype=st.sampled_from([np.dtype(kind) for kind in (*TYPES, "?", ">u2")]),
    shape=hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=6),
    fill=st.just(0),
)


@settings(max_examples=EXAMPLES, deadline=None)
@given(ARRAYS, ARRAYS, st.booleans())
def test_model_input_of_any_array_is_complete_or_rejected(
    pixels: Any, memory: Any, is_its_size: bool
) -> None:
    """For any array from a decoder, and any buffer from a model."""
    fitted = fit(6, 4, image_size=IMAGE_SIZE, shapes=SHAPES)
    if is_its_size:
        pixels = np.resize(pixels, (4, 6, 3)).astype(pixels.dtype)
        memory = np.resize(memory, (fitted.input_height, fitted.input_width, 3))
    try:
        fitted.apply(pixels, out=memory)
    except ValueError:
        return
    assert (pixels.dtype, pixels.shape) == (np.uint8, (4, 6, 3))
    assert np.array_equal(memory, fitted.apply(pixels))


@pytest.mark.parametrize(
    "out",
    [
        np.zeros((64, 64), np.uint8),
        np.zeros((64, 64, 1), np.uint8),
        np.zeros((64, 64, 4), np.uint8),
        np.zeros((64, 64, 3), np.float32),
        np.zeros((64, 128, 3), np.uint8)[:, ::2],
        np.zeros((3, 64, 64), np.uint8).transpose(1, 2, 0),
        np.zeros((32, 64, 3), np.uint8),
    ],
    ids=["HxW", "HxWx1", "HxWx4", "float", "strided", "CxHxW", "smaller"],
)
def test_model_input_into_unsuitable_memory_is_rejected(out: Any) -> None:
    fitted = fit(64, 64, image_size=64, shapes=((64, 64),))
    with pytest.raises(ValueError):
        fitted.apply(np.full((64, 64, 3), 7, np.uint8), out=out)


@pytest.fixture(scope="module")
def detector() -> OpenVINODetector:
    """One runner, so that each image reuses the buffers of the previous one."""
    made = load_detector(BUNDLED_MODEL, streams=1, min_confidence=0.001)
    assert isinstance(made, OpenVINODetector)
    return made


def pixels_of(name: str) -> Pixels | None:
    try:
        return decode(CASES[name].make(), max_pixels=100_000).pixels
    except BadImageError:
        return None


READ = [
    name for name, case in CASES.items() if any(e.startswith("done 96x64") for e in case.expected)
]


@pytest.fixture(scope="module")
def images() -> list[Pixels]:
    """Files of one size in the corpus. They share a model's input buffer."""
    return [pixels for name in READ if (pixels := pixels_of(name)) is not None]


@pytest.fixture(scope="module")
def alone(detector: OpenVINODetector, images: list[Pixels]) -> list[list[Detection]]:
    """The detections in each image after a blank image."""
    blank = np.zeros((64, 96, 3), np.uint8)
    return [list(found_in(detector, [blank, pixels]))[1] for pixels in images]


@pytest.mark.parametrize("seed", range(3))
def test_detections_do_not_depend_on_what_ran_before(
    detector: OpenVINODetector, images: list[Pixels], alone: list[list[Detection]], seed: int
) -> None:
    order = np.random.default_rng(seed).permutation(len(images))
    assert sum(map(len, alone)) > len(images)
    together = list(found_in(detector, [images[index] for index in order]))
    assert together == [alone[index] for index in order]
