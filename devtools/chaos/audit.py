"""The audit: compares expectations with documents, log lines and responses. Pure functions."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from tabulate import tabulate

from devtools.chaos.excuses import (
    Faults,
    LogLine,
    Response,
    Silence,
    count_silences,
    killed_services,
    unexpected_lines,
    unexpected_responses,
    unexpected_silences,
)
from devtools.chaos.plan import FaultKind
from service.document import shard_of
from service.domain import SCHEMA, ImageRef, Task
from service.errors import FaintBytesError
from service.faint import unpack
from service.settings import Settings

MAX_WASTE = 0.20
# Images: in a short run, one outage of Firestore fails this many commits, and killed decoders fail
# the derived images of others. Both happen after the inference.
_MORE_WASTE = 24
_MAX_UNSEEN = 0.5  # share of inferences that the log may lack after a full disk
# Tolerances of boxes and confidences: another batch computes slightly different numbers.
_PIXELS = 0.5
_CONFIDENCE = 0.01
_SHOWN = 5  # sentences of each kind of problem
_SWALLOWING = (FaultKind.DISK, FaultKind.MEMORY)  # faults that lose log lines
# Names of problems in the table, where they differ.
_PROBLEMS = {
    "messages": "wrong messages",
    "alerts": "wrong alerts",
    "objects": "wrong objects",
}
# `derived` and `alerts` are compared in devtools.chaos.published.
_NOT_COMPARED = (
    "batch_size", "timings", "event_time", "day", "created_at", "derived", "alerts",
)  # fmt: skip


class Ending(StrEnum):
    """How an upload should end."""

    DONE = "done"
    FAILED = "failed"
    NOTHING = "nothing"  # the generation was deleted before its event
    DONE_OR_NOTHING = "done or nothing"  # the generation was deleted during the delivery
    FAILED_OR_NOTHING = "failed or nothing"


@dataclass(frozen=True)
class Expectation:
    """The document that an upload should have."""

    uri: str
    generation: int
    size: int
    md5: str
    ending: Ending
    code: str | None = None
    detections: Sequence[Mapping[str, Any]] = ()
    image: Mapping[str, Any] | None = None
    model: Mapping[str, Any] | None = None
    content_type: str = "image/jpeg"
    source: Mapping[str, Any] = field(default_factory=lambda: {"id": None, "version": None})
    is_poisonous: bool = False  # the file always crashes, hangs or bloats its decoder

    @property
    def ref(self) -> ImageRef:
        """The uploaded generation."""
        bucket, _, name = self.uri.removeprefix("gs://").partition("/")
        return ImageRef(bucket, name, self.generation)

    @property
    def image_fields(self) -> Mapping[str, Any]:
        """The fields `image` and `detections` of the document. Empty for a failure."""
        return {} if self.should_fail else {"image": self.image, "detections": self.detections}

    @property
    def should_fail(self) -> bool:
        """Whether a document of this upload must be a failure."""
        return self.ending in (Ending.FAILED, Ending.FAILED_OR_NOTHING)

    @property
    def shown(self) -> str:
        """The generation in readable form: uri#generation."""
        return f"{self.uri}#{self.generation}"


@dataclass(frozen=True)
class StoredDocument:
    """A document, with Firestore's times of its creation and last update."""

    id: str
    fields: Mapping[str, Any]
    created: datetime
    updated: datetime


