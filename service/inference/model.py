"""A loaded detector with its queue."""

from service.deadline import Deadline
from service.domain import ModelInfo, Prediction
from service.health import Health
from service.images.pixels import DecodedImage
from service.inference.detector import Detector
from service.inference.queue import InferenceQueue, Inferred


class Model:
    """Detects objects for many threads, and reports hangs and failures to `Health`."""

    def __init__(self, detector: Detector, health: Health, *, max_batch_size: int) -> None:
        """Start the runners' threads.

        Args:
            detector: runs the batches.
            health: is notified of each batch and each failure.
            max_batch_size: the most images in one batch.
        """
        self.info: ModelInfo = detector.info
        self.labels = frozenset(detector.labels.values())
        self._health = health
        self._queue: InferenceQueue[DecodedImage, Prediction] = InferenceQueue(
            detector.detect,
            runners=detector.runners,
            max_batch_size=max_batch_size,
            shape=lambda image: detector.input_shape(image.pixels.shape[1], image.pixels.shape[0]),
            watch=health.work,
        )

    def infer(
        self, image: DecodedImage, document_id: str, deadline: Deadline
    ) -> Inferred[Prediction]:
        """Run the model on an image, waiting for a runner.

        Args:
            image: the image.
            document_id: identifies the image to `Health`.
            deadline: ends the wait.

        Raises:
            DetectorError: the model failed on a batch of only this image.
            TooLateError: the deadline passed first.
            ShuttingDownError: the service is shutting down.
        """
        with self._health.model_call(document_id):
            return self._queue.infer(image, deadline)

    def close(self, *, timeout_seconds: float) -> None:
        """Reject new images and finish the queued images, for at most `timeout_seconds`."""
        self._queue.close(timeout_seconds=timeout_seconds)
