"""The message on the results topic: what a document says, as one flat JSON object.

The fields are those of a BigQuery table (`devtools.docs.result_message` writes its schema). So
there are no maps with keys that are data, and no arrays in arrays. A field without a value is
absent, because BigQuery refuses null in a repeated column. Times are RFC 3339 in UTC, and dates are
`2026-11-21`. A BigQuery subscription converts both.
Source: https://cloud.google.com/pubsub/docs/bigquery#properties_subscription
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from service.domain import ImageRef
from service.errors import StoredResultError

_RESULT_STATUSES = ("done", "failed")  # of a final document
STATUS_DELETED = "deleted"  # of a message only. A removed document has no status.
DETECTIONS = "detections"  # in `left_out`, if the message has no detections
MAX_MESSAGE_BYTES = 2**20
_MAX_ATTRIBUTE_BYTES = 1024  # https://cloud.google.com/pubsub/quotas#resource_limits

_Time = Annotated[datetime, Meta(tz=True)]


class MetadataEntry(msgspec.Struct):
    """One entry of the uploader's own metadata."""

    key: Annotated[str, Meta(description="Name of the entry, in lower case.")]
    value: Annotated[str, Meta(description="Its value.")]


class Ring(msgspec.Struct):
    """One polygon of a mask."""

    points: Annotated[list[float], Meta(description="x1, y1, x2, y2, ... in pixels.")]


class Point(msgspec.Struct):
    """One keypoint of a pose."""

    name: Annotated[str, Meta(description="Name of the point, for example `nose`.")]
    x: Annotated[float, Meta(description="Position in pixels.")]
    y: Annotated[float, Meta(description="Position in pixels.")]
    confidence: Annotated[float, Meta(description="Confidence of the point, 0 to 1.")]


class Rotated(msgspec.Struct):
    """A rotated box."""

    cx: Annotated[float, Meta(description="Centre in pixels.")]
    cy: Annotated[float, Meta(description="Centre in pixels.")]
    width: Annotated[float, Meta(description="Side along the x axis at angle 0, in pixels.")]
    height: Annotated[float, Meta(description="The other side, in pixels.")]
    angle_degrees: Annotated[float, Meta(description="Clockwise angle, 0 to below 90 degrees.")]


class Found(msgspec.Struct, omit_defaults=True):
    """One detection. It has no empty arrays."""

    label: Annotated[str, Meta(description="Label of the class, exactly as the model has it.")]
    class_id: Annotated[int, Meta(description="Number of the class in the model, from 0.")]
    confidence: Annotated[float, Meta(description="Confidence, 0 to 1.")]
    x1: Annotated[float, Meta(description="Left edge of the box, in pixels of the upright image.")]
    y1: Annotated[float, Meta(description="Top edge of the box, in pixels.")]
    x2: Annotated[float, Meta(description="Right edge of the box, in pixels.")]
    y2: Annotated[float, Meta(description="Bottom edge of the box, in pixels.")]
    zones: Annotated[
        list[str], Meta(description="Names of the source's zones that the detection is in.")
    ] = []
    polygons: Annotated[
        list[Ring],
        Meta(
            description="The mask, for the task `segment`. A point is in the mask if it is inside "
            "an odd number of polygons."
        ),
    ] = []
    area: Annotated[
        float | UnsetType, Meta(description="Area of the mask in square pixels, for `segment`.")
    ] = UNSET
    keypoints: Annotated[
        list[Point], Meta(description="Points of the pose, for the task `pose`.")
    ] = []
    rotated_box: Annotated[
        Rotated | UnsetType, Meta(description="Rotated box, for the task `obb`.")
    ] = UNSET


class Class(msgspec.Struct):
    """One class of an image, for the task classify."""

    label: Annotated[str, Meta(description="Label of the class.")]
    class_id: Annotated[int, Meta(description="Number of the class in the model, from 0.")]
    confidence: Annotated[float, Meta(description="Confidence, 0 to 1.")]


class DerivedObject(msgspec.Struct):
    """One object in RESULTS_BUCKET that was made from the image."""

    kind: Annotated[str, Meta(description="What it is, for example `thumbnail` or `crop`.")]
    uri: Annotated[str, Meta(description="Address of the object.")]
    width: Annotated[int | UnsetType, Meta(description="Width in pixels, of an image.")] = UNSET
    height: Annotated[int | UnsetType, Meta(description="Height in pixels, of an image.")] = UNSET
    class_id: Annotated[int | UnsetType, Meta(description="Number of the class, of a `crop`.")] = (
        UNSET
    )


