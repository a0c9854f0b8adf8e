"""Fixtures of the whole system: emulators, deliveries, and the service under gunicorn."""

import base64
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests
from google.cloud import firestore, pubsub_v1, storage  # type: ignore[attr-defined]  # published without types

from devtools.chaos.storage_proxy import StorageProxy
from devtools.demo_model.shapes import Scene, write_samples
from devtools.local_stack.eventarc import EventarcOptions
from devtools.local_stack.processes import Child, Processes, free_port
from devtools.local_stack.stack import SERVICE_COMMAND, Stack, StackOptions
from service.domain import ImageRef, Outcome
from service.gcp.publisher import job_message
from tests.fakes import PATIENCE_SECONDS, Gate, wait_until
from tests.processes import children_of

YOLO_BATCH, YOLO_BATCH_DEV = (
    Path(sys.executable).with_name(name) for name in ("yolo-batch", "yolo-batch-dev")
)
COLLECTION = "detections"
READY_SECONDS = 180  # the stack waits as long for its own service
_RESPONSE_SECONDS = 300  # for a queue of large images on a busy machine
CLI_SECONDS = 540  # for a whole stack on a busy machine; below the time limit of a test
DOCUMENT_SECONDS = 240  # for several deliveries, with the back-off between them
MAX_DELIVERIES = 50  # as in terraform/modules/yolo-batch/locals.tf
# A busy machine's emulators may be slower than the default timeouts. That must not cause a 503.
PATIENT = {
    "STORAGE_TIMEOUT_SECONDS": f"{PATIENCE_SECONDS:g}",
    "FIRESTORE_TIMEOUT_SECONDS": f"{PATIENCE_SECONDS:g}",
}


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    directory = tmp_path_factory.mktemp("stack")
    options = StackOptions(
        directory=directory,
        service_environment=PATIENT,
        # With the default back-off, a few rejections could use up a test's time limit.
        eventarc=EventarcOptions(concurrency=StackOptions.concurrency, max_delay_seconds=8),
    )
    with Stack(options) as running:
        yield running


