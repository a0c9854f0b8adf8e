"""Audits the messages, alerts and objects of a run. Pure functions."""

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple, Self

from jsonschema import Draft202012Validator

from devtools.chaos.audit import Expectation, Report, StoredDocument
from devtools.docs.result_message import json_schema
from devtools.warehouse import Warehouse
from service.alerts.matching import fired
from service.derived import DeriveOptions
from service.document import STATUS_DONE, STATUS_FAILED
from service.domain import (
    AlertState,
    Box,
    DerivedKind,
    Detection,
    ImageInfo,
    ImageResult,
    ModelInfo,
    SourceVersion,
)
from service.publish.result_message import message_of
from service.settings import Settings
from service.sources.current import SourceSettings, settings_of
from service.sources.schema import Sources, parse

SHORT_COOLDOWN_MINUTES = 1  # the shortest that a rule can have
_MAX_AGE_MINUTES = 7 * 24 * 60
_OBJECT = re.compile(r"gs://[^/]+/(?P<document>[0-9a-f]{40})-[0-9a-z-]*?(?P<sha256>[0-9a-f]{64})\.")
_LARGEST = 5  # objects of one image, with the sources of `chaos_sources`


class Content(NamedTuple):
    """What an object contains."""

    size: int  # bytes
    sha256: str

    @classmethod
    def of(cls, data: bytes) -> Self:
        """Return the size and the hash of an object's bytes."""
        return cls(len(data), hashlib.sha256(data).hexdigest())


@dataclass(frozen=True)
class Published:
    """What the services published and stored beside the documents of the results."""

    results: Sequence[bytes] = ()  # messages
    alerts: Sequence[bytes] = ()  # messages
    alert_documents: Sequence[StoredDocument] = ()
    objects: Mapping[str, Content] | None = None  # by URI


def chaos_sources(bucket: str) -> Sources:
    """Return the sources of a run: alert rules, and one prefix whose images are redacted.

    The rules depend on labels and counts only. A threshold could decide differently for the
    slightly different numbers of another batch.
    """
    limits = {"cooldown_minutes": SHORT_COOLDOWN_MINUTES, "max_age_minutes": _MAX_AGE_MINUTES}
    rules: list[dict[str, Any]] = [
        {"name": "hearts", "labels": ["heart"], **limits},
        {"name": "crowd", "min_count": 5, "severity": "critical", **limits},
    ]
    private = {"annotated": True, "redacted": {"labels": ["circle"]}, "normalized": {}}
    sources: list[dict[str, Any]] = [
        {"id": "chaos", "prefix": "chaos/"},
        {"id": "private", "prefix": "chaos/ü/", "derived": private},
    ]
    return parse({"sources": [each | {"bucket": bucket, "alerts": rules} for each in sources]})


def audit_published(
    published: Published,
    expectations: Sequence[Expectation],
    documents: Sequence[StoredDocument],
    sources: Sources,
    report: Report,
) -> None:
    """Compare messages, alerts and objects with the documents. Add the findings to a report.

    Args:
        published: what was published and stored.
        expectations: one for each upload.
        documents: all documents of results.
        sources: the sources of the run.
        report: its problems and figures get those of this audit. It has the responses already.
    """
    final = {
        document.id: document
        for document in documents
        if document.fields.get("status") in (STATUS_DONE, STATUS_FAILED)
    }
    by_id = {each.ref.document_id: each for each in expectations}
    known = {
        key: (document, by_id[key], _settings(by_id[key], sources))
        for key, document in final.items()
        if key in by_id
    }
    report.messages += _audit_results(published.results, final, report)
    report.alerts += _audit_alerts(published, known, report)
    report.objects += _audit_objects(published.objects or {}, known, report)


_Known = Mapping[str, tuple[StoredDocument, Expectation, SourceSettings]]


def _settings(expectation: Expectation, sources: Sources) -> SourceSettings:
    return settings_of(
        expectation.ref,
        sources,
        None,
        min_confidence=Settings.min_confidence,
        store_confidence=Settings.store_confidence,
    )


def _audit_results(
    messages: Sequence[bytes], final: Mapping[str, StoredDocument], report: Report
) -> Iterator[str]:
    """Yield problems of the results topic: each document has messages, and each equals it."""
    expected = {
        key: json.loads(message_of(key, document.fields).data) for key, document in final.items()
    }
    validator = Draft202012Validator(json_schema())
    published: Counter[str] = Counter()
    for data in messages:
        message = json.loads(data)
        key = message.get("document_id")
        published[key] += 1
        if error := next(validator.iter_errors(message), None):
            yield f"a message of {key} is not valid: {error.message}"
        if key not in expected:
            yield f"{message.get('uri')} has a message, and no document"
        elif message != expected[key]:
            other = [name for name in expected[key] if message.get(name) != expected[key][name]]
            yield f"{message.get('uri')} has a message with another {', '.join(other) or 'field'}"
    for key in expected.keys() - published.keys():
        yield f"{expected[key]['uri']} has a document, and no message"
    rows = Counter(
        key for (key,) in Warehouse(messages).query("SELECT document_id FROM `p.d.results`")
    )
    if rows != Counter(dict.fromkeys(expected, 1)):
        yield f"the view has {rows.total()} rows of {len(rows)} documents, not {len(expected)}"
    report.result_messages = len(messages)
    report.rows = rows.total()


