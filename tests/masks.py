"""Results of a segmentation, as large as a test needs them."""

import math

from service.domain import (
    Box,
    Detection,
    ImageInfo,
    ImageRef,
    ImageResult,
    ModelInfo,
    Polygon,
    Replace,
    Task,
    Timings,
)

MODEL = ModelInfo("yolo26n-seg.pt", "0" * 64, 640, "fp32", "openvino", Task.SEGMENT)


def segmented(
    name: str,
    *,
    masks: int = 300,
    points: int = 300,
    confidence: float = 0.5,
    replace: Replace | None = None,
    roughness: float = 0.0,
) -> ImageResult:
    """Return a result with circular masks. By default, its document would have 1.5 MB.

    Args:
        name: name of the object.
        masks: number of detections.
        points: number of points of each mask.
        confidence: confidence of all detections. It also identifies the delivery.
        replace: permission to replace a document.
        roughness: how far every other point is off the circle, in pixels.
    """
    ring = Polygon(
        tuple(
            round(1000 + (100 + roughness * (step % 2)) * function(step / points * math.tau), 2)
            for step in range(points)
            for function in (math.cos, math.sin)
        )
    )
    box = Box(900.0, 900.0, 1100.0, 1100.0)
    return ImageResult(
        ImageRef("uploads", name, 1, replace=replace),
        image_info=ImageInfo(2000, 2000, "JPEG"),
        model=MODEL,
        detections=(Detection("person", 0, confidence, box, (ring,), 31400.0),) * masks,
        faint=(),
        batch_size=1,
        timings=Timings(queue_ms=confidence),
    )
