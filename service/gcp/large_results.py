"""Results that are larger than a Firestore document may be, for example with hundreds of masks.

With RESULTS_BUCKET, all detections of such a result go to an object there, before the commit. The
document has `detections_uri`, and its `detections` lack the large fields: `polygons` or
`keypoints`. Without RESULTS_BUCKET, the polygons are simplified until the document fits.

The object is JSON, compressed with gzip. `service.gcp.result_objects` describes its name, and
`service.gcp.result_uploads` creates and removes it.
"""

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from service.document import detections_of, to_document
from service.domain import SCHEMA, ImageResult, ResultObject, Task
from service.errors import ResultObjectError
from service.gcp.document_size import MAX_DOCUMENT_BYTES, document_bytes
from service.gcp.result_objects import ResultObjects

_NAME = re.compile(r"gs://[^/]+/[0-9a-f]{40}-([0-9a-f]{64})\.json\.gz")
_CONTENT_TYPE = "application/gzip"
# Tolerances that are tried. The polygons of the model have a tolerance of at most 1 pixel.
_TOLERANCES = [2.0**power for power in range(1, 9)]
_LARGE_FIELDS = {Task.SEGMENT: ("polygons",), Task.POSE: ("keypoints",)}
_MAX_JSON_BYTES = 2**28  # 256 MiB


class LargeResults:
    """Makes results fit into documents, and reads them. Safe to use from many threads."""

    def __init__(self, objects: ResultObjects) -> None:
        """Take the objects. If they have no bucket, polygons are simplified instead."""
        self._objects = objects

    def fit(self, result: ImageResult) -> tuple[ImageResult, ResultObject | None]:
        """Return the result as its document can have it, and the object that it then needs.

        Usually, the result is unchanged, and needs no object.
        """
        fields = _LARGE_FIELDS.get(result.model.task, ()) if result.model else ()
        if not fields or _fits(result):
            return result, None
        if not self._objects.bucket:
            return _simplified(result) or replace(result, left_out=fields), None
        content = _encode(result)
        uri = self._objects.uri(content.name)
        return replace(result, left_out=fields, detections_uri=uri), content

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


def _encode(result: ImageResult) -> ResultObject:
    """Return the object with all detections of a result."""
    ref = result.ref
    content = {
        "schema": SCHEMA,
        "uri": ref.uri,
        "generation": ref.generation,
        "detections": detections_of(result),
    }
    text = json.dumps(content, separators=(",", ":")).encode()
    name = f"{ref.document_id}-{hashlib.sha256(text).hexdigest()}.json.gz"
    return ResultObject(name, gzip.compress(text, 6, mtime=0), _CONTENT_TYPE)


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
