"""The schema of an image's document."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from service.domain import (
    SCHEMA,
    Alert,
    ClassScore,
    DerivedImage,
    Detection,
    Failure,
    ImageResult,
    ListedAlert,
    ObjectMetadata,
    Task,
)
from service.faint import STEP, pack

SHARDS = 10
STATUS_DONE = "done"
STATUS_FAILED = "failed"
STATUS_PARKED = "parked"  # not final


def to_document(result: ImageResult) -> dict[str, Any]:
    """Return the document of a result. Every document has all of these fields.

    The store adds `created_at`, the server's time.

    Boxes are maps because Firestore has no arrays in arrays. `labels` repeats the keys of `counts`
    because `array-contains` matches whole elements only.
    """
    alerts: Sequence[ListedAlert | Alert] = (*result.earlier_alerts, *result.alerts)
    ref, failure, task = result.ref, result.failure, result.model and result.model.task
    return {
        "schema": SCHEMA,
        "uri": ref.uri,
        "bucket": ref.bucket,
        "name": ref.name,
        "generation": ref.generation,
        "content_type": ref.metadata.content_type,
        "size": ref.metadata.size,
        **_checksum(ref.metadata),
        "metadata": dict(ref.metadata.custom or {}),
        "metadata_cut": ref.metadata.is_custom_cut,
        "status": _status(failure),
        "error": {"code": str(failure.code), "message": failure.message} if failure else None,
        "image": asdict(result.image_info) if result.image_info else None,
        "captured_at": result.captured_at,
        "captured_at_source": str(result.captured_at_source),
        "camera": asdict(result.camera) if result.camera else None,
        "location": result.location,
        "task": task and str(task),
        "model": _model(result),
        "source": asdict(result.source),
        **detection_fields(result),
        "detections_uri": result.detections_uri,
        "left_out": list(result.left_out),
        "simplified_pixels": result.simplified_pixels,
        "batch_size": result.batch_size,
        "timings": asdict(result.timings),
        "event_time": result.event_time,
        "day": result.day and result.day.isoformat(),
        "shard": shard_of(ref.document_id),
        "derived": [_derived(image) for image in result.derived],
        "derived_error": result.derived_error,
        "alerts": [
            {"id": alert.id, "rule": alert.rule, "severity": str(alert.severity)}
            for alert in alerts
        ],
    }


def detection_fields(result: ImageResult) -> dict[str, Any]:
    """Return the fields that follow from the detections and from the source's settings."""
    found: Sequence[Detection | ClassScore] = (*result.detections, *result.kept_classes)
    counts = dict(sorted(Counter(item.label for item in found).items()))
    best = {label: max(i.confidence for i in found if i.label == label) for label in counts}
    faint, faint_cut = _faint(result)
    return {
        "detections": [
            {key: value for key, value in item.items() if key not in result.left_out}
            for item in detections_of(result)
        ],
        "faint": faint,
        "faint_cut": faint_cut,
        "classes": [asdict(item) for item in result.classes],
        "labels": list(counts),
        "counts": counts,
        "counts_by_zone": _counts_by_zone(result),
        "zone_labels": _zone_labels(result),
        "best": best,
        "found": None if result.failure else bool(found),
        "num_detections": len(result.detections),
        "top_label": found[0].label if found else None,
        "max_confidence": found[0].confidence if found else None,
        "uncertain_confidence": found[-1].confidence if found else None,
    }


def _derived(image: DerivedImage) -> dict[str, Any]:
    return {
        "kind": str(image.kind),
        "uri": image.uri,
        "size": len(image.data),
        "width": image.width,
        "height": image.height,
        "class_id": image.class_id,
    }


def shard_of(document_id: str) -> int:
    """Return the document's shard, 0 to 9: a hash, so documents of one moment spread over all."""
    return int(document_id[-8:], 16) % SHARDS


def detections_of(result: ImageResult) -> list[dict[str, Any]]:
    """Return the elements of `detections`, with all fields of the model's task."""
    return [_detection(item, result) for item in result.detections]


def _faint(result: ImageResult) -> tuple[bytes | None, float | None]:
    """Return the faint detections as bytes, and the confidence above which all are recorded."""
    is_classify = result.model and result.model.task is Task.CLASSIFY  # it has no detections
    if result.faint is None or is_classify:
        return None, None
    packed = pack(result.faint)
    if packed.cut is None:
        return packed.data, result.store_confidence
    # A cut at STORE_CONFIDENCE itself would say that nothing was cut.
    return packed.data, max(packed.cut, round(result.store_confidence + STEP, 4))


def _detection(detection: Detection, result: ImageResult) -> dict[str, Any]:
    """Return one element of `detections`, with the fields of the model's task."""
    fields: dict[str, Any] = {
        "label": detection.label,
        "class_id": detection.class_id,
        "confidence": detection.confidence,
        "box": asdict(detection.box),
        "zones": list(detection.zones),
    }
    match result.model and result.model.task:
        case Task.SEGMENT:
            fields["polygons"] = [{"points": list(ring.points)} for ring in detection.polygons]
            fields["area"] = detection.area
        case Task.POSE:
            fields["keypoints"] = [asdict(point) for point in detection.keypoints]
        case Task.OBB if detection.rotated_box:
            fields["obb"] = asdict(detection.rotated_box)
            fields["corners"] = [round(value, 2) for value in detection.rotated_box.corners]
    return fields


def _counts_by_zone(result: ImageResult) -> dict[str, dict[str, int]]:
    return {
        zone: dict(sorted(Counter(d.label for d in result.detections if zone in d.zones).items()))
        for zone in result.zones
    }


def _zone_labels(result: ImageResult) -> list[str]:
    """Return each zone with a detection, and each of its labels: `ZONE` and `ZONE/LABEL`.

    `array-contains` applies to one array of a query only. So a zone and a label are one element.
    """
    zones = set(result.zones)
    pairs = {(zone, item.label) for item in result.detections for zone in item.zones}
    found = {(zone, label) for zone, label in pairs if zone in zones}
    return sorted({zone for zone, _ in found} | {f"{zone}/{label}" for zone, label in found})


def _model(result: ImageResult) -> dict[str, Any] | None:
    if not result.model:
        return None
    fields = asdict(result.model)
    del fields["task"]  # a field of the document
    return fields


def _status(failure: Failure | None) -> str:
    if not failure:
        return STATUS_DONE
    return STATUS_PARKED if failure.is_parked else STATUS_FAILED


def _checksum(metadata: ObjectMetadata) -> Mapping[str, str | None]:
    """Return the field of the md5, or of the crc32c for a composite object, which has no md5."""
    if metadata.md5 or not metadata.crc32c:
        return {"md5": metadata.md5}
    return {"crc32c": metadata.crc32c}
