"""`reconcile` with a prompt, against the emulators."""

import json
import uuid
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from google.cloud import pubsub_v1, storage  # type: ignore[attr-defined]  # published without types

from service.cli import reconcile as command
from service.gcp.publisher import PublishError
from tests.fakes import PATIENCE_SECONDS


@pytest.fixture
def prefix(bucket: storage.Bucket) -> str:
    """Three images without a document."""
    prefix = f"ask-{uuid.uuid4().hex}/"
    for i in range(3):
        bucket.blob(f"{prefix}{i}.jpg").upload_from_string(b"x")
    return prefix


def pulled(topic: str) -> list[str]:
    """Return the URIs of the published jobs."""
    subscription = topic.replace("/topics/", "/subscriptions/")
    with pubsub_v1.SubscriberClient() as subscriber:
        response = subscriber.pull(
            subscription=subscription, max_messages=10, timeout=PATIENCE_SECONDS
        )
    return sorted(
        json.loads(received.message.data)["uri"] for received in response.received_messages
    )


def ask(answer: str, prefix: str, *options: str, monkeypatch: pytest.MonkeyPatch) -> Result:
    monkeypatch.setattr(command, "can_ask", lambda: True)
    arguments = [f"gs://uploads/{prefix}", "--enqueue", "missing", *options]
    return CliRunner().invoke(command.reconcile, arguments, input=answer)


def test_a_yes_at_the_prompt_publishes_the_jobs(
    prefix: str, topic: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    done = ask("y\n", prefix, "--topic", topic, "--resume", str(state), monkeypatch=monkeypatch)
    assert done.exit_code == 0, done.output
    assert "3 objects = 0 done + 0 failed + 3 missing + 0 ignored" in done.output
    assert "Published 3 jobs to" in done.output
    names = [uri.rpartition("#")[0] for uri in pulled(topic)]
    assert names == [f"gs://uploads/{prefix}{i}.jpg" for i in range(3)]
    assert not state.exists()


def test_a_no_at_the_prompt_publishes_nothing(
    prefix: str,
    topic: str,
    publisher: pubsub_v1.PublisherClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done = ask("n\n", prefix, "--topic", topic, monkeypatch=monkeypatch)
    assert done.exit_code == 1
    assert "3 images, about" in done.output
    assert "Published" not in done.output
    publisher.publish(topic, b'{"uri": "of the test"}').result(PATIENCE_SECONDS)
    assert pulled(topic) == ["of the test"]


def test_no_prompt_without_anything_to_publish(topic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    done = ask("", "no-such-prefix/", "--topic", topic, monkeypatch=monkeypatch)
    assert done.exit_code == 0, done.output
    assert "Published 0 jobs" in done.output


def test_failed_run_names_the_command_to_resume(
    prefix: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    options = ["--topic", "never-made", "--yes", "--resume", str(state)]
    done = ask("", prefix, *options, monkeypatch=monkeypatch)
    assert done.exit_code == 1
    assert "There is no topic" in done.output
    assert f"{state} has the position" in done.output.replace("\n", " ")
    assert json.loads(state.read_text())["tally"]["missing"] == 0
    assert PublishError.__name__ not in done.output
