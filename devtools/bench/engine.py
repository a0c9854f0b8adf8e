"""The service's pipeline without HTTP, Storage and Firestore."""

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from devtools.bench.errors import BenchError
from service.deadline import NO_DEADLINE, Deadline
from service.document import to_document
from service.domain import (
    CommittedResult,
    Download,
    Event,
    ImageRef,
    ImageResult,
    ObjectMetadata,
    Outcome,
    Replace,
)
from service.health import Health
from service.images.decoders import build_decoders
from service.inference.detector import Detector
from service.inference.model import Model
from service.pipeline import Decoders, Pipeline, PipelineOptions
from service.recorder import Recorder
from service.settings import Settings

_ANY_GENERATION = 1

Source = Callable[[int], Path | bytes]


class Engine:
    """Files in, documents out, with `MAX_IN_FLIGHT` images in flight."""

    def __init__(
        self,
        detector: Detector,
        settings: Settings,
        file: Source,
        *,
        decoders: Decoders | None = None,
    ) -> None:
        """Build the pipeline as `service.server.wsgi` does.

        Args:
            detector: the model.
            settings: the limits.
            file: returns the file with a given number, as a path or bytes. You may set another
                function between two runs.
            decoders: the decoder processes. None: start them with the settings.
        """
        health = Health(hang_timeout_seconds=math.inf)
        self.documents = _Documents()
        self.file = file
        self._pipeline = Pipeline(
            _Files(lambda number: self.file(number)),
            decoders or build_decoders(settings),
            Model(detector, health, max_batch_size=settings.max_batch_size),
            Recorder(self.documents, health),
            health,
            PipelineOptions(
                max_in_flight=settings.max_in_flight,
                max_buffered_bytes=settings.max_buffered_bytes,
            ),
        )
        self._threads = ThreadPoolExecutor(settings.max_in_flight)

    def run(self, count: int) -> None:
        """Handle the files with the numbers 0 to count - 1.

        Raises:
            BenchError: a file failed.
        """

        def handle(number: int) -> Outcome:
            event = Event(ImageRef("", str(number), _ANY_GENERATION), delivery_attempt=1)
            return self._pipeline.handle(event, NO_DEADLINE)

        for number, outcome in enumerate(self._threads.map(handle, range(count))):
            if outcome is not Outcome.DONE:
                raise BenchError(f"File {number} is {outcome}: {self.documents.reason}")

    def close(self) -> None:
        """Stop the threads and processes."""
        self._pipeline.close()
        self._threads.shutdown()


class _Files:
    """The pipeline's storage: reads files instead of objects."""

    def __init__(self, file: Source) -> None:
        self._file = file

    def resolve(self, ref: ImageRef, deadline: Deadline) -> ImageRef:
        return ref

    @contextmanager
    def download(
        self,
        ref: ImageRef,
        deadline: Deadline,
        buffer: Callable[[int, Deadline], AbstractContextManager[object]],
    ) -> Iterator[Download]:
        file = self._file(int(ref.name))
        size = file.stat().st_size if isinstance(file, Path) else len(file)
        with buffer(size, deadline):
            data = file.read_bytes() if isinstance(file, Path) else file
            yield Download(data, ObjectMetadata(size=size))


class _Documents:
    """The pipeline's store: builds documents, and counts commits."""

    def __init__(self) -> None:
        self.commits: list[int] = []  # number of documents in each commit
        self.batches: list[int] = []  # batch size of each document
        self.reason = ""  # message of the last failure

    def is_final(self, document_id: str, permission: Replace | None, deadline: Deadline) -> bool:
        return False

    def commit(
        self, results: Sequence[ImageResult], deadline: Deadline
    ) -> Sequence[CommittedResult | Exception]:
        self.commits.append(len(results))
        for result in results:
            to_document(result)
            self.batches.append(result.batch_size or 0)
            if result.failure:
                self.reason = result.failure.message
        return [CommittedResult(result) for result in results]
