"""Writes an export, image by image."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, astuple, dataclass, replace
from itertools import chain
from typing import Any, Protocol

from service.document import STATUS_DONE
from service.domain import ImageResult
from service.errors import ResultObjectError, StoredResultError
from service.gcp.result_pages import StoredResult
from service.result_exports.images import ImageFiles
from service.result_exports.names import FileNames
from service.result_exports.records import ExportedImage, Output, Writer
from service.result_exports.selection import Selection
from service.stored_result import stored_result

_MAX_NUMBER = 1e12  # square pixels: no image has as many
_RECORD_EVERY = 300  # images between two records of the state: one page of documents


class Recorder(Protocol):
    """Notes how far an export has come."""

    def record(self, cursor: str, state: dict[str, Any]) -> None:
        """Record that everything up to a cursor was written."""


@dataclass
class Tally:
    """What an export has."""

    images: int = 0
    failed: int = 0
    unreadable: int = 0
    detections: int = 0
    missing: int = 0  # files of images that could not be fetched

    def count(self, image: ExportedImage) -> None:
        """Add an image."""
        is_done = image.document.get("status") == STATUS_DONE
        self.images += 1
        self.failed += image.result is None and not is_done
        self.unreadable += image.result is None and is_done
        self.detections += len(image.result.detections) if image.result else 0


def exported_images(
    results: Iterable[tuple[StoredResult, str]],
    names: FileNames,
    selection: Selection,
    read_large: Callable[[dict[str, Any]], list[Any]] | None = None,
) -> Iterator[tuple[ExportedImage, str]]:
    """Yield each result as an exported image, with the cursor behind it.

    Args:
        results: documents, each with the cursor that continues behind it.
        names: gives the paths.
        selection: which detections are exported.
        read_large: returns the detections of a document from its object in RESULTS_BUCKET. None:
            those of the document are exported.
    """
    for each, cursor in results:
        yield _exported(each, names, selection, read_large), cursor


def write_export(
    images: Iterable[tuple[ExportedImage, str]],
    writer: Writer,
    output: Output,
    recorder: Recorder | None = None,
    on_image: Callable[[ExportedImage], None] = lambda image: None,
    *,
    files: ImageFiles | None = None,
    tally: Tally | None = None,
) -> Tally:
    """Write images in a format. `begin` or `restore` was called before. `finish` is called here.

    Args:
        images: the images, each with the cursor behind it.
        writer: the format.
        output: where it is written to.
        recorder: notes the progress. None: the export cannot be continued.
        on_image: called after each image.
        files: fetches the images' files. None: they are not in the export.
        tally: what an interrupted export had when its progress was noted.
    """
    tally = tally or Tally()
    for image, cursor in images:
        writer.add(image, output)
        tally.count(image)
        if files:
            tally.missing += files.add(image, output)
        on_image(image)
        if recorder and tally.images % _RECORD_EVERY == 0:
            if files:
                tally.missing += files.wait(output)
            recorder.record(cursor, {"writer": writer.state(), "tally": asdict(tally)})
    if files:
        tally.missing += files.wait(output)
    writer.finish(output)
    return tally


def _exported(
    each: StoredResult,
    names: FileNames,
    selection: Selection,
    read_large: Callable[[dict[str, Any]], list[Any]] | None,
) -> ExportedImage:
    document = each.document
    name = document.get("name")
    path = names.path(name if isinstance(name, str) else "", each.id)
    if document.get("status") != STATUS_DONE:
        return ExportedImage(each.id, document, path, note=_reason(document))
    try:
        if read_large and document.get("detections_uri"):
            document = document | {"detections": read_large(document)}
        result = stored_result(document)
        if not _is_sound(result):
            raise StoredResultError("A number of the document is impossible.")
        labels = document.get("labels")
        kept = [
            item for item in result.classes if isinstance(labels, list) and item.label in labels
        ]
        result = selection.of(replace(result, kept_classes=tuple(kept)))
    except (StoredResultError, ResultObjectError) as exc:
        return ExportedImage(each.id, document, path, note=str(exc))
    return ExportedImage(each.id, document, path, result)


def _is_sound(result: ImageResult) -> bool:
    """Return whether all numbers are possible: a person may have edited them."""
    info = result.image_info
    numbers = chain.from_iterable(
        (
            *(item.confidence, item.area or 0.0),
            *astuple(item.box),
            *(value for ring in item.polygons for value in ring.points),
            *(value for each in item.keypoints for value in (each.x, each.y, each.confidence)),
            *(astuple(item.rotated_box) if item.rotated_box else ()),
        )
        for item in result.detections
    )
    classes = (item.confidence for item in result.classes)
    is_image = info is not None and min(info.width, info.height) > 0
    is_even = all(len(ring.points) % 2 == 0 for item in result.detections for ring in item.polygons)
    return is_image and is_even and all(map(_is_possible, chain(numbers, classes)))


def _is_possible(number: float) -> bool:
    return math.isfinite(number) and abs(number) <= _MAX_NUMBER


def _reason(document: dict[str, Any]) -> str:
    error = document.get("error")
    if isinstance(error, dict) and isinstance(error.get("message"), str):
        return str(error["message"])
    return f"The status is {document.get('status')!r}."
