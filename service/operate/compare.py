"""Compares two models, or stored results and a model, image by image. Nothing is written.

Both models run on the same decoded image, one after the other, and change places with each image.
So both have the same share of whatever else the machine does. What is measured is the CPU time of
this process, in all of its threads. The decoder processes are not part of it. Neither is the first
run of a model with an input shape, because OpenVINO compiles the model then.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Protocol

from service.comparison import (
    MIN_CONFIDENCE,
    MOVED_IOU,
    SAME_IOU,
    Alone,
    Comparison,
    Pair,
    Summary,
    Total,
    compare,
)
from service.deadline import NO_DEADLINE, Deadline
from service.derived import DeriveOptions
from service.document import STATUS_DONE
from service.domain import (
    Box,
    DerivedImage,
    Detection,
    Download,
    ImageInfo,
    ImageRef,
    ImageResult,
    ModelInfo,
    ObjectMetadata,
    Prediction,
    Task,
)
from service.errors import (
    BadImageError,
    ModelError,
    ObjectGoneError,
    StoredResultError,
    YoloBatchError,
)
from service.images.derive import DerivePlan
from service.images.pixels import DecodedImage
from service.inference.detector import Detector
from service.operate.detect import find_files
from service.operate.image_names import short_name
from service.stored_result import stored_result

_LARGE_SIDE = 1600  # pixels of the longer side of a large view
_THUMBNAIL_SIDE = 320


class ComparisonError(YoloBatchError):
    """The two sides cannot be compared, or there is no image. The message says why."""


class Decoders(Protocol):
    """Decodes files. `service.images.decoders.Decoders` implements it."""

    def decode(
        self,
        data: bytes,
        *,
        image_size: int,
        crop: bool = False,
        content_encoding: str | None = None,
        deadline: Deadline,
    ) -> DecodedImage:
        """Decode a file to pixels of at most this size."""

    def derive(
        self,
        data: bytes,
        plan: DerivePlan,
        *,
        content_encoding: str | None = None,
        deadline: Deadline,
    ) -> tuple[DerivedImage, ...]:
        """Make smaller images from a file."""


class Storage(Protocol):
    """Downloads objects. `service.gcp.storage.ImageStorage` implements it."""

    def download(self, ref: ImageRef, deadline: Deadline) -> AbstractContextManager[Download]:
        """Download exactly this generation."""


@dataclass(frozen=True)
class Image:
    """One image to compare.

    Attributes:
        name: what the report calls it: an object's name, or a path below the folder.
        read: returns the file's bytes. It may raise BadImageError or ObjectGoneError.
        stored: the stored result, which takes the place of model A.
        unusable: why the image cannot be compared. None: it can.
        source: id of the source of the stored result.
        recorded_ms: `inference_ms` of the stored result: wall time in the service.
    """

    name: str
    read: Callable[[], Download]
    stored: ImageResult | None = None
    unusable: str | None = None
    source: str | None = None
    recorded_ms: float | None = None


@dataclass(frozen=True)
class Compared:
    """What two models find in one image. CPU times are in milliseconds."""

    image: Image
    info: ImageInfo
    comparison: Comparison
    a_ms: float | None
    b_ms: float


@dataclass
class Report:
    """The comparison of all images.

    Attributes:
        a: model A, or None if A are stored results.
        b: model B.
        min_confidence: detections below it do not count.
        images: the compared images, the largest disagreement first.
        skipped: name and reason of each image that was not compared.
        stored_models: name and hash of the models of the stored results.
        is_limited: whether there are more images, which were not read.
    """

    a: ModelInfo | None
    b: ModelInfo
    min_confidence: float
    images: list[Compared] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    stored_models: tuple[str, ...] = ()
    is_limited: bool = False

    @property
    def summary(self) -> Summary:
        """The totals of all images."""
        summary = Summary()
        for item in self.images:
            summary.add(item.comparison, item.image.source)
        return summary

    @property
    def a_ms(self) -> float | None:
        """Median CPU time of model A for one image, in milliseconds. None: A did not run."""
        times = [item.a_ms for item in self.images if item.a_ms is not None]
        return median(times) if times else None

    @property
    def recorded_ms(self) -> float | None:
        """Median `inference_ms` of the stored results, or None."""
        times = [i.image.recorded_ms for i in self.images if i.image.recorded_ms is not None]
        return median(times) if times else None

    @property
    def b_ms(self) -> float | None:
        """Median CPU time of model B for one image, in milliseconds."""
        return median(item.b_ms for item in self.images) if self.images else None


def folder_images(folder: Path, max_bytes: int) -> list[Image]:
    """Return the images of a folder, at any depth.

    Args:
        folder: the folder.
        max_bytes: the largest file.

    Raises:
        MissingFileError: there is no such folder.
    """

    def image(file: Path) -> Image:
        return Image(file.relative_to(folder).as_posix(), lambda: _read_file(file, max_bytes))

    return [image(file) for file in find_files([folder])]


def stored_images(
    documents: Iterable[Mapping[str, Any]], storage: Storage, prefix: str
) -> Iterator[Image]:
    """Yield the images of stored results. Documents of one name must follow each other.

    Only the newest generation of an object is compared.

    Raises:
        FirestoreUnavailableError: Firestore did not respond, or lacks the index.
    """
    for document in _newest(documents):
        yield _stored_image(document, storage, prefix)


def compare_models(
    a: Detector | None,
    b: Detector,
    images: Iterable[Image],
    decoders: Decoders,
    *,
    min_confidence: float = MIN_CONFIDENCE,
    limit: int | None = None,
    progressed: Callable[[], None] = lambda: None,
) -> Report:
    """Compare two models on images, or stored results and a model.

    Args:
        a: model A. None: each image has a stored result.
        b: model B.
        images: the images.
        decoders: decode the files in processes of their own.
        min_confidence: detections below it do not count.
        limit: the most images that are compared. None: all.
        progressed: called after each image.

    Raises:
        ComparisonError: only one of the models is a classifier, or no image can be compared.
        ModelError: a model does not run.
        StorageUnavailableError: Cloud Storage did not respond, or refuses the bucket.
    """
    if a:
        _check_tasks(a.info.task, b.info.task)
    report = Report(a.info if a else None, b.info, min_confidence)
    run = _Runs()
    models = set()
    for image in images:
        if limit is not None and len(report.images) >= limit:
            report.is_limited = True
            break
        is_compared = _compare_or_skip(a, b, image, decoders, report, run)
        if is_compared and image.stored and image.stored.model:
            models.add(_model_text(image.stored.model))
        progressed()
    if not report.images:
        raise ComparisonError(_nothing(report))
    report.images.sort(key=lambda item: (-item.comparison.disagreement, item.image.name))
    report.stored_models = tuple(sorted(models))
    return report


def _nothing(report: Report) -> str:
    if not report.skipped:
        return "There is no image to compare"
    name, reason = report.skipped[0]
    return (
        f"None of the {len(report.skipped)} images can be compared. The first is {name}: {reason}"
    )


def _compare_or_skip(
    a: Detector | None,
    b: Detector,
    image: Image,
    decoders: Decoders,
    report: Report,
    run: "_Runs",
) -> bool:
    """Compare an image, and return whether that was possible."""
    if image.unusable:
        report.skipped.append((image.name, image.unusable))
        return False
    try:
        report.images.append(_compare_image(a, b, image, decoders, report, run))
    except (BadImageError, ObjectGoneError) as exc:
        report.skipped.append((image.name, str(exc)))
        return False
    return True


def _compare_image(
    a: Detector | None,
    b: Detector,
    image: Image,
    decoders: Decoders,
    report: Report,
    run: "_Runs",
) -> Compared:
    if a is None and image.stored and image.stored.model:
        _check_tasks(image.stored.model.task, b.info.task)
    decode = _Decoding(image.read(), decoders)
    order = [b, a] if len(report.images) % 2 else [a, b]
    found = {id(model): run(model, decode(model)) for model in order if model}
    info = decode(b).info
    b_found, b_ms = found[id(b)]
    a_found, a_ms = found[id(a)] if a else (_stored_prediction(image), None)
    comparison = compare(
        _as_detections(a_found, info),
        _as_detections(b_found, info),
        min_confidence=report.min_confidence,
    )
    return Compared(image, info, comparison, a_ms, b_ms)


class _Decoding:
    """Decodes one file for each size that a model needs, once."""

    def __init__(self, download: Download, decoders: Decoders) -> None:
        self._download = download
        self._decoders = decoders
        self._images: dict[tuple[int, bool], DecodedImage] = {}

    def __call__(self, model: Detector) -> DecodedImage:
        """Return the image as a model gets it in the service."""
        key = model.info.image_size, model.info.task is Task.CLASSIFY
        if key not in self._images:
            self._images[key] = self._decoders.decode(
                self._download.data,
                image_size=key[0],
                crop=key[1],
                content_encoding=self._download.content_encoding,
                deadline=NO_DEADLINE,
            )
        return self._images[key]


class _Runs:
    """Runs models, and measures their CPU time."""

    def __init__(self) -> None:
        self._shapes: set[tuple[int, int, int]] = set()

    def __call__(self, model: Detector, image: DecodedImage) -> tuple[Prediction, float]:
        """Return what a model finds, and its CPU time in milliseconds.

        Raises:
            ModelError: the model does not run.
        """
        shape = id(model), *model.input_shape(image.info.width, image.info.height)
        if shape not in self._shapes:
            _detect(model, image)
            self._shapes.add(shape)
        started = time.process_time()
        prediction = _detect(model, image)
        return prediction, 1000 * (time.process_time() - started)


def _detect(model: Detector, image: DecodedImage) -> Prediction:
    try:
        [prediction] = model.detect([image])
    except YoloBatchError:
        raise
    except Exception as exc:
        raise ModelError(f"{model.info.name} cannot run on this machine: {exc}") from exc
    return prediction


def _check_tasks(a: Task, b: Task) -> None:
    if (a is Task.CLASSIFY) != (b is Task.CLASSIFY):
        raise ComparisonError(
            f"A model for {a} and a model for {b} cannot be compared: only one of them finds boxes"
        )


def _stored_prediction(image: Image) -> Prediction:
    """Return all recorded detections of a stored result, faint ones included."""
    stored = image.stored or ImageResult(ImageRef("", ""))
    return Prediction((*stored.detections, *(stored.faint or ())), stored.classes)


def _as_detections(prediction: Prediction, info: ImageInfo) -> Sequence[Detection]:
    """Return the detections. The best class of a classifier becomes a box of the whole image."""
    whole = Box(0.0, 0.0, float(info.width), float(info.height))
    best = prediction.classes[:1]
    return prediction.detections or [
        Detection(item.label, item.class_id, item.confidence, whole) for item in best
    ]


def _newest(documents: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Yield the document of the newest generation of each name."""
    newest: Mapping[str, Any] | None = None
    for document in documents:
        if newest is not None and newest.get("name") != document.get("name"):
            yield newest
            newest = None
        if newest is None or _generation(document) > _generation(newest):
            newest = document
    if newest is not None:
        yield newest


