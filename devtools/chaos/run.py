"""One chaos run: the stack behind proxies, many services, uploads, faults, and the audit."""

import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from random import Random
from typing import Any, Self

from google.cloud import (  # type: ignore[attr-defined]  # published without types
    firestore,
    pubsub_v1,
    storage,
)

from devtools.chaos.audit import Ending, Expectation, Report, StoredDocument, audit
from devtools.chaos.excuses import HANG_TIMEOUT_SECONDS, Faults, LogLine, Response
from devtools.chaos.grpc_proxy import FIRESTORE, PUBSUB, GrpcProxy
from devtools.chaos.images import CODES, MAX_IMAGE_BYTES, Images, detect_alone, md5
from devtools.chaos.plan import (
    PROCESS_FAULTS,
    PUBSUB_FAULTS,
    STORAGE_FAULTS,
    Fate,
    Fault,
    FaultKind,
    Job,
    Kind,
    Plan,
    Upload,
)
from devtools.chaos.poison import POISONED
from devtools.chaos.published import Content, Published, audit_published, chaos_sources
from devtools.chaos.relay import PubsubRelay
from devtools.chaos.routing import RandomRouting
from devtools.chaos.served import INFERRING
from devtools.chaos.services import Service
from devtools.chaos.storage_proxy import StorageProxy
from devtools.local_stack import resources
from devtools.local_stack.eventarc import Eventarc, EventarcOptions
from devtools.local_stack.processes import Processes
from devtools.local_stack.stack import Stack, StackOptions
from service.domain import Outcome
from service.gcp.clients import build_source_store
from service.gcp.collection import ALERTS
from service.gcp.publisher import job_message
from service.inference.loading import load_detector
from service.settings import BUNDLED_MODEL, Settings

_TOPIC = "chaos"  # the relay publishes to it, and the services receive its messages
_RESULTS_TOPIC = "chaos-results"
_ALERTS_TOPIC = "chaos-alerts"
_RESULTS_BUCKET = "chaos-results"
_WINDOW = 48  # events in flight. Uploads pause above this number.
_DELIVERED_AT_ONCE = 48  # deliveries
_IN_FLIGHT = 32  # slots of all services: fewer than deliveries at once, to provoke 429
_STARTED_AT_ONCE = 3  # services
_MIN_IN_FLIGHT = 4  # slots of one service
_FIRESTORE_PART = 0.4  # share of the ack deadline that is reserved for the commit
_LEASE_MARGIN_SECONDS = 20
_MAX_DELAY_SECONDS = 8
_PATIENT_SECONDS = 60.0  # on a busy machine the emulator's first response is slow
_DOWN_SECONDS = 3.0  # how long Firestore refuses connections when its proxy restarts
_POLL_SECONDS = 0.02
_PULLED = 500  # messages at once
_EMPTY_PULLS = 3  # after which a subscription counts as empty
_CONTENT_TYPE = "image/jpeg"
# A traceback that was printed instead of logged: a thread has crashed.
_PRINTED_ERRORS = ("Traceback", "Exception in thread", "Exception ignored")

Progress = Callable[[int], None]


@dataclass(frozen=True)
class ChaosOptions:
    """Time limits of a run, and the folder of its files."""

    #: Ack deadline of a delivery. A paused service is paused for longer.
    answer_seconds: float = 10.0
    slow_start_seconds: float = 5.0
    #: Without any new acknowledgement for this long, events in flight count as stuck.
    patience_seconds: float = 180.0
    #: Where logs and uploads are kept. None: a temporary directory.
    directory: Path | None = None


