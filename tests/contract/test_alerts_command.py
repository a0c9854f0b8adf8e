"""`yolo-batch alerts` against the official emulators."""

import json
import threading
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from google.cloud import firestore, pubsub_v1  # type: ignore[attr-defined]  # published without types

from service.alerts.matching import alert_id
from service.cli.main import main
from service.domain import (
    Alert,
    AlertState,
    Box,
    Detection,
    ImageInfo,
    ImageRef,
    ImageResult,
    ModelInfo,
    Prediction,
    Severity,
    SourceVersion,
    StoredAlert,
)
from service.errors import PubSubUnavailableError
from service.evaluation import evaluate
from service.gcp import clients
from service.gcp.firestore import ResultStore
from service.gcp.result_reader import ResultReader
from service.gcp.silence_store import SilenceStore
from service.gcp.source_store import SourceStore
from service.gcp.topic_publisher import TopicPublisher
from service.operate.silence import Silence
from service.sources.rules import Rules
from service.sources.schema import Source
from tests.fakes import PATIENCE_SECONDS, in_thread

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
    assert "4 documents = 4 with rules\n" in done.stdout
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


@pytest.mark.parametrize(
    ("prefix", "options", "expected"),
    [
        ("cam1/", [], "There is no document for gs://uploads/cam1/\n"),
        ("cam*/", [], "give a prefix here, not a pattern"),
        (
            "cam1/",
            ["--since", "2026-11-01"],
            "that was recorded since 2026-11-01T00:00:00Z\n",
        ),
    ],
)
def test_preview_without_documents_says_so(
    file: Path, prefix: str, options: list[str], expected: str
) -> None:
    done = run("preview", file, f"gs://uploads/{prefix}", *options)
    assert (done.exit_code, expected in done.stderr) == (0, True)
    assert "0 documents" in done.stdout


def test_preview_needs_rules_and_a_time(tmp_path: Path, file: Path) -> None:
    done = run("preview", written(tmp_path / "none.yaml", {}), "gs://uploads")
    assert (done.exit_code, "has no alert rules" in done.stderr) == (2, True)
    done = run("preview", file, "gs://uploads", "--since", "yesterday")
    assert (done.exit_code, "it must be a date" in done.stderr) == (2, True)


# --- Listing


@pytest.fixture
def listed(store: ResultStore) -> list[str]:
    """Create three alerts. Return their ids, the newest first."""
    ids: list[str] = []
    for source, rule, state in (
        ("cam1", "person", AlertState.PUBLISHED),
        ("cam1", "person", AlertState.SUPPRESSED),
        ("cam2", "car", AlertState.PENDING),
    ):
        result = result_of(f"{source}/{len(ids)}.jpg")
        name = alert_id(result.ref.document_id, rule, "1")
        alert = Alert(name, rule, "1", Severity.WARNING, "1 person", {"person": 1}, 60, state)
        store.commit([replace(result, source=SourceVersion(source), alerts=(alert,))])
        ids.insert(0, name)
    return ids


def test_alerts_are_listed_newest_first(listed: list[str]) -> None:
    def found(*options: str) -> list[str]:
        done = run("list", "--json", *options)
        assert done.exit_code == 0, done.output
        return [json.loads(line)["id"] for line in done.stdout.splitlines()]

    assert found() == listed
    assert found("--source", "cam1") == listed[1:]
    assert found("--rule", "car") == listed[:1]
    assert found("--state", "published", "--source", "cam1") == listed[2:]
    assert found("--since", (datetime.now(UTC) + timedelta(days=1)).isoformat()) == []


def test_list_for_a_person_has_the_text_and_the_image(listed: list[str]) -> None:
    done = run("list", "--rule", "car")
    assert done.exit_code == 0, done.output
    line = done.stdout.splitlines()[1].split(maxsplit=5)
    assert line[1:5] == ["cam2", "car", "warning", "pending"]
    assert line[5] == "1 person  gs://uploads/cam2/2.jpg"
    assert "1 alerts since " in done.stderr


# --- Silence


