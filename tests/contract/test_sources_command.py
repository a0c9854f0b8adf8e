"""`yolo-batch sources` against the official Firestore emulator."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from google.cloud import firestore

from service.cli.main import main
from service.domain import (
    Box,
    Detection,
    ImageInfo,
    ImageRef,
    ImageResult,
    ModelInfo,
    Prediction,
    Replace,
)
from service.evaluation import evaluate
from service.gcp import clients
from service.gcp.firestore import ResultStore
from service.gcp.result_reader import DocumentVersion, ResultReader, ResultRewriter
from service.gcp.source_store import SourceStore
from service.operate.preview import Summary, Verdict, preview
from service.sources.current import SourceSettings
from service.sources.rules import Rules
from tests.fakes import PATIENCE_SECONDS

pytestmark = pytest.mark.emulator

MODEL = ModelInfo("m.pt", "0" * 64, 640, "fp32", "fake")


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch, collection: str) -> None:
    """Give the commands a collection of their own, for results and for sources."""
    monkeypatch.setenv("FIRESTORE_COLLECTION", collection)
    monkeypatch.setenv("FIRESTORE_TIMEOUT_SECONDS", f"{PATIENCE_SECONDS:g}")

    def build(settings: Any) -> SourceStore:
        return SourceStore(
            firestore.Client(),
            timeout_seconds=PATIENCE_SECONDS,
            collection=f"{collection}-config",
        )

    monkeypatch.setattr(clients, "build_source_store", build)


@pytest.fixture
def console(collection: str) -> Any:
    """The document of the sources, without any check."""
    return firestore.Client().collection(f"{collection}-config").document("sources")


@pytest.fixture
def rewriter(collection: str) -> ResultRewriter:
    return ResultRewriter(
        firestore.Client(), collection=collection, timeout_seconds=PATIENCE_SECONDS
    )


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["sources", *map(str, arguments)])


def written(path: Path, *sources: Mapping[str, Any]) -> Path:
    """Write a file of sources."""
    path.write_text(yaml.safe_dump({"sources": [{"bucket": "uploads"} | dict(s) for s in sources]}))
    return path


def result_of(name: str, *confidences: float, rules: Rules = Rules()) -> ImageResult:  # noqa: B008
    """The result of an image with persons and, half as confident, cars."""
    persons = [Detection("person", 0, c, Box(0.0, 0.0, 10.0, 10.0)) for c in confidences]
    cars = [Detection("car", 2, c / 2, Box(0.0, 0.0, 10.0, 10.0)) for c in confidences]
    result = ImageResult(
        ImageRef("uploads", name, 1), image_info=ImageInfo(64, 48, "JPEG"), model=MODEL
    )
    return evaluate(result, Prediction((*persons, *cars)), rules)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return written(tmp_path / "sources.yaml", {"id": "cam1", "prefix": "cam1/", "keep_faint": True})


def test_applied_sources_are_listed_and_shown(file: Path) -> None:
    done = run("apply", file, "--yes")
    assert done.exit_code == 0, done.output
    assert "+ cam1: added (gs://uploads/cam1/)" in done.stdout
    assert "Wrote 1 sources, version 20" in done.stdout
    listed = run("list", "--json")
    assert json.loads(listed.stdout) == {"id": "cam1", "bucket": "uploads", "prefix": "cam1/"}
    assert "gs://uploads/cam1/" in run("list").stdout
    assert yaml.safe_load(run("show", "cam1").stdout) == [json.loads(listed.stdout)]
    assert run("show", "cam2").exit_code == 1
    assert run("apply", file, "--yes").stdout == "Nothing changes\n"


def test_dry_run_writes_nothing(file: Path, console: Any) -> None:
    done = run("apply", file, "--dry-run")
    assert (done.exit_code, "added" in done.stdout) == (0, True)
    assert not console.get().exists


def test_apply_in_a_pipe_needs_yes(file: Path, console: Any) -> None:
    assert run("apply", file).exit_code == 2
    assert not console.get().exists


def test_apply_refuses_if_the_sources_changed_meanwhile(
    file: Path, console: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = SourceStore.read

    def read_and_edit(store: SourceStore) -> Any:
        stored = read(store)
        console.set({"sources": []})
        return stored

    monkeypatch.setattr(SourceStore, "read", read_and_edit)
    done = run("apply", file, "--yes")
    assert done.exit_code == 1
    assert "changed meanwhile" in done.stderr
    assert console.get().to_dict() == {"sources": []}


def test_broken_sources_are_reported_and_replaced(file: Path, console: Any) -> None:
    console.set({"sources": [{"id": "cam1", "bucket": "uploads", "prefx": "cam1/"}]})
    done = run("list")
    assert done.exit_code == 1
    assert "unknown field `prefx` - at `$.sources[0]`" in done.stderr
    assert run("apply", file, "--yes").exit_code == 0
    assert run("list").exit_code == 0


def test_preview_counts_without_writing(
    file: Path, store: ResultStore, reader: ResultReader
) -> None:
    store.commit([result_of("cam1/a.jpg", 0.9, 0.6), result_of("cam2/a.jpg", 0.9)])
    written(file, {"id": "cam1", "prefix": "cam1/", "min_confidence": 0.4})
    before = list(reader.results("uploads", ""))
    done = run("preview", file, "gs://uploads/cam1/", "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert (report["documents"], report["changed"], report["rewritten"]) == (1, 1, 0)
    assert (report["kept"], report["dropped"]) == ({}, {"car": 1})
    table = run("preview", file, "gs://uploads/")
    assert "2 documents = 1 changed + 1 unchanged" in table.stdout
    assert list(reader.results("uploads", "")) == before


def test_preview_without_documents_says_so(file: Path) -> None:
    for prefix, expected in (("cam1/", "There is no document"), ("cam*/", "not a pattern")):
        done = run("preview", file, f"gs://uploads/{prefix}")
        assert (done.exit_code, expected in done.stderr) == (0, True)


def test_preview_says_how_many_documents_are_incomplete(file: Path, store: ResultStore) -> None:
    store.commit([result_of("cam1/a.jpg", 0.9, rules=Rules(keep_faint=False))])
    done = run("preview", file, "gs://uploads/cam1/")
    assert "1 incomplete" in done.stdout
    assert "1 documents are incomplete" in done.stderr


def test_preview_says_why_a_document_is_unreadable(
    file: Path, store: ResultStore, collection: str
) -> None:
    store.commit([result_of("cam1/a.jpg", 0.9)])
    [document] = firestore.Client().collection(collection).stream()
    document.reference.update({"detections": "edited"})
    done = run("preview", file, "gs://uploads/cam1/")
    assert done.exit_code == 1
    assert "1 documents are unreadable" in done.stderr
    assert "somebody edited them" in done.stderr


def test_apply_of_a_preview_rewrites_the_derived_fields_once(
    file: Path, store: ResultStore, reader: ResultReader
) -> None:
    store.commit([result_of("cam1/a.jpg", 0.9), result_of("cam1/b.jpg", 0.3)])
    created = {one["name"]: one["created_at"] for one in reader.results("uploads", "")}
    written(file, {"id": "cam1", "prefix": "cam1/", "min_confidence": 0.5, "keep_faint": False})
    refused = run("preview", file, "gs://uploads/cam1/", "--apply", "--yes")
    assert (refused.exit_code, "sources apply" in refused.stderr) == (1, True)
    run("apply", file, "--yes")
    done = run("preview", file, "gs://uploads/cam1/", "--apply", "--yes")
    assert done.exit_code == 0, done.output
    assert "Rewrote 2 documents" in done.stdout
    assert "yolo-batch submit" in done.stderr  # publishes them
    first, second = reader.results("uploads", "")
    assert (first["counts"], second["counts"]) == ({"person": 1}, {})
    assert first["faint"] is None and first["source"]["id"] == "cam1"
    assert created == {one["name"]: one["created_at"] for one in (first, second)}
    again = run("preview", file, "gs://uploads/cam1/", "--apply", "--yes", "--json")
    assert json.loads(again.stdout)["rewritten"] == 0
    assert "yolo-batch submit" not in again.stderr
    asking = run("preview", file, "gs://uploads/cam1/", "--apply", "--json")
    assert (asking.exit_code, asking.stdout) == (2, "")
    assert "give --yes with --apply" in asking.stderr


def test_preview_that_races_with_a_commit_keeps_the_new_result(
    store: ResultStore, rewriter: ResultRewriter, reader: ResultReader
) -> None:
    """A job replaces the document after the preview has read it."""
    store.commit([result_of("a.jpg", 0.9)])
    [version] = rewriter.versions("uploads", "")
    permission = Replace(version.fields["created_at"])
    new = result_of("a.jpg", 0.95, 0.9, 0.4)
    store.commit([replace(new, ref=replace(new.ref, replace=permission))])
    summary = _apply([version], rewriter, Rules(0.5))
    assert summary.rewritten == 1
    [document] = reader.results("uploads", "")
    assert document["counts"] == {"person": 2}
    assert document["max_confidence"] == 0.95
    assert document["created_at"] > version.fields["created_at"]


def test_document_that_cannot_be_rewritten_stops_no_other(
    store: ResultStore, rewriter: ResultRewriter, reader: ResultReader
) -> None:
    """A person changed a label to one that Firestore refuses as a key of `counts`."""
    store.commit([result_of("a.jpg", 0.9), result_of("b.jpg", 0.9)])
    edited, _ = rewriter.versions("uploads", "")
    label = [{**edited.fields["detections"][0], "label": "__x__"}]
    rewriter.rewrite(edited, {"detections": label})
    summary = _apply(list(rewriter.versions("uploads", "")), rewriter, Rules(0.5))
    assert summary.verdicts == {Verdict.UNSTORABLE: 1, Verdict.CHANGED: 1}
    assert summary.rewritten == 1
    assert [one["counts"] for one in reader.results("uploads", "b")] == [{"person": 1}]


def test_preview_never_brings_a_deleted_document_back(
    store: ResultStore, rewriter: ResultRewriter, collection: str
) -> None:
    store.commit([result_of("a.jpg", 0.9)])
    [version] = rewriter.versions("uploads", "")
    reference = firestore.Client().collection(collection).document(version.id)
    reference.delete()
    assert _apply([version], rewriter, Rules(0.5)).rewritten == 0
    assert not reference.get().exists


def _apply(versions: list[DocumentVersion], rewriter: ResultRewriter, rules: Rules) -> Summary:
    return preview(
        versions,
        lambda ref: SourceSettings(rules),
        store_confidence=0.05,
        rewriter=rewriter,
    )
