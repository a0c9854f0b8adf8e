"""What other sources would change in stored results, without running the model.

The rules need only the detections and faint detections that a document stores. A document is
incomplete if it lacks detections that the new rules might keep. It is never rewritten: its image
must be processed again.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any, Protocol, TypeVar

from service.document import STATUS_DONE, detection_fields
from service.domain import SCHEMA, ImageRef, ImageResult, Prediction, Task
from service.errors import StoredResultError
from service.evaluation import evaluate
from service.sources.current import SourceSettings
from service.stored_result import stored_result

SettingsOf = Callable[[ImageRef], SourceSettings]
Value = TypeVar("Value")


class Verdict(StrEnum):
    """What the new sources mean for a stored document."""

    CHANGED = "changed"
    UNCHANGED = "unchanged"
    INCOMPLETE = "incomplete"  # it lacks detections that the rules might keep
    LARGE = "large"  # its detections are in RESULTS_BUCKET
    DISABLED = "disabled"  # its source is disabled
    NOT_DONE = "not_done"  # failed or parked, so it has no detections
    UNREADABLE = "unreadable"  # it was written by another version of the service, or edited
    UNSTORABLE = "unstorable"  # Firestore refuses what it would become: too large, or edited


@dataclass(frozen=True)
class Change:
    """What the new sources mean for one document."""

    verdict: Verdict
    kept: Counter[str] = field(default_factory=Counter)  # labels that would be added
    dropped: Counter[str] = field(default_factory=Counter)  # labels that would be removed
    fields: Mapping[str, Any] = field(default_factory=dict)  # new values of the derived fields


@dataclass
class Summary:
    """The changes of many documents."""

    verdicts: Counter[Verdict] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    rewritten: int = 0

    @property
    def documents(self) -> int:
        """How many documents were read."""
        return self.verdicts.total()

    def add(self, change: Change) -> None:
        """Count one document."""
        self.verdicts[change.verdict] += 1
        self.kept += change.kept
        self.dropped += change.dropped


class Version(Protocol):
    """A document as it was read. `service.gcp.result_reader.DocumentVersion` implements it."""

    @property
    def id(self) -> str:
        """The document's id."""

    @property
    def fields(self) -> dict[str, Any]:
        """The document's fields."""


class Rewriter(Protocol):
    """Changes documents. `service.gcp.result_reader.ResultRewriter` implements it."""

    def version(self, document_id: str) -> Any:
        """Return one document, or None if there is none."""

    def rewrite(self, version: Any, fields: Mapping[str, Any]) -> bool:
        """Change fields of a document. Return False if the document was changed meanwhile.

        Raises:
            StoredResultError: the document cannot have these fields.
        """


def preview(
    versions: Iterable[Version],
    settings_of: SettingsOf,
    *,
    store_confidence: float,
    rewriter: Rewriter | None = None,
    progressed: Callable[[Summary], None] = lambda summary: None,
) -> Summary:
    """Compare stored documents with what other sources would make of them.

    Args:
        versions: the documents.
        settings_of: returns the new settings of an image.
        store_confidence: the lowest confidence that is recorded.
        rewriter: writes the changed documents. None: nothing is written.
        progressed: called after each document.

    Raises:
        FirestoreUnavailableError: Firestore did not respond. It is safe to run it again.
    """
    summary = Summary()
    for version in versions:
        change = change_of(version.fields, settings_of, store_confidence)
        while rewriter and change.verdict is Verdict.CHANGED:
            try:
                is_rewritten = rewriter.rewrite(version, change.fields)
            except StoredResultError:
                change = Change(Verdict.UNSTORABLE)
                break
            if is_rewritten:
                summary.rewritten += 1
                break
            # Another process changed the document first: compare the new one.
            if not (current := rewriter.version(version.id)):
                break
            version = current
            change = change_of(version.fields, settings_of, store_confidence)
        summary.add(change)
        progressed(summary)
    return summary


def change_of(
    document: Mapping[str, Any], settings_of: SettingsOf, store_confidence: float
) -> Change:
    """Return what the new sources mean for a document.

    Args:
        document: the stored document.
        settings_of: returns the new settings of an image.
        store_confidence: the lowest confidence that is recorded.
    """
    found = on_stored(
        document,
        settings_of,
        store_confidence,
        lambda new, settings: _change(new, document, settings),
    )
    return Change(found) if isinstance(found, Verdict) else found


def on_stored(
    document: Mapping[str, Any],
    settings_of: SettingsOf,
    store_confidence: float,
    use: Callable[[ImageResult, SourceSettings], Value],
) -> Value | Verdict:
    """Apply new sources to a stored document. Return what `use` returns, or why it was not called.

    Args:
        document: the stored document.
        settings_of: returns the new settings of an image.
        store_confidence: the lowest confidence that is recorded.
        use: takes the result that the new settings make of the document, and the settings. It may
            raise any error of data that a person has edited.
    """
    if document.get("schema") != SCHEMA:
        return Verdict.UNREADABLE
    if document.get("status") != STATUS_DONE:
        return Verdict.NOT_DONE
    try:
        stored = stored_result(document)
        settings = settings_of(stored.ref)
        if not settings.is_enabled:
            return Verdict.DISABLED
        if document["detections_uri"]:
            return Verdict.LARGE
        if not _is_complete(stored, document["faint_cut"], settings, store_confidence):
            return Verdict.INCOMPLETE
        found = (*stored.detections, *(stored.faint or ()))
        new = evaluate(stored, Prediction(found, stored.classes), settings.rules)
        new = replace(new, store_confidence=document["faint_cut"] or stored.store_confidence)
        return use(new, settings)
    except (
        StoredResultError,
        ArithmeticError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
    ):  # a person may have edited the document
        return Verdict.UNREADABLE


def _is_complete(
    stored: ImageResult, faint_cut: float | None, settings: SourceSettings, floor: float
) -> bool:
    """Return whether a document has every detection that the rules might keep.

    `faint_cut` is the confidence above which all detections are recorded. If no detection was cut,
    it is STORE_CONFIDENCE, and the detections with exactly this confidence are recorded, too.
    """
    if stored.model and stored.model.task is Task.CLASSIFY:
        return True
    if stored.faint is None or faint_cut is None:
        return False
    lowest = settings.rules.lowest_confidence
    return lowest > faint_cut or (lowest == faint_cut and faint_cut <= floor)


def _change(new: ImageResult, document: Mapping[str, Any], settings: SourceSettings) -> Change:
    fields = detection_fields(new)
    is_same = document["source"]["id"] == settings.version.id and all(
        document.get(key) == value for key, value in fields.items()
    )
    if is_same:
        return Change(Verdict.UNCHANGED)
    before = _labels(document["detections"], document["counts"])
    after = _labels(fields["detections"], fields["counts"])
    return Change(
        Verdict.CHANGED,
        Counter(label for label, *_ in (after - before).elements()),
        Counter(label for label, *_ in (before - after).elements()),
        {**fields, "source": asdict(settings.version)},
    )


def _labels(
    detections: Iterable[Mapping[str, Any]], counts: Mapping[str, int]
) -> Counter[tuple[Any, ...]]:
    """Return what identifies each detection, beginning with its label. For classes, the labels."""
    kept = Counter(
        (item["label"], item["confidence"], *sorted(item["box"].items())) for item in detections
    )
    return kept or Counter({(label,): count for label, count in counts.items()})