@pytest.fixture
def alerts_topic(topic: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("ALERTS_TOPIC", topic)
    return topic


def received(topic: str) -> list[dict[str, Any]]:
    """Return the messages that were published since the last call."""
    found: list[dict[str, Any]] = []
    with pubsub_v1.PublisherClient() as publisher:  # the emulator keeps the order
        publisher.publish(topic, b'{"id": "end"}').result(timeout=PATIENCE_SECONDS)
    with pubsub_v1.SubscriberClient() as subscriber:
        name = topic.replace("/topics/", "/subscriptions/")
        while not found or found[-1]["id"] != "end":
            batch = subscriber.pull(subscription=name, max_messages=1, timeout=PATIENCE_SECONDS)
            for each in batch.received_messages:
                found.append(json.loads(each.message.data))
                subscriber.acknowledge(subscription=name, ack_ids=[each.ack_id])
    return found[:-1]


@pytest.fixture
def silent_source(tmp_path: Path, store: ResultStore, collection: str) -> None:
    """Apply sources. The newest result of cam1 is two hours old, and cam2 has a new one."""
    file = written(
        tmp_path / "silent.yaml",
        {"silent_minutes": 60},
        {"id": "cam2", "prefix": "cam2/", "silent_minutes": 60},
        {"id": "cam3", "prefix": "cam3/", "silent_minutes": 60},
        {"id": "cam4", "prefix": "cam4/"},
    )
    done = CliRunner().invoke(main, ["sources", "apply", str(file), "--yes"])
    assert done.exit_code == 0, done.output
    for source in ("cam1", "cam2"):
        result = result_of(f"{source}/a.jpg")
        store.commit([replace(result, source=SourceVersion(source))])
    firestore.Client().collection(collection).document(
        ImageRef("uploads", "cam1/a.jpg", 1).document_id
    ).update({"created_at": NOW - timedelta(hours=2)})


@pytest.mark.usefixtures("silent_source")
def test_silent_source_alerts_once(alerts_topic: str) -> None:
    assert (
        "3 sources with silent_minutes, 1 silent, 0 new" in run("check-silence", "--dry-run").stdout
    )
    assert received(alerts_topic) == []
    first, second = run("check-silence", "--json"), run("check-silence", "--json")
    assert (first.exit_code, second.exit_code) == (0, 0), first.output + second.output
    report = json.loads(first.stdout)
    assert list(report) == ["checked", "silent", "published"]
    [silent] = report["silent"]
    assert (report["checked"], silent["source"], report["published"]) == (3, "cam1", 1)
    assert json.loads(second.stdout) == report | {"published": 0}
    [message] = received(alerts_topic)
    assert (message["id"], message["source"]) == (silent["alert"], "cam1")
    assert message["text"].startswith("No image from source cam1 since ")
    [alert] = run("list", "--json").stdout.splitlines()
    assert json.loads(alert)["id"] == silent["alert"]


@pytest.mark.usefixtures("silent_source")
def test_silence_after_an_image_is_a_new_alert(
    alerts_topic: str, store: ResultStore, collection: str
) -> None:
    run("check-silence")
    result = replace(result_of("cam1/b.jpg"), source=SourceVersion("cam1"))
    store.commit([result])
    assert ", 0 silent, 0 new" in run("check-silence").stdout
    document = firestore.Client().collection(collection).document(result.ref.document_id)
    document.update({"created_at": NOW - timedelta(minutes=61)})
    assert ", 1 silent, 1 new" in run("check-silence").stdout
    assert len({message["id"] for message in received(alerts_topic)}) == 2


@pytest.mark.usefixtures("silent_source")
def test_silence_that_was_not_published_is_published_next(
    alerts_topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PubSubUnavailableError("Pub/Sub is unavailable.")

    with monkeypatch.context() as patch:
        patch.setattr(TopicPublisher, "publish", refuse)
        done = run("check-silence")
    assert (done.exit_code, "Pub/Sub is unavailable" in done.stderr) == (1, True)
    assert ", 1 silent, 1 new" in run("check-silence").stdout
    assert len(received(alerts_topic)) == 1


@pytest.mark.usefixtures("silent_source")
def test_silence_is_logged_as_the_service_logs_alerts(alerts_topic: str) -> None:
    line = next(line for line in run("check-silence").stderr.splitlines() if "Alert" in line)
    logged = json.loads(line)
    assert (logged["message"], logged["severity"]) == ("Alert", "WARNING")
    assert (logged["source"], logged["rule"]) == ("cam1", "silent_minutes")


@pytest.mark.usefixtures("silent_source")
def test_edited_alert_keeps_no_other_source_from_alerting(
    alerts_topic: str, collection: str
) -> None:
    run("check-silence")
    [message] = received(alerts_topic)
    alert = firestore.Client().collection(f"{collection}-alerts").document(message["id"])
    alert.update({"published_at": "yesterday"})
    result = ImageRef("uploads", "cam2/a.jpg", 1).document_id
    firestore.Client().collection(collection).document(result).update(
        {"created_at": NOW - timedelta(hours=2)}
    )
    done = run("check-silence")
    assert (done.exit_code, ", 2 silent, 1 new" in done.stdout) == (1, True)
    assert "Source cam1 alerts nobody. Remove its alert. The document of the alert" in done.stderr
    assert [message["source"] for message in received(alerts_topic)] == ["cam2"]


def test_edited_time_of_a_result_is_not_believed(
    store: ResultStore, reader: ResultReader, collection: str
) -> None:
    result = replace(result_of("cam1/a.jpg"), source=SourceVersion("cam1"))
    store.commit([result])
    document = firestore.Client().collection(collection).document(result.ref.document_id)
    document.update({"created_at": "tomorrow"})
    assert reader.newest_of_source("cam1") == document.get().create_time


def test_runs_at_the_same_time_create_one_alert(collection: str) -> None:
    source = Source(id="cam1", bucket="uploads", silent_minutes=60)
    silence = Silence(source, NOW, has_results=True)
    together = threading.Barrier(2, timeout=PATIENCE_SECONDS)

    class SlowStore(SilenceStore):
        """Both runs see that there is no document before one of them creates it."""

        def read(self, *arguments: Any) -> StoredAlert | None:
            found = super().read(*arguments)
            if not found:
                together.wait()
            return found

    def create() -> StoredAlert:
        store = SlowStore(
            firestore.Client(), collection=collection, timeout_seconds=PATIENCE_SECONDS
        )
        return store.create(silence.alert_id, silence.to_document())

    both = [in_thread(create) for _ in range(2)]
    first, second = (future.result(PATIENCE_SECONDS) for future in both)
    assert first.fields == second.fields
    assert first.id == silence.alert_id


def test_check_of_no_source_alerts_nobody() -> None:
    done = run("check-silence")
    assert done.exit_code == 0, done.output
    assert done.stdout == "0 sources with silent_minutes, 0 silent, 0 new alerts\n"
