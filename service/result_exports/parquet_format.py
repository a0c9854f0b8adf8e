"""The format `parquet`: one table of images and one of detections, with fixed types.

A Parquet file ends with a list of its row groups, so it cannot be continued after a crash. Rows go
to temporary files of JSON lines first, and become Parquet at the end.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any, BinaryIO

from service.domain import Detection, ImageResult
from service.edited import as_map, text_or_none
from service.result_exports.records import ExportedImage, Output, Stateless

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS = 5_000  # of a row group: all of them are in memory at once
_TEXTS = ("uri", "bucket", "name", "status", "task")
_MAX_INTEGER = 2**63
IMAGES = "images"
DETECTIONS = "detections"


class ParquetWriter(Stateless):
    """Writes `images.parquet` and `detections.parquet`. `document_id` joins them."""

    def add(self, image: ExportedImage, output: Output) -> None:
        """Write the rows of one image to the temporary files."""
        output.append_part(IMAGES, _lines([_image(image)]))
        if image.result:
            output.append_part(DETECTIONS, _lines(_detections(image, image.result)))

    def finish(self, output: Output) -> None:
        """Write both files."""
        for name, schema in _schemas().items():
            with output.read_part(name) as part, output.create(f"{name}.parquet") as file:
                _write(part, schema, file)


class _File:
    """What pyarrow needs to write to an object that only has `write`."""

    closed = False

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._bytes = 0

    def write(self, data: Any) -> int:
        self._file.write(bytes(data))
        self._bytes += len(data)
        return len(data)

    def tell(self) -> int:
        return self._bytes

    def flush(self) -> None:
        """Do nothing: the caller closes the file."""

    def close(self) -> None:
        """Do nothing: the caller closes the file."""


def _write(part: BinaryIO, schema: "pa.Schema", file: BinaryIO) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    with (
        pa.PythonFile(_File(file), mode="w") as target,
        parquet.ParquetWriter(target, schema, compression="zstd") as writer,
    ):
        while rows := [_typed(json.loads(line)) for line in islice(part, _ROWS)]:
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))


def _schemas() -> dict[str, "pa.Schema"]:
    import pyarrow as pa

    text, whole, real = pa.string(), pa.int64(), pa.float64()
    time = pa.timestamp("us", tz="UTC")
    points = pa.list_(pa.list_(real))
    keypoint = pa.struct([("name", text), ("x", real), ("y", real), ("confidence", real)])
    images = {
        "document_id": text, "file": text, "uri": text, "bucket": text, "name": text,
        "generation": whole, "status": text, "error_code": text, "error": text, "source": text,
        "width": whole, "height": whole, "model": text, "model_sha256": text, "task": text,
        "captured_at": time, "created_at": time,
    }  # fmt: skip
    detections = {
        "document_id": text, "label": text, "class_id": whole, "confidence": real,
        "x_min": real, "y_min": real, "x_max": real, "y_max": real, "area": real,
        "polygons": points, "keypoints": pa.list_(keypoint), "corners": pa.list_(real),
        "zones": pa.list_(text),
    }  # fmt: skip
    return {IMAGES: pa.schema(images), DETECTIONS: pa.schema(detections)}


def _image(image: ExportedImage) -> dict[str, Any]:
    document = image.document
    info, model = as_map(document.get("image")), as_map(document.get("model"))
    error = as_map(document.get("error"))
    return {
        "document_id": image.document_id,
        "file": image.path,
        **{
            key: text_or_none(document.get(key))
            for key in ("uri", "bucket", "name", "status", "task")
        },
        "generation": _integer(document.get("generation")),
        "error_code": text_or_none(error.get("code")),
        "error": image.note,
        "source": text_or_none(as_map(document.get("source")).get("id")),
        "width": _integer(info.get("width")),
        "height": _integer(info.get("height")),
        "model": text_or_none(model.get("name")),
        "model_sha256": text_or_none(model.get("sha256")),
        "captured_at": _time(document.get("captured_at")),
        "created_at": _time(document.get("created_at")),
    }


def _detections(image: ExportedImage, result: ImageResult) -> Iterator[dict[str, Any]]:
    """Yield the detections. Classes have no box."""
    for item in result.detections:
        yield {"document_id": image.document_id} | _detection(item)
    for each in result.classes:
        yield {
            "document_id": image.document_id,
            "label": each.label,
            "class_id": each.class_id,
            "confidence": each.confidence,
        }


def _detection(item: Detection) -> dict[str, Any]:
    box, keypoints = item.box, item.keypoints
    return {
        "label": item.label,
        "class_id": item.class_id,
        "confidence": item.confidence,
        "x_min": box.x1,
        "y_min": box.y1,
        "x_max": box.x2,
        "y_max": box.y2,
        "area": item.area,
        "polygons": [list(ring.points) for ring in item.polygons] or None,
        "keypoints": [
            {"name": point.name, "x": point.x, "y": point.y, "confidence": point.confidence}
            for point in keypoints
        ]
        or None,
        "corners": list(item.rotated_box.corners) if item.rotated_box else None,
        "zones": list(item.zones),
    }


def _lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    return "".join(f"{json.dumps(row)}\n" for row in rows).encode()


def _typed(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with its times."""
    for key in ("captured_at", "created_at"):
        if row.get(key):
            row[key] = datetime.fromisoformat(row[key])
    return row


def _integer(value: Any) -> int | None:
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    return value if is_integer and abs(value) < _MAX_INTEGER else None


def _time(value: Any) -> str | None:
    return value.astimezone(UTC).isoformat() if isinstance(value, datetime) else None
