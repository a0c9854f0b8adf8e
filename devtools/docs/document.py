"""The reference of the Firestore document, from what `service.document` writes."""

import base64
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from devtools.docs.markdown import code, codes, fence, table
from service.alerts.matching import alert_id
from service.document import to_document
from service.domain import (
    Alert,
    Box,
    Camera,
    CapturedAtSource,
    ClassScore,
    Detection,
    ErrorCode,
    Failure,
    GeoPoint,
    ImageInfo,
    ImageRef,
    ImageResult,
    Keypoint,
    ModelInfo,
    ObjectMetadata,
    Polygon,
    RotatedBox,
    Severity,
    SourceVersion,
    Task,
    Timings,
)

if TYPE_CHECKING:
    from devtools.bench.index_entries import Indexes

_UPLOADED_AT = datetime(2026, 11, 21, 3, 26, 0, tzinfo=UTC)
RECORDED_AT = datetime(2026, 11, 21, 3, 26, 1, tzinfo=UTC)
_METADATA = ObjectMetadata(
    130510,
    "image/jpeg",
    "XUFAKrxLKna5cZ2REBfFkg==",
    "yZRlqg==",
    custom={"survey": "autumn"},
)
_BOX = Box(12.5, 40.0, 181.2, 470.9)
DONE = ImageResult(
    ref=ImageRef("uploads", "cam1/07.jpg", 1732832936756275, _METADATA),
    image_info=ImageInfo(640, 480, "JPEG"),
    model=ModelInfo("yolo26n.pt", "455f42aa" * 8, 640, "fp32", "openvino 2026.4.1", version="3"),
    detections=(Detection("person", 0, 0.93, _BOX, zones=("gate",)),),
    faint=(Detection("bicycle", 1, 0.12, Box(300.0, 210.5, 380.0, 270.25)),),
    captured_at=datetime(2026, 11, 21, 3, 20, 15, tzinfo=UTC),
    captured_at_source=CapturedAtSource.EXIF_WITH_SOURCE_TIMEZONE,
    camera=Camera("Reconyx", "HC600", "H600HF05"),
    location=GeoPoint(46.6, 8.03),
    day=date(2026, 11, 21),
    source=SourceVersion("cam1", datetime(2026, 11, 2, 9, 30, 0, tzinfo=UTC)),
    zones=("gate",),
    batch_size=8,
    timings=Timings(21.4, 5.1, 18.0, 25.9),
    event_time=_UPLOADED_AT,
)
FAILED = ImageResult(
    ref=ImageRef(
        "uploads",
        "cam1/08.jpg",
        1732832936756276,
        ObjectMetadata(0, "image/jpeg", "1B2M2Y8AsgTpgAmY7PhCfg==", "AAAAAA=="),
    ),
    failure=Failure(ErrorCode.EMPTY_OBJECT, "The object has no bytes."),
    timings=Timings(download_ms=18.2),
    day=date(2026, 11, 21),
    event_time=_UPLOADED_AT,
)
_COMPOSITE = replace(DONE, ref=replace(DONE.ref, metadata=replace(_METADATA, md5=None)))
_PERSON = DONE.detections[0]
_SCORES = tuple(
    ClassScore(label, class_id, confidence)
    for label, class_id, confidence in (
        ("fox", 277, 0.8125), ("coyote", 272, 0.0914), ("wolf", 269, 0.0321),
        ("jackal", 275, 0.0102), ("dog", 207, 0.0088),
    )
)  # fmt: skip
_RING = (60.0, 40.0, 181.2, 52.5, 170.0, 470.9, 12.5, 455.0)
_HOLE = (80.0, 200.0, 120.0, 200.0, 100.0, 260.0)


def _of_task(task: Task, name: str, *found: Detection) -> ImageResult:
    assert DONE.model
    return replace(
        DONE, model=replace(DONE.model, name=name, task=task), detections=found, faint=()
    )


