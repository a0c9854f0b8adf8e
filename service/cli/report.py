"""Tables for a person: one row a picture."""

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

if TYPE_CHECKING:
    from service.operate.backfill import Deployment, Estimate

_HEADERS = ("picture", "status", "found", "best", "batch", "ms")
_ALIGN = ("left", "left", "left", "right", "right", "right")


def table(documents: Iterable[Mapping[str, Any]]) -> str:
    """Render documents as `service.gcp.firestore.to_document` writes them.

    `best` is the highest confidence; `ms` is the picture's own time: download, decode, queue, and
    its share of the batch's inference.
    """
    rows = [_row(document) for document in documents]
    return tabulate(rows, headers=_HEADERS, disable_numparse=True, colalign=_ALIGN)


def printable(text: str) -> str:
    """Keep what an object's name could do to a terminal or a table out of them."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def pattern_note(prefix: str) -> str | None:
    """Return a note that a prefix looks like a pattern; None if it does not."""
    if not set(prefix) & {"*", "?"}:
        return None
    return f"No name begins with {printable(prefix)!r}: give a prefix here, not a pattern"


def bucket_note(bucket: str, allowed_buckets: Collection[str]) -> str | None:
    """Return a warning that a service with these settings reads nothing of a bucket, or None."""
    if not allowed_buckets or bucket in allowed_buckets:
        return None
    return (
        f"Warning: gs://{bucket} is not in ALLOWED_BUCKETS. A service with this setting does not "
        "read its images."
    )


def pace_note(estimate: "Estimate", deployment: "Deployment") -> str | None:
    """Return how jobs are paced; None if all of them are published at once."""
    if estimate.images <= estimate.at_once:
        return None
    return (
        f"{estimate.at_once:,} of {estimate.images:,} jobs are published at once, the others at "
        f"{deployment.rate:g} a second, the estimated rate of {deployment.instances} instances"
    )


def _row(document: Mapping[str, Any]) -> tuple[str, ...]:
    name, error = printable(str(document["name"])), document.get("error")
    if error:
        return name, "failed", f"{error['code']}: {error['message']}", "", "", ""
    counts = ", ".join(
        f"{count} {printable(label)}" for label, count in sorted(document["counts"].items())
    )
    best = document["max_confidence"]
    milliseconds = sum(document["timings"].values())
    return (
        name,
        str(document["status"]),
        counts or "nothing",
        f"{best:.2f}" if best is not None else "",
        str(document["batch_size"]),
        f"{milliseconds:.0f}",
    )
