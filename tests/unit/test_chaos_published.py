"""The audit of messages, alerts and objects reports each kind of problem, and none otherwise."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from devtools.chaos.audit import Ending, Expectation, Report, StoredDocument
from devtools.chaos.published import Content, Published, audit_published, chaos_sources
from devtools.docs.document import DONE
from service.alerts import matching as alerts
from service.document import to_document
from service.domain import DerivedImage, DerivedKind, ImageRef, ImageResult
from service.publish.result_message import message_of
from service.sources.current import settings_of

NOW = datetime(2026, 11, 21, tzinfo=UTC)
LATER = NOW + timedelta(minutes=2)
SOURCES = chaos_sources("uploads")
BUCKET = "gs://chaos-results"
NAMES = ("a.jpg", "b.jpg")


def image(name: str) -> ImageResult:
    """Return a result of a run: five hearts, which both rules match, and a thumbnail."""
    ref = ImageRef("uploads", f"chaos/{name}", 7)
    sha256 = hashlib.sha256(name.encode()).hexdigest()
    thumbnail = DerivedImage(
        DerivedKind.THUMBNAIL, name.encode(), "image/jpeg", 320, 240,
        uri=f"{BUCKET}/{ref.document_id}-thumbnail-{sha256}.jpg",
    )  # fmt: skip
    settings = settings_of(ref, SOURCES, None, min_confidence=0.25, store_confidence=0.05)
    result = replace(
        DONE,
        ref=ref,
        detections=(replace(DONE.detections[0], label="heart", zones=()),) * 5,
        event_time=NOW,
        source=settings.version,
        derived=(thumbnail,),
    )
    assert settings.alerts
    return replace(result, alerts=alerts.fired(settings.alerts, result, None))


def expectation(result: ImageResult) -> Expectation:
    assert result.image_info
    document = to_document(result)
    return Expectation(
        result.ref.uri, 7, 1, "md5", Ending.DONE,
        detections=document["detections"], image=asdict(result.image_info),
    )  # fmt: skip


@dataclass
class Run:
    """Two images of a run without problems. The alerts of the second one are suppressed."""

    images: list[ImageResult] = field(default_factory=lambda: list(map(image, NAMES)))
    documents: list[StoredDocument] = field(default_factory=list)
    results: list[bytes] = field(default_factory=list)
    alerts: list[bytes] = field(default_factory=list)
    stored: dict[str, dict[str, Any]] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    responses: Counter[str] = field(default_factory=lambda: Counter({"204": 2}))

    def __post_init__(self) -> None:
        first = [alert.id for alert in self.images[0].alerts]
        for number, result in enumerate(self.images):
            fields = to_document(result) | {"created_at": NOW}
            self.documents.append(StoredDocument(result.ref.document_id, fields, NOW, NOW))
            self.results.append(message_of(result.ref.document_id, fields).data)
            self.objects |= {each.uri or "": each.data for each in result.derived}
            for rule, alert in enumerate(result.alerts):
                is_first = number == 0
                self.stored[alert.id] = alerts.to_document(result, alert) | {
                    "created_at": NOW,
                    "state": "published" if is_first else "suppressed",
                    "published_at": NOW if is_first else None,
                    "suppressed_by": None if is_first else first[rule],
                }
        self.alerts = [json.dumps({"id": each}).encode() for each in first]

    @property
    def second(self) -> str:
        """An alert of the second image."""
        return self.images[1].alerts[0].id

    def publish_second(self, published_at: datetime, **changes: Any) -> None:
        """Let the second image's alert be published, too."""
        self.stored[self.second] |= {
            "state": "published",
            "published_at": published_at,
            "suppressed_by": None,
            "previous_alert": self.images[0].alerts[0].id,
            **changes,
        }
        self.alerts.append(json.dumps({"id": self.second}).encode())

    def audit(self) -> Report:
        report = Report(responses=self.responses)
        published = Published(
            self.results,
            self.alerts,
            [StoredDocument(key, fields, NOW, NOW) for key, fields in self.stored.items()],
            {uri: Content.of(data) for uri, data in self.objects.items()},
        )
        expectations = [expectation(result) for result in self.images]
        audit_published(published, expectations, self.documents, SOURCES, report)
        return report

    def change_message(self, **changes: Any) -> None:
        self.results.append(json.dumps(json.loads(self.results[0]) | changes).encode())

    def change_document(self, **changes: Any) -> None:
        document = self.documents[0]
        self.documents[0] = replace(document, fields={**document.fields, **changes})