TASKS: Mapping[Task, ImageResult] = {
    Task.SEGMENT: _of_task(
        Task.SEGMENT,
        "yolo26n-seg.pt",
        replace(_PERSON, polygons=(Polygon(_RING), Polygon(_HOLE)), area=52310.0),
    ),
    Task.POSE: _of_task(
        Task.POSE,
        "yolo26n-pose.pt",
        replace(
            _PERSON,
            keypoints=(
                Keypoint("nose", 96.2, 88.4, 0.98),
                Keypoint("left_eye", 101.7, 80.1, 0.97),
                Keypoint("right_eye", 90.3, 80.6, 0.41),
            ),
        ),
    ),
    Task.OBB: _of_task(
        Task.OBB,
        "yolo26n-obb.pt",
        Detection(
            "ship", 1, 0.88, Box(103.35, 94.2, 196.65, 205.8),
            rotated_box=RotatedBox(150.0, 150.0, 100.0, 50.0, 60.0),
        ),
    ),
    Task.CLASSIFY: replace(
        _of_task(Task.CLASSIFY, "yolo26n-cls.pt"),
        classes=_SCORES,
        kept_classes=_SCORES[:1],
        zones=(),
    ),
}  # fmt: skip
_LARGE = replace(
    TASKS[Task.SEGMENT],
    detections_uri=f"gs://results/{'72e6a25e' * 5}-{'455f42aa' * 8}.json.gz",
    left_out=("polygons",),
    simplified_pixels=4.0,
    derived_error="Decoding the file took more than 30 s of CPU time.",
)


class Meaning(NamedTuple):
    """What a field means, and when it is null or absent. Empty: never."""

    text: str
    null: str = ""
    unit: str = ""


_PIXELS, _MILLISECONDS = "pixels", "ms"
_UNLESS_CLASSIFY = "absent unless `task` is `{}`"
_SEGMENT, _POSE, _OBB = map(_UNLESS_CLASSIFY.format, ("segment", "pose", "obb"))
_NONE_KEPT = "null if nothing was kept"
_NOT_RUN = "null if the model did not run"

