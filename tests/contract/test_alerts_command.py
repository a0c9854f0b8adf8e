"""`yolo-batch alerts` against the official emulators."""

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from google.cloud import firestore

from service.cli.main import main
from service.domain import Box, Detection, ImageInfo, ImageRef, ImageResult, ModelInfo, Prediction
from service.evaluation import evaluate
from service.gcp import clients
from service.gcp.firestore import ResultStore
from service.gcp.source_store import SourceStore
from service.sources.rules import Rules
from tests.fakes import PATIENCE_SECONDS

pytestmark = pytest.mark.emulator

NOW = datetime.now(UTC)
MODEL = ModelInfo("m.pt", "0" * 64, 640, "fp32", "fake")
RULE = {"name": "person", "labels": ["person"], "cooldown_minutes": 10}


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


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["alerts", *map(str, arguments)])


def written(path: Path, *sources: Mapping[str, Any]) -> Path:
    """Write a file of sources."""
    plain = [{"id": "cam1", "bucket": "uploads", "prefix": "cam1/"} | dict(s) for s in sources]
    path.write_text(yaml.safe_dump({"sources": plain}))
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return written(tmp_path / "sources.yaml", {"alerts": [RULE]})


def result_of(name: str, label: str = "person", *, minute: float = 0) -> ImageResult:
    """The result of an image that was uploaded this many minutes ago."""
    result = ImageResult(
        ImageRef("uploads", name, 1),
        image_info=ImageInfo(64, 48, "JPEG"),
        model=MODEL,
        event_time=NOW - timedelta(minutes=minute),
    )
    found = (Detection(label, 0, 0.9, Box(0.0, 0.0, 10.0, 10.0)),)
    return evaluate(result, Prediction(found), Rules())


def test_preview_says_how_often_a_rule_would_have_fired(file: Path, store: ResultStore) -> None:
    store.commit(
        [
            *(result_of(f"cam1/{minute}.jpg", minute=minute) for minute in (1, 5, 30)),
            result_of("cam1/car.jpg", "car"),
            result_of("cam2/a.jpg"),
        ]
    )
    report = json.loads(run("preview", file, "gs://uploads", "--json").stdout)
    assert (report["documents"], report["evaluated"], report["without_rules"]) == (5, 4, 1)
    [rule] = report["rules"]
    assert (rule["alerts"], rule["messages"], rule["suppressed"]) == (3, 2, 1)
    assert {image["uri"][-5:] for image in rule["images"]} == {"1.jpg", "5.jpg", "0.jpg"}
    done = run("preview", file, "gs://uploads/cam1/")
    assert done.exit_code == 0, done.output
    assert "4 documents = 4 with rules + 0 without rules" in done.stdout
    assert "cam1    person  warning        3         2           1" in done.stdout
    assert "gs://uploads/cam1/30.jpg  1 person, source cam1, " in done.stdout


def test_preview_since_a_time_uses_newer_results_only(
    file: Path, store: ResultStore, collection: str
) -> None:
    store.commit([result_of("cam1/old.jpg"), result_of("cam1/new.jpg"), result_of("cam3/new.jpg")])
    old = ImageRef("uploads", "cam1/old.jpg", 1).document_id
    firestore.Client().collection(collection).document(old).update(
        {"created_at": NOW - timedelta(days=8)}
    )
    for since, expected in (("7d", ["new"]), ("9d", ["new", "old"])):
        done = run("preview", file, "gs://uploads/cam1/", "--since", since, "--json")
        [rule] = json.loads(done.stdout)["rules"]
        names = [image["uri"].rpartition("/")[2] for image in rule["images"]]
        assert sorted(names) == [f"{name}.jpg" for name in expected]


def test_preview_that_cannot_answer_says_why(
    tmp_path: Path, store: ResultStore, collection: str
) -> None:
    night = written(tmp_path / "s.yaml", {"alerts": [{"name": "night", "between": "22:00-06:00"}]})
    store.commit([result_of("cam1/a.jpg"), replace(result_of("cam1/b.jpg"), event_time=None)])
    done = run("preview", night, "gs://uploads")
    assert (done.exit_code, "1 images have neither captured_at" in done.stderr) == (0, True)
    document = (
        firestore.Client()
        .collection(collection)
        .document(ImageRef("uploads", "cam1/a.jpg", 1).document_id)
    )
    document.update({"faint": None})
    assert "1 documents are incomplete" in run("preview", night, "gs://uploads").stderr
    document.update({"detections": "edited"})
    done = run("preview", night, "gs://uploads")
    assert (done.exit_code, "1 documents are unreadable" in done.stderr) == (1, True)


def test_preview_needs_rules_and_a_time(tmp_path: Path, file: Path) -> None:
    done = run("preview", written(tmp_path / "none.yaml", {}), "gs://uploads")
    assert (done.exit_code, "has no alert rules" in done.stderr) == (2, True)
    done = run("preview", file, "gs://uploads", "--since", "yesterday")
    assert (done.exit_code, "it must be a date" in done.stderr) == (2, True)
