"""The schema of sources, and which source an object has."""

from typing import Any

import pytest

from service.errors import SourcesError
from service.sources.rules import Rules
from service.sources.schema import Source, parse, to_document

SQUARE = [[0, 0], [1, 0], [1, 1], [0, 1]]


def source(**fields: Any) -> dict[str, Any]:
    return {"id": "yard", "bucket": "uploads"} | fields


def zone(**fields: Any) -> dict[str, Any]:
    return {"name": "gate", "mode": "include", "points": SQUARE} | fields


def parse_one(**fields: Any) -> Source:
    [parsed] = parse({"sources": [source(**fields)]}).sources
    return parsed


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"min_confidense": 0.5}, "unknown field `min_confidense`"),
        ({"id": "Yard"}, "matching regex"),
        ({"id": "a" * 64}, "matching regex"),
        ({"id": "yard\n"}, "matching regex"),
        ({"bucket": "gs://uploads"}, "matching regex"),
        ({"min_confidence": 0}, "0.001"),
        ({"min_confidence": "0.5"}, "Expected `float | null`, got `str`"),
        ({"min_confidence": float("nan")}, "0.001"),
        ({"min_confidence_by_label": {"person": 2}}, "<= 1.0"),
        ({"min_confidence_by_label": {"": 0.5}}, "length >= 1"),
        ({"keep_labels": []}, "length >= 1"),
        ({"store_location": "no"}, "Expected `bool`"),
        ({"timezone": "Mars/Olympus"}, "is not a time zone"),
        ({"timezone": "../../etc/passwd"}, "is not a time zone"),
        ({"timezone": "Europe"}, "is not a time zone"),
        ({"timezone": "localtime"}, "is not a time zone"),  # of the machine
        ({"timezone": "right/Europe/Berlin"}, "is not a time zone"),
        ({"latitude": 1}, "only one of latitude and longitude"),
        ({"latitude": 91, "longitude": 0}, "<= 90"),
        ({"model": "yolo26x"}, "Invalid enum value 'yolo26x'"),
        ({"topic": "jobs"}, "unknown field"),
        ({"collection": "other"}, "unknown field"),
        ({"url": "https://example.com"}, "unknown field"),
        ({"zones": [zone(name="Gate 1")]}, "matching regex"),
        ({"zones": [zone(mode="only")]}, "Invalid enum value"),
        ({"zones": [zone(points=SQUARE[:2])]}, "length >= 3"),
        ({"zones": [zone(points=[[0, 0], [2, 0], [1, 1]])]}, "<= 1.0"),
        ({"zones": [zone(points=[[0, 0], [1, 1], [1, 0], [0, 1]])]}, "crosses"),
        ({"zones": [zone(), zone()]}, "two zones with the name gate"),
        ({"zones": [zone(min_overlap=0)]}, "> 0.0"),
        ({"zones": [zone(name=f"z{i}") for i in range(51)]}, "length <= 50"),
        ({"alerts": [{"name": "a", "labels": []}]}, "length >= 1"),
        ({"alerts": [{"name": "a", "labels": ["car"], "group": "b"}]}, "both labels and group"),
        ({"alerts": [{"name": "a"}, {"name": "a"}]}, "two rules named a"),
        ({"alerts": [{"name": "a", "zones": ["gate"]}]}, "has no include zone gate"),
        (
            {"zones": [zone(mode="exclude")], "alerts": [{"name": "a", "zones": ["gate"]}]},
            "has no include zone gate",
        ),
        ({"alerts": [{"name": "a", "between": "22:00-24:00"}]}, "matching regex"),
        ({"alerts": [{"name": "a", "between": "06:00-06:00"}]}, "06:00-06:00 is empty"),
        ({"alerts": [{"name": "a", "cooldown_minutes": 0}]}, ">= 1"),
        ({"alerts": [{"name": "a", "max_age_minutes": 10081}]}, "<= 10080"),
        ({"alerts": [{"name": "a", "min_area": 0}]}, "> 0.0"),
        ({"alerts": [{"name": "a", "min_count": 0}]}, ">= 1"),
        ({"alerts": [{"name": "a", "severity": "error"}]}, "Invalid enum value"),
        ({"alerts": [{"name": "a", "webhook": "https://example.com"}]}, "unknown field"),
        ({"alerts": [{"name": "a", "topic": "alerts"}]}, "unknown field"),
        ({"alerts": [{"name": f"a{i}"} for i in range(21)]}, "length <= 20"),
        ({"silent_minutes": 0}, ">= 1"),
        ({"zones": [zone(points=[[i / 200, (i % 2) / 9] for i in range(101)])]}, "length <= 100"),
    ],
)
def test_wrong_source_is_refused_with_the_reason(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SourcesError) as caught:
        parse_one(**fields)
    assert message in str(caught.value)
    assert "`$.sources[0]" in str(caught.value)


def test_same_id_or_prefix_twice_is_refused() -> None:
    for twice, message in (
        ([source(), source(prefix="a/")], "two sources have the id yard"),
        ([source(), source(id="gate")], "two sources have the prefix gs://uploads/"),
    ):
        with pytest.raises(SourcesError, match=message):
            parse({"sources": twice})


@pytest.mark.parametrize("document", [None, {}, [], {"sources": None}, {"sources": [None]}, 5])
def test_document_of_another_form_is_refused(document: Any) -> None:
    with pytest.raises(SourcesError):
        parse(document)


def test_document_of_sources_reads_back_as_the_same_sources() -> None:
    sources = parse(
        {
            "sources": [
                source(
                    zones=[zone(labels=["person", "car"], anchor="overlap")],
                    keep_labels=["person"],
                    min_confidence_by_label={"a.b": 0.5},
                    timezone="Europe/Berlin",
                ),
                source(
                    id="all",
                    prefix="x/",
                    enabled=False,
                    alerts=[
                        {"name": "a", "group": "pets", "between": "22:00-06:00"},
                        {"name": "b", "labels": ["dog"], "severity": "critical"},
                    ],
                    silent_minutes=90,
                ),
            ],
            "groups": {"pets": ["cat", "dog"]},
        }
    )
    document = to_document(sources)
    assert document["groups"] == {"pets": ["cat", "dog"]}
    assert document["sources"][0]["zones"][0]["points"][1] == {"x": 1, "y": 0}
    assert parse(document) == sources


def test_longest_prefix_of_the_bucket_wins() -> None:
    sources = parse(
        {
            "sources": [
                source(id="all"),
                source(id="day", prefix="cams/1/day"),
                source(id="cam", prefix="cams/1/"),
                source(id="other", bucket="others", prefix="cams/1/day/x"),
            ]
        }
    )

    def find(bucket: str, name: str) -> str | None:
        matching = sources.find(bucket, name)
        return matching.id if matching else None

    assert find("uploads", "cams/1/day/x.jpg") == "day"
    assert find("uploads", "cams/1/night.jpg") == "cam"
    assert find("uploads", "cams/10/a.jpg") == "all"
    assert find("others", "a.jpg") is None


def test_threshold_of_a_source_is_never_below_the_stored_ones() -> None:
    low = parse_one(min_confidence=0.01, min_confidence_by_label={"person": 0.02, "car": 0.9})
    rules = Rules.of(low, min_confidence=0.25, store_confidence=0.05)
    assert rules.min_confidence == 0.05
    assert rules.min_confidence_by_label == {"person": 0.05, "car": 0.9}
    assert Rules.of(parse_one(), min_confidence=0.3, store_confidence=0.05).min_confidence == 0.3
    assert Rules.of(None, min_confidence=0.3, store_confidence=0.05) == Rules(0.3)
