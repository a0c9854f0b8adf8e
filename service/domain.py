"""The words of the domain: what arrives, what is detected, what is recorded."""

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum


@dataclass(frozen=True)
class ObjectMetadata:
    """What Cloud Storage says of one generation; None where it did not say."""

    size: int | None = None  # bytes
    content_type: str | None = None
    md5: str | None = None  # base64; composite objects have none
    crc32c: str | None = None  # base64
    created_at: datetime | None = None  # of this generation


@dataclass(frozen=True)
class Replace:
    """Permission to replace a document: an old one, or one by another model.

    The same message replaces a document once: what it writes is younger than `if_created_before`.
    """

    if_created_before: datetime  # by Firestore's clock
    unless_model: str | None = None  # sha256; a document by this model stays; None: by any model

    def replaces(self, created_at: datetime, model: str | None) -> bool:
        """Return whether a document of this age, by the model of this sha256, may be replaced."""
        is_old = created_at <= self.if_created_before
        return is_old and (self.unless_model is None or model != self.unless_model)


# Temporary parts of composite uploads: gsutil's and gcloud's own names for them.
_COMPOSITE_PARTS = (
    "/gsutil/tmp/parallel_composite_uploads/",
    "/gcloud/tmp/parallel_composite_uploads/",
)


@dataclass(frozen=True)
class ImageRef:
    """One image: one generation of one object. Without a generation it means the live one."""

    bucket: str
    name: str
    generation: int | None = None
    metadata: ObjectMetadata = field(default_factory=ObjectMetadata, compare=False)
    replace: Replace | None = field(default=None, compare=False)  # None: its document is final

    @property
    def uri(self) -> str:
        """`gs://bucket/name`, without the generation."""
        return f"gs://{self.bucket}/{self.name}"

    @property
    def is_ignorable(self) -> bool:
        """Whether it is not a user's image: a folder marker or a composite upload's part."""
        return self.name.endswith("/") or any(part in f"/{self.name}" for part in _COMPOSITE_PARTS)

    @property
    def document_id(self) -> str:
        """Name of the image's document: the same for every delivery, and not sequential.

        A hash, because object names hold `/` and share prefixes, and sequential ids make hot
        spots in Firestore.

        Raises:
            ValueError: the generation is not known yet.
        """
        if self.generation is None:
            raise ValueError(f"{self.uri} has no generation yet, so it has no document id")
        key = f"{self.uri}#{self.generation}"
        return hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()[:40]


@dataclass(frozen=True)
class Download:
    """An object's bytes as they are stored, and what the storage says of them."""

    data: bytes
    metadata: ObjectMetadata
    content_encoding: str | None = None  # such as `gzip`: what is stored is compressed


@dataclass(frozen=True)
class Event:
    """What one request asks for: one image to detect, or the reason why there is none."""

    ref: ImageRef | None = None  # None: nothing to do, and `ignored` says why
    event_time: datetime | None = None
    ignored: str | None = None
    is_job: bool = False  # it came in job form, not as an upload's notification
    delivery_attempt: int | None = None  # from 1; None where the push does not count


@dataclass(frozen=True)
class Box:
    """Corners in pixels of the upright image."""

    x1: float
    y1: float
    x2: float
    y2: float


@dataclass(frozen=True)
class Detection:
    """One object found in an image. `confidence` is in [0, 1]."""

    label: str
    class_id: int
    confidence: float
    box: Box


@dataclass(frozen=True)
class ImageInfo:
    """The decoded image: upright size in pixels, and format (`JPEG`, `PNG`, ...)."""

    width: int
    height: int
    format: str


@dataclass(frozen=True)
class ModelInfo:
    """Which model this is. `image_size` is the longer side that it sees, in pixels."""

    name: str
    sha256: str
    image_size: int
    precision: str
    runtime: str


class ErrorCode(StrEnum):
    """Why an image failed, as written in its document."""

    EMPTY_OBJECT = "empty_object"
    UNSUPPORTED_MEDIA = "unsupported_media"
    CORRUPT_IMAGE = "corrupt_image"
    IMAGE_TOO_LARGE = "image_too_large"
    UNREADABLE_OBJECT = "unreadable_object"
    UNSTORABLE_RESULT = "unstorable_result"

    @property
    def is_caused_by_bytes(self) -> bool:
        """Whether the object's bytes are the cause: another attempt would fail in the same way."""
        return self not in (ErrorCode.UNREADABLE_OBJECT, ErrorCode.UNSTORABLE_RESULT)

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
        "Cloud Storage denies access to this object, but not to its bucket. Causes are the "
        "object's encryption key, its ACL, an IAM condition, Requester Pays or legal reasons.",
        "Repair what the message names. Then run `yolo-batch reconcile --enqueue failed`.",
    ),
    ErrorCode.UNSTORABLE_RESULT: (
        "Firestore rejects the document of the result, for example because it is larger than "
        "1 MiB. Other images of the same commit are not affected.",
        "Read the message. If the image has too many detections, raise MIN_CONFIDENCE. Then run "
        "`yolo-batch reconcile --enqueue failed`.",
    ),
}


@dataclass(frozen=True)
class Failure:
    """The reason of a failed image, for a person to act on."""

    code: ErrorCode
    message: str


@dataclass(frozen=True)
class Timings:
    """Where an image's time went, in milliseconds.

    `inference_ms` is the image's own time on a CPU, and its share of the batch's time on a GPU.
    """

    download_ms: float = 0.0
    decode_ms: float = 0.0
    queue_ms: float = 0.0
    inference_ms: float = 0.0


@dataclass(frozen=True)
class ImageResult:
    """The final record of one image: its detections, or its failure."""

    ref: ImageRef
    failure: Failure | None = None
    image_info: ImageInfo | None = None
    model: ModelInfo | None = None
    detections: tuple[Detection, ...] = ()
    batch_size: int = 0
    timings: Timings = field(default_factory=Timings)
    event_time: datetime | None = None

    @property
    def counts(self) -> dict[str, int]:
        """Detections by label, labels sorted."""
        return dict(sorted(Counter(found.label for found in self.detections).items()))


@dataclass(frozen=True)
class StoredDocument:
    """What stands in a document, as far as it decides about a replacement."""

    status: str
    model: str | None  # sha256; a failed image has none
    created_at: datetime
    update_time: datetime  # Firestore's own, for the precondition of a replacement
    timings: Mapping[str, float] | None = None  # as written: they tell whose result it is


@dataclass(frozen=True)
class StoredDocuments:
    """Documents by id, as they were at one time of Firestore's clock."""

    by_id: Mapping[str, StoredDocument]
    read_at: datetime


class Outcome(StrEnum):
    """How the image of a request ended. After each of them the message is acknowledged."""

    DONE = "done"  # detections committed
    FAILED = "failed"  # a failure committed
    ALREADY_RECORDED = "already_recorded"  # a final document was there, and stays
    SUPERSEDED = "superseded"  # another delivery's document was there first
    GONE = "gone"  # the generation was overwritten or deleted
    IGNORED = "ignored"  # a folder marker or a part of a composite upload
    REFUSED = "refused"  # a bucket that this service does not serve


@dataclass(frozen=True)
class CommittedResult:
    """A result that has its final document."""

    result: ImageResult  # as recorded: a failed one if Firestore refuses the document of another
    is_superseded: bool = False  # another's document was there first: nothing was written

    @property
    def outcome(self) -> Outcome:
        """How the image of the result ended."""
        if self.is_superseded:
            return Outcome.SUPERSEDED
        return Outcome.FAILED if self.result.failure else Outcome.DONE