@dataclass
class Report:
    """The problems, one sentence each, and the figures."""

    uploads: int = 0
    done: int = 0
    failed: int = 0
    superseded: int = 0
    lost: list[str] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)
    crossed: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    killed: list[str] = field(default_factory=list)
    inferences: int = 0
    superseded_inferences: int = 0  # counted by the services
    outcomes_done: int = 0  # counted by the services, in their log lines
    poisonous: int = 0  # files that crash, hang or bloat a decoder and have a document
    decoders_lost: int = 0  # decoders that poisonous files ended
    replacements: int = 0  # instances replaced after failed liveness
    responses: Counter[str] = field(default_factory=Counter)
    silences: Counter[Silence] = field(default_factory=Counter)
    is_log_whole: bool = True
    messages: list[str] = field(default_factory=list)
    alerts: list[str] = field(default_factory=list)
    objects: list[str] = field(default_factory=list)
    result_messages: int = 0
    rows: int = 0  # of BigQuery's view `results`
    alerts_published: int = 0
    alerts_suppressed: int = 0
    alert_messages: int = 0
    object_count: int = 0  # in RESULTS_BUCKET
    orphans: int = 0  # objects that no document refers to

    @property
    def waste(self) -> float:
        """Surplus inferences as a share of the minimum (one for each done image)."""
        return self.inferences / self.done - 1 if self.done else 0.0

    @property
    def wasted(self) -> list[str]:
        """Problems with the number of inferences: far too many, or fewer than the documents need.

        Superseded inferences do not count: two deliveries at the same time may both infer.
        """
        most = self.done * (1 + MAX_WASTE) + _MORE_WASTE
        if self.inferences - self.superseded_inferences > most:
            return [f"{self.waste:.0%} more inferences than images"]
        if self.inferences < self.done * (1 if self.is_log_whole else 1 - _MAX_UNSEEN):
            return [f"only {self.inferences} inferences of {self.done} images"]
        return []

    @property
    def problems(self) -> dict[str, list[str]]:
        """All lists that must be empty."""
        return {
            "lost": self.lost,
            "duplicated": self.duplicated,
            "crossed": self.crossed,
            "wrong": self.wrong,
            "stuck": self.stuck,
            "unexpected": self.unexpected,
            "services killed": self.killed,
            "wasted": self.wasted,
            "messages": self.messages,
            "alerts": self.alerts,
            "objects": self.objects,
        }

    @property
    def is_clean(self) -> bool:
        """Whether the audit found no problem."""
        return not any(self.problems.values())

    def table(self) -> str:
        """Return the figures, and the first few sentences of each problem, as text."""
        rows: list[tuple[str, object]] = [
            ("uploads", self.uploads),
            ("done, failed, gone", f"{self.done}, {self.failed}, {self.superseded}"),
            *[
                (_PROBLEMS.get(kind, kind), len(items))
                for kind, items in self.problems.items()
                if kind != "wasted"
            ],
            ("inferences", f"{self.inferences} ({self.waste:+.1%} over the minimum)"),
            ("superseded inferences", self.superseded_inferences),
            ("result messages", f"{self.result_messages}, {self.rows} rows in the view"),
            (
                "alerts",
                f"{self.alerts_published} published in {self.alert_messages} messages, "
                f"{self.alerts_suppressed} suppressed",
            ),
            ("objects", f"{self.object_count}, {self.orphans} of no document"),
            ("decoders lost", f"{self.decoders_lost} to {self.poisonous} files"),
            ("instances replaced", f"{self.replacements} by their liveness probes"),
            ("responses", _counted(self.responses)),
            ("no response, because of", _counted(self.silences)),
        ]
        sentences = [
            f"{kind}: {sentence}"
            for kind, items in self.problems.items()
            for sentence in _first(items)
        ]
        return "\n".join([tabulate(rows, tablefmt="plain"), *sentences])


def audit(
    expectations: Sequence[Expectation],
    documents: Iterable[StoredDocument],
    *,
    stuck: Iterable[str] = (),
    log: Sequence[LogLine] = (),
    responses: Sequence[Response] = (),
    faults: Faults | None = None,
    failures: Iterable[str] = (),
    messages: int | None = None,
) -> Report:
    """Compare expectations with documents, logs and responses.

    Args:
        expectations: one for each upload.
        documents: all documents of the collection.
        stuck: sentences on uploads whose event was never acknowledged.
        log: log lines of all services.
        responses: responses to all deliveries.
        faults: the faults that were injected, and when.
        failures: sentences on services that did not recover, and uploads that were not made.
        messages: number of messages that named the uploads. None: one per upload.
    """
    faults = faults or Faults()
    kinds = [excuse.kind for excuse in faults.excuses]
    report = Report(
        uploads=len(expectations),
        stuck=list(stuck),
        unexpected=list(failures),
        replacements=len(faults.replacements),
        is_log_whole=not any(kind in _SWALLOWING for kind in kinds),
    )
    by_generation = _by_generation(expectations, documents, report)
    for expectation in expectations:
        _judge(expectation, by_generation[expectation.shown], expectations, report)
    _judge_services(log, responses, faults, report)
    _judge_outcomes(log, len(expectations) if messages is None else messages, report)
    return report


def _by_generation(
    expectations: Sequence[Expectation], documents: Iterable[StoredDocument], report: Report
) -> dict[str, list[StoredDocument]]:
    known = {expectation.shown for expectation in expectations}
    by_generation: defaultdict[str, list[StoredDocument]] = defaultdict(list)
    for document in documents:
        shown = f"{document.fields.get('uri')}#{document.fields.get('generation')}"
        if shown in known:
            by_generation[shown].append(document)
        else:
            report.wrong.append(f"{shown} was never uploaded, and has a document")
    return by_generation


