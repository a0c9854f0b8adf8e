"""Reconcile, back-fill and dead letters, with the whole system."""

import base64
import json
import re
import signal
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests
from google.cloud import firestore, pubsub_v1  # type: ignore[attr-defined]  # published without types

from devtools.demo_model.shapes import Scene
from devtools.local_stack.stack import Stack
from service.domain import ErrorCode, Failure, ImageRef, ImageResult, ModelInfo, Replace
from service.gcp.firestore import ResultStore
from service.gcp.publisher import job_message
from service.gcp.result_reader import ResultReader
from service.inference.identity import sha256_of_model
from service.settings import BUNDLED_MODEL
from tests.system.conftest import (
    COLLECTION,
    DOCUMENT_SECONDS,
    Service,
    document,
    put_aside,
    run_cli,
    wait_for_deliveries,
)

Samples = list[tuple[Path, Scene]]

NO_SERVER = "http://127.0.0.1:9"  # the discard port: pushes to it have no response
PART = "gcloud/tmp/parallel_composite_uploads/see_gcloud_storage_cp_help_for_details/x_0"
OURS = sha256_of_model(BUNDLED_MODEL)
OTHER_MODEL = ModelInfo("old.pt", "b" * 64, 320, "fp32", "openvino")


@pytest.fixture
def prefix() -> str:
    return f"reconcile-{uuid.uuid4().hex}/"


@pytest.fixture
def subscriber(stack: Stack) -> Iterator[pubsub_v1.SubscriberClient]:
    with pubsub_v1.SubscriberClient() as client:
        yield client


def record(*results: ImageResult) -> None:
    store().commit(results)


def store() -> ResultStore:
    return ResultStore(firestore.Client(), collection=COLLECTION, timeout_seconds=30)


def reader() -> ResultReader:
    return ResultReader(firestore.Client(), collection=COLLECTION, timeout_seconds=30)


def failed(ref: ImageRef) -> ImageResult:
    return ImageResult(ref, failure=Failure(ErrorCode.CORRUPT_IMAGE, "The image was damaged."))


def is_done(ref: ImageRef, model: str = OURS) -> bool:
    fields = document(ref) or {}
    return fields.get("status") == "done" and fields["model"]["sha256"] == model


def counts(output: str) -> dict[str, int]:
    """Return the numbers of the line with the counts, by their names."""
    line = next(line for line in output.splitlines() if " objects = " in line)
    numbers = re.findall(r"([\d,]+) (objects|done|failed|missing|ignored)", line)
    return {name: int(number.replace(",", "")) for number, name in numbers}


def test_reconcile_counts_enqueues_and_replaces(
    stack: Stack,
    samples: Samples,
    prefix: str,
    make_topic: Callable[..., str],
    service: Service,
) -> None:
    data = samples[0][0].read_bytes()
    names = ("done", "failed", "missing-1", "missing-2", "stale")
    refs = {name: put_aside(stack, f"{prefix}{name}.jpg", data) for name in names}
    put_aside(stack, prefix + PART, b"x")
    record(
        failed(refs["failed"]),
        ImageResult(refs["stale"], model=OTHER_MODEL),
        ImageResult(refs["done"], model=replace(OTHER_MODEL, sha256=OURS)),
    )
    before = {name: document(ref) for name, ref in refs.items()}
    topic = make_topic(push_config={"push_endpoint": service.url})
    command = ["reconcile", f"gs://aside/{prefix}", "--model-sha256", OURS, "--topic", topic]

    counted = run_cli(*command)
    assert counted.returncode == 0, counted.stderr
    everything = {"objects": 6, "done": 2, "failed": 1, "missing": 2, "ignored": 1}
    assert counts(counted.stdout) == everything
    assert "1 of the done objects are by another model" in counted.stdout
    dry = run_cli(*command, "--enqueue", "all", "--dry-run")
    assert "--enqueue all: 4 images, about " in dry.stdout, dry.stderr
    unconfirmed = run_cli(*command, "--enqueue", "all", stdin=subprocess.DEVNULL)
    assert unconfirmed.returncode != 0
    assert "give --yes to publish" in unconfirmed.stderr
    assert {name: document(ref) for name, ref in refs.items()} == before

    published = run_cli(*command, "--enqueue", "all", "--yes")
    assert "Published 4 jobs to" in published.stdout, published.stderr
    published_refs = [refs[name] for name in names if name != "done"]
    wait_for_deliveries(lambda: all(map(is_done, published_refs)), "not every job was done")
    assert document(refs["done"]) == before["done"]
    repeated = run_cli(*command, "--enqueue", "all", "--yes")
    assert counts(repeated.stdout) == everything | {"done": 5, "failed": 0, "missing": 0}
    assert "Published 0 jobs to" in repeated.stdout


def test_redelivered_replacement_changes_nothing(
    stack: Stack, samples: Samples, prefix: str, service: Service
) -> None:
    ref = put_aside(stack, f"{prefix}a.jpg", samples[0][0].read_bytes())
    record(failed(ref))
    job = job_message(
        f"{ref.uri}#{ref.generation}", Replace(reader().stored_documents([ref]).read_at)
    )
    push = {"message": {"data": base64.b64encode(job).decode()}}
    assert requests.post(service.url, json=push, timeout=DOCUMENT_SECONDS).status_code == 204
    replaced = document(ref)
    assert is_done(ref)
    assert requests.post(service.url, json=push, timeout=DOCUMENT_SECONDS).status_code == 204
    assert document(ref) == replaced