def _generation(document: Mapping[str, Any]) -> int:
    generation = document.get("generation")
    return generation if isinstance(generation, int) else 0


def _stored_image(document: Mapping[str, Any], storage: Storage, prefix: str) -> Image:
    name = str(document.get("name"))
    short = short_name(name, prefix)
    source = document.get("source")
    source_id = source.get("id") if isinstance(source, dict) else None
    if document.get("status") != STATUS_DONE:
        return _unusable(short, f"It has no detections: it is {document.get('status')}.")
    try:
        stored = stored_result(document)
    except (StoredResultError, ArithmeticError, AttributeError, ValueError):
        return _unusable(short, "Its document was edited.")

    def read() -> Download:
        with storage.download(stored.ref, NO_DEADLINE) as download:
            return download

    timings = document.get("timings")
    recorded = timings.get("inference_ms") if isinstance(timings, dict) else None
    return Image(
        short,
        read,
        stored,
        source=source_id if isinstance(source_id, str) else None,
        recorded_ms=recorded if isinstance(recorded, float) else None,
    )


def _unusable(name: str, reason: str) -> Image:
    return Image(name, lambda: Download(b"", ObjectMetadata()), unusable=reason)


def _read_file(file: Path, max_bytes: int) -> Download:
    """Return the bytes of a file.

    Raises:
        BadImageError: it is too large, or cannot be read.
    """
    try:
        if file.stat().st_size > max_bytes:
            raise BadImageError.too_many_bytes("file", max_bytes)
        return Download(file.read_bytes(), ObjectMetadata())
    except OSError as exc:
        raise BadImageError.corrupt(f"The file cannot be read: {exc.strerror}.") from exc


