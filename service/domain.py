"""The types that every part shares: image references, detections, results and outcomes."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from enum import StrEnum
from typing import Any

SCHEMA = 2  # version of the documents that this service writes


@dataclass(frozen=True)
class ObjectMetadata:
    """What Cloud Storage reports about one generation. None: not reported."""

    size: int | None = None  # bytes
    content_type: str | None = None
    md5: str | None = None  # base64. Composite objects have none.
    crc32c: str | None = None  # base64
    created_at: datetime | None = None  # when this generation was created
    custom: Mapping[str, str] | None = None  # the uploader's own metadata (`x-goog-meta-*`)
    is_custom_cut: bool = False  # whether some of the uploader's metadata were left out


@dataclass(frozen=True)
class Replace:
    """Permission to replace an image's old document, unless it is current.

    A document is current if a given model wrote it, in this service's schema. A redelivered message
    does not replace the document again, because the new document is younger than
    `if_created_before`. That holds even if an older revision, with another schema, wrote it.
    """

    if_created_before: datetime  # by Firestore's clock
    # sha256. A document by this model and of this service's schema is kept. None: any document may
    # be replaced.
    unless_model: str | None = None

    def replaces(self, created_at: datetime, model: str | None, schema: int | None) -> bool:
        """Return whether a document with this creation time, model and schema may be replaced."""
        is_old = created_at <= self.if_created_before
        return is_old and (
            self.unless_model is None or not is_current(model, schema, self.unless_model)
        )


def is_current(model: str | None, schema: int | None, deployed: str) -> bool:
    """Return whether a document is by the deployed model, and of this service's schema.

    Args:
        model: sha256 of the document's model.
        schema: the document's schema. None: it has none.
        deployed: sha256 of the deployed model.
    """
    return model == deployed and schema == SCHEMA


# Where gsutil and gcloud put the temporary parts of composite uploads.
_COMPOSITE_PARTS = (
    "/gsutil/tmp/parallel_composite_uploads/",
    "/gcloud/tmp/parallel_composite_uploads/",
)


@dataclass(frozen=True)
class ImageRef:
    """One image: one generation of one object. `generation` is None for the live generation."""

    bucket: str
    name: str
    generation: int | None = None
    metadata: ObjectMetadata = field(default_factory=ObjectMetadata, compare=False)
    replace: Replace | None = field(default=None, compare=False)  # None: never replace a document

    @property
    def uri(self) -> str:
        """`gs://bucket/name`, without the generation."""
        return f"gs://{self.bucket}/{self.name}"

    @property
    def is_ignorable(self) -> bool:
        """Whether the object is a folder marker or a part of a composite upload, not an image."""
        return self.name.endswith("/") or any(part in f"/{self.name}" for part in _COMPOSITE_PARTS)

    @property
    def document_id(self) -> str:
        """Id of the image's document: 40 hexadecimal digits, the same for every delivery.

        A hash, because object names contain `/`, and because ids that sort next to each other
        cause hot spots in Firestore: https://firebase.google.com/docs/firestore/best-practices

        Raises:
            ValueError: the generation is not known yet.
        """
        if self.generation is None:
            raise ValueError(f"{self.uri} has no generation yet, so it has no document id")
        key = f"{self.uri}#{self.generation}"
        return hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()[:40]


@dataclass(frozen=True)
class Download:
    """An object's bytes as stored, and the metadata that came with them."""

    data: bytes
    metadata: ObjectMetadata
    content_encoding: str | None = None  # for example `gzip`: `data` is compressed


@dataclass(frozen=True)
class Event:
    """What one request asks for: one image, or the reason why there is none."""

    ref: ImageRef | None = None  # None: nothing to do, for the reason in `ignored`
    event_time: datetime | None = None
    ignored: str | None = None
    is_job: bool = False  # a job, not the notification of an upload
    is_deletion: bool = False  # the notification that this generation was deleted
    # Of a deletion: whether a newer generation overwrote this one. None: not reported.
    is_overwritten: bool | None = None
    delivery_attempt: int | None = None  # counts from 1. None: not reported


@dataclass(frozen=True)
class Box:
    """Top-left (x1, y1) and bottom-right (x2, y2) corner, in pixels of the full upright image."""

    x1: float
    y1: float
    x2: float
    y2: float


