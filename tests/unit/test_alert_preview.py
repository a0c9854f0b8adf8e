"""How often rules would have fired for stored results."""

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.alerts.matching import fired
from service.cli.alerts import _report
from service.cli.alerts import preview as preview_command
from service.document import to_document
from service.domain import (
    Box,
    Detection,
    ErrorCode,
    Failure,
    ImageInfo,
    ImageRef,
    ImageResult,
    ModelInfo,
    Prediction,
)
from service.evaluation import evaluate
from service.operate.alert_preview import AlertPreview, RuleTally
from service.operate.preview import Verdict
from service.sources.current import settings_of
from service.sources.rules import Rules
from service.sources.schema import AlertRule, Sources, parse

NOON = datetime(2026, 11, 30, 12, tzinfo=UTC)
MODEL = ModelInfo("m.pt", "0" * 64, 640, "fp32", "fake")
PERSON = Detection("person", 0, 0.9, Box(10.0, 10.0, 30.0, 70.0))


def sources(*rules: dict[str, Any], **source: Any) -> Sources:
    """One source, cam1, with these rules."""
    plain = {"id": "cam1", "bucket": "uploads", "prefix": "cam1/", "alerts": list(rules), **source}
    return parse({"sources": [plain], "groups": {"people": ["person"]}})


def document(
    minute: float = 0,
    *found: Detection,
    name: str = "cam1/a.jpg",
    rules: Rules = Rules(),  # noqa: B008 - immutable
    **fields: Any,
) -> dict[str, Any]:
    """The document of an image that was uploaded at this minute after noon."""
    result = ImageResult(
        ImageRef("uploads", name, 1),
        image_info=ImageInfo(100, 80, "JPEG"),
        model=MODEL,
        event_time=NOON + timedelta(minutes=minute),
    )
    stored = to_document(evaluate(result, Prediction(found or (PERSON,)), rules))
    return stored | {"created_at": NOON + timedelta(days=30)} | fields


def tried(sources: Sources, *documents: dict[str, Any], max_examples: int = 3) -> AlertPreview:
    preview = AlertPreview(
        sources,
        partial(
            settings_of, sources=sources, version=None, min_confidence=0.25, store_confidence=0.05
        ),
        store_confidence=0.05,
        max_examples=max_examples,
    )
    for each in documents:
        preview.add(each)
    return preview


def test_alerts_messages_and_suppressed_are_counted() -> None:
    rules = sources({"name": "person", "group": "people", "cooldown_minutes": 10})
    preview = tried(rules, *(document(minute) for minute in (25, 0, 3, 9.5, 10, 12)))
    [tally] = preview.rules
    assert (tally.source, tally.rule.name) == ("cam1", "person")
    assert (tally.alerts, tally.messages) == (6, 3)  # at 0, 10 and 25 minutes
    assert preview.evaluated == preview.documents == 6


@given(st.lists(st.integers(0, 10**6)), st.integers(1, 10**4), st.randoms(use_true_random=False))
def test_messages_are_those_that_a_cooldown_lets_through(
    times: list[int], minutes: int, random: Any
) -> None:
    tally = RuleTally("cam1", AlertRule(name="person", cooldown_minutes=minutes))
    tally.times.extend(times)
    sent: list[int] = []
    for time in sorted(times):
        if all(time - other >= minutes * 60 for other in sent):
            sent.append(time)
    assert tally.messages == len(sent)
    random.shuffle(times)
    again = RuleTally("cam1", tally.rule)
    again.times.extend(times)
    assert again.messages == tally.messages


def test_old_images_fire_rules_of_the_present() -> None:
    rules = sources({"name": "person", "max_age_minutes": 1})
    assert tried(rules, document(-(10**6))).rules[0].alerts == 1


def test_hours_apply_to_the_time_of_the_image() -> None:
    rules = sources({"name": "night", "between": "22:00-06:00"}, timezone="Asia/Tokyo")
    day_in_tokyo, night_in_tokyo = document(-4 * 60), document(4 * 60)
    assert tried(rules, day_in_tokyo).rules[0].alerts == 0
    assert tried(rules, night_in_tokyo).rules[0].alerts == 1
    taken_at_night = document(captured_at=NOON + timedelta(hours=4))
    assert tried(rules, taken_at_night).rules[0].alerts == 1