# Each field by its path. Keys of `metadata`, `counts`, `counts_by_zone` and `best` are data.
MEANINGS: Mapping[str, Meaning] = {
    "schema": Meaning("Version of this schema: 2."),
    "uri": Meaning("Address of the object, without its generation."),
    "bucket": Meaning("Name of the bucket."),
    "name": Meaning("Name of the object."),
    "generation": Meaning(
        "Generation of the object. Each has its own document. 0 if Cloud Storage did not name it."
    ),
    "content_type": Meaning(
        "Content type as the uploader set it. It is not verified.", "null if not set"
    ),
    "size": Meaning("Size of the object.", "null if not reported", "bytes"),
    "md5": Meaning(
        "MD5 of the object, base64.", "null if not reported, absent if `crc32c` is there"
    ),
    "crc32c": Meaning("CRC32C of a composite object, base64.", "absent if the object has an MD5"),
    "metadata": Meaning(
        "The uploader's own metadata (`x-goog-meta-*`), at most 2,000 bytes. Keys are in lower "
        "case. Empty if there are none."
    ),
    "metadata_cut": Meaning(
        "Whether some of the metadata were left out: what exceeds the limit, keys over 700 bytes, "
        "and keys that Firestore does not allow."
    ),
    "status": Meaning("`done`, `failed` or `parked`. A document that is `parked` is not final."),
    "error": Meaning("Why the image failed or is parked.", "null if `done`"),
    "error.code": Meaning("One of the [error codes](error-codes.md)."),
    "error.message": Meaning("A sentence for a person: what was wrong."),
    "image": Meaning("The decoded image.", "null if it was not decoded"),
    "image.width": Meaning("Width of the upright image.", "", _PIXELS),
    "image.height": Meaning("Height of the upright image.", "", _PIXELS),
    "image.format": Meaning("Format of the file, for example `JPEG`."),
    "captured_at": Meaning("When the image was taken, by its EXIF data.", "null if not known"),
    "captured_at_source": Meaning(
        "How `captured_at` is known: `exif_offset` (the file has the UTC offset), "
        "`exif_with_source_timezone` (the offset is that of the source's time zone) or `none`."
    ),
    "camera": Meaning("The camera, by the EXIF data.", "null if the file names none"),
    "camera.make": Meaning("Its maker.", "null if not known"),
    "camera.model": Meaning("Its model.", "null if not known"),
    "camera.serial": Meaning("Its serial number.", "null if not known"),
    "location": Meaning(
        "Where the image was taken, by the EXIF data: latitude and longitude.",
        "null if the file has no position, or if the source has no `store_location: true`",
        "degrees",
    ),
    "task": Meaning(
        "The model's task: `detect`, `segment`, `pose`, `obb` or `classify`.", _NOT_RUN
    ),
    "model": Meaning("The model that ran.", _NOT_RUN),
    "model.name": Meaning("Name of the weights."),
    "model.sha256": Meaning(
        "SHA-256 of the weights (with the labels, if the export renamed any), hexadecimal."
    ),
    "model.image_size": Meaning("Longer side of the model's input.", "", _PIXELS),
    "model.precision": Meaning("`fp32`, `fp16` or `int8`."),
    "model.runtime": Meaning("Inference library and its version."),
    "model.version": Meaning("What the model's owner calls this version.", "null if not named"),
    "source": Meaning("The source whose settings were used."),
    "source.id": Meaning("Name of the source.", "null if no source matches"),
    "source.version": Meaning("When the sources were last changed.", "null without sources"),
    "detections": Meaning(
        "Detected objects that the source's settings keep, the most confident first. Empty for "
        "the task `classify`."
    ),
    "detections[].label": Meaning("Label of the class, exactly as the model has it."),
    "detections[].class_id": Meaning("Number of the class in the model, from 0."),
    "detections[].confidence": Meaning("Confidence, a multiple of 0.0001.", "", "0 to 1"),
    "detections[].box": Meaning("Bounding box. Its numbers are multiples of 0.01."),
    "detections[].box.x1": Meaning("Left edge.", "", _PIXELS),
    "detections[].box.y1": Meaning("Top edge.", "", _PIXELS),
    "detections[].box.x2": Meaning("Right edge.", "", _PIXELS),
    "detections[].box.y2": Meaning("Bottom edge.", "", _PIXELS),
    "detections[].zones": Meaning(
        "Names of the source's `include` zones that the detection is in."
    ),
    "detections[].polygons": Meaning(
        "The mask. A point is in the mask if it is inside an odd number of polygons, so a hole is "
        "a polygon of its own.",
        f"{_SEGMENT}, or if in `left_out`",
    ),
    "detections[].polygons[].points": Meaning("x1, y1, x2, y2, ...", "", _PIXELS),
    "detections[].area": Meaning(
        "Area of the mask.",
        f"{_SEGMENT}, null for a detection that was faint before",
        f"{_PIXELS}²",
    ),
    "detections[].keypoints": Meaning("Points of the pose.", f"{_POSE}, or if in `left_out`"),
    "detections[].keypoints[].name": Meaning("Name of the point, for example `nose`."),
    "detections[].keypoints[].x": Meaning("Position.", "", _PIXELS),
    "detections[].keypoints[].y": Meaning("Position.", "", _PIXELS),
    "detections[].keypoints[].confidence": Meaning("Confidence of the point.", "", "0 to 1"),
    "detections[].obb": Meaning(
        "Rotated box. `box` encloses it.", f"{_OBB}, or for a detection that was faint before"
    ),
    "detections[].obb.cx": Meaning("Centre.", "", _PIXELS),
    "detections[].obb.cy": Meaning("Centre.", "", _PIXELS),
    "detections[].obb.width": Meaning("Side along the x axis at angle 0.", "", _PIXELS),
    "detections[].obb.height": Meaning("Side along the y axis at angle 0.", "", _PIXELS),
    "detections[].obb.angle_degrees": Meaning("Clockwise angle, 0 to below 90.", "", "degrees"),
    "detections[].corners": Meaning(
        "Corners of the rotated box, anticlockwise: x1, y1, ..., x4, y4.",
        "absent if `obb` is",
        _PIXELS,
    ),
    "detections_uri": Meaning(
        "The object with all fields of the detections. See [Large results](#large-results).",
        "null if the document has them",
    ),
    "left_out": Meaning(
        "Fields that the elements of `detections` do not have, because the document would be too "
        "large: `polygons` or `keypoints`. Usually empty."
    ),
    "simplified_pixels": Meaning(
        "Tolerance to which the polygons were simplified, because the document would be too large.",
        "null if they were not",
        _PIXELS,
    ),
    "faint": Meaning(
        "The faint detections, packed. See [Faint detections](#faint-detections).",
        "null if the source has `keep_faint: false`, for `classify`, and if the model did not run",
    ),
    "faint_cut": Meaning(
        "Each detection with a higher confidence is in `detections` or `faint`. It is "
        "STORE_CONFIDENCE if all faint detections fit.",
        "null if `faint` is null",
        "0 to 1",
    ),
    "classes": Meaning("The 5 most confident classes, for the task `classify`. Otherwise empty."),
    "classes[].label": Meaning("Label of the class."),
    "classes[].class_id": Meaning("Number of the class in the model, from 0."),
    "classes[].confidence": Meaning("Confidence, a multiple of 0.0001.", "", "0 to 1"),
    "labels": Meaning(
        "Labels in `detections`, each once, sorted. For `classify`: the classes that the source's "
        "settings keep."
    ),
    "counts": Meaning("How often each of the `labels` was kept. The keys are the labels."),
    "counts_by_zone": Meaning(
        "The same for each `include` zone of the source. The keys are the names of the zones."
    ),
    "zone_labels": Meaning(
        "For each `include` zone with a detection: `ZONE`, and `ZONE/LABEL` for each of its labels."
    ),
    "best": Meaning("Highest confidence of each of the `labels`.", "", "0 to 1"),
    "found": Meaning(
        "Whether anything was kept: whether `labels` is not empty.", "null unless `done`"
    ),
    "num_detections": Meaning("Number of `detections`."),
    "top_label": Meaning("Label of the most confident detection or class.", _NONE_KEPT),
    "max_confidence": Meaning("Its confidence.", _NONE_KEPT, "0 to 1"),
    "uncertain_confidence": Meaning(
        "Confidence of the least confident detection or class that was kept.",
        _NONE_KEPT,
        "0 to 1",
    ),
    "batch_size": Meaning("Number of images in the batch. 0 if the model did not run."),
    "timings": Meaning("Time of each stage. 0 for a stage that was not reached."),
    "timings.download_ms": Meaning("Download from Cloud Storage.", "", _MILLISECONDS),
    "timings.decode_ms": Meaning("Decode, with its wait for a decoder.", "", _MILLISECONDS),
    "timings.queue_ms": Meaning("Wait for the model.", "", _MILLISECONDS),
    "timings.inference_ms": Meaning(
        "Inference. CPU: the image's own time. GPU: its share of the batch.", "", _MILLISECONDS
    ),
    "event_time": Meaning(
        "When the upload finished, as the event says.", "null if the event has no time"
    ),
    "day": Meaning(
        "Date of `captured_at`, otherwise of `event_time`, as `2026-11-21`. In the time zone of "
        "the source, otherwise in UTC.",
        "null if neither is known",
    ),
    "shard": Meaning("0 to 9, from the document's id. Queries by time use it."),
    "derived": Meaning(
        "The [derived images](../how-to/derived-images.md): objects in RESULTS_BUCKET that were "
        "made from the image."
    ),
    "derived_error": Meaning(
        "A sentence for a person: why a done image has no derived images, although its source asks "
        "for them. Then show nothing.",
        "null otherwise",
    ),
    "alerts": Meaning("The alerts of this image. Each has its [own document](alert.md)."),
    "alerts[].id": Meaning("Id of the alert's document."),
    "alerts[].rule": Meaning("Name of the rule."),
    "alerts[].severity": Meaning("`info`, `warning` or `critical`."),
    "created_at": Meaning("When Firestore created the document, by Firestore's clock."),
}
_NUMBERS = re.compile(r"\[\s+([-0-9.,\s]+)\]")  # an array of numbers
_DATA_KEYS = ("metadata", "counts", "counts_by_zone", "best")