class Task(StrEnum):
    """What a model does, as ultralytics names it."""

    DETECT = "detect"
    SEGMENT = "segment"
    POSE = "pose"
    OBB = "obb"
    CLASSIFY = "classify"


@dataclass(frozen=True)
class Polygon:
    """One ring of a mask: x1, y1, x2, y2, ... in pixels of the full upright image.

    A point is inside of the mask if it is inside of an odd number of rings (even-odd rule). So a
    hole is a ring of its own.
    """

    points: tuple[float, ...]


UNKNOWN_CLASS = -1  # `class_id` of an object whose class the model does not have
# A keypoint with a lower confidence is probably hidden or outside of the image.
MIN_KEYPOINT_CONFIDENCE = 0.5


@dataclass(frozen=True)
class Keypoint:
    """One point of a pose, in pixels of the full upright image. `confidence` is in [0, 1]."""

    name: str
    x: float
    y: float
    confidence: float


@dataclass(frozen=True)
class RotatedBox:
    """A box turned by `angle_degrees`, in [0, 90), clockwise as seen in the image.

    Centre and sides are in pixels of the full upright image. `width` is the side that lies along
    the x axis at angle 0.
    """

    cx: float
    cy: float
    width: float
    height: float
    angle_degrees: float

    @property
    def corners(self) -> tuple[float, ...]:
        """The four corners, anticlockwise as seen in the image: x1, y1, ..., x4, y4, in pixels.

        As `xywhr2xyxyxyxy` in ultralytics 8.4 (utils/ops.py).
        """
        angle = math.radians(self.angle_degrees)
        along_x = self.width / 2 * math.cos(angle), self.width / 2 * math.sin(angle)
        along_y = -self.height / 2 * math.sin(angle), self.height / 2 * math.cos(angle)
        signs = ((1, 1), (1, -1), (-1, -1), (-1, 1))
        return tuple(
            center + a * along_width + b * along_height
            for a, b in signs
            for center, along_width, along_height in zip(
                (self.cx, self.cy), along_x, along_y, strict=True
            )
        )


@dataclass(frozen=True)
class Detection:
    """One object found in an image. `confidence` is in [0, 1].

    `polygons` and `area` (pixels) are for the task segment, `keypoints` for pose, and
    `rotated_box` for obb. `box` encloses the rotated box.
    """

    label: str
    class_id: int
    confidence: float
    box: Box
    polygons: tuple[Polygon, ...] = ()
    area: float | None = None
    keypoints: tuple[Keypoint, ...] = ()
    rotated_box: RotatedBox | None = None
    zones: tuple[str, ...] = ()  # names of the source's zones that the detection is in


@dataclass(frozen=True)
class ClassScore:
    """One class of an image, for the task classify. `confidence` is in [0, 1]."""

    label: str
    class_id: int
    confidence: float


@dataclass(frozen=True)
class Prediction:
    """What a model finds in one image, the most confident first.

    `classes` has the 5 most confident classes for the task classify, which has no detections.
    `unusable` has what is no detection, because its mask is empty, one of its numbers is NaN or
    infinite, or its class id is impossible. It is in no document, but it is redacted. It has only a
    box, which may be NaN, and a class, which may be `UNKNOWN_CLASS`.
    """

    detections: tuple[Detection, ...] = ()
    classes: tuple[ClassScore, ...] = ()
    unusable: tuple[Detection, ...] = ()


@dataclass(frozen=True)
class GeoPoint:
    """A place: latitude and longitude in degrees. South and west are negative."""

    latitude: float
    longitude: float


@dataclass(frozen=True)
class Camera:
    """The camera that took an image, as the file's EXIF data state it."""

    make: str | None = None
    model: str | None = None
    serial: str | None = None


MAX_UTC_OFFSET = timedelta(hours=14)  # the largest difference to UTC that any place has


@dataclass(frozen=True)
class Capture:
    """What a file's EXIF data state about when, where and with what the image was taken.

    The data are untrusted. `local_time` has no time zone. Cameras write their local time.
    """

    local_time: datetime | None = None
    utc_offset: timedelta | None = None
    camera: Camera | None = None
    location: GeoPoint | None = None


class CapturedAtSource(StrEnum):
    """How the time at which an image was taken is known."""

    EXIF_OFFSET = "exif_offset"  # the file's EXIF data have the UTC offset
    EXIF_WITH_SOURCE_TIMEZONE = "exif_with_source_timezone"  # the offset is that of the source
    NONE = "none"  # it is not known