# Runs the command with few objects per page, and kills it at the worst moment: jobs are published,
# but the progress is not saved yet.
KILLED = """
import os, signal, sys
from service.gcp import listing, publisher
from service.cli.reconcile import reconcile
listing.ObjectLister.pages.__kwdefaults__["page_size"] = 5
publish, calls = publisher.publish_jobs, []
def killed(*arguments, **named):
    count = publish(*arguments, **named)
    calls.append(count)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return count
publisher.publish_jobs = killed
reconcile(sys.argv[1:])
"""


def test_killed_reconcile_resumes_with_correct_counts(
    stack: Stack,
    prefix: str,
    tmp_path: Path,
    make_topic: Callable[..., str],
    subscriber: pubsub_v1.SubscriberClient,
) -> None:
    refs = [put_aside(stack, f"{prefix}{i:02}.jpg", b"x") for i in range(30)]
    record(*(failed(ref) for ref in refs[::3]))
    missing = [f"{ref.uri}#{ref.generation}" for i, ref in enumerate(refs) if i % 3]
    topic, state = make_topic(), tmp_path / "state.json"
    options = ["--enqueue", "missing", "--yes", "--topic", topic, "--resume", str(state)]
    command = [f"gs://aside/{prefix}", *options]

    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *command],
        check=False, capture_output=True, text=True, timeout=DOCUMENT_SECONDS,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert json.loads(state.read_text())["tally"]["selected"] > 0
    finished = run_cli("reconcile", *command)
    assert finished.returncode == 0, finished.stderr
    assert counts(finished.stdout) == {
        "objects": 30, "done": 0, "failed": 10, "missing": 20, "ignored": 0
    }  # fmt: skip
    assert "Published 20 jobs" in finished.stdout
    assert not state.exists()

    uris: Counter[str] = Counter()
    subscription = subscriber.subscription_path(stack.project, topic)

    def has_all() -> bool:
        pulled = subscriber.pull(subscription=subscription, max_messages=100, timeout=30)
        uris.update(json.loads(each.message.data)["uri"] for each in pulled.received_messages)
        return sum(uris.values()) > len(missing) and set(uris) == set(missing)

    wait_for_deliveries(has_all, f"published so far: {sorted(uris)}")
    assert set(uris.values()) == {1, 2}  # two jobs if published before the kill


def test_dead_letters_are_listed_replayed_and_removed(
    stack: Stack,
    samples: Samples,
    prefix: str,
    make_topic: Callable[..., str],
    service: Service,
    subscriber: pubsub_v1.SubscriberClient,
) -> None:
    data = samples[0][0].read_bytes()
    job, notified = (put_aside(stack, f"{prefix}{i} #.jpg", data) for i in range(2))
    dead = make_topic()
    policy = {
        "dead_letter_topic": f"projects/{stack.project}/topics/{dead}",
        "max_delivery_attempts": 5,
    }
    live = make_topic(push_config={"push_endpoint": NO_SERVER}, dead_letter_policy=policy)
    attributes = {
        "eventType": "OBJECT_FINALIZE", "bucketId": notified.bucket,
        "objectId": notified.name, "objectGeneration": str(notified.generation),
    }  # fmt: skip
    with pubsub_v1.PublisherClient() as publisher:
        topic = publisher.topic_path(stack.project, live)
        body = json.dumps({"uri": f"{job.uri}#{job.generation}"}).encode()
        for message in ((body, {}), (b"", attributes), (b"not JSON", {"colour": "blue"})):
            publisher.publish(topic, message[0], **message[1]).result(timeout=DOCUMENT_SECONDS)

    def listed() -> dict[str, dict[str, Any]]:
        done = run_cli("dead-letters", "--subscription", dead, "--json")
        assert done.returncode == 0, done.stderr
        return {
            dead_letter["kind"]: dead_letter
            for dead_letter in map(json.loads, done.stdout.splitlines())
        }

    dead_letters: dict[str, dict[str, Any]] = {}

    def are_all_dead() -> bool:
        dead_letters.update(listed())
        return len(dead_letters) == 3

    wait_for_deliveries(are_all_dead, "not every message became a dead letter")
    assert dead_letters["job"]["uri"] == f"{job.uri}#{job.generation}"
    assert dead_letters["notification"]["uri"] == f"{notified.uri}#{notified.generation}"
    assert "not valid JSON" in dead_letters["unreadable"]["reason"]
    assert all(dead_letter["attempts"] >= 5 for dead_letter in dead_letters.values())
    table = run_cli("dead-letters", "--subscription", dead).stdout
    assert all(dead_letter["id"] in table for dead_letter in dead_letters.values())

    jobs = make_topic(push_config={"push_endpoint": service.url})
    replay = ["dead-letters", "--subscription", dead, "--replay"]
    replayed = run_cli(*replay, "--id", dead_letters["job"]["id"], "--topic", jobs)
    assert "Replayed 1 of 3 messages" in replayed.stdout, replayed.stderr
    wait_for_deliveries(lambda: is_done(job), "the job was not done")
    kept = run_cli(*replay, "--id", dead_letters["unreadable"]["id"], "--topic", jobs)
    assert "Replayed 0 of 2 messages" in kept.stdout
    assert "it cannot be read" in kept.stderr

    subscription = subscriber.subscription_path(stack.project, live)
    subscriber.modify_push_config(
        subscription=subscription, push_config={"push_endpoint": service.url}
    )
    unchanged = run_cli(*replay, "--as-is", "--id", dead_letters["notification"]["id"])
    assert f"Replayed 1 of 2 messages to projects/{stack.project}/topics/{live}" in unchanged.stdout
    wait_for_deliveries(lambda: is_done(notified), "the notification was not done")
    assert set(listed()) == {"unreadable"}