class RaisedAlert(msgspec.Struct):
    """One alert of the image."""

    id: Annotated[str, Meta(description="Id of the alert's document.")]
    rule: Annotated[str, Meta(description="Name of the rule.")]
    severity: Annotated[str, Meta(description="`info`, `warning` or `critical`.")]


class ResultMessage(msgspec.Struct):
    """The result of one image. The same result can be published more than once.

    Drop duplicates by `document_id`: the message with the newest `created_at` counts, and of those
    with the same time, the one with the newest `source_version`. After a message with the status
    `deleted`, no other message of the document counts.
    """

    document_id: Annotated[str, Meta(description="Id of the document: 40 hexadecimal digits.")]
    uri: Annotated[str, Meta(description="Address of the object, without its generation.")]
    bucket: Annotated[str, Meta(description="Name of the bucket.")]
    name: Annotated[str, Meta(description="Name of the object.")]
    generation: Annotated[
        int, Meta(description="Generation of the object. 0 if Cloud Storage did not name it.")
    ]
    status: Annotated[
        str, Meta(description="`done`, `failed`, or `deleted`: the document was removed.")
    ]
    created_at: Annotated[
        _Time,
        Meta(
            description="When Firestore created the document, or when it was removed, by "
            "Firestore's clock."
        ),
    ]
    schema: Annotated[int | UnsetType, Meta(description="Version of the document's schema.")] = (
        UNSET
    )
    event_time: Annotated[_Time | UnsetType, Meta(description="When the upload finished.")] = UNSET
    captured_at: Annotated[
        _Time | UnsetType,
        Meta(description="When the image was taken, by its EXIF data."),
    ] = UNSET
    day: Annotated[
        date | UnsetType,
        Meta(
            description="Date of `captured_at`, otherwise of `event_time`, in the time zone of the "
            "source."
        ),
    ] = UNSET
    error_code: Annotated[str | UnsetType, Meta(description="Why the image failed.")] = UNSET
    error_message: Annotated[
        str | UnsetType, Meta(description="A sentence for a person: what was wrong.")
    ] = UNSET
    content_type: Annotated[
        str | UnsetType, Meta(description="Content type as the uploader set it.")
    ] = UNSET
    size: Annotated[int | UnsetType, Meta(description="Size of the object in bytes.")] = UNSET
    metadata: Annotated[list[MetadataEntry], Meta(description="The uploader's own metadata.")] = []
    image_width: Annotated[
        int | UnsetType, Meta(description="Width of the upright image in pixels.")
    ] = UNSET
    image_height: Annotated[
        int | UnsetType, Meta(description="Height of the upright image in pixels.")
    ] = UNSET
    image_format: Annotated[
        str | UnsetType, Meta(description="Format of the file, for example `JPEG`.")
    ] = UNSET
    camera_make: Annotated[str | UnsetType, Meta(description="Maker of the camera.")] = UNSET
    camera_model: Annotated[str | UnsetType, Meta(description="Model of the camera.")] = UNSET
    camera_serial: Annotated[str | UnsetType, Meta(description="Serial number of the camera.")] = (
        UNSET
    )
    latitude: Annotated[
        float | UnsetType, Meta(description="Where the image was taken, in degrees north.")
    ] = UNSET
    longitude: Annotated[
        float | UnsetType, Meta(description="Where the image was taken, in degrees east.")
    ] = UNSET
    source_id: Annotated[str | UnsetType, Meta(description="Name of the source.")] = UNSET
    source_version: Annotated[
        _Time | UnsetType, Meta(description="When the sources were last changed.")
    ] = UNSET
    task: Annotated[
        str | UnsetType,
        Meta(description="The model's task: `detect`, `segment`, `pose`, `obb` or `classify`."),
    ] = UNSET
    model_name: Annotated[str | UnsetType, Meta(description="Name of the weights.")] = UNSET
    model_sha256: Annotated[str | UnsetType, Meta(description="SHA-256 of the weights.")] = UNSET
    model_version: Annotated[
        str | UnsetType, Meta(description="What the model's owner calls this version.")
    ] = UNSET
    labels: Annotated[list[str], Meta(description="Labels that were kept, each once, sorted.")] = []
    num_detections: Annotated[
        int | UnsetType, Meta(description="Number of detections that were kept.")
    ] = UNSET
    top_label: Annotated[
        str | UnsetType, Meta(description="Label of the most confident detection or class.")
    ] = UNSET
    max_confidence: Annotated[float | UnsetType, Meta(description="Its confidence, 0 to 1.")] = (
        UNSET
    )
    detections: Annotated[
        list[Found],
        Meta(
            description="The detections that were kept, the most confident first. Empty for the "
            "task `classify`, and if the message would be larger than 1 MiB."
        ),
    ] = []
    classes: Annotated[
        list[Class],
        Meta(description="The 5 most confident classes, for the task `classify`."),
    ] = []
    detections_uri: Annotated[
        str | UnsetType,
        Meta(description="The object with all fields of the detections of a large result."),
    ] = UNSET
    left_out: Annotated[
        list[str],
        Meta(
            description="What the message lacks because it would be too large: `detections`, or "
            "their field `polygons` or `keypoints`."
        ),
    ] = []
    derived: Annotated[
        list[DerivedObject], Meta(description="Objects that were made from the image.")
    ] = []
    alerts: Annotated[list[RaisedAlert], Meta(description="The alerts of the image.")] = []


