"""Objects with every kind of name that Cloud Storage permits, from the upload to the document.

Here `fake-gcs-server` keeps its objects in memory. In the local stack it keeps them in files. They
permit no names of more than 255 bytes, no NUL, and no object below another (`a`, `a/b`), and `a//b`
is listed as `a/b`. The names `.` and `..` are not tested here: Cloud Storage and the service reject
them (tests/unit/test_events.py), and `requests` would change their URLs.
"""

import json
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from google.cloud import firestore, pubsub_v1, storage  # type: ignore[attr-defined]  # published without types
from google.cloud.firestore_v1.base_query import FieldFilter

from devtools.demo_model.shapes import Scene
from devtools.fuzz.corpus import NAMES
from devtools.local_stack import emulators
from devtools.local_stack.eventarc import Eventarc, EventarcOptions
from devtools.local_stack.processes import Processes
from devtools.local_stack.programs import find_programs
from devtools.local_stack.stack import Stack
from service.gcp.listing import connect_lister
from service.gcp.result_reader import ResultReader
from tests.fakes import PATIENCE_SECONDS
from tests.system.conftest import COLLECTION, Service, run_cli, wait_for_deliveries
from tests.system.test_reconcile import counts

Samples = list[tuple[Path, Scene]]
IGNORED = ["folder/", "cat.jpg/", "//"]  # the console creates such an object for a new folder
COUNTS = {"done": 0, "failed": 0, "missing": 0, "ignored": len(IGNORED)}
COUNTS["objects"] = len(NAMES) + len(IGNORED)


@pytest.fixture
def events_topic(make_topic: Callable[..., str]) -> str:
    return make_topic()


