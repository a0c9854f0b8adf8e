"""Starts the emulators of Pub/Sub, Firestore and Cloud Storage, and waits until they are ready."""

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from devtools.local_stack.errors import StartError
from devtools.local_stack.processes import Child, Processes, free_port, is_answering
from devtools.local_stack.programs import Programs

# The first two options halve the time to start, and are faster at this load. The other two silence
# Java 25's warnings about the emulators' libraries.
_JVM = (
    "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1",
    "--enable-native-access=ALL-UNNAMED", "--sun-misc-unsafe-memory-access=allow",
)  # fmt: skip
# In the locale C, Java cannot load its libraries from a path with other characters than ASCII.
_JVM_ENVIRONMENT = {"LC_ALL": "C.UTF-8"}
# The SDK's jar names no main class in its manifest.
_FIRESTORE_MAIN_CLASS = "com.google.cloud.datastore.emulator.firestore.CloudFirestore"
# The Pub/Sub emulator logs a stack trace for each failed push (1 MB in 10 s). Its class Main logs
# that it listens, so this class stays at INFO.
_LOGGING = """\
handlers=java.util.logging.ConsoleHandler
.level=WARNING
com.google.cloud.pubsub.testing.v1.Main.level=INFO
"""
# The longest ack deadline. Without a timeout, a push that gets no response blocks one of the
# emulator's two push threads for ever.
_PUSH_TIMEOUT_MS = 600_000
_READY_SECONDS = 180.0  # long, because Java starts slowly on a busy machine
# A server that has responded for this time counts as ready, even without its ready line. A newer
# release may have another line.
_UNANNOUNCED_SECONDS = 5.0
_ATTEMPTS = 5
_PORT_TAKEN = re.compile(r"address already in use|BindException", re.IGNORECASE)


@dataclass(frozen=True)
class Emulator:
    """A server that can be started on any port."""

    name: str
    command: Callable[[int], list[str | Path]]
    health_path: str
    ready_line: str  # logged when this server, and no other program, listens on the port
    environment: Mapping[str, str] = field(default_factory=dict)


def pubsub(programs: Programs, directory: Path) -> Emulator:
    """Describe the official Pub/Sub emulator."""
    logging_properties = directory / "pubsub-logging.properties"
    logging_properties.write_text(_LOGGING)
    options = (
        "-Xmx256m",
        f"-Djava.util.logging.config.file={logging_properties}",
        f"-Dsun.net.client.defaultReadTimeout={_PUSH_TIMEOUT_MS}",
        # Otherwise Java repeats a POST whose connection broke, and one attempt pushes twice.
        "-Dsun.net.http.retryPost=false",
    )

    def command(port: int) -> list[str | Path]:
        return [
            programs.java,
            *_JVM,
            *options,
            "-jar",
            programs.pubsub_jar,
            "--host=127.0.0.1",
            f"--port={port}",
        ]

    return Emulator(
        "pubsub", command, "/v1/projects/ready/topics", "Server started, listening on",
        _JVM_ENVIRONMENT,
    )  # fmt: skip


def firestore(programs: Programs) -> Emulator:
    """Describe the official Firestore emulator."""
    options = ("-Xmx512m", "-Duser.language=en")

    def command(port: int) -> list[str | Path]:
        return [
            programs.java,
            *_JVM,
            *options,
            "-cp",
            programs.firestore_jar,
            _FIRESTORE_MAIN_CLASS,
            "--host=127.0.0.1",
            f"--port={port}",
        ]

    return Emulator(
        "firestore", command, "/", "Dev App Server is now running", _JVM_ENVIRONMENT
    )  # fmt: skip


def storage(
    programs: Programs,
    directory: Path,
    *,
    pubsub_host: str,
    project: str,
    topic: str,
    bucket: str | None = None,
    with_deletions: bool = False,
) -> Emulator:
    """Describe fake-gcs-server. It publishes events to a topic, which must exist.

    Args:
        programs: where the server is.
        directory: the directory of the objects.
        pubsub_host: the Pub/Sub emulator.
        project: the topic's project.
        topic: the topic's name.
        bucket: only its events are published. None: those of all buckets.
        with_deletions: whether deletions are published, too. An overwrite deletes a generation.
    """
    directory.mkdir(parents=True, exist_ok=True)
    backend = "filesystem" if _has_extended_attributes(directory) else "memory"
    options = (
        "-scheme", "http", "-host", "127.0.0.1",
        "-backend", backend, "-filesystem-root", str(directory),
        "-event.pubsub-project-id", project, "-event.pubsub-topic", topic,
        "-event.bucket", bucket or "",
        "-event.list", "finalize,delete" if with_deletions else "finalize",
    )  # fmt: skip

    def command(port: int) -> list[str | Path]:
        return [
            programs.storage_server,
            *options,
            "-port",
            str(port),
            "-external-url",
            f"http://127.0.0.1:{port}",
            "-public-host",
            f"127.0.0.1:{port}",
        ]

    return Emulator(
        "storage", command, "/_internal/healthcheck", "server started at",
        {"PUBSUB_EMULATOR_HOST": pubsub_host},
    )  # fmt: skip


def start(
    processes: Processes,
    emulators: Sequence[Emulator],
    *,
    choose_port: Callable[[], int] = free_port,
) -> list[int]:
    """Start servers in parallel and wait until all are ready. Return their ports in order.

    A server whose port is taken is started again on another port.

    Raises:
        StartError: a server did not start.
    """
    with ThreadPoolExecutor(len(emulators)) as pool:
        return list(pool.map(lambda emulator: _start(processes, emulator, choose_port), emulators))


def _start(processes: Processes, emulator: Emulator, choose_port: Callable[[], int]) -> int:
    for attempt in range(1, _ATTEMPTS + 1):
        port = choose_port()
        environment = {**os.environ, **emulator.environment}
        child = processes.start(emulator.name, emulator.command(port), environment)
        try:
            child.wait_until(_readiness(child, emulator, port), timeout_seconds=_READY_SECONDS)
        except StartError:
            processes.kill(child)
            if attempt == _ATTEMPTS or not _found_port_taken(child):
                raise
        else:
            return port
    raise AssertionError("unreachable: the last attempt returns or raises")


def _readiness(child: Child, emulator: Emulator, port: int) -> Callable[[], bool]:
    """Return a probe. A response alone proves nothing: another program on the port responds too.

    If its port is taken, the Pub/Sub emulator only logs that and does not exit. So the probe also
    reads the log.
    """
    url = f"http://127.0.0.1:{port}{emulator.health_path}"
    responded_at: list[float] = []

    def is_ready() -> bool:
        if _found_port_taken(child):
            raise StartError(child.failure(f"found its port {port} taken"))
        if not is_answering(url):
            return False
        responded_at.append(time.monotonic())
        announced = emulator.ready_line in child.log_text()
        return announced or time.monotonic() - responded_at[0] > _UNANNOUNCED_SECONDS

    return is_ready


def _found_port_taken(child: Child) -> bool:
    return _PORT_TAKEN.search(child.log_text()) is not None


def _has_extended_attributes(directory: Path) -> bool:
    """Return whether files can have attributes. fake-gcs-server stores metadata in them."""
    if not hasattr(os, "setxattr"):  # macOS, whose file systems have them
        return True
    try:
        os.setxattr(directory, "user.yolo-batch", b"1")
    except OSError:
        return False
    return True