class FileImages:
    """The images of a report on files, by their index. Safe to use from many threads."""

    def __init__(self, report: Report, decoders: Decoders) -> None:
        """Take the report, whose order gives the indexes, and the decoders."""
        self._images = report.images
        self._decoders = decoders

    def read(self, index: int, *, is_large: bool) -> tuple[bytes, str] | None:
        """Return an upright image and its media type, or None if it does not exist any more."""
        if not 0 <= index < len(self._images):
            return None
        item = self._images[index]
        side = _LARGE_SIDE if is_large else _THUMBNAIL_SIDE
        plan = DerivePlan(
            DeriveOptions(thumbnail_side=side, max_side=_LARGE_SIDE), item.info, Task.DETECT
        )
        try:
            download = item.image.read()
            [view] = self._decoders.derive(
                download.data,
                plan,
                content_encoding=download.content_encoding,
                deadline=NO_DEADLINE,
            )
        except (BadImageError, ObjectGoneError):
            return None
        return view.data, view.content_type


def as_json(report: Report, path: str) -> dict[str, Any]:
    """Return a report as JSON: what `--json` writes, and what the page shows.

    Args:
        report: the report.
        path: the folder or the prefix that was compared.
    """
    summary = report.summary
    return {
        "path": path,
        "a": _model(report.a, report.a_ms) if report.a else _stored_model(report),
        "b": _model(report.b, report.b_ms),
        "min_confidence": report.min_confidence,
        "same_iou": SAME_IOU,
        "moved_iou": MOVED_IOU,
        "images": summary.images,
        "changed": summary.changed,
        "is_limited": report.is_limited,
        "total": _total(summary.total),
        "labels": [
            {"label": label, **_total(total)} for label, total in sorted(summary.by_label.items())
        ],
        "sources": [
            {"source": source, **_total(total)}
            for source, total in sorted(summary.by_source.items(), key=lambda row: row[0] or "")
        ],
        "skipped": [{"name": name, "reason": reason} for name, reason in report.skipped],
        "results": [_compared(item) for item in report.images],
    }