@pytest.fixture
def bucket(
    stack: Stack, events_topic: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[storage.Bucket]:
    """A bucket of the test's own Cloud Storage emulator, which accepts any name."""
    on_files = emulators.storage(
        find_programs(),
        tmp_path / "buckets",
        pubsub_host=stack.environment["PUBSUB_EMULATOR_HOST"],
        project=stack.project,
        topic=events_topic,
    )

    def command(port: int) -> list[str | Path]:
        return ["memory" if word == "filesystem" else word for word in on_files.command(port)]

    with Processes(tmp_path) as processes:
        [port] = emulators.start(processes, [replace(on_files, command=command)])
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
        yield storage.Client().create_bucket(f"odd-{uuid.uuid4().hex}")


@contextmanager
def delivered(stack: Stack, topic: str, service: Service) -> Iterator[Eventarc]:
    """Deliver a topic's notifications to a service, as Eventarc does."""
    host = stack.environment["PUBSUB_EMULATOR_HOST"]
    subscription = f"projects/{stack.project}/subscriptions/{topic}"
    # On a busy machine, a delivery with a late response would be redelivered after up to a minute.
    options = EventarcOptions(answer_timeout_seconds=PATIENCE_SECONDS, max_delay_seconds=8)
    eventarc = Eventarc(host, subscription, service.url, options)
    try:
        yield eventarc.start()
    finally:
        eventarc.stop()


def upload_all(bucket: storage.Bucket, samples: Samples) -> dict[str, str]:
    """Upload an image with different bytes under each name. Return their MD5 sums by name."""
    image = samples[0][0].read_bytes()
    sums = {}
    for name in NAMES.values():
        blob = bucket.blob(name)
        blob.upload_from_string(image + name.encode(), content_type="image/jpeg")
        sums[name] = blob.md5_hash
    for name in IGNORED:
        bucket.blob(name).upload_from_string(b"", content_type="text/plain")
    return sums


def documents(bucket: storage.Bucket) -> list[dict[str, Any]]:
    collection = firestore.Client().collection(COLLECTION)
    of_bucket = collection.where(filter=FieldFilter("bucket", "==", bucket.name)).stream()
    return [snapshot.to_dict() or {} for snapshot in of_bucket]


def assert_each_is_recorded(bucket: storage.Bucket, sums: dict[str, str]) -> None:
    """Assert that each name has one document, with the checksum of its upload."""
    rows = documents(bucket)
    recorded = {row["name"]: (row["md5"], row["uri"], row["status"]) for row in rows}
    uri = f"gs://{bucket.name}/"
    assert recorded == {name: (md5, uri + name, "done") for name, md5 in sums.items()}
    assert len(rows) == len(sums)


def reconciled(bucket: storage.Bucket, *options: str) -> dict[str, int]:
    done = run_cli("reconcile", f"gs://{bucket.name}", *options)
    assert done.returncode == 0, done.stderr
    return counts(done.stdout)


def test_upload_with_any_name_gets_one_document(
    stack: Stack,
    samples: Samples,
    events_topic: str,
    bucket: storage.Bucket,
    start_service: Callable[..., Service],
) -> None:
    with delivered(stack, events_topic, start_service()) as eventarc:
        sums = upload_all(bucket, samples)
        wait_for_deliveries(
            lambda: eventarc.counters.acked >= COUNTS["objects"], "not everything was delivered"
        )
    assert_each_is_recorded(bucket, sums)
    assert reconciled(bucket) == COUNTS | {"done": len(NAMES)}
    shown = run_cli("results", f"gs://{bucket.name}/", "--json")
    assert shown.returncode == 0, shown.stderr
    # Split at "\n" only: names may contain other line breaks.
    listed = [json.loads(line)["name"] for line in shown.stdout.rstrip("\n").split("\n")]
    assert listed == sorted(NAMES.values(), key=str.encode)


def test_any_name_works_as_a_prefix_of_results_and_objects(
    samples: Samples,
    bucket: storage.Bucket,
    start_service: Callable[..., Service],
) -> None:
    sums = upload_all(bucket, samples)
    [page] = connect_lister(None).pages(bucket.name, "")
    refs = [ref for ref in page if not ref.is_ignorable]
    assert start_service().post_all(refs) == {204}
    assert_each_is_recorded(bucket, sums)
    reader = ResultReader(firestore.Client(), collection=COLLECTION, timeout_seconds=30)
    for name in NAMES.values():
        assert next(iter(reader.results(bucket.name, name)))["name"] == name
        assert next(connect_lister(None).pages(bucket.name, name))[0].name == name


def test_missing_images_with_any_name_are_done_by_jobs(
    samples: Samples,
    bucket: storage.Bucket,
    make_topic: Callable[..., str],
    start_service: Callable[..., Service],
) -> None:
    sums = upload_all(bucket, samples)
    assert reconciled(bucket) == COUNTS | {"missing": len(NAMES)}
    jobs = make_topic(push_config={"push_endpoint": start_service().url})
    reconciled(bucket, "--enqueue", "missing", "--yes", "--topic", jobs)
    wait_for_deliveries(lambda: len(documents(bucket)) >= len(NAMES), "not everything was done")
    assert_each_is_recorded(bucket, sums)
    assert reconciled(bucket) == COUNTS | {"done": len(NAMES)}


def test_name_with_spaces_at_its_ends_can_be_submitted(
    stack: Stack, samples: Samples, bucket: storage.Bucket, make_topic: Callable[..., str]
) -> None:
    names = [NAMES["spaces"], NAMES["hash"]]
    for name in names:
        bucket.blob(name).upload_from_string(samples[0][0].read_bytes())
    topic = make_topic()
    lines = "".join(f"gs://{bucket.name}/{name}\n" for name in names)
    done = run_cli("submit", "-", "--topic", topic, input=lines)
    assert done.returncode == 0, done.stderr
    with pubsub_v1.SubscriberClient() as subscriber:
        subscription = subscriber.subscription_path(stack.project, topic)
        pulled = subscriber.pull(subscription=subscription, max_messages=9, timeout=30)
    uris = {json.loads(each.message.data)["uri"] for each in pulled.received_messages}
    assert uris == {f"gs://{bucket.name}/{name}" for name in names}