class Run:
    """One chaos run: a context manager that starts and stops all its parts."""

    def __init__(self, plan: Plan, options: ChaosOptions) -> None:
        """Prepare a run. Entering the context starts it."""
        self._plan = plan
        self._options = options
        self._cleanup = ExitStack()
        self._leaving = threading.Event()
        self._responses: list[Response] = []
        self._uploaded: list[tuple[Upload, bytes, int]] = []
        self._process_faults: dict[int, Future[None]] = {}
        self._restart: Future[None] | None = None
        self._is_settled = False
        self._delivery: Eventarc | None = None

    def __enter__(self) -> Self:
        """Draw the images and start the stack, the proxies and the services."""
        try:
            self._start()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Stop everything, even in the middle of a fault."""
        self._close()

    def _close(self) -> None:
        self._leaving.set()
        self._cleanup.close()

    def _start(self) -> None:
        keep = self._cleanup.enter_context
        scratch = Path(keep(tempfile.TemporaryDirectory(prefix="yolo-batch-chaos-")))
        self._scratch = scratch
        self._images = Images(self._plan)
        self._references = detect_alone(self._images.scenes, load_detector(BUNDLED_MODEL), scratch)
        self._logs = (self._options.directory or scratch) / "services"
        self._logs.mkdir(parents=True, exist_ok=True)
        self._stack = keep(Stack(self._stack_options()))
        keep(_environment(self._stack.environment))
        self._firestore = keep(GrpcProxy(os.environ["FIRESTORE_EMULATOR_HOST"], FIRESTORE))
        self._pubsub = keep(GrpcProxy(os.environ["PUBSUB_EMULATOR_HOST"], PUBSUB))
        upstream = os.environ["STORAGE_EMULATOR_HOST"].removeprefix("http://")
        self._storage = keep(StorageProxy(upstream))
        self._bucket = storage.Client().bucket(self._stack.bucket)
        self._sources = chaos_sources(self._stack.bucket)
        patient = replace(Settings.from_env(), firestore_timeout_seconds=_PATIENT_SECONDS)
        store = build_source_store(patient)
        self._sources_version = store.write(self._sources, unless_changed_since=None)
        self._services = self._start_services(keep(Processes(self._logs)))
        self._relay = keep(self._make_relay())
        self._deliver()
        self._threads = keep(_Threads(2 * len(self._services) + 1, self._leaving))
        self._probes = [self._threads.submit(service.keep_alive) for service in self._services]

    def _stack_options(self) -> StackOptions:
        ack_deadline_seconds = self._options.answer_seconds
        return StackOptions(
            with_service=False,
            with_eventarc=False,
            directory=self._options.directory,
            concurrency=_DELIVERED_AT_ONCE,
            service_environment={
                "MAX_IN_FLIGHT": str(max(_MIN_IN_FLIGHT, _IN_FLIGHT // self._plan.services)),
                "INFERENCE_STREAMS": "1",
                "MAX_IMAGE_BYTES": str(MAX_IMAGE_BYTES),
                "ACK_DEADLINE_SECONDS": str(ack_deadline_seconds),
                "FIRESTORE_TIMEOUT_SECONDS": str(_FIRESTORE_PART * ack_deadline_seconds),
                "HANG_TIMEOUT_SECONDS": str(HANG_TIMEOUT_SECONDS),
                "RESULTS_TOPIC": _RESULTS_TOPIC,
                "ALERTS_TOPIC": _ALERTS_TOPIC,
                "RESULTS_BUCKET": _RESULTS_BUCKET,
            },
        )

    def _start_services(self, processes: Processes) -> list[Service]:
        services = [
            self._make_service(f"service-{number}", processes)
            for number in range(self._plan.services)
        ]
        with ThreadPoolExecutor(_STARTED_AT_ONCE) as starters:
            list(starters.map(Service.start, services))
        return services

    def _make_service(self, name: str, processes: Processes) -> Service:
        environment = self._stack.service_environment(self._stack.service_url) | {
            "FIRESTORE_EMULATOR_HOST": self._firestore.host,
            "PUBSUB_EMULATOR_HOST": self._pubsub.host,
            "STORAGE_EMULATOR_HOST": self._storage.url,
        }
        log_path = self._logs / f"{name}.log"
        log_path.unlink(missing_ok=True)  # the log of an earlier run, which had other faults
        return Service(
            name=name,
            processes=processes,
            log_path=log_path,
            environment=environment,
            stop_seconds=self._options.answer_seconds + 2,
            slow_seconds=self._options.slow_start_seconds,
            leaving=self._leaving,
        )

    def _make_relay(self) -> PubsubRelay:
        with pubsub_v1.PublisherClient() as publisher, pubsub_v1.SubscriberClient() as subscriber:
            topic = publisher.topic_path(self._stack.project, _TOPIC)
            self._subscription = subscriber.subscription_path(self._stack.project, _TOPIC)
            publisher.create_topic(name=topic)
            lease = int(self._options.answer_seconds) + _LEASE_MARGIN_SECONDS
            subscriber.create_subscription(
                name=self._subscription, topic=topic, ack_deadline_seconds=lease
            )
            source = subscriber.subscription_path(
                self._stack.project, resources.UPLOADS_SUBSCRIPTION
            )
        return PubsubRelay(source, topic)

    def _deliver(self) -> None:
        """Deliver each event of the subscription to a randomly drawn service."""
        host = os.environ["PUBSUB_EMULATOR_HOST"]
        instances = [
            Eventarc(host, self._subscription, service.url, self._options_of(service))
            for service in self._services
        ]
        rng = Random(self._plan.seed)
        router = RandomRouting(host, self._subscription, instances, rng, self._options_of(None))
        self._cleanup.callback(router.stop)
        self._delivery = router.start()

    def _options_of(self, service: Service | None) -> EventarcOptions:
        """Return the delivery options for one service, or for the router (None)."""

        def receive(message_id: str, status: int | None, seconds: float) -> None:
            now = time.time()
            name = service.name if service else "nobody"
            self._responses.append(Response(name, now - seconds, now, status))
            if status == 204:
                self._relay.acknowledged(message_id)

        return EventarcOptions(
            concurrency=_DELIVERED_AT_ONCE,
            answer_timeout_seconds=self._options.answer_seconds,
            max_delay_seconds=_MAX_DELAY_SECONDS,
            with_pushes=True,
            on_answer=receive,
        )

    def upload_all(self, on_upload: Progress) -> None:
        """Upload everything while faults strike. Stop early if nothing is acknowledged any more."""
        for upload in self._plan.uploads:
            if not self._wait(lambda: self._relay.outstanding < _WINDOW):
                return
            self._upload(upload)
            for job in self._plan.jobs_after(upload.index):
                self._publish(job)
            for fault in self._plan.faults_after(upload.index):
                self._strike(fault)
            on_upload(1)

    def settle(self, on_settled: Progress) -> None:
        """Wait until all faults are over and every event is acknowledged.

        Gives up if no event is acknowledged any more. The audit then reports it.
        """
        for fault in [*self._process_faults.values(), self._restart]:
            if fault is not None:
                fault.result()
        self._relay.flush()

        def is_settled() -> bool:
            on_settled(self._relay.outstanding)
            return self._relay.outstanding <= 0

        self._is_settled = self._wait(is_settled)

    def stop_services(self) -> None:
        """Stop deliveries and services. Nothing is written or logged after this."""
        if self._delivery:
            self._delivery.stop()
        with ThreadPoolExecutor(len(self._services)) as stoppers:
            list(stoppers.map(Service.stop, self._services))

    def audit(self) -> Report:
        """Compare the uploads with the documents, the logs and the responses."""
        stuck = sorted({*self._relay.unseen, *self._relay.unacknowledged})
        expectations = [self._expectation(*uploaded) for uploaded in self._uploaded]
        documents = list(_documents(Settings.from_env().firestore_collection))
        faults = self._faults()
        published = self._published()
        if self._options.directory:
            _keep(self._options.directory, expectations, documents, self._responses, faults)
            _keep_published(self._options.directory, published)
        report = audit(
            expectations,
            documents,
            stuck=[f"{self._plan.uploads[index].name} was not acknowledged" for index in stuck],
            log=[line for service in self._services for line in read_log(service.log_path)],
            responses=self._responses,
            faults=faults,
            failures=[
                *(failure for service in self._services for failure in service.failures),
                *self.shortfalls(),
            ],
            messages=self._plan.messages,
        )
        audit_published(published, expectations, documents, self._sources, report)
        return report

    def _published(self) -> Published:
        """Read what the services published, and the objects that they created."""
        collection = Settings.from_env().firestore_collection
        bucket = storage.Client().bucket(_RESULTS_BUCKET)
        return Published(
            results=list(self._pulled(_RESULTS_TOPIC)),
            alerts=list(self._pulled(_ALERTS_TOPIC)),
            alert_documents=list(_documents(collection + ALERTS)),
            objects={
                f"gs://{_RESULTS_BUCKET}/{blob.name}": Content.of(blob.download_as_bytes())
                for blob in bucket.list_blobs()
            },
        )

    def _pulled(self, name: str) -> Iterator[bytes]:
        """Yield the data of all messages of a subscription."""
        with pubsub_v1.SubscriberClient() as subscriber:
            path = subscriber.subscription_path(self._stack.project, name)
            empty = 0
            while empty < _EMPTY_PULLS:  # a pull may return nothing although there are messages
                response = subscriber.pull(
                    subscription=path, max_messages=_PULLED, return_immediately=True
                )
                empty = 0 if response.received_messages else empty + 1
                if ids := [each.ack_id for each in response.received_messages]:
                    subscriber.acknowledge(subscription=path, ack_ids=ids)
                yield from (each.message.data for each in response.received_messages)

    def shortfalls(self) -> list[str]:
        """List planned steps that did not happen. If there are any, a clean audit proves little."""
        uploaded, planned = len(self._uploaded), len(self._plan.uploads)
        reason = f"nothing was acknowledged for {self._options.patience_seconds:g} s"
        sentences = []
        if uploaded < planned:
            sentences.append(f"Only {uploaded} of {planned} uploads were made: {reason}")
        if not self._is_settled:
            sentences.append(f"{self._relay.outstanding} events are still in flight: {reason}")
        return sentences

    def _faults(self) -> Faults:
        services = self._services
        return Faults(
            excuses=[excuse for service in services for excuse in service.excuses],
            replacements=[each for service in services for each in service.replacements],
            ack_deadline_seconds=self._options.answer_seconds,
        )

    @property
    def struck(self) -> Mapping[FaultKind, int]:
        """How many times each fault has struck."""
        processes: dict[FaultKind, int] = {}
        for service in self._services:
            for excuse in service.excuses:
                processes[excuse.kind] = processes.get(excuse.kind, 0) + 1
        if self._firestore.restarts:
            processes[FaultKind.FIRESTORE_RESTART] = self._firestore.restarts
        network = (self._storage, self._firestore, self._pubsub)
        armed = {kind: n for proxy in network for kind, n in proxy.armed.struck.items()}
        return armed | processes

    def _upload(self, upload: Upload) -> None:
        content = self._images.content(upload)
        self._relay.expect(upload, md5(content))
        blob = self._bucket.blob(upload.name)
        blob.upload_from_string(content, content_type=_CONTENT_TYPE)
        self._uploaded.append((upload, content, int(blob.generation)))
        if upload.fate in (Fate.DELETED, Fate.DELETED_AT_ONCE):
            blob.delete()
            self._relay.release(upload)
        if upload.replaces is not None:
            self._relay.release(self._plan.uploads[upload.replaces])
        self._relay.uploaded(upload.index + 1)

    def _publish(self, job: Job) -> None:
        for index in job.uploads:
            uri = f"gs://{self._stack.bucket}/{self._plan.uploads[index].name}"
            self._relay.publish_job(job_message(uri), index, copies=job.copies)

    def _strike(self, fault: Fault) -> None:
        if fault.kind in PROCESS_FAULTS:
            service = self._services[fault.service]
            if earlier := self._process_faults.get(fault.service):
                earlier.result()  # one fault at a time for each service
            self._process_faults[fault.service] = self._threads.submit(service.strike, fault.kind)
        elif fault.kind is FaultKind.FIRESTORE_RESTART:
            if self._restart:
                self._restart.result()
            self._restart = self._threads.submit(
                self._firestore.restart, self._leaving, _DOWN_SECONDS
            )
        elif fault.kind in STORAGE_FAULTS:
            self._storage.armed.arm(fault.kind, fault.calls)
        elif fault.kind in PUBSUB_FAULTS:
            self._pubsub.armed.arm(fault.kind, fault.calls)
        else:
            self._firestore.armed.arm(fault.kind, fault.calls)

    def _wait(self, is_over: Callable[[], bool]) -> bool:
        """Wait until `is_over`, while events are acknowledged. Return whether it is over."""
        acknowledgements, deadline = -1, 0.0
        while not is_over():
            # Other responses do not count: a message may be rejected for ever.
            if self._relay.acknowledgements != acknowledgements:
                acknowledgements = self._relay.acknowledgements
                deadline = time.monotonic() + self._options.patience_seconds
            if time.monotonic() > deadline:
                return False
            self._stack.raise_if_dead()
            time.sleep(_POLL_SECONDS)
        return True

    def _expectation(self, upload: Upload, content: bytes, generation: int) -> Expectation:
        reference = self._references[upload.scene] if upload.kind is Kind.GOOD else {}
        source = self._sources.find(self._stack.bucket, upload.name)
        return Expectation(
            uri=f"gs://{self._stack.bucket}/{upload.name}",
            generation=generation,
            size=len(content),
            md5=md5(content),
            ending=expected_ending(upload),
            code=str(CODES[upload.kind]) if upload.kind in CODES else None,
            detections=reference.get("detections", ()),
            image=reference.get("image"),
            model=reference.get("model"),
            content_type=_CONTENT_TYPE,
            source={"id": source and source.id, "version": self._sources_version},
            is_poisonous=upload.kind.poison is not None,
        )


def expected_ending(upload: Upload) -> Ending:
    """Return how an upload should end."""
    is_good = upload.kind is Kind.GOOD
    if upload.is_held:
        return Ending.NOTHING
    if upload.fate is Fate.KEPT:
        return Ending.DONE if is_good else Ending.FAILED
    return Ending.DONE_OR_NOTHING if is_good else Ending.FAILED_OR_NOTHING


def read_log(path: Path) -> Iterator[LogLine]:
    """Read a service's log. Skip a line that a kill cut short."""
    seconds = 0.0
    for line in path.read_text(errors="replace").splitlines():
        try:
            fields = json.loads(line)
            seconds = datetime.fromisoformat(fields["time"]).timestamp()
        except (ValueError, KeyError, TypeError):
            if line.startswith(_PRINTED_ERRORS):
                yield LogLine(path.stem, seconds, "ERROR", line)
            continue
        yield LogLine(
            path.stem,
            seconds,
            str(fields.get("severity")),
            str(fields.get("message")),
            int(fields.get(INFERRING, 0)),
            int(fields.get(Outcome.DONE, 0)),
            int(fields.get(Outcome.SUPERSEDED, 0)),
            POISONED in fields,
        )


