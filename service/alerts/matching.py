"""Decides which alert rules an image matches. It depends on the image's result alone.

The rules see the detections that are kept, with the rounded numbers that a document stores. So they
decide the same if they are applied later to a stored result.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any

import msgspec

from service.document import shard_of
from service.domain import Alert, ClassScore, Detection, ImageResult, Task
from service.sources.rules import AlertRules
from service.sources.schema import AlertRule

_MAX_TEXT_LABELS = 5  # how many labels the text of an alert names
_MAX_TEXT_LABEL = 40  # how many characters of a label it has


def fired(rules: AlertRules, result: ImageResult, now: datetime | None) -> tuple[Alert, ...]:
    """Return an alert for each rule that an image matches, in the order of the rules.

    A failed image matches no rule. If the age of an image is unknown, or the time that `between`
    is about, the rule does not match.

    Args:
        rules: the rules of the image's source.
        result: the image's result, as `service.evaluation.evaluate` returns it.
        now: the time at which the image's age is judged. None: an image of any age alerts.
    """
    if result.failure:
        return ()
    return tuple(
        _alert(rules, rule, result, labels)
        for rule in rules.rules
        if _is_young(rule, result, now)
        and _is_within_hours(rule, rules.timezone or UTC, result)
        and sum((labels := _matching_labels(rules, rule, result)).values()) >= rule.min_count
    )


def matches(rules: AlertRules, result: ImageResult) -> bool:
    """Return whether an image matches a rule if its times are ignored."""
    return not result.failure and any(
        sum(_matching_labels(rules, rule, result).values()) >= rule.min_count
        for rule in rules.rules
    )


def rule_version(rules: AlertRules, rule: AlertRule) -> str:
    """Return a hash of a rule, its labels and its time zone: 12 hexadecimal digits.

    The polygons of its zones and the thresholds of its source are no part of it.
    """
    labels = rules.labels_of(rule)
    content = [
        msgspec.json.encode(rule, order="deterministic"),
        msgspec.json.encode(sorted(labels) if labels is not None else None),
        str(rules.timezone or UTC).encode(),
    ]
    return hashlib.sha256(b"\n".join(content)).hexdigest()[:12]


def alert_id(document_id: str, rule: str, version: str) -> str:
    """Return the id of the alert of one rule, in one version, and one image.

    It begins with the id of the image's document, so it has its hash and causes no hot spot:
    https://firebase.google.com/docs/firestore/best-practices
    """
    key = f"{document_id}\n{rule}\n{version}"
    return f"{document_id}-{hashlib.sha256(key.encode()).hexdigest()[:20]}"


def to_document(result: ImageResult, alert: Alert) -> dict[str, Any]:
    """Return the document of an alert. Every alert document has all of these fields.

    The store adds `created_at`, the server's time.

    Args:
        result: the result that the alert is about.
        alert: one of its alerts.
    """
    ref = result.ref
    return {
        "document_id": ref.document_id,
        "uri": ref.uri,
        "bucket": ref.bucket,
        "name": ref.name,
        "generation": ref.generation,
        "source_id": result.source.id,
        "rule": alert.rule,
        "rule_version": alert.rule_version,
        "severity": str(alert.severity),
        "text": alert.text,
        "labels": dict(alert.labels),
        "num": sum(alert.labels.values()),
        "cooldown_seconds": alert.cooldown_seconds,
        "state": str(alert.state),
        "suppressed_by": alert.suppressed_by,
        "previous_alert": None,  # id of the rule's last alert that was published before this one
        "event_time": result.event_time,
        "captured_at": result.captured_at,
        "published_at": None,
        "shard": shard_of(ref.document_id),
    }


def _is_young(rule: AlertRule, result: ImageResult, now: datetime | None) -> bool:
    """Return whether an image was uploaded recently enough."""
    if now is None:
        return True
    uploaded_at = result.event_time or result.ref.metadata.created_at
    return uploaded_at is not None and now - uploaded_at <= timedelta(minutes=rule.max_age_minutes)


def _time_of(result: ImageResult) -> datetime | None:
    """Return when an image was taken, otherwise when it was uploaded."""
    return result.captured_at or result.event_time or result.ref.metadata.created_at


def _is_within_hours(rule: AlertRule, timezone: tzinfo, result: ImageResult) -> bool:
    if rule.hours is None:
        return True
    moment = _local(_time_of(result), timezone)
    if moment is None:
        return False
    start, end = rule.hours
    now = moment.time()
    if start < end:
        return start <= now < end
    return now >= start or now < end  # over midnight


def _local(moment: datetime | None, timezone: tzinfo) -> datetime | None:
    """Return a time in a time zone, or None if it has none there."""
    try:
        return moment and moment.astimezone(timezone)
    except OverflowError:  # the event's time is untrusted: it may be in the year 1 or 9999
        return None


def _matching_labels(rules: AlertRules, rule: AlertRule, result: ImageResult) -> Mapping[str, int]:
    """Return how many detections match a rule, by label."""
    labels = rules.labels_of(rule)
    return Counter(
        item.label
        for item in _candidates(rule, result)
        if (labels is None or item.label in labels)
        and (rule.min_confidence is None or item.confidence >= rule.min_confidence)
    )


def _candidates(rule: AlertRule, result: ImageResult) -> Iterator[Detection | ClassScore]:
    """Yield the detections that are in a rule's zones and large enough.

    Classes have no place in the image, so neither zones nor areas apply to them.
    """
    if result.model and result.model.task is Task.CLASSIFY:
        yield from result.kept_classes
        return
    info = result.image_info
    for item in result.detections:
        if rule.zones is not None and rule.zones.isdisjoint(item.zones):
            continue
        if rule.min_area is not None:
            box = item.box
            area = (box.x2 - box.x1) * (box.y2 - box.y1)
            if info is None or area < rule.min_area * info.width * info.height:
                continue
        yield item


def _alert(
    rules: AlertRules, rule: AlertRule, result: ImageResult, labels: Mapping[str, int]
) -> Alert:
    version = rule_version(rules, rule)
    return Alert(
        id=alert_id(result.ref.document_id, rule.name, version),
        rule=rule.name,
        rule_version=version,
        severity=rule.severity,
        text=_text(rules, rule, result, labels),
        labels=dict(sorted(labels.items())),
        cooldown_seconds=rule.cooldown_minutes * 60,
    )


def _text(
    rules: AlertRules, rule: AlertRule, result: ImageResult, labels: Mapping[str, int]
) -> str:
    """Return what a person reads: "2 person in zone gate, source cam1, 22:14 (Europe/Berlin)"."""
    most = sorted(labels.items(), key=lambda item: (-item[1], item[0]))
    found = [f"{count} {_short(label)}" for label, count in most[:_MAX_TEXT_LABELS]]
    if others := len(most) - len(found):
        found.append(f"{others} more labels" if others > 1 else "1 more label")
    where = f" in zone {' or '.join(sorted(rule.zones))}" if rule.zones else ""
    timezone = rules.timezone or UTC
    moment = _local(_time_of(result), timezone)
    when = f", {moment:%H:%M} ({timezone})" if moment else ""
    return f"{', '.join(found)}{where}, source {rules.source_id}{when}"


def _short(label: str) -> str:
    """Return a label as one line of a limited length. Its text is untrusted."""
    text = " ".join("".join(c if c.isprintable() else " " for c in label).split())
    return text if len(text) <= _MAX_TEXT_LABEL else f"{text[: _MAX_TEXT_LABEL - 3]}..."
