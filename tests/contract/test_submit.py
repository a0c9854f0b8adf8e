"""`submit` against the emulators of Cloud Storage and Pub/Sub."""

import json
import subprocess
import sys
import uuid

import pytest
from click.testing import CliRunner, Result
from google.cloud import pubsub_v1, storage  # type: ignore[attr-defined]  # published without types

from service.cli.main import main
from tests.fakes import PATIENCE_SECONDS
from tests.refusing_storage import FORBIDDEN, refusing_storage


@pytest.fixture
def prefix(bucket: storage.Bucket) -> str:
    """Upload some images, and one whose name is a pattern. Return their prefix."""
    prefix = f"gs://uploads/submit-{uuid.uuid4().hex}/"
    for name in ("a.jpg", "b.jpg", "deep/c.jpg", "odd*.jpg", "odd1.jpg"):
        bucket.blob(prefix.removeprefix("gs://uploads/") + name).upload_from_string(b"x")
    return prefix


def submit(topic: str, *arguments: str, stdin: str | bytes = "") -> Result:
    return CliRunner().invoke(main, ["submit", "--topic", topic, *arguments], input=stdin)


def published(topic: str) -> list[str]:
    subscription = topic.replace("/topics/", "/subscriptions/")
    with pubsub_v1.SubscriberClient() as subscriber:
        response = subscriber.pull(
            subscription=subscription, max_messages=10, timeout=PATIENCE_SECONDS
        )
    return [json.loads(received.message.data)["uri"] for received in response.received_messages]


def test_pattern_is_expanded(topic: str, prefix: str) -> None:
    done = submit(topic, f"{prefix}?.jpg", f"{prefix}odd*.jpg")
    assert done.exit_code == 0, done.output
    assert "?.jpg matches 2 objects" in done.stderr
    assert "Published 3 jobs to" in done.stdout
    *expanded, literal = published(topic)
    assert [uri.rpartition("#")[0] for uri in expanded] == [f"{prefix}a.jpg", f"{prefix}b.jpg"]
    assert literal == f"{prefix}odd*.jpg"


def test_missing_object_stops_before_anything_is_published(topic: str, prefix: str) -> None:
    refused = submit(topic, "-", stdin=f"{prefix}a.jpg\n{prefix}typo.jpg\n{prefix}*.png\n")
    assert refused.exit_code == 1
    assert "2 of 3 URIs name no object" in refused.stderr
    assert "typo.jpg" in refused.stderr
    done = submit(topic, "--no-check", f"{prefix}typo.jpg", f"{prefix}*.png")
    assert "Published 2 jobs" in done.stdout
    assert f"Warning: {prefix}*.png is published as it is" in done.stderr
    assert "typo" not in done.stderr
    assert published(topic) == [f"{prefix}typo.jpg", f"{prefix}*.png"]


def test_object_of_no_bucket_is_missing(topic: str) -> None:
    for name in ("a.jpg", "*.jpg"):
        refused = submit(topic, f"gs://no-such-bucket/{name}")
        assert refused.exit_code == 1
        assert "no object" in refused.stderr or "no bucket" in refused.stderr


def test_unreadable_bucket_has_a_clear_error(topic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with refusing_storage() as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
        server.refuse("a.jpg", FORBIDDEN)
        refused = submit(topic, "gs://uploads/a.jpg")
        assert refused.exit_code == 1
        assert "refuses to look up gs://uploads/a.jpg: 403" in refused.stderr
        assert "--no-check" in refused.stderr
        assert submit(topic, "--no-check", "gs://uploads/a.jpg").exit_code == 0


def test_pattern_needs_only_the_permission_to_list(
    topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with refusing_storage() as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
        server.metadata["*.jpg"] = FORBIDDEN
        refused = submit(topic, "gs://uploads/*.jpg")
        assert "1 of 1 URIs name no object" in refused.stderr
        server.listing = FORBIDDEN
        refused = submit(topic, "gs://uploads/*.jpg")
        assert (
            "refuses to list gs://uploads (you need roles/storage.objectViewer)" in refused.stderr
        )


def test_object_whose_name_ends_like_a_generation_is_named(topic: str, prefix: str) -> None:
    blob = storage.Client().bucket("uploads").blob(f"{prefix.removeprefix('gs://uploads/')}h#12")
    blob.upload_from_string(b"x")
    refused = submit(topic, f"{prefix}h#12", f"{prefix}a.jpg#12")
    assert f"\n  {prefix}h#12 (for the object with this name, use " in refused.stderr
    assert f"\n  {prefix}a.jpg#12\n" in refused.stderr
    assert submit(topic, f"{prefix}h#12#{blob.generation}").exit_code == 0


def test_standard_input_that_is_not_utf8_is_refused(topic: str) -> None:
    refused = submit(topic, "-", stdin=b"gs://uploads/\xff.jpg\n")
    assert refused.exit_code == 1
    assert r"'gs://uploads/\udcff.jpg' is wrong" in refused.stderr


def test_closed_standard_input_has_a_clear_error() -> None:
    # The shell closes it: with other threads, no Python may run between fork and exec.
    command = [sys.executable, "-c", "from service.cli.main import main; main()", "submit", "-"]
    refused = subprocess.run(
        ["sh", "-c", 'exec "$@" <&-', "sh", *command], capture_output=True, text=True
    )
    assert (refused.returncode, refused.stderr) == (1, "Error: Standard input is closed\n")


@pytest.mark.parametrize("command", ["results", "reconcile"])
def test_pattern_where_a_prefix_belongs_is_noted(command: str, prefix: str) -> None:
    noted = CliRunner().invoke(main, [command, f"{prefix}x*.jpg"])
    assert "give a prefix here, not a pattern" in noted.stderr
    literal = CliRunner().invoke(main, [command, f"{prefix}none"])
    assert "pattern" not in literal.stderr


def test_many_objects_are_looked_up_together(topic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with refusing_storage() as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
        uris = [f"gs://uploads/{i}.jpg" for i in range(2500)]
        done = submit(topic, "-", stdin="\n".join(uris))
        assert "Published 2,500 jobs" in done.stdout, done.output
        looked_up = [request for request in server.requests if request.startswith("metadata")]
        assert len(looked_up) == 2500