@dataclass(frozen=True)
class SourceVersion:
    """The source, and its version, whose settings a result was made with.

    `id` is None if no source matches. `version` is when Firestore last changed the sources, or None
    if there are no sources.
    """

    id: str | None = None
    version: datetime | None = None


@dataclass(frozen=True)
class ImageInfo:
    """Size of the full upright image in pixels, and its format (`JPEG`, `PNG`, ...)."""

    width: int
    height: int
    format: str


@dataclass(frozen=True)
class ModelInfo:
    """The identity of a model, as documents record it.

    `sha256` identifies the weights, and the labels if they were renamed. `image_size` is the longer
    side of the input, in pixels. `precision` is `fp32`, `fp16`, `int8` or `unknown`. `runtime` is
    the library that runs the model, and its version. `version` is what its owner calls this
    version of the model.
    """

    name: str
    sha256: str
    image_size: int
    precision: str
    runtime: str
    task: Task = Task.DETECT
    version: str | None = None


class ErrorCode(StrEnum):
    """Why an image failed or is parked, as written in its document."""

    EMPTY_OBJECT = "empty_object"
    UNSUPPORTED_MEDIA = "unsupported_media"
    CORRUPT_IMAGE = "corrupt_image"
    IMAGE_TOO_LARGE = "image_too_large"
    UNREADABLE_OBJECT = "unreadable_object"
    UNSTORABLE_RESULT = "unstorable_result"
    DAILY_IMAGE_LIMIT = "daily_image_limit"  # the image is parked

    @property
    def is_caused_by_bytes(self) -> bool:
        """Whether the object's bytes are the cause: another attempt would fail in the same way."""
        return self not in (
            ErrorCode.UNREADABLE_OBJECT,
            ErrorCode.UNSTORABLE_RESULT,
            ErrorCode.DAILY_IMAGE_LIMIT,
        )

    @property
    def description(self) -> str:
        """What the code means, in sentences."""
        return _EXPLANATIONS[self][0]

    @property
    def remedy(self) -> str:
        """What a person can do about it, in sentences."""
        return _EXPLANATIONS[self][1]


_EXPLANATIONS = {  # code: description, remedy
    ErrorCode.EMPTY_OBJECT: (
        "The object has no bytes.",
        "Upload the image again.",
    ),
    ErrorCode.UNSUPPORTED_MEDIA: (
        "The object is not an image, or its format or variant is not supported. The file itself "
        "may be intact.",
        "Convert the image to a supported format, for example JPEG or PNG, and upload it again.",
    ),
    ErrorCode.CORRUPT_IMAGE: (
        "The file is damaged or incomplete, or decoding it crashed or exceeded a limit on CPU "
        "time, wall time or memory.",
        "Check the original file, and upload it again.",
    ),
    ErrorCode.IMAGE_TOO_LARGE: (
        "The object has more than MAX_IMAGE_BYTES bytes, or the image has more than "
        "MAX_IMAGE_PIXELS pixels or a side longer than its format may have.",
        "Upload a smaller image. Or raise the limit that the message names, give the instance the "
        "memory for it, and run `yolo-batch reconcile --enqueue failed`.",
    ),
    ErrorCode.UNREADABLE_OBJECT: (
        "Cloud Storage denies access to this object, but not to its bucket. Possible causes are "
        "the object's encryption key, its ACL, an IAM condition, Requester Pays and legal reasons.",
        "Repair what the message names. Then run `yolo-batch reconcile --enqueue failed`.",
    ),
    ErrorCode.UNSTORABLE_RESULT: (
        "Firestore refuses the document of the result, for example because it is larger than "
        "1 MiB. Other images of the same commit are not affected.",
        "Read the message. If the image has too many detections, raise MIN_CONFIDENCE. Then run "
        "`yolo-batch reconcile --enqueue failed`.",
    ),
    ErrorCode.DAILY_IMAGE_LIMIT: (
        "The image is parked: `status` is `parked`, not `failed`. The day's limit "
        "(DAILY_IMAGE_LIMIT) was reached, so the image was not downloaded.",
        "Nothing: the nightly reconcile job continues it on another day. To continue now, raise "
        "the limit, and run `yolo-batch reconcile --enqueue parked`.",
    ),
}


