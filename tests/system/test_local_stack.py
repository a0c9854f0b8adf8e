"""The local stack with the real tools, and with a service that only records requests."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from flask import Flask, request
from google.cloud import pubsub_v1, storage  # type: ignore[attr-defined]  # published without types
from werkzeug.serving import make_server

from devtools.local_stack import emulators
from devtools.local_stack.errors import StartError
from devtools.local_stack.eventarc import Eventarc, EventarcOptions
from devtools.local_stack.processes import Processes, free_port, is_answering
from devtools.local_stack.programs import find_programs
from devtools.local_stack.resources import UPLOADS_SUBSCRIPTION, UPLOADS_TOPIC, create_topics
from devtools.local_stack.stack import Stack, StackOptions
from tests.fakes import PATIENCE_SECONDS, wait_until

ANSWER_TIMEOUT_SECONDS = PATIENCE_SECONDS / 2  # a lost message is redelivered in time
CONCURRENCY = 8
A_MOMENT = 0.5  # a wait for what must not happen
TOOL_SECONDS = 300  # gcloud takes seconds to start, and far more on a busy machine
UNUSUAL_NAMES = ["a b.jpg", "c#1.jpg", "d?e.jpg", "é 50%.jpg"]
# A service that is ready at once, and a program that runs a stack with it until it is killed.
TINY_SERVICE = """
import os
from flask import Flask
app = Flask("tiny")
app.get("/health/ready")(lambda: "ok")
app.run(port=int(os.environ["PORT"]))
"""
HOLDER = """
import sys, time
from devtools.local_stack.stack import Stack, StackOptions
with Stack(StackOptions(service_command=[sys.executable, "-c", sys.argv[1]])) as stack:
    print(stack.directory, flush=True)
    time.sleep(600)
"""


@dataclass(frozen=True)
class Received:
    """A request to the service."""

    at: float
    headers: dict[str, str]
    body: bytes

    @property
    def name(self) -> str:
        return str(json.loads(self.body).get("name"))


@dataclass
class Recorder:
    """A service that records its requests. A test chooses the responses."""

    answer: Callable[[int], int] = lambda _: 204  # status, by earlier requests
    received: list[Received] = field(default_factory=list)
    most_in_flight: int = 0
    _running: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def handle(self) -> tuple[str, int]:
        # Header names are case-insensitive.
        headers = {name.lower(): value for name, value in request.headers}
        with self._lock:
            earlier = len(self.received)
            self.received.append(Received(time.monotonic(), headers, request.get_data()))
            self._running += 1
            self.most_in_flight = max(self.most_in_flight, self._running)
        try:
            return "", self.answer(earlier)
        finally:
            with self._lock:
                self._running -= 1

    @property
    def running(self) -> int:
        """The number of requests in flight."""
        with self._lock:
            return self._running

    def reset(self) -> None:
        self.answer = lambda _: 204
        self.received.clear()
        self.most_in_flight = 0

    def wait_for(self, count: int) -> list[Received]:
        """Wait for a number of requests, and a moment longer for one too many."""
        wait_until(lambda: len(self.received) >= count, f"there are fewer than {count} requests")
        time.sleep(A_MOMENT)
        assert len(self.received) == count, [item.body for item in self.received]
        return self.received

    def names(self, count: int) -> list[str]:
        return sorted(item.name for item in self.wait_for(count))


@contextmanager
def recording() -> Iterator[tuple[Recorder, str]]:
    """Serve a recorder. Yields the recorder and its URL."""
    recorder = Recorder()
    app = Flask("recorder")
    app.add_url_rule("/", view_func=recorder.handle, methods=["POST"])
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield recorder, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def service() -> Iterator[tuple[Recorder, str]]:
    with recording() as served:
        yield served


@pytest.fixture(scope="module")
def stack(service: tuple[Recorder, str]) -> Iterator[Stack]:
    """Replaces the session's stack: its environment is the one that tests get."""
    options = StackOptions(
        with_service=False,
        service_url=service[1],
        eventarc=EventarcOptions(
            concurrency=CONCURRENCY, answer_timeout_seconds=ANSWER_TIMEOUT_SECONDS
        ),
    )
    with Stack(options) as running:
        yield running


@pytest.fixture
def recorder(service: tuple[Recorder, str], stack: Stack) -> Iterator[Recorder]:
    service[0].reset()
    yield service[0]
    service[0].reset()
    wait_until(lambda: is_idle(stack.eventarc), "a delivery is still in flight")