def found(report: Report) -> list[str]:
    return report.messages + report.alerts + report.objects


def test_a_run_without_problems_is_clean() -> None:
    run = Run()
    run.results *= 3  # messages may repeat, and so may alerts
    run.alerts *= 2
    report = run.audit()
    assert found(report) == []
    assert (report.result_messages, report.rows) == (6, 2)
    assert (report.alerts_published, report.alerts_suppressed, report.alert_messages) == (2, 2, 4)
    assert (report.object_count, report.orphans) == (2, 0)


def test_alert_after_the_cooldown_is_no_problem() -> None:
    run = Run()
    run.publish_second(LATER)
    assert found(run.audit()) == []


PROBLEMS: dict[str, tuple[Callable[[Run], Any], str]] = {
    "no message": (lambda run: run.results.pop(), "has a document, and no message"),
    "no document": (lambda run: run.documents.pop(), "has a message, and no document"),
    "other label": (lambda run: run.change_message(top_label="cat"), "with another top_label"),
    "not valid": (lambda run: run.change_message(size="big"), "is not valid: 'big' is not of type"),
    "more fields": (lambda run: run.change_message(colour="red"), "is not valid: Additional"),
    "no alert document": (lambda run: run.stored.pop(run.second), "has no document"),
    "no alerts": (lambda run: run.change_document(alerts=[]), "names other alerts than"),
    "too many alerts": (
        lambda run: run.stored.update({"x": run.stored[run.second]}), "alert x was not expected",
    ),
    "no alert message": (lambda run: run.alerts.pop(), "is published, and has no message"),
    "suppressed": (
        lambda run: run.alerts.append(json.dumps({"id": run.second}).encode()),
        "is suppressed, and has a message",
    ),
    "unknown alert": (lambda run: run.alerts.append(b'{"id": "x"}'), "and no document"),
    "within the cooldown": (lambda run: run.publish_second(NOW), "within the cooldown"),
    "two at once": (
        lambda run: run.publish_second(LATER, previous_alert=None), "are not one chain",
    ),
    "pending": (lambda run: run.stored[run.second].update(state="pending"), "still pending"),
    "suppressed by nothing": (
        lambda run: run.stored[run.second].update(suppressed_by="x"), "one that is not published",
    ),
    "no object": (lambda run: run.objects.popitem(), "does not exist, and"),
    "object of another image": (
        lambda run: run.change_document(derived=to_document(run.images[1])["derived"]),
        "is the object of another image",
    ),
    "no thumbnail": (lambda run: run.change_document(derived=[]), "has the derived images {}"),
    "other bytes": (
        lambda run: run.objects.update(dict.fromkeys(run.objects, b"other")),
        "has other bytes than its name says",
    ),
    "left objects": (
        lambda run: run.objects.update(
            {f"{BUCKET}/{'0' * 40}-thumbnail-{hashlib.sha256(b'x').hexdigest()}.jpg": b"x"}
        ),
        "1 objects are left, after 0 deliveries without 204",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("fault", "sentence"), PROBLEMS.values(), ids=PROBLEMS)
def test_each_problem_is_found(fault: Callable[[Run], Any], sentence: str) -> None:
    run = Run()
    fault(run)
    assert any(sentence in each for each in found(run.audit())), found(run.audit())


def test_killed_delivery_may_leave_its_objects() -> None:
    run = Run(responses=Counter({"204": 2, "none": 1}))
    sha256 = hashlib.sha256(b"x").hexdigest()
    run.objects[f"{BUCKET}/{run.documents[0].id}-redacted-{sha256}.jpg"] = b"x"
    report = run.audit()
    assert found(report) == []
    assert report.orphans == 1


def test_redacted_source_expects_each_of_its_images() -> None:
    run = Run(images=[image("ü/a.jpg")])
    assert any("has the derived images {'thumbnail': 1}" in each for each in found(run.audit()))