@dataclass(frozen=True)
class Failure:
    """Why an image failed or is parked, for a person to act on."""

    code: ErrorCode
    message: str

    @property
    def is_parked(self) -> bool:
        """Whether the image is not failed, but parked: its document is not final."""
        return self.code is ErrorCode.DAILY_IMAGE_LIMIT


@dataclass(frozen=True)
class Timings:
    """How long each step of an image took, in milliseconds.

    On a CPU, `inference_ms` is the image's own time. On a GPU, it is the batch's time divided by
    the number of images in the batch.
    """

    download_ms: float = 0.0
    decode_ms: float = 0.0
    queue_ms: float = 0.0
    inference_ms: float = 0.0


class DerivedKind(StrEnum):
    """What an object in RESULTS_BUCKET that was made from an image is."""

    THUMBNAIL = "thumbnail"
    ANNOTATED = "annotated"  # with its detections drawn on it
    CROP = "crop"  # one detection
    REDACTED = "redacted"  # some labels are made unrecognisable
    NORMALIZED = "normalized"  # upright RGB of a limited size, for a training set
    LABELS = "labels"  # the YOLO label file of the normalized image


@dataclass(frozen=True)
class DerivedImage:
    """An object in RESULTS_BUCKET that was made from an image.

    `width` and `height` are in pixels. A label file has none. `class_id` is that of a crop. `uri`
    is None until the object is created.
    """

    kind: DerivedKind
    data: bytes = field(repr=False)
    content_type: str
    width: int | None = None
    height: int | None = None
    class_id: int | None = None
    uri: str | None = None


@dataclass(frozen=True)
class ResultObject:
    """The content of an object in RESULTS_BUCKET that belongs to an image's document.

    `name` is the document's id, `-`, and a name that contains a hash of the content.
    """

    name: str
    data: bytes = field(repr=False)
    content_type: str


class Severity(StrEnum):
    """How urgent an alert is. The names are those of log severities."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"


class AlertState(StrEnum):
    """Whether an alert is published."""

    PENDING = "pending"  # not decided yet
    PUBLISHED = "published"  # its message is published, or will be by a redelivery
    SUPPRESSED = "suppressed"  # it is within the cooldown of an earlier alert


@dataclass(frozen=True)
class Alert:
    """One rule of a source that matched one image. `id` is the alert document's id.

    It stands for one rule, in one version of the rule, and one image. So each delivery of the
    image has the same id.
    """

    id: str
    rule: str
    rule_version: str
    severity: Severity
    text: str  # a sentence for a person
    labels: Mapping[str, int]  # how many detections matched, by label
    cooldown_seconds: int
    state: AlertState = AlertState.PENDING
    suppressed_by: str | None = None  # id of the alert whose cooldown suppresses it


@dataclass(frozen=True)
class StoredAlert:
    """An alert as its own document has it."""

    id: str
    source_id: str
    rule: str
    cooldown_seconds: int
    state: AlertState
    suppressed_by: str | None  # id of the alert whose cooldown suppresses it
    previous_alert: str | None  # id of the rule's alert that was published before it
    published_at: datetime | None  # when the message was confirmed, by Firestore's clock
    fields: Mapping[str, Any]  # all fields of the document


@dataclass(frozen=True)
class LastAlert:
    """The alert of a rule that was published last. Its age is by Firestore's clock."""

    id: str
    age_seconds: float


@dataclass(frozen=True)
class ListedAlert:
    """An alert as the document of its image lists it. `id` is the alert document's id."""

    id: str
    rule: str
    severity: str


