"""Which alert rules an image matches, and what an alert says."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devtools.docs.alerts import JSON_SCHEMA
from devtools.docs.result_message import json_schema
from service.alerts.matching import fired, matches, rule_version, to_document
from service.alerts.message import AlertMessage, console_urls, encode, message_of
from service.document import to_document as result_document
from service.domain import (
    AlertState,
    Box,
    ClassScore,
    Detection,
    ErrorCode,
    Failure,
    ImageInfo,
    ImageRef,
    ImageResult,
    ModelInfo,
    ObjectMetadata,
    Prediction,
    Severity,
    SourceVersion,
    StoredAlert,
    Task,
)
from service.errors import StoredResultError
from service.evaluation import evaluate
from service.events import parse_event
from service.sources.rules import AlertRules, Rules
from service.sources.schema import AlertRule
from service.stored_result import stored_result

NOW = datetime(2026, 11, 30, 21, 14, tzinfo=UTC)  # 22:14 in Berlin
BERLIN = ZoneInfo("Europe/Berlin")
MODEL = ModelInfo("m.pt", "0" * 64, 640, "fp32", "openvino")


def seen(
    label: str = "person", confidence: float = 0.9, zones: Any = (), side: float = 10.0
) -> Any:
    return Detection(label, 0, confidence, Box(0.0, 0.0, side, side), zones=zones)


def result(*detections: Detection, **fields: Any) -> ImageResult:
    return ImageResult(
        ImageRef("uploads", "a.jpg", 1),
        **{
            "image_info": ImageInfo(100, 100, "JPEG"),
            "model": MODEL,
            "detections": detections,
            "event_time": NOW,
            "source": SourceVersion("cam1"),
            **fields,
        },
    )


def rules(*options: dict[str, Any], **fields: Any) -> AlertRules:
    named = [{"name": f"r{index}"} | option for index, option in enumerate(options or ({},))]
    return AlertRules("cam1", tuple(AlertRule(**each) for each in named), **fields)


def fires(
    image: ImageResult, *, now: datetime | None = NOW, timezone: Any = None, **rule: Any
) -> bool:
    groups = {"vehicles": frozenset({"car", "truck"})}
    return bool(fired(rules(rule, groups=groups, timezone=timezone), image, now))


# What matches


def test_rule_without_conditions_matches_any_detection() -> None:
    assert fires(result(seen()))
    assert not fires(result())


def test_labels_and_groups_choose_the_detections() -> None:
    image = result(seen("truck"), seen("dog"))
    assert fires(image, labels=frozenset({"dog"}))
    assert not fires(image, labels=frozenset({"person"}))
    assert fires(image, group="vehicles")
    assert not fires(result(seen("dog")), group="vehicles")


def test_confidence_is_compared_with_the_stored_number() -> None:
    image = evaluate(result(), Prediction((seen(confidence=0.69996),)), Rules())
    assert fires(image, min_confidence=0.7)
    assert not fires(image, min_confidence=0.7001)


def test_faint_detections_never_alert() -> None:
    image = evaluate(result(), Prediction((seen(confidence=0.3),)), Rules(min_confidence=0.5))
    assert image.faint
    assert not fires(image, min_confidence=0.1)


def test_count_is_that_of_the_matching_detections() -> None:
    image = result(seen(), seen(), seen("dog"))
    assert fires(image, min_count=2, labels=frozenset({"person"}))
    assert not fires(image, min_count=3, labels=frozenset({"person"}))
    assert not fires(result(seen(), seen(confidence=0.4)), min_count=2, min_confidence=0.5)


def test_one_of_the_zones_is_enough() -> None:
    image = result(seen(zones=("gate", "all")))
    assert fires(image, zones=frozenset({"gate", "door"}))
    assert not fires(image, zones=frozenset({"door"}))
    assert not fires(result(seen()), zones=frozenset({"gate"}))


def test_area_is_a_share_of_the_image() -> None:
    image = result(seen(side=20.0))  # 4 % of the image
    assert fires(image, min_area=0.04)
    assert not fires(image, min_area=0.041)
    assert not fires(replace(image, image_info=None), min_area=0.01)


def test_classes_alert_without_zones_and_areas() -> None:
    fox = ClassScore("fox", 1, 0.8)
    image = result(
        model=replace(MODEL, task=Task.CLASSIFY), classes=(fox,), kept_classes=(fox,), detections=()
    )
    assert fires(image, labels=frozenset({"fox"}), zones=frozenset({"gate"}), min_area=1.0)
    assert not fires(replace(image, kept_classes=()), labels=frozenset({"fox"}))


def test_failed_image_never_alerts() -> None:
    failure = Failure(ErrorCode.CORRUPT_IMAGE, "cut short")
    assert not fires(ImageResult(ImageRef("uploads", "a.jpg", 1), failure, event_time=NOW))


# When it matches


@pytest.mark.parametrize(
    ("between", "hour", "minute", "matches"),
    [
        ("22:00-06:00", 22, 0, True),
        ("22:00-06:00", 23, 59, True),
        ("22:00-06:00", 0, 0, True),
        ("22:00-06:00", 5, 59, True),
        ("22:00-06:00", 6, 0, False),
        ("22:00-06:00", 21, 59, False),
        ("08:30-17:00", 8, 29, False),
        ("08:30-17:00", 8, 30, True),
        ("08:30-17:00", 16, 59, True),
        ("08:30-17:00", 17, 0, False),
    ],
)
def test_hours_may_go_over_midnight(between: str, hour: int, minute: int, matches: bool) -> None:
    time = datetime(2026, 11, 30, hour, minute, 30, tzinfo=UTC)
    assert fires(result(seen(), event_time=time), now=None, between=between) is matches


def test_hours_are_those_of_the_source() -> None:
    image = result(seen())  # 21:14 UTC, 22:14 in Berlin
    assert fires(image, between="22:00-06:00", timezone=BERLIN)
    assert not fires(image, between="22:00-06:00")


def test_hours_are_about_the_capture_if_it_is_known() -> None:
    noon = NOW.replace(hour=12)
    image = result(seen(), captured_at=noon)
    assert fires(image, between="11:00-13:00")
    assert not fires(image, between="21:00-22:00")


def test_hours_of_an_image_without_times_never_match() -> None:
    image = result(seen(), event_time=None)
    assert not fires(image, between="00:00-23:59", now=None)
    assert fires(image, now=None)
    assert matches(rules({"between": "00:00-23:59"}), image)


@pytest.mark.parametrize(("minutes", "matches"), [(59, True), (60, True), (61, False)])
def test_old_images_do_not_alert(minutes: int, matches: bool) -> None:
    old = result(seen(), event_time=NOW - timedelta(minutes=minutes))
    assert fires(old) is matches
    assert fires(old, max_age_minutes=61)
    assert fires(old, now=None)


def test_age_of_a_job_is_that_of_its_object() -> None:
    image = result(seen(), event_time=None)
    young, old = (ObjectMetadata(created_at=NOW - timedelta(minutes=each)) for each in (5, 500))
    assert fires(replace(image, ref=replace(image.ref, metadata=young)))
    assert not fires(replace(image, ref=replace(image.ref, metadata=old)))
    assert not fires(image), "an image of unknown age"


@pytest.mark.parametrize("year", [1, 9999])
def test_impossible_times_of_an_event_raise_nothing(year: int) -> None:
    time = datetime(year, 1 if year == 1 else 12, 1 if year == 1 else 31, 23, 30, tzinfo=UTC)
    image = result(seen(), event_time=time)
    for zone in (ZoneInfo("America/New_York"), ZoneInfo("Asia/Tokyo")):
        assert fired(rules({}, timezone=zone), image, None)
        fired(rules({"between": "01:00-02:00"}, timezone=zone), image, NOW)


# Alerts


def test_alert_says_what_a_person_needs() -> None:
    image = result(seen(zones=("gate",)), seen(zones=("gate",)), seen("dog"))
    rule = {"name": "night", "zones": frozenset({"gate"}), "severity": Severity.CRITICAL}
    [alert] = fired(rules(rule, timezone=BERLIN), image, NOW)
    assert alert.text == "2 person in zone gate, source cam1, 22:14 (Europe/Berlin)"
    assert (alert.rule, alert.severity, alert.labels) == ("night", "critical", {"person": 2})
    assert alert.cooldown_seconds == 900
    assert alert.id.startswith(f"{image.ref.document_id}-") and len(alert.id) == 61


def test_each_rule_that_matches_is_an_alert() -> None:
    alerts = fired(rules({}, {"min_count": 2}, {"name": "last"}), result(seen()), NOW)
    assert [alert.rule for alert in alerts] == ["r0", "last"]
    assert len({alert.id for alert in alerts}) == 2


def test_text_of_an_alert_is_one_short_line() -> None:
    bad = ["x" * 200, "a\nb", "r\u202ebi-di", "\x1b[31mred", *(f"l{index}" for index in range(9))]
    [alert] = fired(rules({}), result(*[seen(label) for label in bad]), NOW)
    assert alert.text.isprintable()
    assert len(alert.text) < 300
    assert "8 more labels" in alert.text
    assert set(alert.labels) == set(bad)


def test_id_follows_the_image_and_the_content_of_the_rule() -> None:
    image, other = result(seen()), replace(result(seen()), ref=ImageRef("uploads", "a.jpg", 2))
    group = {"group": "g"}
    same = rules({"labels": frozenset({"person", "dog"})})
    variants = [
        rules({"labels": frozenset({"dog", "person"})}, timezone=BERLIN),
        rules({"labels": frozenset({"person"})}),
        rules({"labels": frozenset({"dog", "person"}), "min_count": 1, "cooldown_minutes": 5}),
        rules(group, groups={"g": frozenset({"person"})}),
        rules(group, groups={"g": frozenset({"person", "cat"})}),
    ]
    ids = [fired(each, image, NOW)[0].id for each in (same, *variants)]
    assert len(set(ids)) == len(ids)
    assert fired(rules({"labels": frozenset({"dog", "person"})}), image, NOW)[0].id == ids[0]
    assert fired(same, other, NOW)[0].id not in ids


def test_version_does_not_depend_on_the_order_of_labels() -> None:
    orders = [frozenset(["a", "b", "c", "d"]), frozenset(["d", "c", "b", "a"])]
    first, second = (rules({"labels": each}) for each in orders)
    assert rule_version(first, first.rules[0]) == rule_version(second, second.rules[0])


labels = st.sampled_from(["person", "car", "dog"])
detections = st.lists(
    st.builds(
        Detection,
        labels,
        st.just(0),
        st.floats(0.05, 1),
        st.builds(Box, *[st.floats(0, 40)] * 2, *[st.floats(41, 100)] * 2),
    ),
    max_size=6,
)
options = st.fixed_dictionaries(
    {},
    optional={
        "labels": st.frozensets(labels, min_size=1),
        "min_confidence": st.floats(0.05, 1),
        "min_count": st.integers(1, 4),
        "min_area": st.floats(0.001, 1),
    },
)


@settings(max_examples=100)
@given(found=detections, option=options)
def test_rules_decide_on_stored_results_as_at_the_commit(
    found: list[Detection], option: dict[str, Any]
) -> None:
    image = evaluate(result(), Prediction(tuple(found)), Rules())
    again = replace(stored_result(result_document(image)), event_time=NOW)
    rule = rules(option)
    assert [each.labels for each in fired(rule, again, NOW)] == [
        each.labels for each in fired(rule, image, NOW)
    ]


# Messages


def message(**fields: Any) -> AlertMessage:
    image = result(seen(), captured_at=NOW)
    [alert] = fired(rules({}), image, NOW)
    stored = StoredAlert(
        id=alert.id,
        source_id="cam1",
        rule="r0",
        cooldown_seconds=900,
        state=AlertState.PUBLISHED,
        suppressed_by=None,
        previous_alert=None,
        published_at=None,
        fields=to_document(image, alert) | {"created_at": NOW} | fields,
    )
    thumbnail = {"kind": "thumbnail", "uri": "gs://results/t.jpg"}
    document = {"derived": [{"kind": "crop", "uri": "gs://results/c.jpg"}, thumbnail]}
    url = console_urls("p", "(default)", "detections")(image.ref.document_id)
    return message_of(stored, document, suppressed=7, console_url=url)


def test_message_has_what_the_documents_have() -> None:
    sent = message()
    assert (sent.num, sent.labels, sent.suppressed) == (1, {"person": 1}, 7)
    assert (sent.uri, sent.source) == ("gs://uploads/a.jpg", "cam1")
    assert (sent.captured_at, sent.event_time, sent.created_at) == (NOW, NOW, NOW)
    assert sent.thumbnail_uri == "gs://results/t.jpg"
    assert sent.console_url == (
        "https://console.cloud.google.com/firestore/databases/-default-/data/panel/detections/"
        f"{sent.document_id}?project=p"
    )


def test_message_of_an_alert_is_never_a_job() -> None:
    event = parse_event({}, encode(message()).data)
    assert (event.ref, event.ignored is None) == (None, False)


def test_message_has_its_labels_in_their_order() -> None:
    """Firestore does not keep the order of a map."""
    assert list(message(labels={"dog": 1, "cat": 2}).labels) == ["cat", "dog"]


def test_message_is_valid_by_its_schema() -> None:
    validator = jsonschema.Draft202012Validator(
        json_schema(AlertMessage), format_checker=jsonschema.FormatChecker()
    )
    for fields in ({}, {"captured_at": None, "event_time": None}, {"uri": None, "num": 0}):
        encoded = encode(message(**fields))
        validator.validate(json.loads(encoded.data))
        assert b"null" not in encoded.data
        assert encoded.attributes == {"severity": "warning", "rule": "r0", "source": "cam1"}
    assert JSON_SCHEMA.exists()


@pytest.mark.parametrize(
    "fields",
    [{"text": 5}, {"labels": "x"}, {"created_at": "yesterday"}, {"severity": "x" * 1025}],
)
def test_edited_alert_has_no_message(fields: dict[str, Any]) -> None:
    with pytest.raises(StoredResultError, match="another form"):
        message(**fields)


def test_names_are_escaped_in_the_address_of_a_page() -> None:
    page = console_urls("p", "my-db", "a b")("x")
    assert page.endswith("/databases/my-db/data/panel/a%20b/x?project=p")
