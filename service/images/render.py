"""Makes derived images from pixels. Decoder processes call this, after they decoded the file."""

from collections.abc import Iterator

import cv2
import numpy as np

from service.domain import DerivedKind
from service.images.annotate import annotate
from service.images.derive import DerivePlan, Output
from service.images.pixels import Pixels
from service.images.redact import redact

_JPEG_QUALITY = 85
# Half of the time of the default strategy, and smaller files, for eight photos.
_PNG_PARAMETERS = (
    cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE,
)  # fmt: skip


def render(pixels: Pixels, plan: DerivePlan) -> list[bytes]:
    """Return the encoded images of the plan, in the order of `plan.outputs()`.

    The last crops are left out if the images would exceed `max_output_bytes` with them. The files
    are encoded from pixels, so they have none of the original's metadata.

    Args:
        pixels: the upright image, uint8 HxWx3 BGR, not smaller than `plan.working_size`. They may
            be changed.
        plan: what is made.

    Raises:
        MemoryError: there is not enough memory now.
    """
    try:
        return _render(pixels, plan)
    except cv2.error as exc:
        if exc.code == cv2.Error.StsNoMem:
            raise MemoryError from exc
        raise


def _render(pixels: Pixels, plan: DerivePlan) -> list[bytes]:
    bytes_left = plan.options.max_output_bytes
    files = []
    for output, image in _images(_shrunk(pixels, *plan.working_size), plan):
        file = _encode(image, is_png=output.is_png)
        bytes_left -= len(file)
        if output.kind is DerivedKind.CROP and bytes_left < 0:
            break
        files.append(file)
    return files


def _images(working: Pixels, plan: DerivePlan) -> Iterator[tuple[Output, Pixels]]:
    """Yield each output with its pixels. `working` has the plan's working size."""
    options = plan.options
    if options.redaction:
        height, width = working.shape[:2]
        working = np.ascontiguousarray(working)
        redact(working, plan.redacted_regions(width, height), options.redaction.mode)
    is_view_needed = options.annotated or options.redaction or options.crops
    view = _shrunk(working, *plan.view) if is_view_needed else working
    scale = view.shape[1] / plan.image.width, view.shape[0] / plan.image.height
    for output in plan.outputs():
        match output.kind:
            case DerivedKind.THUMBNAIL:
                yield output, _shrunk(view, output.width, output.height)
            case DerivedKind.ANNOTATED:
                yield output, annotate(view, plan.detections, plan.classes, scale=scale)
            case DerivedKind.NORMALIZED:
                yield output, _shrunk(working, output.width, output.height)
            case DerivedKind.CROP if crop := output.crop:
                yield output, view[crop.top : crop.bottom, crop.left : crop.right]
            case _:
                yield output, view


def _shrunk(pixels: Pixels, width: int, height: int) -> Pixels:
    """Resize to a smaller size. Each new pixel is the mean of the pixels that it covers."""
    if pixels.shape[:2] == (height, width):
        return pixels
    resized = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    return np.asarray(resized, np.uint8)


def _encode(pixels: Pixels, *, is_png: bool) -> bytes:
    if is_png:
        is_encoded, data = cv2.imencode(".png", pixels, _PNG_PARAMETERS)
    else:
        is_encoded, data = cv2.imencode(".jpg", pixels, (cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY))
    if not is_encoded:  # valid pixels can always be encoded, unless memory is short
        raise MemoryError
    return data.tobytes()
