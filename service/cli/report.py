"""The table of results, and notes that several commands print."""

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from service.cli.output import Column, say_table

if TYPE_CHECKING:
    from service.operate.backfill import Deployment, Estimate

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

    `best` is the highest confidence. `ms` is the time of this image: download, decode, queue, and
    its share of the batch's inference.
    """
    say_table(_COLUMNS, map(_row, documents))


def pattern_note(prefix: str) -> str | None:
    """Return a note if a prefix looks like a pattern, or None."""
    if not set(prefix) & {"*", "?"}:
        return None
    return f"No name begins with {prefix!r}: give a prefix here, not a pattern."


def no_results_note(bucket: str, prefix: str) -> str:
    """Return the note for a prefix without documents."""
    return pattern_note(prefix) or f"There is no document for gs://{bucket}/{prefix}"


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
    name, error = str(document["name"]), document.get("error")
    if error:
        return name, str(document["status"]), f"{error['code']}: {error['message']}", "", "", ""
    counts = ", ".join(f"{count} {label}" for label, count in sorted(document["counts"].items()))
    best = document["max_confidence"]
    milliseconds = sum(document["timings"].values())
    return (
        name,
        str(document["status"]),
        counts or "none",
        f"{best:.2f}" if best is not None else "",
        str(document["batch_size"]),
        f"{milliseconds:.0f}",
    )
