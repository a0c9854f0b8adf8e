"""The schema of an image's document."""

from dataclasses import asdict
from typing import Any

from service.domain import Failure, ImageResult, ObjectMetadata

STATUS_DONE = "done"
STATUS_FAILED = "failed"
STATUS_PARKED = "parked"  # not final


def to_document(result: ImageResult) -> dict[str, Any]:
    """Return the document of a result. Every document has all of these fields.

    The store adds `created_at`, the server's time.

    Boxes are maps because Firestore has no arrays in arrays. `labels` repeats the keys of `counts`
    because `array-contains` matches whole elements only.
    """
    ref, failure = result.ref, result.failure
    return {
        "uri": ref.uri,
        "bucket": ref.bucket,
        "name": ref.name,
        "generation": ref.generation,
        "content_type": ref.metadata.content_type,
        "size": ref.metadata.size,
        **_checksum(ref.metadata),
        "status": _status(failure),
        "error": {"code": str(failure.code), "message": failure.message} if failure else None,
        "image": asdict(result.image_info) if result.image_info else None,
        "model": asdict(result.model) if result.model else None,
        "detections": [asdict(detection) for detection in result.detections],
        "labels": list(result.counts),
        "counts": result.counts,
        "num_detections": len(result.detections),
        "max_confidence": max((item.confidence for item in result.detections), default=None),
        "batch_size": result.batch_size,
        "timings": asdict(result.timings),
        "event_time": result.event_time,
    }


def _status(failure: Failure | None) -> str:
    if not failure:
        return STATUS_DONE
    return STATUS_PARKED if failure.is_parked else STATUS_FAILED


def _checksum(metadata: ObjectMetadata) -> dict[str, str | None]:
    """Return the field of the md5, or of the crc32c for a composite object, which has no md5."""
    if metadata.md5 or not metadata.crc32c:
        return {"md5": metadata.md5}
    return {"crc32c": metadata.crc32c}
