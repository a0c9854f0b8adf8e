"""Parses a request (headers and body) into the one image that it names. Does no I/O.

A request reports that an image was uploaded or deleted, or it is a job.

The headers and the body decide which form a request has. Its path does not matter.

1. CloudEvent of Cloud Storage, binary or structured mode. Its data is the object resource.
2. CloudEvent `google.cloud.pubsub.topic.v1.messagePublished`. Its data is a push envelope.
3. Wrapped Pub/Sub push: `{"message": {...}, "subscription": ...}`.
4. Unwrapped Pub/Sub push: the body is the message's data. If the subscription writes metadata, the
   message's attributes are headers.

A message (forms 2 to 4) is a notification of Cloud Storage or a job. A notification is recognised
by its attributes (`eventType`, `bucketId`). A job is `{"uri": "gs://bucket/object[#generation]"}`.
With `"replace": {"if_created_before": RFC 3339, "unless_model": sha256 or null}`, a job permits
that the image's document is replaced. See `service.domain.Replace`. A message with `document_id` is
a result or an alert that the service published. It is ignored.

Sources: https://cloud.google.com/eventarc/docs/cloudevents,
https://cloud.google.com/pubsub/docs/push, https://cloud.google.com/storage/docs/pubsub-notifications
"""

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from service.domain import Event, ImageRef, ObjectMetadata, Replace
from service.errors import EnvelopeError
from service.object_metadata import read_custom

_CE_TYPE = "ce-type"  # CloudEvents, binary mode: the event's type
_CE_TIME = "ce-time"
_STRUCTURED = "application/cloudevents+json"  # content type of structured mode
_STORAGE = "google.cloud.storage.object.v1."
_FINALIZED = _STORAGE + "finalized"
_DELETED = _STORAGE + "deleted"
_MESSAGE_PUBLISHED = "google.cloud.pubsub.topic.v1.messagePublished"

# Attributes of a Cloud Storage notification.
_EVENT_TYPE = "eventType"
_BUCKET_ID = "bucketId"
_OBJECT_ID = "objectId"
_GENERATION = "objectGeneration"
_EVENT_TIME = "eventTime"
_OVERWRITTEN_BY = "overwrittenByGeneration"
_OBJECT_FINALIZE = "OBJECT_FINALIZE"
_OBJECT_DELETE = "OBJECT_DELETE"

_OBJECT_KIND = "storage#object"  # `kind` of an object resource
_DOCUMENT_ID = "document_id"  # in the messages of results and alerts, but not in a job
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
_URI = re.compile(r"gs://([^/]+)/(.+?)(?:#([0-9]{1,19}))?", re.DOTALL)
_MAX_NAME_BYTES = 1024
_NO_NAMES = (".", "..")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAX_INT64 = 2**63 - 1
_INT64_DIGITS = 19


def parse_event(headers: Mapping[str, str], body: bytes) -> Event:
    """Return what one request asks for.

    Args:
        headers: the request's headers. Names may have any case.
        body: the request's body.

    Raises:
        EnvelopeError: the request has none of the forms above.
    """
    lowered = {name.lower(): value for name, value in headers.items()}
    content_type = lowered.get("content-type", "").partition(";")[0].strip().lower()
    payload = _json(body)
    if content_type == _STRUCTURED:
        event = _mapping(payload, "The CloudEvent must be a JSON object.")
        return _from_cloud_event(_text(event, "type"), event.get("time"), _structured_data(event))
    if event_type := lowered.get(_CE_TYPE):
        return _from_cloud_event(event_type, lowered.get(_CE_TIME), payload)
    if isinstance(payload, dict) and "message" in payload:
        return _from_envelope(payload)
    # If the body has the object, the body is used, because headers may garble the object's name.
    attributes = {
        key: _header_text(lowered[key.lower()])
        for key in (
            _EVENT_TYPE,
            _BUCKET_ID,
            _OBJECT_ID,
            _GENERATION,
            _EVENT_TIME,
            _OVERWRITTEN_BY,
        )  # fmt: skip
        if key.lower() in lowered
    }
    return _from_message(attributes, payload)