@pytest.fixture(autouse=True)
def stack_environment(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in stack.environment.items():
        monkeypatch.setenv(name, value)


@dataclass
class Service:
    """A service that a test has started, on the session's emulators."""

    child: Child
    url: str

    def post(self, ref: ImageRef, timeout: float = _RESPONSE_SECONDS) -> requests.Response:
        """Deliver the event of one image once, as Eventarc does."""
        return requests.post(self.url, json=event_data(ref), headers=EVENT, timeout=timeout)

    def deliver(self, ref: ImageRef) -> list[int]:
        """Deliver an event until it is acknowledged. Return the statuses, 0 for no response."""
        statuses: list[int] = []
        while 204 not in statuses:
            assert len(statuses) < MAX_DELIVERIES, f"{ref.uri} becomes a dead letter"
            try:
                statuses.append(self.post(ref).status_code)
            except requests.ConnectionError:
                statuses.append(0)
        return statuses

    def post_all(self, refs: list[ImageRef]) -> set[int]:
        """Deliver an event for each image, eight at once. Return the statuses."""
        with ThreadPoolExecutor(8) as callers:
            return {response.status_code for response in callers.map(self.post, refs)}

    def post_job(self, ref: ImageRef, timeout: float = _RESPONSE_SECONDS) -> requests.Response:
        """Deliver a job, as a wrapped push does."""
        data = base64.b64encode(job_message(f"{ref.uri}#{ref.generation}")).decode()
        return requests.post(self.url, json={"message": {"data": data}}, timeout=timeout)

    @property
    def worker(self) -> int:
        """Process id of gunicorn's worker."""
        [worker] = children_of(self.child.process.pid)
        return worker

    def is_live(self) -> bool:
        return responds_200(self.url + "/health/live")

    def stop(self) -> None:
        """Stop it with SIGTERM as Cloud Run does, but wait longer."""
        os.kill(self.child.process.pid, signal.SIGTERM)
        assert self.child.process.wait(PATIENCE_SECONDS) == 0

    def outcomes(self) -> Counter[str]:
        """Sum the outcomes in its log. They are complete after the service was stopped."""
        lines = [line for line in self.log() if line["message"] in ("Committed", "Outcomes")]
        return sum(
            (Counter({o: line[o] for o in Outcome if o in line}) for line in lines), Counter()
        )

    def log(self) -> list[dict[str, Any]]:
        """Return its log lines. Skip lines that are not JSON: of native libraries, or cut short."""
        lines = map(_json_of, self.child.log_text().splitlines())
        return [line for line in lines if isinstance(line, dict)]


def _json_of(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


EVENT = {"ce-type": "google.cloud.storage.object.v1.finalized", "ce-specversion": "1.0"}


def event_data(ref: ImageRef) -> dict[str, str]:
    return {"bucket": ref.bucket, "name": ref.name, "generation": str(ref.generation)}


@pytest.fixture
def start_service(stack: Stack, tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """Start a service with further settings. It is stopped at the end of the test."""
    with Processes(tmp_path) as processes:
        yield partial(start, processes)


@pytest.fixture(scope="session")
def service(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service for tests that do not change its settings or stop it. A start takes seconds.

    Only tests deliver events to it. Its log has the lines of all tests.
    """
    with Processes(tmp_path_factory.mktemp("service")) as processes:
        yield start(processes, ready=True, **stack.environment)


def start(processes: Processes, *, ready: bool = True, **settings: str) -> Service:
    port = free_port()
    own = {"BIND_ADDRESS": "127.0.0.1", "PORT": str(port)}
    environment = {**os.environ, **own, **PATIENT, **settings}
    child = processes.start(f"service-{port}", SERVICE_COMMAND, environment)
    service = Service(child, f"http://127.0.0.1:{port}")
    if ready:
        child.wait_until(
            lambda: responds_200(service.url + "/health/ready"), timeout_seconds=READY_SECONDS
        )
    return service


def responds_200(url: str, *, timeout_seconds: float = PATIENCE_SECONDS) -> bool:
    try:
        return requests.get(url, timeout=timeout_seconds).status_code == 200
    except requests.RequestException:
        return False


@contextmanager
def held_storage() -> Iterator[tuple[str, Gate]]:
    """Yield another URL of the stack's Cloud Storage, and a gate before each of its responses.

    If the gate holds a request for longer than the client waits, the client sends it again.
    """
    gate = Gate()
    with StorageProxy(os.environ["STORAGE_EMULATOR_HOST"].removeprefix("http://")) as proxy:
        vars(proxy.armed)["take"] = lambda possible: gate.enter()  # no fault, only a wait
        try:
            yield proxy.url, gate
        finally:
            gate.open()


@pytest.fixture
def make_topic(stack: Stack) -> Iterator[Callable[..., str]]:
    """Make a topic and a subscription of the same name. The test's end deletes the subscription."""
    made: list[str] = []
    with pubsub_v1.PublisherClient() as publisher, pubsub_v1.SubscriberClient() as subscriber:

        def make(**settings: Any) -> str:
            name = f"test-{uuid.uuid4().hex}"
            topic = publisher.topic_path(stack.project, name)
            publisher.create_topic(name=topic)
            made.append(subscriber.subscription_path(stack.project, name))
            request = {"name": made[-1], "topic": topic, "ack_deadline_seconds": 600}
            subscriber.create_subscription(request=request | settings)
            return name

        yield make
        for name in made:
            subscriber.delete_subscription(subscription=name)


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, Scene]]:
    """The demo's images, with their ground truth."""
    return write_samples(tmp_path_factory.mktemp("samples"))


def upload(stack: Stack, name: str, data: bytes) -> ImageRef:
    blob = storage.Client().bucket(stack.bucket).blob(name)
    blob.upload_from_string(data, content_type="image/jpeg")
    return ImageRef(stack.bucket, name, blob.generation)


def put_aside(stack: Stack, name: str, data: bytes) -> ImageRef:
    """Upload to a bucket whose events only the test delivers."""
    client = storage.Client()
    bucket = client.bucket(ASIDE)
    if not bucket.exists():
        bucket.create()
    blob = bucket.blob(name)
    blob.upload_from_string(data, content_type="image/jpeg")
    return ImageRef(ASIDE, name, blob.generation)


ASIDE = "aside"


def document(ref: ImageRef) -> dict[str, Any] | None:
    snapshot = firestore.Client().collection(COLLECTION).document(ref.document_id).get()
    return snapshot.to_dict() if snapshot.exists else None


def wait_for_deliveries(is_over: Callable[[], bool], failure: str) -> None:
    """Wait for a condition that needs several deliveries. Fail with the message `failure`."""
    wait_until(is_over, failure, patience_seconds=DOCUMENT_SECONDS)


def wait_for_document(ref: ImageRef) -> dict[str, Any]:
    deadline = time.monotonic() + DOCUMENT_SECONDS
    while (fields := document(ref)) is None:
        assert time.monotonic() < deadline, f"{ref.uri} has no document"
        time.sleep(0.1)
    return fields


def run_cli(
    *arguments: str | Path,
    env: Mapping[str, str] | None = None,
    program: Path = YOLO_BATCH,
    **options: Any,
) -> "subprocess.CompletedProcess[str]":
    """Run `yolo-batch` as a user does, with longer timeouts."""
    return subprocess.run(
        [program, *arguments],
        env=PATIENT | dict(os.environ if env is None else env),
        capture_output=True,
        text=True,
        timeout=CLI_SECONDS,
        check=False,
        **options,
    )


run_dev = partial(run_cli, program=YOLO_BATCH_DEV)