# With a sample of an alert, which `devtools.docs.alerts` shows in full.
ALERTING = replace(
    DONE,
    alerts=(
        Alert(
            alert_id(DONE.ref.document_id, "night-visitor", "5f2c9a1be047"),
            "night-visitor",
            "5f2c9a1be047",
            Severity.CRITICAL,
            "1 person in zone gate, source cam1, 04:20 (Europe/Berlin)",
            {"person": 1},
            900,
        ),
    ),
)


def samples() -> list[dict[str, Any]]:
    """Return documents that together have every field. The store adds `created_at`."""
    results = (DONE, FAILED, _COMPOSITE, *TASKS.values(), _LARGE, ALERTING)
    return [to_document(result) | {"created_at": RECORDED_AT} for result in results]


def examples() -> str:
    """Return documents as JSON: of a failed image, and of one of each task."""
    done, failed, *_ = samples()
    parts = [
        f"An image that was processed, by a model of the task `detect`:\n\n{document_text(done)}",
        f"An image that failed:\n\n{document_text(failed)}",
    ]
    for task, result in TASKS.items():
        document = to_document(result)
        other = {key: value for key, value in document.items() if value != done[key]}
        text = document_text(other)
        parts.append(f"The task `{task}`. All other fields are as in the first one:\n\n{text}")
    return "\n\n".join(parts)


