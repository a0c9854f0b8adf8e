"""Run a detector on pixels, and compare detections with ground truth."""

from collections.abc import Iterable, Iterator, Sequence

from service.domain import Box, Detection
from service.images.pixels import DecodedImage, Pixels
from service.inference.detector import Detector
from service.inference.similarity import iou

Labelled = tuple[str, Box]


def count_found(truth: Iterable[Labelled], detections: Sequence[Labelled]) -> int:
    """Count the true boxes that a detection of the same label matches (IoU over 0.7)."""
    return sum(
        any(label == found and iou(box, at) > 0.7 for found, at in detections)
        for label, box in truth
    )


def found_in(detector: Detector, images: Iterable[Pixels]) -> Iterator[list[Detection]]:
    """Yield the detections in each image. The boxes are in the images' own pixels."""
    whole = [DecodedImage.of(pixels) for pixels in images]
    return (list(prediction.detections) for prediction in detector.detect(whole))