def _stored_model(report: Report) -> dict[str, Any]:
    recorded = report.recorded_ms
    return {
        "name": "stored results",
        "models": list(report.stored_models),
        "cpu_ms": None,
        "recorded_ms": recorded and round(recorded, 1),
    }


def _model(info: ModelInfo, cpu_ms: float | None) -> dict[str, Any]:
    return {**asdict(info), "task": str(info.task), "cpu_ms": cpu_ms and round(cpu_ms, 1)}


def _model_text(info: ModelInfo) -> str:
    return f"{info.name} ({info.precision}, {info.sha256[:8]})"


def _total(total: Total) -> dict[str, Any]:
    return {**asdict(total), "f1": round(total.f1, 4)}


def _compared(item: Compared) -> dict[str, Any]:
    comparison, image = item.comparison, item.image
    return {
        "name": image.name,
        "uri": image.stored.ref.uri if image.stored else None,
        "source": image.source,
        "width": item.info.width,
        "height": item.info.height,
        "disagreement": round(comparison.disagreement, 4),
        "f1": round(comparison.f1, 4),
        "cpu_ms": {"a": item.a_ms and round(item.a_ms, 1), "b": round(item.b_ms, 1)},
        "kept": [_pair(pair) for pair in comparison.kept],
        "moved": [_pair(pair) for pair in comparison.moved],
        "lost": [_alone(alone) for alone in comparison.lost],
        "gained": [_alone(alone) for alone in comparison.gained],
    }


def _pair(pair: Pair) -> dict[str, Any]:
    return {
        "label": pair.a.label,
        "iou": round(pair.iou, 4),
        "a": _found(pair.a),
        "b": _found(pair.b),
    }


def _alone(alone: Alone) -> dict[str, Any]:
    return {
        "label": alone.detection.label,
        **_found(alone.detection),
        "other_confidence": round(alone.other_confidence, 4),
    }


def _found(detection: Detection) -> dict[str, Any]:
    box = detection.box
    return {
        "confidence": round(detection.confidence, 4),
        "box": [round(value, 2) for value in (box.x1, box.y1, box.x2, box.y2)],
    }