def test_zones_of_the_file_apply_not_those_of_the_document() -> None:
    left = {"name": "left", "mode": "include", "points": [[0, 0], [0.5, 0], [0.5, 1], [0, 1]]}
    right = {"name": "right", "mode": "include", "points": [[0.5, 0], [1, 0], [1, 1], [0.5, 1]]}
    rules = sources(
        {"name": "left", "zones": ["left"]},
        {"name": "right", "zones": ["right"]},
        zones=[left, right],
    )
    assert [tally.alerts for tally in tried(rules, document()).rules] == [1, 0]


def test_detections_that_were_faint_count_if_the_file_keeps_them() -> None:
    stored = document(0, replace(PERSON, confidence=0.3), rules=Rules(0.5))
    assert stored["detections"] == []
    rule = {"name": "person"}
    assert tried(sources(rule), stored).rules[0].alerts == 1
    assert tried(sources(rule, min_confidence=0.5), stored).rules[0].alerts == 0


def test_preview_decides_as_the_service_did() -> None:
    """The service applies the rules to the result, before the document is written."""
    rules = sources({"name": "two", "min_count": 2, "min_confidence": 0.5, "min_area": 0.1})
    result = ImageResult(
        ImageRef("uploads", "cam1/a.jpg", 1),
        image_info=ImageInfo(100, 80, "JPEG"),
        model=MODEL,
        event_time=NOON,
    )
    edge = replace(PERSON, confidence=0.49996, box=Box(10.0, 10.0, 30.0, 50.0))
    settings = settings_of(result.ref, rules, None, min_confidence=0.25, store_confidence=0.05)
    assert settings.alerts
    for found in ((PERSON,), (PERSON, edge), (PERSON, PERSON)):
        evaluated = evaluate(result, Prediction(found), settings.rules)
        alerts = fired(settings.alerts, evaluated, NOON)
        preview = tried(rules, to_document(evaluated) | {"created_at": NOON})
        assert [each.text for each in preview.rules[0].examples] == [each.text for each in alerts]


def test_documents_that_cannot_answer_are_counted() -> None:
    rules = sources({"name": "person"})
    failed = ImageResult(
        ImageRef("uploads", "cam1/f.jpg", 1), failure=Failure(ErrorCode.CORRUPT_IMAGE, "cut short")
    )
    preview = tried(
        rules,
        document(),
        document(rules=Rules(keep_faint=False)),
        document(detections_uri="gs://results/a"),
        to_document(failed),
        document(schema=1),
        document(event_time="yesterday"),
        document(created_at=None, event_time=None),
        document(name="cam2/a.jpg"),
    )
    assert preview.unanswered == {
        Verdict.INCOMPLETE: 1,
        Verdict.LARGE: 1,
        Verdict.NOT_DONE: 1,
        Verdict.UNREADABLE: 3,
    }
    assert (preview.evaluated, preview.without_rules, preview.documents) == (1, 1, 8)
    disabled = sources({"name": "person"}, enabled=False)
    assert tried(disabled, document()).unanswered == {Verdict.DISABLED: 1}


def test_image_without_a_time_does_not_fire_a_rule_with_hours() -> None:
    rules = sources({"name": "always"}, {"name": "night", "between": "22:00-06:00"})
    preview = tried(rules, document(event_time=None))
    assert [tally.alerts for tally in preview.rules] == [1, 0]
    assert preview.undated == 1


@pytest.mark.parametrize(("limit", "named"), [(2, 2), (None, 5)])
def test_only_the_wanted_number_of_images_is_named(limit: Any, named: int) -> None:
    documents = [document(i, name=f"cam1/{i}.jpg") for i in range(5)]
    [tally] = tried(sources({"name": "person"}), *documents, max_examples=limit).rules
    assert [each.uri for each in tally.examples] == [
        f"gs://uploads/cam1/{i}.jpg" for i in range(named)
    ]
    assert tally.alerts == 5


def test_help_of_the_preview_lists_every_key_of_its_report() -> None:
    [option] = [each for each in preview_command.params if "--json" in each.opts]
    assert isinstance(option, click.Option)
    keys = re.findall(r"\w+", (option.help or "").partition(":")[2])
    assert keys == list(_report(tried(sources({"name": "person"})), ("uploads", ""), None))