def is_idle(eventarc: Eventarc) -> bool:
    """Return whether each request that was sent has ended, and is counted."""
    counters = eventarc.counters
    return counters.delivered == counters.acked + counters.nacked


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Files with unusual names, beside a folder with a folder in it."""
    (tmp_path / "shots" / "inner").mkdir(parents=True)
    for name in [*UNUSUAL_NAMES, "shots/one.jpg", "shots/inner/two.jpg"]:
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


@pytest.fixture
def run(files: Path, stack: Stack) -> Callable[[str], str]:
    """Run a line in a shell that has the stack's environment."""

    def run_line(line: str) -> str:
        tool = line.split()[0]
        if not shutil.which(tool):
            pytest.skip(f"{tool} is not installed")
        script = "\n".join([*stack.export_lines(), line])
        done = subprocess.run(
            ["sh", "-c", script],
            cwd=files, capture_output=True, text=True, timeout=TOOL_SECONDS, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run_line


def put(stack: Stack, name: str) -> int:
    """Upload with the client, which the environment points to the stack. Return the generation."""
    blob = storage.Client().bucket(stack.bucket).blob(name)
    blob.upload_from_string(b"jpeg", content_type="image/jpeg", timeout=PATIENCE_SECONDS)
    return int(blob.generation)


def generation(stack: Stack, name: str) -> str:
    blob = storage.Client().bucket(stack.bucket).get_blob(name, timeout=PATIENCE_SECONDS)
    assert blob is not None
    return str(blob.generation)


def test_gcloud_cp_becomes_one_cloud_event(
    recorder: Recorder, stack: Stack, run: Callable[[str], str]
) -> None:
    run("gcloud storage cp shots/one.jpg gs://uploads/in/one.jpg")
    (event,) = recorder.wait_for(1)
    data = json.loads(event.body)
    assert (data["bucket"], data["name"]) == ("uploads", "in/one.jpg")
    assert data["generation"] == generation(stack, "in/one.jpg")
    assert event.headers["content-type"] == "application/json"
    assert event.headers["ce-specversion"] == "1.0"
    assert event.headers["ce-type"] == "google.cloud.storage.object.v1.finalized"
    assert event.headers["ce-source"] == "//storage.googleapis.com/projects/_/buckets/uploads"
    assert event.headers["ce-subject"] == "objects/in/one.jpg"
    assert event.headers["ce-bucket"] == "uploads"
    assert event.headers["ce-id"].isdecimal()


def test_gcloud_cp_glob_with_unusual_names(recorder: Recorder, run: Callable[[str], str]) -> None:
    run("gcloud storage cp *.jpg gs://uploads/glob/")
    assert recorder.names(4) == sorted(f"glob/{name}" for name in UNUSUAL_NAMES)


def test_gcloud_cp_recursive_to_a_prefix_and_rm(
    recorder: Recorder, run: Callable[[str], str]
) -> None:
    run("gcloud storage cp -r shots gs://uploads/prefix")
    assert recorder.names(2) == ["prefix/inner/two.jpg", "prefix/one.jpg"]
    run("gcloud storage rm gs://uploads/prefix/one.jpg")
    run("gcloud storage rm -r gs://uploads/prefix")
    assert "prefix" not in run("gcloud storage ls gs://uploads/")


def test_gsutil_cp_with_unusual_names_and_rm(recorder: Recorder, run: Callable[[str], str]) -> None:
    run("gsutil cp *.jpg gs://uploads/gsutil/")
    assert recorder.names(4) == sorted(f"gsutil/{name}" for name in UNUSUAL_NAMES)
    run("gsutil rm 'gs://uploads/gsutil/a b.jpg'")


def test_gsutil_parallel_recursive_cp(recorder: Recorder, run: Callable[[str], str]) -> None:
    run("gsutil -m cp -r shots gs://uploads/parallel")
    assert recorder.names(2) == ["parallel/inner/two.jpg", "parallel/one.jpg"]


@pytest.mark.parametrize("tool", ["gcloud storage", "gsutil"])
def test_cp_of_a_folder_to_a_slash_keeps_its_name(
    tool: str, recorder: Recorder, run: Callable[[str], str]
) -> None:
    prefix = tool.split()[0]
    run(f"{tool} cp -r shots gs://uploads/slash-{prefix}/")
    assert recorder.names(2) == [
        f"slash-{prefix}/shots/inner/two.jpg",
        f"slash-{prefix}/shots/one.jpg",
    ]


@pytest.mark.parametrize("tool", ["gcloud storage", "gsutil"])
def test_resumable_upload_continues_at_the_proxy(
    tool: str, recorder: Recorder, files: Path, run: Callable[[str], str]
) -> None:
    (files / "big.jpg").write_bytes(os.urandom(9 * 2**20))  # resumable from 8 MiB
    run(f"{tool} cp big.jpg gs://uploads/big/")
    assert recorder.names(1) == ["big/big.jpg"]
    run(f"{tool} cp gs://uploads/big/big.jpg back.jpg")
    assert (files / "back.jpg").read_bytes() == (files / "big.jpg").read_bytes()


def test_rejected_event_is_redelivered_with_back_off(recorder: Recorder, stack: Stack) -> None:
    before = stack.eventarc.counters
    recorder.answer = lambda earlier: 503 if earlier < 2 else 204
    put(stack, "again.jpg")
    first, second, third = recorder.wait_for(3)
    assert first.headers["ce-id"] == second.headers["ce-id"] == third.headers["ce-id"]
    assert second.at - first.at > 0.9
    assert third.at - second.at > 1.9
    wait_until(
        lambda: stack.eventarc.counters.acked > before.acked, "the event is not acknowledged"
    )
    after = stack.eventarc.counters
    assert after.delivered - before.delivered == 3
    assert after.nacked - before.nacked == 2
    assert after.acked - before.acked == 1


def test_late_response_means_a_second_delivery(stack: Stack) -> None:
    """On a busy machine the second delivery may be late too. It counts that it comes, and when.

    It has a recorder of its own: a delivery that timed out may be handled after the test.
    """
    was_redelivered = threading.Event()

    def late_once(earlier: int) -> int:
        if earlier:
            was_redelivered.set()
        else:
            was_redelivered.wait(PATIENCE_SECONDS)
        return 204

    host = stack.environment["PUBSUB_EMULATOR_HOST"]
    subscription = f"projects/late/subscriptions/{UPLOADS_SUBSCRIPTION}"
    options = EventarcOptions(answer_timeout_seconds=1.5)
    with recording() as (recorder, url):
        recorder.answer = late_once
        create_topics(host, "late", push_endpoint=url, lease_seconds=30)
        eventarc = Eventarc(host, subscription, url, options).start()
        try:
            began = time.monotonic()
            publish_finalized(host, "late")
            wait_until(lambda: eventarc.counters.acked == 1, "the event is not acknowledged")
        finally:
            was_redelivered.set()
            eventarc.stop()
    first, second = recorder.received[:2]
    assert first.headers["ce-id"] == second.headers["ce-id"]
    assert second.at - began > 1.5 + 0.9


def publish_finalized(host: str, project: str) -> None:
    """Publish a notification to an emulator (`host:port`), as Cloud Storage does for an upload."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PUBSUB_EMULATOR_HOST", host)
        publisher = pubsub_v1.PublisherClient()
    with publisher:
        publisher.publish(
            publisher.topic_path(project, UPLOADS_TOPIC), b"{}", timeout=PATIENCE_SECONDS,
            eventType="OBJECT_FINALIZE", bucketId="b", objectId="o",
        ).result(PATIENCE_SECONDS)  # fmt: skip


def test_requests_in_flight_reach_the_concurrency(recorder: Recorder, stack: Stack) -> None:
    may_end = threading.Event()

    def wait_and_accept(_: int) -> int:
        may_end.wait(PATIENCE_SECONDS)
        return 204

    recorder.answer = wait_and_accept
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: put(stack, f"many/{number}.jpg"), range(20)))
    try:
        wait_until(lambda: recorder.running == CONCURRENCY, "fewer requests are in flight")
        time.sleep(A_MOMENT)
    finally:
        may_end.set()
    assert recorder.names(20) == sorted(f"many/{number}.jpg" for number in range(20))
    assert recorder.most_in_flight == CONCURRENCY


def test_job_published_with_gcloud_is_pushed(recorder: Recorder, run: Callable[[str], str]) -> None:
    run("""gcloud pubsub topics publish jobs --message '{"uri": "gs://uploads/é.jpg"}'""")
    (push,) = recorder.wait_for(1)
    envelope = json.loads(push.body)
    assert envelope["subscription"] == "projects/yolo-batch-local/subscriptions/jobs-push"
    assert envelope["message"]["data"] == "eyJ1cmkiOiAiZ3M6Ly91cGxvYWRzL8OpLmpwZyJ9"
    assert not any(name.startswith("ce-") for name in push.headers)


def test_job_published_with_the_client_is_pushed(recorder: Recorder, stack: Stack) -> None:
    publisher = pubsub_v1.PublisherClient()
    topic = publisher.topic_path(stack.project, stack.jobs_topic)
    sent = publisher.publish(topic, b"{}", timeout=PATIENCE_SECONDS)
    message_id = sent.result(PATIENCE_SECONDS)
    (push,) = recorder.wait_for(1)
    assert json.loads(push.body)["message"]["messageId"] == message_id
    publisher.stop()
    publisher.transport.close()


def test_java_starts_below_any_path_in_any_locale(tmp_path: Path) -> None:
    programs = find_programs()
    runtime = tmp_path / "é ü"
    shutil.copytree(programs.java.parents[1], runtime)
    java = str(runtime / "bin" / programs.java.name)
    command = [java, "-jar", str(programs.pubsub_jar), "--help"]
    environment = {"LC_ALL": "C", **emulators.pubsub(programs, tmp_path).environment}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=TOOL_SECONDS, check=False
    )
    assert "--port:" in done.stdout, done.stderr


def test_eventarc_survives_a_restart_of_the_emulator(
    recorder: Recorder, service: tuple[Recorder, str], tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    port = free_port()
    host, ready = f"127.0.0.1:{port}", f"http://127.0.0.1:{port}/v1/projects/p/topics"
    emulator = emulators.pubsub(find_programs(), tmp_path)
    subscription = f"projects/restart/subscriptions/{UPLOADS_SUBSCRIPTION}"

    with Processes(tmp_path) as processes:

        def run_emulator() -> None:
            child = processes.start("pubsub", emulator.command(port), os.environ)
            child.wait_until(lambda: is_answering(ready), timeout_seconds=PATIENCE_SECONDS)
            create_topics(host, "restart", push_endpoint=service[1], lease_seconds=30)

        with ExitStack() as cleanup:
            eventarc = Eventarc(host, subscription, service[1]).start()
            cleanup.callback(eventarc.stop)
            wait_until(
                lambda: "Pub/Sub is unavailable, retrying" in caplog.text,
                "the outage is not logged",
            )
            run_emulator()
            processes.stop(*processes.children, grace_seconds=5)
            run_emulator()
            publish_finalized(host, "restart")
            (event,) = recorder.wait_for(1)
    assert event.headers["ce-subject"] == "objects/o"
    assert "Pub/Sub is available again" in caplog.text


def test_emulators_use_another_port_if_theirs_is_taken(tmp_path: Path) -> None:
    programs = find_programs()
    storage_server = emulators.storage(
        programs, tmp_path / "buckets", pubsub_host="127.0.0.1:9", project="p", topic="uploads"
    )
    started = [emulators.pubsub(programs, tmp_path), emulators.firestore(programs), storage_server]
    with socket.create_server(("127.0.0.1", 0)) as other_program, Processes(tmp_path) as processes:
        taken = other_program.getsockname()[1]
        choices = iter([taken] * len(started))
        ports = emulators.start(
            processes, started, choose_port=lambda: next(choices, None) or free_port()
        )
        assert taken not in ports
        assert len(processes.children) == len(started)


def test_topics_and_the_bucket_of_the_results_are_created(tmp_path: Path) -> None:
    """Objects in the bucket of the results cause no events."""
    settings = {"RESULTS_TOPIC": "results", "ALERTS_TOPIC": "alerts", "RESULTS_BUCKET": "results"}
    options = StackOptions(
        directory=tmp_path, with_service=False, with_eventarc=False, service_environment=settings
    )
    with Stack(options) as stack, pytest.MonkeyPatch.context() as environment:
        for name, value in stack.environment.items():
            environment.setenv(name, value)
        with pubsub_v1.PublisherClient() as publisher:
            for topic in stack.published_topics:
                publisher.publish(publisher.topic_path(stack.project, topic), b"x").result()
        for bucket in ("results", stack.bucket):
            storage.Client().bucket(bucket).blob("a.jpg").upload_from_string(b"x")
        assert pulled(stack, "results") == pulled(stack, "alerts") == [None]
        assert pulled(stack, UPLOADS_SUBSCRIPTION) == [stack.bucket]


def pulled(stack: Stack, subscription: str) -> list[str | None]:
    """The buckets of the messages of a subscription."""
    with pubsub_v1.SubscriberClient() as client:
        path = client.subscription_path(stack.project, subscription)
        response = client.pull(subscription=path, max_messages=10, timeout=PATIENCE_SECONDS)
    return [item.message.attributes.get("bucketId") for item in response.received_messages]


def test_failed_start_of_the_service_shows_its_log(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('no such model'); raise SystemExit(3)"]
    stack = Stack(StackOptions(directory=tmp_path, service_command=command))
    with pytest.raises(StartError, match=r"service ended with exit code 3.*\n  \| no such model"):
        stack.__enter__()
    assert not is_answering(stack.environment["STORAGE_EMULATOR_HOST"] + "/_internal/healthcheck")


def test_killed_stack_leaves_nothing_behind() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, TINY_SERVICE], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout
        directory = Path(holder.stdout.readline().strip())
        children = psutil.Process(holder.pid).children()
        assert len(children) == 5  # the reaper, two in Java, Storage and the service
        holder.kill()
    wait_until(lambda: not any(map(is_running, children)), "a process still runs")
    assert not directory.exists()


def is_running(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
