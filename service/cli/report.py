"""The table of results, and notes that several commands print."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from service.cli.output import Column, say_table
from service.domain import MIN_KEYPOINT_CONFIDENCE, Task

if TYPE_CHECKING:
    from service.operate.backfill import Deployment, Estimate

_SHOWN_ANGLES = 3
_COLUMNS = (
    Column("image"),
    Column("status"),
    Column("detections"),
    Column("best", is_number=True),
    Column("batch", is_number=True),
    Column("ms", is_number=True),
)


def say_results(documents: Iterable[Mapping[str, Any]]) -> None:
    """Print documents of `service.document.to_document` on standard output, one row for each.

    `detections` has the number of each label, and what the model's task adds: how much of the image
    the masks cover, how many keypoints are visible, or the angles of the rotated boxes. For the
    task classify it has the kept classes and their confidences. `best` is the highest confidence.
    `ms` is the time of this image: download, decode, queue, and its share of the batch's inference.
    """
    say_table(_COLUMNS, map(_row, documents))


def pattern_note(prefix: str) -> str | None:
    """Return a note if a prefix looks like a pattern, or None."""
    if not set(prefix) & {"*", "?"}:
        return None
    return f"No name begins with {prefix!r}: give a prefix here, not a pattern."


def no_results_note(bucket: str, prefix: str, since: datetime | None = None) -> str:
    """Return the note for a prefix without documents, perhaps without any since a time."""
    recorded = (
        f" that was recorded since {since.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}" if since else ""
    )
    return pattern_note(prefix) or f"There is no document for gs://{bucket}/{prefix}{recorded}"


def bucket_note(bucket: str, allowed_buckets: Collection[str]) -> str | None:
    """Return a warning if a service with these settings does not read a bucket, or None."""
    if not allowed_buckets or bucket in allowed_buckets:
        return None
    return (
        f"Warning: gs://{bucket} is not in ALLOWED_BUCKETS. A service with this setting does not "
        "read its images."
    )


def pace_note(estimate: "Estimate", deployment: "Deployment") -> str | None:
    """Return a sentence on how jobs are paced, or None if all of them are published at once."""
    if estimate.images <= estimate.at_once:
        return None
    return (
        f"{estimate.at_once:,} of {estimate.images:,} jobs are published at once, the rest at "
        f"{deployment.rate:g} a second, the estimated rate of {deployment.instances} instances"
    )


def _row(document: Mapping[str, Any]) -> tuple[str, ...]:
    try:
        return _cells(document)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        # Another version of the service wrote the document, or a person edited it.
        name, status = (str(document.get(key, "")) for key in ("name", "status"))
        return name, status, "unreadable: see --json", "", "", ""


def _cells(document: Mapping[str, Any]) -> tuple[str, ...]:
    name, error = str(document["name"]), document.get("error")
    if error:
        return name, str(document["status"]), f"{error['code']}: {error['message']}", "", "", ""
    found = _found(document)
    best = document["max_confidence"]
    milliseconds = sum(document["timings"].values())
    return (
        name,
        str(document["status"]),
        found or "none",
        f"{best:.2f}" if best is not None else "",
        str(document["batch_size"]),
        f"{milliseconds:.0f}",
    )


def _found(document: Mapping[str, Any]) -> str:
    """Return what was found in one image, or an empty text for nothing."""
    counts = ", ".join(f"{count} {label}" for label, count in sorted(document["counts"].items()))
    detections = document["detections"]
    match document.get("task"):
        case Task.CLASSIFY:
            kept = (item for item in document["classes"] if item["label"] in document["counts"])
            return ", ".join(f"{item['label']} {item['confidence']:.2f}" for item in kept)
        case Task.SEGMENT:
            detail = _covered(detections, document["image"])
        case Task.POSE:
            detail = _visible_keypoints(detections)
        case Task.OBB:
            detail = _angles(detections)
        case _:
            detail = ""
    return f"{counts} ({detail})" if detail else counts


def _covered(detections: Sequence[Mapping[str, Any]], image: Mapping[str, Any]) -> str:
    area = sum(item.get("area") or 0.0 for item in detections)
    return f"{100 * area / (image['width'] * image['height']):.1f} % of the image" if area else ""


def _visible_keypoints(detections: Sequence[Mapping[str, Any]]) -> str:
    points = [point for item in detections for point in item.get("keypoints") or ()]
    visible = sum(point["confidence"] >= MIN_KEYPOINT_CONFIDENCE for point in points)
    return f"{visible} of {len(points)} keypoints visible" if points else ""


def _angles(detections: Sequence[Mapping[str, Any]]) -> str:
    angles = [f"{item['obb']['angle_degrees']:.0f}°" for item in detections if item.get("obb")]
    more = ", ..." if len(angles) > _SHOWN_ANGLES else ""
    return ", ".join(angles[:_SHOWN_ANGLES]) + more
