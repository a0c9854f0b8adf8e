"""The format `csv`: one row for each detection, with the column names of supervision's CSVSink.

A spreadsheet can run a cell as a formula if it begins with = + - @, with the full-width form of one
of these, with a tab or with the end of a line. Such a text gets an apostrophe in front of it:
https://owasp.org/www-community/attacks/CSV_Injection
Column names: https://supervision.roboflow.com/latest/detection/tools/save_detections/
"""

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

from service.result_exports.records import ExportedImage, Output, Stateless

FILE = "detections.csv"
COLUMNS = (
    "x_min", "y_min", "x_max", "y_max", "class_id", "confidence", "tracker_id", "class_name",
    "file", "uri", "generation", "status", "error", "source", "captured_at", "created_at",
)  # fmt: skip
_FORMULA = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")  # the last four are the full-width forms


class CsvWriter(Stateless):
    """Writes one row for each detection, and one without a detection for other images."""

    def begin(self, output: Output) -> None:
        """Write the names of the columns."""
        output.append(FILE, _lines([COLUMNS]))

    def add(self, image: ExportedImage, output: Output) -> None:
        """Write the rows of one image."""
        output.append(FILE, _lines(_rows(image)))


def _rows(image: ExportedImage) -> Iterator[Sequence[Any]]:
    document, error = image.document, image.document.get("error")
    source = document.get("source")
    about = (
        image.path,
        document.get("uri"),
        document.get("generation"),
        document.get("status"),
        error.get("code") if isinstance(error, dict) else image.note,
        source.get("id") if isinstance(source, dict) else None,
        document.get("captured_at"),
        document.get("created_at"),
    )
    found: list[tuple[Any, ...]] = []
    if image.result:
        for item in image.result.detections:
            box = item.box
            corners = (box.x1, box.y1, box.x2, box.y2)
            found.append((*corners, item.class_id, item.confidence, None, item.label))
        found += [
            (None, None, None, None, item.class_id, item.confidence, None, item.label)
            for item in image.result.classes
        ]
    for each in found or [(None,) * 8]:
        yield (*each, *about)


def _lines(rows: Iterator[Sequence[Any]] | Sequence[Sequence[Any]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows([[_cell(value) for value in row] for row in rows])
    return text.getvalue().encode("utf-8", "replace")


def _cell(value: Any) -> Any:
    """Return a harmless cell. Numbers stay numbers."""
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    text = value.isoformat() if hasattr(value, "isoformat") else str(value)
    return f"'{text}" if text.startswith(_FORMULA) else text