@dataclass(frozen=True)
class EncodedMessage:
    """A message as it is published."""

    data: bytes  # JSON, UTF-8
    attributes: Mapping[str, str]  # for the filters of subscriptions


def message_of(document_id: str, document: Mapping[str, Any]) -> EncodedMessage:
    """Return the message of a final document.

    Args:
        document_id: the document's id.
        document: its fields, with `created_at`, as written or as read from Firestore.

    Raises:
        StoredResultError: a field has another type. A person may have edited it.
    """
    try:
        message = msgspec.convert(_fields(document_id, document), ResultMessage)
        if message.status not in _RESULT_STATUSES:
            raise ValueError(f"{message.status!r} is not the status of a result")
        data = msgspec.json.encode(message)
        if len(data) > MAX_MESSAGE_BYTES:
            message.detections = []
            message.left_out = [*message.left_out, DETECTIONS]
            data = msgspec.json.encode(message)
    except (
        msgspec.ValidationError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
    ) as exc:
        raise StoredResultError(
            f"The document has another form than the service writes: {exc}"
        ) from exc
    return EncodedMessage(data, _attributes(message))


def deletion_message(document_id: str, ref: ImageRef, deleted_at: datetime) -> EncodedMessage:
    """Return the message of an image whose document was removed.

    Args:
        document_id: the document's id.
        ref: the image. Without a generation, the document named none.
        deleted_at: when it was removed, by Firestore's clock.
    """
    message = ResultMessage(
        document_id=document_id,
        uri=ref.uri,
        bucket=ref.bucket,
        name=ref.name,
        generation=ref.generation or 0,
        status=STATUS_DELETED,
        created_at=_time(deleted_at),
    )
    return EncodedMessage(msgspec.json.encode(message), _attributes(message))


def _fields(document_id: str, document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a message that have a value."""
    error, image, camera, model, source = (
        document.get(key) or {} for key in ("error", "image", "camera", "model", "source")
    )
    place = document.get("location")
    same = {
        key: document.get(key)
        for key in ResultMessage.__struct_fields__
        if key not in ("metadata", "detections", "derived")
    }
    times = ("created_at", "event_time", "captured_at")
    return _present(
        same
        | {key: _time(document.get(key)) for key in times}
        | {
            "document_id": document_id,
            "error_code": error.get("code"),
            "error_message": error.get("message"),
            # Firestore does not keep the order of a map, and a repeat must be the same message.
            "metadata": [
                {"key": key, "value": value}
                for key, value in sorted((document.get("metadata") or {}).items())
            ],
            "image_width": image.get("width"),
            "image_height": image.get("height"),
            "image_format": image.get("format"),
            "camera_make": camera.get("make"),
            "camera_model": camera.get("model"),
            "camera_serial": camera.get("serial"),
            "latitude": place.latitude if place else None,
            "longitude": place.longitude if place else None,
            "source_id": source.get("id"),
            "source_version": _time(source.get("version")),
            "model_name": model.get("name"),
            "model_sha256": model.get("sha256"),
            "model_version": model.get("version"),
            "detections": [_detection(item) for item in document.get("detections") or ()],
            "derived": [_present(item) for item in document.get("derived") or ()],
        }
    )


def _detection(item: Mapping[str, Any]) -> dict[str, Any]:
    return _present(item | item["box"] | {"rotated_box": item.get("obb")})


def _present(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if value is not None}


def _time(value: Any) -> Any:
    """Return a time of Firestore's library as a plain time in UTC, and other values unchanged."""
    if not isinstance(value, datetime):
        return value
    return datetime.combine(value.date(), value.time(), value.tzinfo).astimezone(UTC)


def _attributes(message: ResultMessage) -> dict[str, str]:
    """Return the attributes. A label that is too long for Pub/Sub is left out."""
    values = {
        "status": message.status,
        "task": message.task,
        "source": message.source_id,
        "top_label": message.top_label,
    }
    return {
        key: value
        for key, value in values.items()
        if isinstance(value, str) and len(value.encode()) <= _MAX_ATTRIBUTE_BYTES
    }
