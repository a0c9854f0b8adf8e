"""Adds up the memory that the service may use at once, and compares it with the instance's memory.

`python -m devtools.bench.memory` measures the parts with the worst files that are allowed. The sum
leaves out the bodies of requests (at most MAX_REQUEST_BYTES for each of the server's threads),
because a body from Pub/Sub has a few kilobytes. An image in a request's body counts as a downloaded
file.
"""

import logging
import math
import os
from dataclasses import dataclass, fields, replace
from pathlib import Path

from service.domain import Task
from service.errors import ModelError
from service.images.decoders import BYTES_PER_PIXEL, DECODED_BYTES_PER_PIXEL, DecodeLimits
from service.images.letterbox import input_shapes
from service.inference.detector import OPENVINO_METADATA, Detector
from service.machine import cores, memory_bytes
from service.settings import Settings

logger = logging.getLogger(__name__)

_MB = 10**6
_BASE_BYTES = 190 * _MB  # gunicorn, the worker's libraries, the model before it is compiled
_ROOT_BYTES = 60 * _MB  # the libraries of the decoders' root process
_DECODER_BYTES = 10 * _MB  # one decoder process before its first file
# For each input shape, OpenVINO compiles the model. The compiled model takes the size of the
# weights, _COMPILED_BYTES for its code, and in each inference stream _BYTES_PER_INPUT_PIXEL.
_COMPILED_BYTES = 20 * _MB
_COMPILED_INT8_BYTES = 35 * _MB
_BYTES_PER_INPUT_PIXEL = {
    Task.DETECT: 64,
    Task.SEGMENT: 90,
    Task.POSE: 78,
    Task.OBB: 78,
    Task.CLASSIFY: 64,
}
_FIRST_COMPILED_BYTES = 40 * _MB  # more for the first shape. Only with one shape, it matters.
# A result of 1 MiB that is published: its message, and the client's copies of it.
_LARGE_MESSAGE_BYTES = 5 * _MB
_CHANNELS = 3
_STRIDE = 32


@dataclass(frozen=True)
class MemoryPlan:
    """The bytes that each part may use at the same time."""

    base: int  # libraries, including those of the decoder processes
    model: int  # compiled for every input shape
    decoders: int  # each at its limit, including shared memory
    large_file: int  # extra for the one large file that is decoded at a time
    buffered: int  # files until they are decoded, and until their derived images are made
    in_flight: int  # decoded images that wait for the model, later their messages
    derived: int  # derived images until they are uploaded

    @property
    def total(self) -> int:
        """The sum of the parts, in bytes."""
        return sum(getattr(self, part.name) for part in fields(self))

    def __str__(self) -> str:
        """List the parts and the total in MB."""
        parts = (f"{p.name} {getattr(self, p.name) / _MB:.0f}" for p in fields(self))
        return f"{', '.join(parts)}, total {self.total / _MB:.0f} MB"


def plan_memory(settings: Settings, detector: Detector) -> MemoryPlan:
    """Return the memory plan of a service with this model.

    Args:
        settings: the limits.
        detector: the model, loaded.
    """
    limits, count = DecodeLimits(), settings.decoders or cores()
    large_bytes = BYTES_PER_PIXEL * settings.max_image_pixels
    pixels_bytes = result_bytes = _CHANNELS * detector.info.image_size**2
    derived_bytes = 0
    if settings.results_bucket:  # a source may ask for derived images
        from service.derived import LARGEST_OPTIONS
        from service.images.derive import LARGEST_PLAN_BYTES

        rendering_bytes = LARGEST_PLAN_BYTES + DECODED_BYTES_PER_PIXEL * settings.max_image_pixels
        large_bytes = max(large_bytes, rendering_bytes)
        derived_bytes = LARGEST_OPTIONS.max_output_bytes
        result_bytes = max(result_bytes, derived_bytes)
    large_bytes += 2 * settings.max_image_bytes
    shared_bytes = settings.max_image_bytes + result_bytes
    return MemoryPlan(
        base=_BASE_BYTES + _ROOT_BYTES + count * _DECODER_BYTES,
        model=_model_bytes(settings.model_path, detector),
        decoders=count * (limits.small_bytes + shared_bytes),
        large_file=large_bytes,
        buffered=max(settings.max_buffered_bytes, settings.max_image_bytes),
        in_flight=settings.max_in_flight * max(pixels_bytes, _message_bytes(settings, detector)),
        derived=derived_bytes,
    )


def _message_bytes(settings: Settings, detector: Detector) -> int:
    """Return what publishing one result uses at most, if that is not little."""
    is_large = detector.info.task in (Task.SEGMENT, Task.POSE)
    return _LARGE_MESSAGE_BYTES if settings.results_topic and is_large else 0


def fit_into_memory(settings: Settings, detector: Detector) -> Settings:
    """Return the settings, with MAX_BUFFERED_BYTES lowered if the memory plan needs it.

    A plan that does not fit even then is logged, but the service starts: the plan is the worst
    case, which most services never reach.

    Args:
        settings: the limits.
        detector: the model, loaded.

    Raises:
        ModelError: the libraries and the model alone do not fit.
    """
    plan, available = plan_memory(settings, detector), memory_bytes()
    if plan.base + plan.model > available:
        raise ModelError(
            f"The model and the libraries need up to {(plan.base + plan.model) / _MB:.0f} MB of "
            f"memory, but the instance has {available / _MB:.0f} MB: give it more, or lower "
            "INFERENCE_STREAMS, DECODERS or IMAGE_SIZE"
        )
    excess = plan.total - available
    if excess <= 0:
        return settings
    buffered = max(
        min(settings.max_image_bytes, settings.max_buffered_bytes),
        settings.max_buffered_bytes - excess,
    )
    lowered = replace(plan, buffered=buffered)
    missing = lowered.total - available
    extra = {"plan": str(plan), "memory_bytes": available, "max_buffered_bytes": buffered}
    if missing <= 0:
        logger.warning("Lowered MAX_BUFFERED_BYTES to fit the memory", extra=extra)
    else:
        logger.warning(
            "In the worst case, %d MB of memory are missing. Give the instance more, or lower "
            "DECODERS, MAX_IMAGE_PIXELS, MAX_IMAGE_BYTES or MAX_IN_FLIGHT",
            math.ceil(missing / _MB),
            extra=extra,
        )
    return replace(settings, max_buffered_bytes=buffered)


def _model_bytes(path: Path, detector: Detector) -> int:
    """Return the bytes that the model uses at most, beyond `_BASE_BYTES`.

    OpenVINO compiles the model for each input shape. For other runtimes, return what the process
    uses now.
    """
    if not (path / OPENVINO_METADATA).is_file():
        return max(0, _resident_bytes() - _BASE_BYTES)
    weights = sum(file.stat().st_size for file in path.glob("*.bin"))
    is_int8 = detector.info.precision == "int8"
    compiled = weights + (_COMPILED_INT8_BYTES if is_int8 else _COMPILED_BYTES)
    task, size = detector.info.task, detector.info.image_size
    pixel_bytes = detector.runners * _BYTES_PER_INPUT_PIXEL[task]
    if task is Task.CLASSIFY:
        return _FIRST_COMPILED_BYTES + compiled + pixel_bytes * size**2
    shapes = input_shapes(size, stride=_STRIDE)
    return sum(compiled + pixel_bytes * height * width for height, width in shapes)


def _resident_bytes() -> int:
    """Return the resident bytes of this process, or 0 if the system does not report them."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