def _judge(
    expectation: Expectation,
    documents: Sequence[StoredDocument],
    others: Sequence[Expectation],
    report: Report,
) -> None:
    if not documents:
        _judge_absence(expectation, report)
        return
    if len(documents) > 1:
        report.duplicated.append(f"{expectation.shown} has {len(documents)} documents")
    if any(document.updated != document.created for document in documents):
        report.duplicated.append(f"{expectation.shown} was written more than once")
    if expectation.ending is Ending.NOTHING:
        report.wrong.append(f"{expectation.shown} was gone, and has a document")
        return
    for document in documents:
        _judge_document(expectation, document, others, report)


def _judge_absence(expectation: Expectation, report: Report) -> None:
    if expectation.ending in (Ending.DONE, Ending.FAILED):
        report.lost.append(f"{expectation.shown} has no document")
    else:
        report.superseded += 1


def _judge_document(
    expectation: Expectation,
    document: StoredDocument,
    others: Sequence[Expectation],
    report: Report,
) -> None:
    fields = document.fields
    status, code = fields.get("status"), (fields.get("error") or {}).get("code")
    should_fail = expectation.should_fail
    if (status, code) != (("failed", expectation.code) if should_fail else ("done", None)):
        expected = expectation.code if should_fail else "done"
        report.wrong.append(f"{expectation.shown} is {status} {code or ''}, not {expected}")
    elif (fields.get("size"), fields.get("md5")) != (expectation.size, expectation.md5):
        report.crossed.append(f"{expectation.shown} has the size or checksum of something else")
    elif not is_same_image(expectation.image_fields, fields):
        report.crossed.append(f"{expectation.shown} has the detections of {_owner(fields, others)}")
    elif different := _different(expectation, document):
        report.wrong.append(f"{expectation.shown} has another {', '.join(different)}")
    elif expectation.should_fail:
        report.failed += 1
        report.poisonous += expectation.is_poisonous
    else:
        report.done += 1


def _different(expectation: Expectation, document: StoredDocument) -> list[str]:
    """Return the names of all other fields that differ from the expectation."""
    expected, fields = _other_fields(expectation), document.fields
    known = {*expected, *_COMPARED_BEFORE, *_NOT_COMPARED}
    different = [name for name, value in expected.items() if fields.get(name) != value]
    best = _best(expectation)
    highest, lowest = max(best.values(), default=0.0), _lowest(expectation)
    if not _is_near(best, fields.get("best") or {}):
        different.append("best")
    for name, value in (
        ("max_confidence", highest),
        ("uncertain_confidence", lowest),
    ):
        if abs((fields.get(name) or 0.0) - value) > _CONFIDENCE:
            different.append(name)
    # Labels of almost equal confidence may change places.
    top = [label for label, confidence in best.items() if confidence > highest - 2 * _CONFIDENCE]
    if (fields.get("top_label") not in top) if top else fields.get("top_label"):
        different.append("top_label")
    if not _is_faint(fields, should_fail=expectation.should_fail):
        different.append("faint")
    if bool((fields.get("error") or {}).get("message")) != expectation.should_fail:
        different.append("error")
    if document.id != expectation.ref.document_id:
        different.append("id")
    return sorted({*different, *(fields.keys() ^ known)})


_COMPARED_BEFORE = (
    "uri", "generation", "size", "md5", "status", "error", "image", "detections", "best",
    "max_confidence", "uncertain_confidence", "top_label", "faint", "faint_cut",
)  # fmt: skip
# The fields of every drawn image: no metadata, no EXIF data, and few detections.
_SAME: Mapping[str, Any] = {
    "schema": SCHEMA,
    "metadata": {},
    "metadata_cut": False,
    "captured_at": None,
    "captured_at_source": "none",
    "camera": None,
    "location": None,
    "classes": [],
    "counts_by_zone": {},
    "zone_labels": [],
    "detections_uri": None,
    "left_out": [],
    "simplified_pixels": None,
    "derived_error": None,
}


def _other_fields(expectation: Expectation) -> dict[str, Any]:
    detections = expectation.image_fields.get("detections", ())
    counts = Counter(detection["label"] for detection in detections)
    return {
        **_SAME,
        "source": expectation.source,
        "bucket": expectation.ref.bucket,
        "name": expectation.ref.name,
        "content_type": expectation.content_type,
        "shard": shard_of(expectation.ref.document_id),
        "task": None if expectation.should_fail else Task.DETECT,
        "model": None if expectation.should_fail else expectation.model,
        "labels": sorted(counts),
        "counts": dict(counts),
        "found": None if expectation.should_fail else bool(detections),
        "num_detections": len(detections),
    }


