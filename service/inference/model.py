"""The loaded model behind its queue."""

from service.deadline import Deadline
from service.domain import Detection, ModelInfo
from service.health import Health
from service.images.pixels import Pixels
from service.inference.detector import Detector
from service.inference.queue import InferenceQueue, Inferred


class Model:
    """Detects objects for many threads, and reports to the health what hangs and what fails."""

    def __init__(self, detector: Detector, health: Health, *, max_batch_size: int) -> None:
        """Start the runners.

        Args:
            detector: the model.
            health: watches each batch, and counts failures.
            max_batch_size: images in one batch at most.
        """
        self.info: ModelInfo = detector.info
        self._health = health
        self._queue: InferenceQueue[Pixels, list[Detection]] = InferenceQueue(
            detector.detect,
            runners=detector.runners,
            max_batch_size=max_batch_size,
            shape=lambda pixels: detector.input_shape(pixels.shape[1], pixels.shape[0]),
            watch=health.work,
        )

    def infer(
        self, pixels: Pixels, document_id: str, deadline: Deadline
    ) -> Inferred[list[Detection]]:
        """Detect objects in uint8 HxWx3 BGR pixels; boxes are in these pixels.

        Raises:
            DetectorError: the model failed on this image alone.
            TooLateError: the deadline passed first.
            ShuttingDownError: the service stops.
        """
        with self._health.model_call(document_id):
            return self._queue.infer(pixels, deadline)

    def close(self, *, timeout_seconds: float) -> None:
        """Finish what waits, but no longer than this."""
        self._queue.close(timeout_seconds=timeout_seconds)
