"""Starts the local stack in the right order, and stops all of it whatever happens."""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from devtools.local_stack import emulators, resources
from devtools.local_stack.client_environment import (
    client_environment,
    export_lines,
    tool_environment,
)
from devtools.local_stack.errors import LocalStackError
from devtools.local_stack.eventarc import Eventarc, EventarcOptions
from devtools.local_stack.gcs_proxy import GcsProxy
from devtools.local_stack.log_echo import LogEcho
from devtools.local_stack.processes import Child, Processes, free_port, is_answering
from devtools.local_stack.programs import Programs, find_programs

# The same command as in the container.
SERVICE_COMMAND = (
    sys.executable, "-m", "gunicorn",
    "--config", "python:service.server.gunicorn_conf", "service.server.wsgi:build_app()",
)  # fmt: skip
_HEALTH_PATH = "/health/ready"
# A pulled message is redelivered when its lease ends, so the lease is longer than a response may
# take. It is not much longer, because a message that is lost on the way to Eventarc waits until its
# lease ends.
_LEASE_MARGIN_SECONDS = 20
_LONGEST_LEASE_SECONDS = 600
_SERVICE_READY_SECONDS = 180.0
_SERVICE_STOP_SECONDS = 10.0  # Cloud Run kills ten seconds after SIGTERM
_DIRECTORY_PREFIX = "yolo-batch-"

_T = TypeVar("_T")


@dataclass(frozen=True)
class StackOptions:
    """What to start."""

    #: The model that the service loads. None means the service's default.
    model_path: Path | None = None
    project: str = "yolo-batch-local"
    bucket: str = "uploads"
    #: More settings of the service, as environment variables. With DELETE_RESULTS_WITH_OBJECTS,
    #: deletions are delivered, too. RESULTS_TOPIC, ALERTS_TOPIC and RESULTS_BUCKET are created.
    service_environment: Mapping[str, str] = field(default_factory=dict)
    #: The directory for logs and uploads. None: a temporary directory, which is removed at the end.
    directory: Path | None = None
    #: The number of requests in flight from the local Eventarc. The service has 8 more threads.
    concurrency: int = 32
    #: False if another process serves `service_url`.
    with_service: bool = True
    service_url: str | None = None
    service_command: Sequence[str] = SERVICE_COMMAND
    #: False if another process pulls the events of the uploads.
    with_eventarc: bool = True
    #: How uploads are delivered. None means as in the cloud, with `concurrency`.
    eventarc: EventarcOptions | None = None
    #: Called with each line of the service's log.
    echo: Callable[[str], None] | None = None