def _best(expectation: Expectation) -> dict[str, float]:
    """Return the highest confidence of each label."""
    best: dict[str, float] = {}
    for detection in expectation.image_fields.get("detections", ()):
        label, confidence = detection["label"], float(detection["confidence"])
        best[label] = max(confidence, best.get(label, 0.0))
    return best


def _lowest(expectation: Expectation) -> float:
    detections = expectation.image_fields.get("detections", ())
    return min((float(detection["confidence"]) for detection in detections), default=0.0)


def _is_near(expected: Mapping[str, float], stored: Mapping[str, float]) -> bool:
    """Return whether confidences are equal within the tolerance."""
    return expected.keys() == stored.keys() and all(
        abs(value - stored[key]) <= _CONFIDENCE for key, value in expected.items()
    )


def _is_faint(fields: Mapping[str, Any], *, should_fail: bool) -> bool:
    """Return whether a done document has readable faint detections, and a failed one none."""
    data, cut = fields.get("faint"), fields.get("faint_cut")
    if should_fail:
        return data is None and cut is None
    if not isinstance(data, bytes) or not isinstance(cut, float):
        return False
    try:
        faint = unpack(data)
    except FaintBytesError:
        return False
    return all(item.confidence >= Settings.store_confidence - _CONFIDENCE for item in faint)


def is_same_image(reference: Mapping[str, Any], fields: Mapping[str, Any]) -> bool:
    """Return whether two documents have the same image size and, within tolerances, detections."""
    if fields.get("image") != reference.get("image"):
        return False
    detections = list(fields.get("detections") or ())
    references = list(reference.get("detections") or ())
    if len(detections) != len(references):
        return False
    for expected in references:
        match = next((each for each in detections if _is_same(expected, each)), None)
        if match is None:
            return False
        detections.remove(match)
    return True


def _is_same(expected: Mapping[str, Any], detection: Mapping[str, Any]) -> bool:
    box = detection["box"]
    return (
        (expected["label"], expected["class_id"]) == (detection["label"], detection["class_id"])
        and abs(expected["confidence"] - detection["confidence"]) <= _CONFIDENCE
        and all(abs(edge - box[name]) <= _PIXELS for name, edge in expected["box"].items())
    )


def _owner(fields: Mapping[str, Any], others: Sequence[Expectation]) -> str:
    owners = (
        other.shown
        for other in others
        if other.detections and is_same_image(other.image_fields, fields)
    )
    return next(owners, "no image of this run")


def _judge_services(
    log: Sequence[LogLine], responses: Sequence[Response], faults: Faults, report: Report
) -> None:
    report.inferences = sum(line.inferring for line in log)
    report.responses = Counter(str(response.status or "none") for response in responses)
    report.silences = count_silences(responses, faults)
    report.killed = killed_services(log, faults)
    report.decoders_lost = sum(line.is_poisoned for line in log)
    report.unexpected += unexpected_lines(log, faults)
    report.unexpected += unexpected_responses(responses, faults)
    report.unexpected += unexpected_silences(report.silences, len(responses))


def _judge_outcomes(log: Sequence[LogLine], messages: int, report: Report) -> None:
    """Compare the outcomes that the services counted with documents and deliveries."""
    report.superseded_inferences = sum(line.superseded for line in log)
    report.outcomes_done = sum(line.done for line in log)
    if report.outcomes_done > report.done:
        report.duplicated.append(
            f"{report.outcomes_done} images were counted as done, with {report.done} documents"
        )
    # Each superseded inference needs a second delivery. It is another message for the image, or a
    # redelivery after 503 or no response.
    second_deliveries = (
        messages - report.uploads + sum(report.responses[status] for status in ("503", "none"))
    )
    if report.superseded_inferences > second_deliveries:
        report.unexpected.append(
            f"{report.superseded_inferences} superseded inferences, "
            f"with {second_deliveries} second deliveries"
        )
    if report.decoders_lost < report.poisonous:
        report.unexpected.append(
            f"{report.decoders_lost} decoders lost to {report.poisonous} files"
        )


def _counted(numbers: Mapping[str, int] | Mapping[Silence, int]) -> str:
    return ", ".join(f"{count} x {kind}" for kind, count in sorted(numbers.items()))


def _first(sentences: Sequence[str]) -> list[str]:
    more = len(sentences) - _SHOWN
    return [*sentences[:_SHOWN], *([f"... and {more} more"] if more > 0 else [])]