def field_types() -> dict[str, str]:
    """Return the type of each field, by its path.

    Raises:
        LookupError: MEANINGS has other fields than the documents.
    """
    types: dict[str, str] = {}
    for document in samples():
        for path, kind in _paths(document):
            if types.get(path) in (None, "array"):  # an empty array has no known elements
                types[path] = kind
    if set(types) != set(MEANINGS):
        differing = sorted(set(types) ^ set(MEANINGS))
        raise LookupError(
            f"devtools/docs/document.py: MEANINGS and the document differ: {differing}"
        )
    return types


def fields_table() -> str:
    """Return a table of the fields.

    Raises:
        LookupError: MEANINGS has other fields than the documents.
    """
    from devtools.bench.index_entries import deployed_indexes  # it imports the examples

    types = field_types()
    indexes = deployed_indexes()
    rows = [
        (code(path), types[path], each.unit, each.text, each.null, _indexed(path, indexes))
        for path, each in MEANINGS.items()
    ]
    return table(("field", "type", "unit", "meaning", "null or absent", "index"), rows)


def _indexed(path: str, indexes: "Indexes") -> str:
    """Return how queries can use a field: alone, or together with which other fields."""
    path = path.replace("[]", "")
    if indexes.modes(path):
        return "yes"
    shared = [[field for field, _ in index] for index in indexes.composite]
    shared = [fields for fields in shared if path in fields]
    if not shared:
        return ""
    begun = [fields for fields in shared if fields[0] == path] or [min(shared, key=len)]
    others = (codes(field for field in fields if field != path) for fields in begun)
    return " or ".join(f"with {each}" for each in dict.fromkeys(others))


def document_text(document: Mapping[str, Any]) -> str:
    """Return a document as JSON."""
    text = json.dumps(document, indent=2, ensure_ascii=False, default=_plain)
    return fence("json", _NUMBERS.sub(lambda match: "[" + " ".join(match[1].split()) + "]", text))


def _plain(value: Any) -> object:
    """Return a value as `yolo-batch results --json` prints it."""
    match value:
        case datetime():
            return value.isoformat().replace("+00:00", "Z")
        case bytes():
            return base64.b64encode(value).decode()
        case _:
            return asdict(value)


def _paths(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield each field's path and Firestore type, without the fields that are null."""
    for key, item in value.items():
        path = f"{prefix}{key}"
        if item is None:
            continue
        yield path, type_of(item)
        if path in _DATA_KEYS:
            continue
        if isinstance(item, dict):
            yield from _paths(item, f"{path}.")
        elif isinstance(item, list) and item and isinstance(item[0], dict):
            for element in item:
                yield from _paths(element, f"{path}[].")


def type_of(value: Any) -> str:
    """Return the Firestore type of a value."""
    match value:
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "number"
        case str():
            return "string"
        case bytes():
            return "bytes"
        case datetime():
            return "timestamp"
        case GeoPoint():
            return "geographical point"
        case []:
            return "array"
        case [first, *_]:
            return f"array of {type_of(first)}s"
        case _:
            return "map"