@dataclass(frozen=True)
class ImageResult:
    """The result of one image: its detections, its failure, or why it is parked.

    All detections and classes are sorted, the most confident first.
    """

    ref: ImageRef
    failure: Failure | None = None
    image_info: ImageInfo | None = None
    model: ModelInfo | None = None
    detections: tuple[Detection, ...] = ()  # those that the source's settings keep
    faint: tuple[Detection, ...] | None = None  # the other detections. None: not recorded.
    unusable: tuple[Detection, ...] = ()  # see `Prediction`. It is redacted, but not recorded.
    classes: tuple[ClassScore, ...] = ()  # the most confident classes, for the task classify
    kept_classes: tuple[ClassScore, ...] = ()  # those that the source's settings keep
    captured_at: datetime | None = None
    captured_at_source: CapturedAtSource = CapturedAtSource.NONE
    camera: Camera | None = None
    location: GeoPoint | None = None
    # Date of `captured_at`, otherwise of `event_time`, in the source's time zone, otherwise in UTC.
    day: date | None = None
    source: SourceVersion = SourceVersion()
    zones: tuple[str, ...] = ()  # names of the source's zones that count
    batch_size: int = 0  # number of images in its batch. 0: it was not inferred.
    timings: Timings = field(default_factory=Timings)
    event_time: datetime | None = None
    store_confidence: float = 0.05  # detections with a lower confidence are not recorded
    # How the detections were made to fit into a document (service.gcp.large_results).
    detections_uri: str | None = None  # the object that has all of the detections' fields
    left_out: tuple[str, ...] = ()  # the detections' fields that the document does not have
    simplified_pixels: float | None = None  # tolerance of the polygons. None: they are unchanged.
    derived: tuple[DerivedImage, ...] = ()
    derived_error: str | None = None  # why there are no derived images
    alerts: tuple[Alert, ...] = ()
    # Alerts of the image that have their documents already. The commit does not create them.
    earlier_alerts: tuple[ListedAlert, ...] = ()

    @property
    def object_uris(self) -> frozenset[str]:
        """The objects in RESULTS_BUCKET that the document refers to."""
        large = {self.detections_uri} if self.detections_uri else set()
        return frozenset(large | {image.uri for image in self.derived if image.uri})


@dataclass(frozen=True)
class PreparedResult:
    """A result whose objects in RESULTS_BUCKET exist. So its document can refer to them."""

    result: ImageResult
    # Those that existed already, by URI: another delivery of the image created them.
    found: Mapping[str, ResultObject] = field(default_factory=dict)


@dataclass(frozen=True)
class StoredDocument:
    """The fields of a document that a later commit needs, for example to replace it."""

    status: str
    model: str | None  # sha256 of the model. A failed image has none.
    created_at: datetime
    update_time: datetime  # set by Firestore. A replacement requires that it is unchanged.
    timings: Mapping[str, float] | None = None  # identify the delivery that wrote the document
    schema: int | None = None
    object_uris: frozenset[str] = frozenset()  # the objects in RESULTS_BUCKET that it refers to
    alerts: tuple[ListedAlert, ...] = ()


@dataclass(frozen=True)
class StoredDocuments:
    """Documents by id, and when they were read, by Firestore's clock."""

    by_id: Mapping[str, StoredDocument]
    read_at: datetime


@dataclass(frozen=True)
class StoredImage:
    """An image that has a document. `ref` has no generation if the document names none."""

    document_id: str
    ref: ImageRef
    created_at: datetime  # of the document, by Firestore's clock
    object_uris: frozenset[str] = frozenset()  # the objects in RESULTS_BUCKET that it refers to


class Outcome(StrEnum):
    """How the image of a request ended. Each outcome acknowledges the message."""

    DONE = "done"  # the image's detections were committed
    FAILED = "failed"  # the image's failure was committed
    PARKED = "parked"  # the day's limit is reached: a document that is not final was committed
    ALREADY_RECORDED = "already_recorded"  # the image had a final document, which is kept
    SUPERSEDED = "superseded"  # another delivery committed the image's document first
    GONE = "gone"  # the image's generation was overwritten or deleted
    DISABLED = "disabled"  # the image's source is disabled: nothing was recorded
    DELETED = "deleted"  # the image's object was deleted, and so was its result
    IGNORED = "ignored"  # the request names no image, or a deletion that removes no result
    BUCKET_NOT_ALLOWED = "bucket_not_allowed"  # the image's bucket is not in ALLOWED_BUCKETS


@dataclass(frozen=True)
class CommittedResult:
    """A result whose image has its document: a final one, or that of a parked image."""

    result: ImageResult  # as recorded: a failed result if Firestore refuses the original document
    is_superseded: bool = False  # another delivery's document exists: nothing was written
    # Objects in RESULTS_BUCKET that no document refers to any more.
    unused_uris: frozenset[str] = frozenset()
    # When the document was created, by Firestore's clock. None: this attempt did not write it.
    created_at: datetime | None = field(default=None, compare=False)

    @property
    def outcome(self) -> Outcome:
        """How the image of the result ended."""
        if self.is_superseded:
            return Outcome.SUPERSEDED
        if not self.result.failure:
            return Outcome.DONE
        return Outcome.PARKED if self.result.failure.is_parked else Outcome.FAILED