def _audit_alerts(published: Published, known: _Known, report: Report) -> Iterator[str]:
    """Yield problems of the alerts: their documents, their cooldowns, and their messages."""
    stored = {document.id: document.fields for document in published.alert_documents}
    expected: set[str] = set()
    for key, (document, expectation, settings) in known.items():
        alerts = _expected_alerts(expectation, settings)
        expected |= alerts
        if {each["id"] for each in document.fields.get("alerts", ())} != alerts:
            yield f"{expectation.shown} names other alerts than those of its detections"
        if any(stored.get(each, {}).get("document_id", key) != key for each in alerts):
            yield f"{expectation.shown} has an alert of another image"
    for key in sorted(expected - stored.keys()):
        yield f"alert {key} has no document"
    for key in sorted(stored.keys() - expected):
        yield f"alert {key} was not expected"
    yield from _audit_cooldowns(stored)
    states = Counter(str(fields.get("state")) for fields in stored.values())
    report.alerts_published = states[AlertState.PUBLISHED]
    report.alerts_suppressed = states[AlertState.SUPPRESSED]
    report.alert_messages = len(published.alerts)
    messages = Counter(json.loads(data)["id"] for data in published.alerts)
    for key, fields in stored.items():
        is_published = fields.get("state") == AlertState.PUBLISHED
        if is_published and not messages[key]:
            yield f"alert {key} is published, and has no message"
        if not is_published and messages[key]:
            yield f"alert {key} is {fields.get('state')}, and has a message"
    for key in messages.keys() - stored.keys():
        yield f"alert {key} has a message, and no document"


def _expected_alerts(expectation: Expectation, settings: SourceSettings) -> set[str]:
    """Return the ids of the alerts that the detections of the run without faults raise."""
    if expectation.should_fail or not settings.alerts:
        return set()
    result = ImageResult(
        expectation.ref,
        image_info=ImageInfo(**(expectation.image or {})),
        model=_MODEL,
        detections=tuple(
            Detection(
                label=each["label"],
                class_id=each["class_id"],
                confidence=each["confidence"],
                box=Box(**each["box"]),
            )
            for each in expectation.detections
        ),
        source=SourceVersion(settings.version.id),
    )
    return {alert.id for alert in fired(settings.alerts, result, None)}


_MODEL = ModelInfo("chaos", "0" * 64, 0, "fp32", "none")  # a rule depends on its task only


def _audit_cooldowns(stored: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield problems of the cooldowns. The published alerts of a rule form one chain.

    Each names the one before it, so no two of them were published at once. At least one cooldown
    lies between the creation of one and the confirmation of the next one's message.
    """
    by_rule: defaultdict[tuple[str, str], dict[str, Mapping[str, Any]]] = defaultdict(dict)
    for key, fields in stored.items():
        by_rule[fields["source_id"], fields["rule"]][key] = fields
    for (source, rule), alerts in by_rule.items():
        published = {k: f for k, f in alerts.items() if f["state"] == AlertState.PUBLISHED}
        previous = Counter(fields["previous_alert"] for fields in published.values())
        if previous[None] != 1 or any(count > 1 for count in previous.values()):
            yield f"the published alerts of {source}/{rule} are not one chain"
        for key, fields in alerts.items():
            if (
                fields["state"] == AlertState.SUPPRESSED
                and fields["suppressed_by"] not in published
            ):
                yield f"alert {key} is suppressed by one that is not published"
            before = published.get(fields["previous_alert"] or "")
            if key in published and before and not _is_over(before, fields):
                yield f"alert {key} was published within the cooldown of the one before it"
            if fields["state"] == AlertState.PENDING:
                yield f"alert {key} is still pending"


def _is_over(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Return whether a cooldown may lie between two published alerts."""
    confirmed: datetime | None = after["published_at"]
    cooldown = timedelta(seconds=before["cooldown_seconds"])
    return confirmed is not None and confirmed - before["created_at"] >= cooldown


def _audit_objects(objects: Mapping[str, Content], known: _Known, report: Report) -> Iterator[str]:
    """Yield problems of the derived images, and of objects that no document refers to.

    Only a delivery that did not end with 204 can leave such objects: it was killed between the
    upload and the commit, or it could not know whether its commit succeeded.
    """
    used: set[str] = set()
    for document, expectation, settings in known.values():
        derived = document.fields.get("derived", ())
        kinds = Counter(each["kind"] for each in derived)
        if kinds != _expected_kinds(expectation, settings.derive):
            yield f"{expectation.shown} has the derived images {dict(kinds)}"
        for each in derived:
            used.add(each["uri"])
            match = _OBJECT.match(each["uri"])
            if not match or match["document"] != document.id:
                yield f"{each['uri']} is the object of another image than {expectation.shown}"
            elif each["uri"] not in objects:
                yield f"{each['uri']} does not exist, and {expectation.shown} refers to it"
            elif objects[each["uri"]].size != each["size"]:
                yield f"{each['uri']} has another size than {expectation.shown} says"
    for uri, content in objects.items():
        match = _OBJECT.match(uri)
        if not match or content.sha256 != match["sha256"]:
            yield f"{uri} has other bytes than its name says"
    report.object_count = len(objects)
    report.orphans = len(objects.keys() - used)
    ended_otherwise = sum(report.responses.values()) - report.responses["204"]
    ended_otherwise -= report.responses["429"]  # rejected before it began
    if report.orphans > _LARGEST * ended_otherwise:
        yield f"{report.orphans} objects are left, after {ended_otherwise} deliveries without 204"


def _expected_kinds(expectation: Expectation, options: DeriveOptions) -> Counter[str]:
    if expectation.should_fail:
        return Counter()
    wanted: Iterable[tuple[DerivedKind, object]] = (
        (DerivedKind.THUMBNAIL, options.thumbnail_side),
        (DerivedKind.ANNOTATED, options.annotated),
        (DerivedKind.REDACTED, options.redaction),
        (DerivedKind.NORMALIZED, options.normalized),
        (DerivedKind.LABELS, options.normalized),
    )
    return Counter(str(kind) for kind, is_wanted in wanted if is_wanted)
