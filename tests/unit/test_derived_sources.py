"""A source chooses which images are made from its images."""

import logging
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from service.cli.main import main
from service.deadline import NO_DEADLINE
from service.derived import (
    MAX_NORMALIZED_PIXELS,
    MAX_SIDE,
    Crops,
    DeriveOptions,
    Normalized,
    NormalizedFormat,
    Redaction,
)
from service.derived import RedactionMode as Mode
from service.domain import ImageRef
from service.errors import SourcesError
from service.sources.changes import changes
from service.sources.current import settings_of
from service.sources.files import FaultyFileError, load
from service.sources.schema import Source, check_buckets, parse, to_document
from tests.fakes import Clock
from tests.unit.test_current_sources import FakeDocuments, instance

EVERYTHING = {
    "thumbnail": False,
    "annotated": True,
    "crops": {"labels": ["dog", "cat"], "margin": 0.2, "max": 5},
    "redacted": {"group": "people", "mode": "mosaic"},
    "normalized": {"max_pixels": 500_000, "format": "png"},
    "max_side": 640,
}


def options(derived: dict[str, Any] | None, **groups: list[str]) -> DeriveOptions:
    fields = {} if derived is None else {"derived": derived}
    document = {"sources": [{"id": "yard", "bucket": "uploads", **fields}], "groups": groups}
    image = ImageRef("uploads", "a.jpg", 1)
    sources = parse(to_document(parse(document)))  # as Firestore stores them
    return settings_of(image, sources, None, min_confidence=0.25, store_confidence=0.05).derive


def test_every_option_reaches_the_decoders() -> None:
    assert options(EVERYTHING, people=["rider", "person"]) == DeriveOptions(
        thumbnail_side=None,
        annotated=True,
        crops=Crops(("cat", "dog"), 0.2, 5),
        redaction=Redaction(("person", "rider"), Mode.MOSAIC),
        normalized=Normalized(500_000, NormalizedFormat.PNG),
        max_side=640,
    )


def test_source_without_options_has_the_thumbnail_only() -> None:
    assert options(None) == options({}) == DeriveOptions()


def test_empty_options_have_the_defaults() -> None:
    assert options({"crops": {}, "redacted": {}, "normalized": {}}) == DeriveOptions(
        crops=Crops(), redaction=Redaction(), normalized=Normalized()
    )


@pytest.mark.parametrize(
    ("derived", "line", "message"),
    [
        ("anotated: true", 5, "unknown field `anotated` in sources[0].derived"),
        ("thumbnail: 320", 5, "sources[0].derived.thumbnail must be true or false, not a number"),
        ("max_side: 64", 5, "sources[0].derived.max_side must be at least 320"),
        ("max_side: 5000", 5, f"sources[0].derived.max_side must be at most {MAX_SIDE}"),
        ("crops: {labels: []}", 5, "sources[0].derived.crops.labels must not be empty"),
        ("crops: {margin: 2}", 5, "sources[0].derived.crops.margin must be at most 1"),
        ("crops: {max: 101}", 5, "sources[0].derived.crops.max must be at most 100"),
        (
            "redacted: {mode: pixelate}",
            5,
            "sources[0].derived.redacted.mode must be blur or mosaic, not pixelate",
        ),
        (
            "normalized: {format: webp}",
            5,
            "sources[0].derived.normalized.format must be jpeg or png, not webp",
        ),
        (
            "normalized: {max_pixels: 9000000}",
            5,
            f"sources[0].derived.normalized.max_pixels must be at most {MAX_NORMALIZED_PIXELS}",
        ),
        (
            "redacted: {labels: [a], group: b}",
            5,
            "redacted has both labels and group: give one of them (sources[0].derived.redacted)",
        ),
        (
            "annotated: true\n      redacted:\n        mode: blur\n        group: people",
            8,
            "there is no group people (sources[0].derived.redacted.group)",
        ),
    ],
)
def test_fault_is_named_with_its_line(
    tmp_path: Path, derived: str, line: int, message: str
) -> None:
    file = tmp_path / "sources.yaml"
    file.write_text(
        f"sources:\n  - id: a\n    bucket: aaa\n    derived:\n      {derived}\n", encoding="utf-8"
    )
    with pytest.raises(FaultyFileError) as caught:
        load(file)
    [fault] = caught.value.faults
    assert (fault.line, fault.message) == (line, message)


def test_mode_of_a_zone_has_its_own_choices(tmp_path: Path) -> None:
    file = tmp_path / "sources.yaml"
    file.write_text(
        "sources:\n- {id: a, bucket: aaa, zones: [{name: z, mode: blur, points: []}]}\n",
        encoding="utf-8",
    )
    with pytest.raises(FaultyFileError, match="must be include or exclude, not blur"):
        load(file)


def test_changes_of_derived_images_are_shown() -> None:
    old, new = (
        parse({"sources": [{"id": "a", "bucket": "uploads", **fields}]})
        for fields in ({}, {"derived": {"annotated": True}})
    )
    assert changes(old, new) == ["~ a: derived: default -> {'annotated': True}"]


# The bucket of the results


def test_source_in_the_results_bucket_is_refused() -> None:
    sources = parse({"sources": [{"id": "a", "bucket": "one"}, {"id": "b", "bucket": "two"}]})
    check_buckets(sources, None)
    check_buckets(sources, "three")
    with pytest.raises(SourcesError, match="source b has the bucket two, which is RESULTS_BUCKET"):
        check_buckets(sources, "two")


@pytest.mark.parametrize("command", [["check"], ["apply", "--yes"]])
def test_commands_refuse_a_source_in_the_results_bucket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.setenv("RESULTS_BUCKET", "uploads")
    file = tmp_path / "sources.yaml"
    file.write_text("sources:\n  - {id: a, bucket: uploads}\n", encoding="utf-8")
    run = CliRunner().invoke(main, ["sources", command[0], str(file), *command[1:]])
    assert run.exit_code != 0
    assert "which is RESULTS_BUCKET" in run.stderr


def test_service_keeps_the_last_good_sources_instead(caplog: pytest.LogCaptureFixture) -> None:
    documents, clock = FakeDocuments(), Clock()
    documents.edit(bucket="uploads", keep_faint=False)
    sources = instance(documents, clock, results_bucket="results")
    documents.edit(bucket="results")
    clock.now += 60
    settings = sources.settings_of(ImageRef("uploads", "yard/a.jpg", 1), NO_DEADLINE)
    assert not settings.rules.keep_faint
    [record] = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert "which is RESULTS_BUCKET" in vars(record)["reason"]


@pytest.mark.parametrize("results_bucket", [None, "results"])
def test_missing_results_bucket_is_logged_once(
    caplog: pytest.LogCaptureFixture, results_bucket: str | None
) -> None:
    documents, clock = FakeDocuments(), Clock()
    documents.edit(derived={"annotated": True})
    sources = instance(documents, clock, results_bucket=results_bucket)
    clock.now += 60
    sources.look(NO_DEADLINE)
    lines = [each for each in caplog.records if "RESULTS_BUCKET is not set" in each.getMessage()]
    assert [vars(line)["sources"] for line in lines] == ([["yard"]] if not results_bucket else [])


def test_source_cannot_name_an_output() -> None:
    """Derived images go to the deployment's bucket, whatever a source says."""
    outputs = {"url", "output", "destination", "results_bucket"}
    assert not outputs & set(Source.__struct_fields__)
