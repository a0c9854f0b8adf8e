"""The export of all results of a page's filter, in its order and with its thresholds."""

from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import chain, islice
from typing import Any

from flask import Blueprint, Response, abort, request

from service.gallery.parts import parts
from service.gcp.result_pages import StoredResult
from service.result_exports.exporting import exported_images
from service.result_exports.formats import FORMATS, Format
from service.result_exports.names import FileNames
from service.result_exports.records import ExportOptions, Writer
from service.result_exports.selection import Selection
from service.result_exports.streaming import TemporaryKeys, stream_file, stream_zip
from service.result_filter import FilterError, ResultFilter

blueprint = Blueprint("download", __name__)

_MAX_FILES = 100_000  # the list of a zip's files is in memory until its end
_MEDIA_TYPES = {
    "csv": "text/csv; charset=utf-8",
    "json": "application/json",
    "jsonl": "application/x-ndjson",
    "zip": "application/zip",
}
ReadLarge = Callable[[dict[str, Any]], list[Any]]


def available_formats() -> dict[str, Format]:
    """Return the formats whose modules are installed, by name."""
    return {name: each for name, each in FORMATS.items() if each.is_available}


@blueprint.get("/export")
def export() -> Response:
    """Stream an export as an attachment.

    Arguments: those of the filter, `format`, `threshold` and any number of `threshold_of`
    (LABEL:CONFIDENCE), as the grid has them.
    """
    name = request.args.get("format", "")
    chosen_format = available_formats().get(name)
    if chosen_format is None:
        abort(404, f"There is no format {name[:40]!r}, or the module that it needs is missing.")
    chosen = ResultFilter.parse(request.args)
    if chosen_format.is_written_at_once and parts().results.count(chosen) > _MAX_FILES:
        raise FilterError(
            f"A zip has at most {_MAX_FILES:,} files. Choose fewer results, or use the command "
            f"`yolo-batch results --export {name}`."
        )
    found = parts().results.stream(chosen)
    # The first page is read before the response begins, so that an outage is an error page.
    found = chain(tuple(islice(found, 1)), found)
    blocks = _blocks(found, chosen_format, _selection())
    file_name = chosen_format.file or f"{name}.zip"
    response = Response(blocks, content_type=_MEDIA_TYPES[file_name.rpartition(".")[2]])
    response.headers["Content-Disposition"] = f'attachment; filename="yolo-batch-{file_name}"'
    return response


def _blocks(
    found: Iterator[tuple[StoredResult, str]], chosen: Format, selection: Selection
) -> Iterator[bytes]:
    """Return the blocks of an export. Outside of the request, only these parts are used."""
    large_results = parts().large_results
    read_large = large_results.read if large_results else None
    writer = chosen.writer(ExportOptions())
    return _named(found, selection, read_large, writer, chosen)


def _named(
    found: Iterator[tuple[StoredResult, str]],
    selection: Selection,
    read_large: ReadLarge | None,
    writer: Writer,
    chosen: Format,
) -> Iterator[bytes]:
    with closing(TemporaryKeys()) as taken:
        images = exported_images(found, FileNames(taken), selection, read_large)
        if chosen.file:
            yield from stream_file(images, writer)
        else:
            yield from stream_zip(images, writer, is_written_at_once=chosen.is_written_at_once)


def _selection() -> Selection:
    """Return the detections that the page shows. Numbers that are none are ignored, as there."""
    of_label = {}
    for text in request.args.getlist("threshold_of"):
        label, colon, number = text.rpartition(":")
        if colon and label and (value := _number(number)) is not None:
            of_label[label] = value
    return Selection(_number(request.args.get("threshold", "")), of_label)


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if 0 <= number <= 1 else None