class Stack:
    """The running stack, as a context manager.

    Raises on entry:
        MissingRequirementsError: an emulator could not be downloaded.
        StartError: a process did not start. All other processes have been stopped.
    """

    def __init__(self, options: StackOptions | None = None) -> None:
        """Choose the service's URL. Start nothing yet."""
        self.options = options or StackOptions()
        self.project = self.options.project
        self.bucket = self.options.bucket
        self.jobs_topic = resources.JOBS_TOPIC
        self.environment: dict[str, str] = {}
        self.service_url = self.options.service_url or f"http://127.0.0.1:{free_port()}"
        self._client_environment: dict[str, str] = {}
        self._cleanup = ExitStack()
        self._directory: Path | None = None
        self._processes: Processes | None = None
        self._service: Child | None = None
        self._eventarc: Eventarc | None = None
        self._echo: LogEcho | None = None

    def __enter__(self) -> Self:
        """Start everything. If a start fails, stop what was started."""
        try:
            self._start(find_programs())
        except BaseException:
            self._cleanup.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop everything, deliveries first and emulators last."""
        self._cleanup.close()

    @property
    def directory(self) -> Path:
        """The directory of the logs (`logs/NAME.log`) and the uploads."""
        return _started(self._directory)

    @property
    def eventarc(self) -> Eventarc:
        """The local Eventarc, which delivers the uploads."""
        return _started(self._eventarc)

    @property
    def published_topics(self) -> list[str]:
        """Names of the topics that the service publishes to. Each has a pull subscription."""
        named = (self._setting(name) for name in ("RESULTS_TOPIC", "ALERTS_TOPIC"))
        return [name.rpartition("/")[2] for name in named if name]

    @property
    def results_bucket(self) -> str | None:
        """The bucket that the service writes to, if it has one."""
        return self._setting("RESULTS_BUCKET")

    @property
    def service_pid(self) -> int:
        """Process id of gunicorn's master process."""
        return _started(self._service).process.pid

    def export_lines(self) -> list[str]:
        """Return the clients' environment as lines to paste into a shell."""
        return export_lines(self.environment)

    def service_environment(self, url: str) -> dict[str, str]:
        """Return the environment of a service that serves this stack at a URL of this machine."""
        own = {
            "BIND_ADDRESS": "127.0.0.1",  # not reachable from other machines
            "PORT": url.rpartition(":")[2],
            "ALLOWED_BUCKETS": self.bucket,
            "PYTHONUNBUFFERED": "1",
        }
        if self.options.model_path is not None:
            own["MODEL_PATH"] = str(self.options.model_path.resolve())
        return {
            **os.environ, **self._client_environment, **own, **self.options.service_environment
        }  # fmt: skip

    def raise_if_dead(self) -> None:
        """Raise a StartError if a process has ended by itself, or the error that `echo` raised."""
        _started(self._processes).raise_if_dead()
        if self._echo:
            self._echo.raise_if_broken()

    def start_service(self) -> None:
        """Start the service and wait until it is ready."""
        if self._service is not None:
            raise LocalStackError("The service of this stack is already running.")
        processes = _started(self._processes)
        service = processes.start(
            "service", self.options.service_command, self.service_environment(self.service_url)
        )
        self._service = service
        health_url = self.service_url + _HEALTH_PATH
        # It responds when its model is loaded. If loading fails, the process ends.
        service.wait_until(lambda: is_answering(health_url), timeout_seconds=_SERVICE_READY_SECONDS)

    def stop_service(self) -> None:
        """Stop the service as Cloud Run does: SIGTERM, and SIGKILL ten seconds later."""
        service, self._service = self._service, None
        if service is not None:
            _started(self._processes).stop(service, grace_seconds=_SERVICE_STOP_SECONDS)

    def kill_service(self) -> None:
        """Kill the service with SIGKILL."""
        service, self._service = self._service, None
        if service is not None:
            _started(self._processes).kill(service)

    def create_topics(self) -> None:
        """Create topics and subscriptions. A restarted Pub/Sub emulator has lost them."""
        lease = int(self._eventarc_options().answer_timeout_seconds) + _LEASE_MARGIN_SECONDS
        resources.create_topics(
            self._client_environment["PUBSUB_EMULATOR_HOST"],
            self.project,
            push_endpoint=self.service_url,
            lease_seconds=min(lease, _LONGEST_LEASE_SECONDS),
            published=self.published_topics,
        )

    def _start(self, programs: Programs) -> None:
        self._directory = self._make_directory()
        self._processes = self._start_processes(self._directory)
        self._start_emulators(programs, self._processes, self._directory)
        if self.options.echo is not None:
            self._echo = LogEcho(self._log_directory() / "service.log", self.options.echo)
            self._cleanup.callback(self._echo.stop)
        if self.options.with_service:
            self._cleanup.callback(self.stop_service)
            self.start_service()
        if self.options.with_eventarc:
            self._start_eventarc()

    def _make_directory(self) -> Path:
        given = self.options.directory
        if given is None:
            return Path(tempfile.mkdtemp(prefix=_DIRECTORY_PREFIX))
        given.mkdir(parents=True, exist_ok=True)
        return given.resolve()

    def _start_processes(self, directory: Path) -> Processes:
        for name in ("logs", "tools", "buckets"):
            (directory / name).mkdir(exist_ok=True)
        if self.options.directory is None:
            self._cleanup.callback(shutil.rmtree, directory, ignore_errors=True)
        processes = self._cleanup.enter_context(Processes(self._log_directory()))
        if self.options.directory is None:
            processes.remove_at_the_end(directory)
        return processes

    def _start_emulators(self, programs: Programs, processes: Processes, directory: Path) -> None:
        pubsub_port, firestore_port = emulators.start(
            processes,
            [emulators.pubsub(programs, directory / "tools"), emulators.firestore(programs)],
        )
        pubsub_host = f"127.0.0.1:{pubsub_port}"
        self._client_environment["PUBSUB_EMULATOR_HOST"] = pubsub_host
        # Before fake-gcs-server starts, because it drops an event whose topic does not exist.
        self.create_topics()
        storage = emulators.storage(
            programs, directory / "buckets",
            pubsub_host=pubsub_host, project=self.project, topic=resources.UPLOADS_TOPIC,
            bucket=self.bucket,
            with_deletions=(self._setting("DELETE_RESULTS_WITH_OBJECTS") or "").lower() == "true",
        )  # fmt: skip
        (storage_port,) = emulators.start(processes, [storage])
        storage_host = f"127.0.0.1:{storage_port}"
        for bucket in filter(None, (self.bucket, self.results_bucket)):
            resources.create_bucket(f"http://{storage_host}", bucket)
        self._client_environment = client_environment(
            project=self.project,
            pubsub_host=pubsub_host,
            firestore_host=f"127.0.0.1:{firestore_port}",
            storage_url=f"http://{storage_host}",
        )
        self._start_proxy(storage_host, pubsub_host, directory / "tools")

    def _setting(self, name: str) -> str | None:
        """Return the value of a setting of the service, or None if it is unset or empty."""
        return {**os.environ, **self.options.service_environment}.get(name) or None

    def _start_proxy(self, storage_host: str, pubsub_host: str, directory: Path) -> None:
        proxy = GcsProxy(storage_host, directory)
        self._cleanup.callback(proxy.stop)
        proxy.start()
        tools = tool_environment(
            project=self.project,
            pubsub_host=pubsub_host,
            proxy_url=proxy.http_url,
            proxy_https_port=proxy.https_port,
            ca_file=proxy.ca_file,
            directory=directory,
        )
        self.environment = {**self._client_environment, **tools}

    def _start_eventarc(self) -> None:
        self._eventarc = Eventarc(
            self._client_environment["PUBSUB_EMULATOR_HOST"],
            f"projects/{self.project}/subscriptions/{resources.UPLOADS_SUBSCRIPTION}",
            self.service_url,
            self._eventarc_options(),
        )
        self._cleanup.callback(self._eventarc.stop)
        self._eventarc.start()

    def _eventarc_options(self) -> EventarcOptions:
        return self.options.eventarc or EventarcOptions(concurrency=self.options.concurrency)

    def _log_directory(self) -> Path:
        return self.directory / "logs"


def _started(value: _T | None) -> _T:
    if value is None:
        raise LocalStackError("This stack has not been started.")
    return value
