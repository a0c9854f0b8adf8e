"""The same pipeline on local files, without any cloud."""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2

from service.document import to_document
from service.domain import (
    Box,
    Detection,
    Download,
    ErrorCode,
    Event,
    ImageRef,
    ImageResult,
    ObjectMetadata,
    Rerun,
)
from service.errors import BadImageError, TransientError, YoloBatchError
from service.images.decode import decode
from service.inference.detector import Detector
from service.operate.annotate import annotate
from service.pipeline import Pipeline, PipelineOptions

_ANY_GENERATION = 1  # local files have none


class MissingFileError(YoloBatchError):
    """A path that was given is no file, or cannot be read."""


def find_files(paths: Iterable[Path]) -> list[Path]:
    """List files, and those in folders at any depth; names that begin with a dot are left out."""
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = (p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
            files.extend(sorted(inside))
        elif path.is_file():
            files.append(path)
        else:
            raise MissingFileError(f"There is no file or folder {path}")
    return files


def annotated_name(file: Path, paths: Sequence[Path]) -> Path:
    """Name the annotated copy of a file, so that no two files of `paths` get the same.

    It keeps its place below the folder that was given, and its name, with `.jpg` after it unless
    it has that already; with several paths, the folder's own name comes before.
    """
    folder = next((path for path in paths if path.is_dir() and file.is_relative_to(path)), None)
    place = file.relative_to(folder) if folder else Path(file.name)
    if folder and len(paths) > 1:
        place = folder.name / place
    return place if place.suffix == ".jpg" else place.with_name(place.name + ".jpg")


def detect_files(
    files: Sequence[Path],
    detector: Detector,
    options: PipelineOptions,
    receive: Callable[[dict[str, Any]], None],
) -> None:
    """Detect on files; call `receive` with each one's document as soon as it is final.

    The documents are those of the service, but their `uri` and `name` are the file's path.

    Raises:
        DetectorError: the network failed on some file.
        Exception: what `receive` raises; further files are not begun then.
    """
    ready: Future[Detector] = Future()
    ready.set_result(detector)
    pipeline = Pipeline(_LocalFiles(options.max_image_bytes), _Receiver(receive), ready, options)
    given_up = threading.Event()

    def handle(file: Path) -> None:
        if given_up.is_set():
            return
        try:
            pipeline.handle(Event(ImageRef("", str(file), _ANY_GENERATION)))
        except TransientError:
            given_up.set()
            raise

    try:
        with ThreadPoolExecutor(options.max_queue) as threads:
            list(threads.map(handle, dict.fromkeys(files)))
    except _ReceiverError as exc:
        raise exc.error from None
    finally:
        pipeline.close()


def save_annotated(file: Path, document: Mapping[str, Any], destination: Path) -> None:
    """Draw a document's detections on the picture that they were found in."""
    picture = decode(file.read_bytes(), max_pixels=2**30)
    detections = [
        Detection(found["label"], found["class_id"], found["confidence"], Box(**found["box"]))
        for found in document["detections"]
    ]
    _, data = cv2.imencode(".jpg", annotate(picture.pixels, detections))
    destination.parent.mkdir(parents=True, exist_ok=True)
    destination.write_bytes(data.tobytes())


class _LocalFiles:
    """Files as the pipeline's storage."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes

    def resolve(self, ref: ImageRef) -> ImageRef:
        with _reading(ref):
            size = Path(ref.name).stat().st_size
        return replace(ref, metadata=ObjectMetadata(size=size))

    def download(self, ref: ImageRef) -> Download:
        if (ref.metadata.size or 0) > self._max_bytes:
            raise BadImageError(
                ErrorCode.IMAGE_TOO_LARGE,
                f"The file has more than MAX_IMAGE_BYTES={self._max_bytes} bytes.",
            )
        with _reading(ref):
            data = Path(ref.name).read_bytes()
        return Download(data, ObjectMetadata(size=len(data)))


@contextmanager
def _reading(ref: ImageRef) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise MissingFileError(f"{ref.name} cannot be read: {exc.strerror}") from exc


class _ReceiverError(TransientError):
    """Nobody takes the results: the pipeline begins no further file."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class _Receiver:
    """Hands each committed result on, as the pipeline's store."""

    def __init__(self, receive: Callable[[dict[str, Any]], None]) -> None:
        self._receive = receive
        self._lock = threading.Lock()  # commits come from several threads

    def is_final(self, document_id: str, rerun: Rerun | None = None) -> bool:
        return False

    def commit(self, results: Sequence[ImageResult]) -> Sequence[ImageResult]:
        with self._lock:
            for result in results:
                document = to_document(result)
                document["uri"] = document["name"]
                for absent in ("bucket", "generation", "event_time"):
                    del document[absent]
                try:
                    self._receive(document)
                except Exception as exc:
                    raise _ReceiverError(exc) from exc
        return results
