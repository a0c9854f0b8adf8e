"""Runs the service's pipeline on local files, without any cloud."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import cv2

from service.deadline import NO_DEADLINE, Deadline
from service.document import to_document
from service.domain import (
    ClassScore,
    CommittedResult,
    Download,
    Event,
    ImageRef,
    ImageResult,
    ObjectMetadata,
    Replace,
)
from service.errors import BadImageError, YoloBatchError
from service.health import Health
from service.images.annotate import annotate
from service.images.decode import decode
from service.images.decoders import build_decoders
from service.inference.detector import Detector
from service.inference.model import Model
from service.pipeline import Pipeline, PipelineOptions
from service.recorder import Recorder
from service.settings import Settings
from service.sources.rules import Rules
from service.stored_result import stored_detections

_ANY_GENERATION = 1  # local files have no generation


class MissingFileError(YoloBatchError):
    """A given path does not exist or cannot be read."""


def find_files(paths: Iterable[Path]) -> list[Path]:
    """Return the given files, and all files in the given folders, at any depth.

    In folders, files whose names start with a dot are skipped.

    Raises:
        MissingFileError: a path does not exist.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            children = (p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
            files.extend(sorted(children))
        elif path.is_file():
            files.append(path)
        else:
            raise MissingFileError(f"There is no file or folder {path}")
    return files


def annotated_name(file: Path, paths: Sequence[Path]) -> Path:
    """Return the relative path of a file's annotated copy.

    It is the file's path below the given folder, and always ends in `.jpg`, which is appended if it
    is missing. If several paths were given, it starts with the folder's name.
    """
    folder = next((path for path in paths if path.is_dir() and file.is_relative_to(path)), None)
    copy = file.relative_to(folder) if folder else Path(file.name)
    if folder and len(paths) > 1:
        copy = folder.name / copy
    return copy if copy.suffix == ".jpg" else copy.with_name(copy.name + ".jpg")


def detect_files(
    files: Sequence[Path],
    detector: Detector,
    settings: Settings,
    receive: Callable[[dict[str, Any]], None],
) -> None:
    """Detect objects in image files, and pass each document to `receive` as soon as it is ready.

    The documents are like those of the service, but `uri` and `name` are the file's path, and
    `bucket`, `generation` and `event_time` are missing.

    Args:
        files: the image files. A path that is given twice is processed once.
        detector: the model.
        settings: the limits. Two batches of images are in flight.
        receive: called with the documents, one at a time.

    Raises:
        DetectorError: the model failed on a file. The other files are done.
        Exception: what `receive` raises. After that, no further file is started.
    """
    in_flight = 2 * settings.max_batch_size
    health = Health(hang_timeout_seconds=math.inf)
    pipeline = Pipeline(
        _LocalFiles(settings.max_image_bytes),
        build_decoders(settings),
        Model(detector, health, max_batch_size=settings.max_batch_size),
        Recorder(_Receiver(receive), health),
        health,
        PipelineOptions(
            max_in_flight=in_flight,
            max_buffered_bytes=settings.max_buffered_bytes,
            rules=Rules(min_confidence=settings.min_confidence),
            store_confidence=min(settings.store_confidence, settings.min_confidence),
        ),
    )

    def detect(file: Path) -> None:
        pipeline.handle(Event(ImageRef("", str(file), _ANY_GENERATION)), NO_DEADLINE)

    errors: list[Exception] = []
    threads = ThreadPoolExecutor(in_flight, thread_name_prefix="file")
    try:
        for done in as_completed([threads.submit(detect, file) for file in dict.fromkeys(files)]):
            if isinstance(error := done.exception(), _ReceiverError):
                raise error.error from None
            if isinstance(error, Exception):
                errors.append(error)
    finally:
        threads.shutdown(cancel_futures=True)
        pipeline.close()
    if errors:
        raise errors[0]


def save_annotated(file: Path, document: Mapping[str, Any], destination: Path) -> None:
    """Write a JPEG copy of an image file with what its document says drawn on it."""
    image = decode(file.read_bytes(), max_pixels=2**30)
    detections = stored_detections(document)
    classes = [ClassScore(**item) for item in document["classes"]]
    _, data = cv2.imencode(".jpg", annotate(image.pixels, detections, classes))
    destination.parent.mkdir(parents=True, exist_ok=True)
    destination.write_bytes(data.tobytes())


class _LocalFiles:
    """Local files, as the pipeline's storage."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes

    def resolve(self, ref: ImageRef, deadline: Deadline) -> ImageRef:
        raise NotImplementedError("References to local files have a generation.")

    @contextmanager
    def download(
        self,
        ref: ImageRef,
        deadline: Deadline,
        buffer: Callable[[int, Deadline], AbstractContextManager[object]],
    ) -> Iterator[Download]:
        file = Path(ref.name)
        with _reading(ref):
            size = file.stat().st_size
        if size > self._max_bytes:
            raise BadImageError.too_many_bytes("file", self._max_bytes)
        with buffer(size, deadline):
            with _reading(ref):
                data = file.read_bytes()
            yield Download(data, ObjectMetadata(size=len(data)))


@contextmanager
def _reading(ref: ImageRef) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise MissingFileError(f"{ref.name} cannot be read: {exc.strerror}") from exc


class _ReceiverError(YoloBatchError):
    """The receiver failed. No further file is started."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class _Receiver:
    """Passes each document to the receiver, as the pipeline's store."""

    def __init__(self, receive: Callable[[dict[str, Any]], None]) -> None:
        self._receive = receive

    def is_final(self, document_id: str, permission: Replace | None, deadline: Deadline) -> bool:
        return False

    def commit(
        self, results: Sequence[ImageResult], deadline: Deadline
    ) -> Sequence[CommittedResult | Exception]:
        return [self._pass_on(result) for result in results]

    def _pass_on(self, result: ImageResult) -> CommittedResult | Exception:
        document = to_document(result)
        document["uri"] = document["name"]
        for field in ("bucket", "generation", "event_time"):
            del document[field]
        try:
            self._receive(document)
        except Exception as exc:  # noqa: BLE001 - the caller raises it
            return _ReceiverError(exc)
        return CommittedResult(result)
