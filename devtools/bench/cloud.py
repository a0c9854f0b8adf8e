"""The emulated cloud around the measured service: images in Storage, results in Firestore."""

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import requests
from google.cloud import storage

from devtools.bench.errors import BenchError
from devtools.bench.load import Request
from devtools.bench.subjects import PINNED
from devtools.local_stack.eventarc import FINALIZED
from devtools.local_stack.stack import Stack, StackOptions
from service.gcp.clients import build_reader
from service.settings import Settings

_HEADERS = {
    "content-type": "application/json",
    "ce-specversion": "1.0",
    "ce-type": FINALIZED,
    "ce-source": "//storage.googleapis.com/projects/_/buckets/uploads",
}
_DRAIN_SECONDS = 300.0
_CALL_SECONDS = 120.0


class Cloud:
    """Images in Storage, uploaded once, and documents in Firestore, deleted between rounds."""

    def __init__(self, stack: Stack) -> None:
        """Take a running stack. Its environment must be set in this process."""
        self._stack = stack
        self._client = storage.Client()
        self._store = build_reader(Settings.from_env({**os.environ, **PINNED}))
        self._count = 0
        self._forgotten = datetime.now(UTC)

    def upload(self, images: Sequence[Path], count: int) -> list[Request]:
        """Upload `count` objects, repeating the images, and return their events.

        Raises:
            BenchError: the local stack did not finish its own deliveries.
        """
        bucket = self._client.bucket(self._stack.bucket)
        events = []
        for _ in range(count):
            path = images[self._count % len(images)]
            blob = bucket.blob(f"bench/{self._count}{path.suffix}")
            blob.upload_from_filename(path)
            self._count += 1
            event = {
                "bucket": blob.bucket.name, "name": blob.name, "generation": str(blob.generation),
                "contentType": blob.content_type, "size": str(blob.size), "md5Hash": blob.md5_hash,
            }  # fmt: skip
            events.append(Request(_HEADERS, json.dumps(event).encode()))
        self._wait_for_deliveries()
        return events

    def forget(self) -> None:
        """Delete all documents, so that the service processes the same images again."""
        self._forgotten = datetime.now(UTC)
        host = os.environ["FIRESTORE_EMULATOR_HOST"]
        path = f"emulator/v1/projects/{self._stack.project}/databases/(default)/documents"
        requests.delete(f"http://{host}/{path}", timeout=_CALL_SECONDS).raise_for_status()

    def check_results(self, count: int) -> None:
        """Check that at least `count` images are done since the last `forget`.

        Raises:
            BenchError: documents are missing, so the round measured something else.
        """
        documents = list(self._store.results(self._stack.bucket, "bench/"))
        done = [
            document
            for document in documents
            if document["status"] == "done" and document["created_at"] >= self._forgotten
        ]
        if len(done) < count:
            raise BenchError(
                f"Of {count} images {len(documents)} have a document, {len(done)} of them "
                "done in this round"
            )

    def _wait_for_deliveries(self) -> None:
        """Wait for the stack's own deliveries, so that none happens during a measurement."""
        deadline = time.monotonic() + _DRAIN_SECONDS
        while self._stack.eventarc.counters.acked < self._count:
            self._stack.raise_if_dead()
            if time.monotonic() > deadline:
                raise BenchError("The local stack did not deliver the uploads' events")
            time.sleep(0.05)


@contextmanager
def running_cloud() -> Iterator[Cloud]:
    """Start the emulators, and set the environment variables of the clients in this process."""
    with (
        _sink() as url,
        Stack(StackOptions(with_service=False, service_url=url, concurrency=4)) as stack,
        environment_of(stack),
    ):
        yield Cloud(stack)


@contextmanager
def environment_of(stack: Stack) -> Iterator[None]:
    """Set the environment variables of a stack's clients in this process."""
    before = {name: os.environ.get(name) for name in stack.environment}
    os.environ.update(stack.environment)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _sink() -> Iterator[str]:
    """Acknowledge the stack's own deliveries. The benchmark sends the events itself."""

    class Acknowledge(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Acknowledge)
    server.daemon_threads = True
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