def _from_cloud_event(event_type: str, time: Any, data: Any) -> Event:
    if event_type == _MESSAGE_PUBLISHED:
        return _from_envelope(data)
    if event_type == _FINALIZED:
        return Event(_image_from_object(data), _time(time))
    if event_type == _DELETED:  # it does not say whether the object was overwritten
        return Event(_image_from_object(data), _time(time), is_deletion=True)
    if event_type.startswith(_STORAGE):
        return Event(ignored="a Cloud Storage event other than finalized and deleted")
    raise EnvelopeError("The CloudEvent is neither a Cloud Storage event nor a Pub/Sub message.")


def _structured_data(event: dict[str, Any]) -> Any:
    if "data_base64" in event:
        return _json(_base64(event["data_base64"]))
    return event.get("data")


def _from_envelope(envelope: Any) -> Event:
    envelope = _mapping(envelope, "The push envelope must be a JSON object.")
    message = _mapping(envelope.get("message"), "The push envelope's message must be an object.")
    attributes = _mapping(
        message.get("attributes") or {}, "The message's attributes must be an object."
    )
    event = _from_message(attributes, _json(_base64(message.get("data") or "")))
    return replace(event, delivery_attempt=_delivery_attempt(envelope))


def _from_message(attributes: dict[str, Any], data: Any) -> Event:
    """Return the event of a Pub/Sub message. `data` is its decoded JSON. None: no data."""
    if _EVENT_TYPE in attributes and _BUCKET_ID in attributes:
        event_type = _text(attributes, _EVENT_TYPE)
        if event_type not in (_OBJECT_FINALIZE, _OBJECT_DELETE):
            return Event(
                ignored="a Cloud Storage notification other than OBJECT_FINALIZE and OBJECT_DELETE"
            )
        image = _image_from_object(data) if data else _image_from_attributes(attributes)
        event = Event(image, _time(attributes.get(_EVENT_TIME)))
        if event_type == _OBJECT_FINALIZE:
            return event
        return replace(event, is_deletion=True, is_overwritten=_OVERWRITTEN_BY in attributes)
    job = _mapping(data, "The message is neither a Cloud Storage notification nor a job.")
    if job.get("kind") == _OBJECT_KIND:  # unwrapped notification without metadata
        return Event(_image_from_object(job), _time(job.get("timeCreated")))
    if _DOCUMENT_ID in job:
        # It has a `uri`, too. As a job, it would be published again, and so on for ever.
        return Event(ignored="a message that the service published: its topic is not for jobs")
    return Event(_image_from_job(job), is_job=True)


def _delivery_attempt(envelope: dict[str, Any]) -> int | None:
    """Return the delivery's number, from 1, or None if it is missing or malformed.

    Pub/Sub counts deliveries only for subscriptions with a dead-letter topic. A malformed number
    is not an error, because the number is only used to save a read of Firestore.
    """
    attempt = envelope.get("deliveryAttempt")
    if not isinstance(attempt, int) or isinstance(attempt, bool) or attempt < 1:
        return None
    return attempt


def _image_from_object(data: Any) -> ImageRef:
    """Return the image of an object resource. Its numbers may be JSON strings."""
    resource = _mapping(data, "The event's data must be a Cloud Storage object.")
    custom, is_custom_cut = read_custom(resource.get("metadata"))
    metadata = ObjectMetadata(
        size=_optional_integer(resource, "size"),
        content_type=_optional_text(resource, "contentType"),
        md5=_optional_text(resource, "md5Hash"),
        crc32c=_optional_text(resource, "crc32c"),
        custom=custom,
        is_custom_cut=is_custom_cut,
    )
    generation = _integer(resource, "generation")
    image = _image(_text(resource, "bucket"), _text(resource, "name"), generation)
    return replace(image, metadata=metadata)


def _image_from_attributes(attributes: dict[str, Any]) -> ImageRef:
    return _image(
        _text(attributes, _BUCKET_ID),
        _text(attributes, _OBJECT_ID),
        _integer(attributes, _GENERATION),
    )


def _image_from_job(job: dict[str, Any]) -> ImageRef:
    if "uris" in job:
        raise EnvelopeError('A job names one image: publish one message {"uri": ...} for each.')
    if "uri" not in job:
        raise EnvelopeError('A job must be {"uri": "gs://bucket/object"}.')
    image = parse_uri(job["uri"])
    return replace(image, replace=_replacement(job["replace"])) if "replace" in job else image