def _documents(collection: str) -> Iterator[StoredDocument]:
    for snapshot in firestore.Client().collection(collection).stream():
        yield StoredDocument(
            snapshot.id, snapshot.to_dict() or {}, snapshot.create_time, snapshot.update_time
        )


def _keep(
    directory: Path,
    expectations: Iterable[Expectation],
    documents: Iterable[StoredDocument],
    responses: Iterable[Response],
    faults: Faults,
) -> None:
    """Write what the audit reads to files, to investigate a problem."""
    _write(directory / "documents.jsonl", (document.fields for document in documents))
    _write(directory / "expected.jsonl", (asdict(expectation) for expectation in expectations))
    _write(directory / "responses.jsonl", (asdict(response) for response in responses))
    _write(directory / "excuses.jsonl", (asdict(excuse) for excuse in faults.excuses))
    _write(directory / "replacements.jsonl", (asdict(each) for each in faults.replacements))


def _keep_published(directory: Path, published: Published) -> None:
    """Write the messages and the documents of the alerts to files."""
    _write(directory / "result-messages.jsonl", map(json.loads, published.results))
    _write(directory / "alert-messages.jsonl", map(json.loads, published.alerts))
    alerts = ({"id": each.id, **each.fields} for each in published.alert_documents)
    _write(directory / "alerts.jsonl", alerts)


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, default=str) + "\n" for row in rows))


class _Threads(ThreadPoolExecutor):
    """A thread pool that signals its threads to end before it waits for them."""

    def __init__(self, number: int, leaving: threading.Event) -> None:
        super().__init__(number, thread_name_prefix="chaos")
        self._leaving = leaving

    def __exit__(self, *_: Any) -> None:
        self._leaving.set()
        self.shutdown(cancel_futures=True)


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for the clients in this process."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
