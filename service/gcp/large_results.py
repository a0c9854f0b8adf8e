"""Results that are larger than a Firestore document may be, for example with hundreds of masks.

With RESULTS_BUCKET, all detections of such a result go to an object there, before the commit. The
document has `detections_uri`, and its `detections` lack the large fields: `polygons` or
`keypoints`. Without RESULTS_BUCKET, the polygons are simplified until the document fits.

The object is JSON, compressed with gzip. `service.gcp.result_objects` describes its name. An object
that no document refers to is removed:

- the object of this delivery, if another one committed its document first, or if the image was
  deleted
- the object of a document that was replaced, after the commit

If it is unknown whether a commit succeeded, the object stays. The next delivery uses it again.
"""

import gzip
import hashlib
import json
import logging
import re
import zlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from service.deadline import NO_DEADLINE, Deadline
from service.document import detections_of, to_document
from service.domain import SCHEMA, CommittedResult, ImageResult, Task
from service.errors import ResultObjectError, YoloBatchError
from service.gcp.document_size import MAX_DOCUMENT_BYTES, document_bytes
from service.gcp.result_objects import ResultObjects

logger = logging.getLogger(__name__)

_NAME = re.compile(r"gs://[^/]+/[0-9a-f]{40}-([0-9a-f]{64})\.json\.gz")
_CONTENT_TYPE = "application/gzip"
# Tolerances that are tried. The polygons of the model have a tolerance of at most 1 pixel.
_TOLERANCES = [2.0**power for power in range(1, 9)]
_LARGE_FIELDS = {Task.SEGMENT: ("polygons",), Task.POSE: ("keypoints",)}
_MAX_JSON_BYTES = 2**28  # 256 MiB


class LargeResults:
    """Makes results fit into documents. Safe to use from many threads."""

    def __init__(self, objects: ResultObjects) -> None:
        """Take the objects. If they have no bucket, polygons are simplified instead."""
        self._objects = objects

    def prepare(self, result: ImageResult, deadline: Deadline = NO_DEADLINE) -> ImageResult:
        """Return the result as its document can have it. Usually, it is unchanged.

        Raises:
            StorageUnavailableError: Cloud Storage did not respond, or refuses the bucket.
            TooLateError: the deadline has passed.
        """
        fields = _LARGE_FIELDS.get(result.model.task, ()) if result.model else ()
        if not fields or _fits(result):
            return result
        if not self._objects.bucket:
            return _simplified(result) or replace(result, left_out=fields)
        name, data = _encode(result)
        uri = self._objects.create(name, data, _CONTENT_TYPE, deadline)
        return replace(result, left_out=fields, detections_uri=uri)

    def settle(
        self, result: ImageResult, committed: CommittedResult, deadline: Deadline = NO_DEADLINE
    ) -> None:
        """Remove the objects that a commit made useless. Create the result's own if it is missing.

        A failure is only logged, because the document is committed.

        Args:
            result: the result before `prepare`.
            committed: how the prepared result is recorded.
            deadline: ends the requests.
        """
        own_uri = None if committed.is_superseded else committed.result.detections_uri
        try:
            if own_uri:
                # Another delivery may have created the same object, and removed it again.
                name, data = _encode(result)
                self._objects.create(name, data, _CONTENT_TYPE, deadline)
            for uri in sorted(committed.unused_uris):
                self._objects.remove(uri, result.ref.document_id, deadline)
        except YoloBatchError as exc:
            logger.warning(
                "An object of a large result could not be created or removed",
                extra={
                    "uri": result.ref.uri,
                    "unused": sorted(committed.unused_uris),
                    "needed": own_uri,
                    "reason": str(exc),
                },
            )

    def remove_all(self, document_id: str, deadline: Deadline = NO_DEADLINE) -> None:
        """Delete all objects of a document. See `ResultObjects.remove_all`."""
        self._objects.remove_all(document_id, deadline)

    def read(self, document: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return all detections of a document, with all fields.

        Raises:
            ResultObjectError: the object is missing, or not the one that was written.
            StorageUnavailableError: Cloud Storage did not respond, or refuses the bucket.
        """
        uri = document.get("detections_uri")
        if not uri:
            return list(document.get("detections") or ())
        match = _NAME.fullmatch(str(uri))
        if not match:
            raise ResultObjectError(f"{uri} is not the name of an object with detections.")
        return _decode(self._objects.read(uri), match[1], uri)


def _fits(result: ImageResult) -> bool:
    numbers = sum(len(ring.points) for item in result.detections for ring in item.polygons)
    if 8 * numbers > MAX_DOCUMENT_BYTES:  # most large results, without building the document
        return False
    return document_bytes(to_document(result)) <= MAX_DOCUMENT_BYTES


def _simplified(result: ImageResult) -> ImageResult | None:
    """Return the result with simpler polygons, or None if no tolerance makes the document fit."""
    from service.images.polygons import simplify  # commands need no OpenCV

    for tolerance in _TOLERANCES:
        detections = []
        for item in result.detections:
            rings = [simplify(polygon, tolerance) for polygon in item.polygons]
            detections.append(replace(item, polygons=tuple(ring for ring in rings if ring)))
        candidate = replace(result, detections=tuple(detections), simplified_pixels=tolerance)
        if any(item.polygons for item in detections) and _fits(candidate):
            return candidate
    return None


def _encode(result: ImageResult) -> tuple[str, bytes]:
    """Return the name and the bytes of the object with all detections of a result."""
    ref = result.ref
    content = {
        "schema": SCHEMA,
        "uri": ref.uri,
        "generation": ref.generation,
        "detections": detections_of(result),
    }
    text = json.dumps(content, separators=(",", ":")).encode()
    name = f"{ref.document_id}-{hashlib.sha256(text).hexdigest()}.json.gz"
    return name, gzip.compress(text, 6, mtime=0)


def _decode(data: bytes, sha256: str, uri: str) -> list[dict[str, Any]]:
    """Return the detections in an object's bytes.

    Raises:
        ResultObjectError: the bytes are not those that were written.
    """
    try:
        text = zlib.decompressobj(wbits=31).decompress(data, _MAX_JSON_BYTES)  # 31: gzip
    except zlib.error:
        text = b""
    if hashlib.sha256(text).hexdigest() != sha256:
        raise ResultObjectError(f"{uri} is damaged: its name does not match its content.")
    detections: list[dict[str, Any]] = json.loads(text)["detections"]
    return detections