def _replacement(value: Any) -> Replace:
    permission = _mapping(value, "A job's replace must be an object.")
    before, model = _time(permission.get("if_created_before")), permission.get("unless_model")
    if before is None:
        raise EnvelopeError("if_created_before must be an RFC 3339 time with a time zone.")
    if model is not None and not is_sha256(model):
        raise EnvelopeError("unless_model must be null or a sha256 in lower-case letters.")
    return Replace(before, model)


def is_sha256(value: Any) -> bool:
    """Return whether a value is a sha256: 64 lower-case hexadecimal digits."""
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def parse_uri(uri: Any) -> ImageRef:
    """Parse `gs://bucket/object` or `gs://bucket/object#generation`.

    If an object's own name ends in `#` and digits, its generation must follow.

    Raises:
        EnvelopeError: the URI has another form, or an invalid bucket, name or generation.
    """
    match = _URI.fullmatch(uri) if isinstance(uri, str) and _is_utf8(uri) else None
    if not match:
        raise EnvelopeError("The URI must be gs://bucket/object or gs://bucket/object#generation.")
    bucket, name, generation = match.groups()
    return _image(bucket, name, int(generation) if generation else None)


def _image(bucket: str, name: str, generation: int | None) -> ImageRef:
    if not _BUCKET.fullmatch(bucket):
        raise EnvelopeError("The bucket's name is not valid in Cloud Storage.")
    if len(name.encode()) > _MAX_NAME_BYTES or name in _NO_NAMES:
        raise EnvelopeError("The object's name is not valid in Cloud Storage.")
    if generation is not None and not 0 < generation <= _MAX_INT64:
        raise EnvelopeError("The generation is not valid in Cloud Storage.")
    return ImageRef(bucket, name, generation)


def _header_text(value: str) -> str:
    """Decode a header as UTF-8 if its bytes are UTF-8. WSGI (PEP 3333) decoded it as Latin-1."""
    try:
        return value.encode("latin-1").decode()
    except UnicodeError:
        return value


def _json(body: bytes) -> Any:
    """Return the decoded JSON, or None for an empty body.

    Raises:
        EnvelopeError: the body is not JSON, or its nesting is too deep.
    """
    if not body.strip():
        return None
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as exc:
        raise EnvelopeError("The body or the message's data is not valid JSON.") from exc


def _base64(text: Any) -> bytes:
    if not isinstance(text, str):
        raise EnvelopeError("The message's data must be base64 text.")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise EnvelopeError("The message's data must be base64 text.") from exc


def _mapping(value: Any, sentence: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise EnvelopeError(sentence)
    return value


def _text(mapping: dict[str, Any], key: str) -> str:
    value = mapping.get(key)
    if not isinstance(value, str) or not value or not _is_utf8(value):
        raise EnvelopeError(f"The field {key} must be non-empty text.")
    return value


def _is_utf8(text: str) -> bool:
    """Return whether UTF-8 can encode a text. JSON allows lone surrogates, but UTF-8 does not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _optional_text(mapping: dict[str, Any], key: str) -> str | None:
    return _text(mapping, key) if mapping.get(key) else None


def _integer(mapping: dict[str, Any], key: str) -> int:
    value = mapping.get(key)
    digits = str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""
    is_number = digits.isascii() and digits.isdigit() and len(digits) <= _INT64_DIGITS
    if not is_number or int(digits) > _MAX_INT64:
        raise EnvelopeError(f"The field {key} must be a whole number.")
    return int(digits)


def _optional_integer(mapping: dict[str, Any], key: str) -> int | None:
    return _integer(mapping, key) if mapping.get(key) is not None else None


def _time(value: Any) -> datetime | None:
    """Return the UTC time of RFC 3339 text, or None if it is missing, malformed or has no zone."""
    try:
        time = datetime.fromisoformat(value)
        return time.astimezone(UTC) if time.tzinfo else None
    except (TypeError, ValueError, OverflowError):  # OverflowError: out of range in UTC
        return None
