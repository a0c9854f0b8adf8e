"""A Cloud Storage that refuses, because no emulator does.

It answers in the two ways of the real one: metadata, lists and rights as JSON with a reason, bytes
(`alt=media`) as text.
"""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import google_crc32c

from service.domain import ImageRef

BUCKET = "uploads"
GENERATION = 1700000000000001
RIGHTS = ["storage.objects.get", "storage.objects.list"]


@dataclass(frozen=True)
class Answer:
    """One refusal: its status, the reason of its JSON, its text."""

    status: int
    reason: str = ""
    text: str = "refused"

    def as_json(self) -> bytes:
        errors = [{"message": self.text, "domain": "global", "reason": self.reason}]
        error = {"code": self.status, "message": self.text, "errors": errors}
        return json.dumps({"error": error}).encode()


CUSTOMER_KEY = Answer(
    400,
    "resourceIsEncryptedWithCustomerEncryptionKey",
    "The target object is encrypted by a customer-supplied encryption key.",
)
KMS_KEY = Answer(400, "cloudKmsDisabledKey", "Cloud KMS key is disabled, destroyed, or scheduled.")
REQUESTER_PAYS = Answer(
    400, "userProjectMissing", "Bucket is a requester pays bucket but no user project provided."
)
FORBIDDEN = Answer(403, "forbidden", "sa@p does not have storage.objects.get access to the object.")
DISABLED = Answer(403, "accountDisabled", "The billing account for the owning project is disabled.")
TOO_FAST = Answer(403, "rateLimitExceeded", "The rate limit was exceeded.")


@dataclass
class RefusingStorage:
    """What is refused, by an object's name; what is not named exists and is given."""

    url: str = ""
    media: dict[str, Answer] = field(default_factory=dict)
    metadata: dict[str, Answer] = field(default_factory=dict)
    listing: Answer | None = None
    rights: list[str] = field(default_factory=lambda: list(RIGHTS))
    data: bytes = b"image"
    asked: list[str] = field(default_factory=list)

    def refuse(self, name: str, answer: Answer) -> ImageRef:
        """Refuse both the bytes and the metadata of an object."""
        self.media[name] = self.metadata[name] = answer
        return ref(name)

    def answer(self, path: str) -> tuple[int, bytes]:
        """Answer one GET."""
        parts = urlsplit(path)
        query = parse_qs(parts.query)
        if "/iam/testPermissions" in parts.path:
            self.asked.append("rights")
            return 200, json.dumps({"permissions": self.rights}).encode()
        if "/o/" not in parts.path:
            self.asked.append("list")
            if self.listing:
                return self.listing.status, self.listing.as_json()
            return 200, json.dumps({"items": []}).encode()
        name = unquote(parts.path.rpartition("/o/")[2])
        if query.get("alt") == ["media"]:
            self.asked.append(f"bytes of {name}")
            if refusal := self.media.get(name):
                return refusal.status, refusal.text.encode()
            return 200, self.data
        self.asked.append(f"metadata of {name}")
        if refusal := self.metadata.get(name):
            return refusal.status, refusal.as_json()
        return 200, json.dumps(_metadata(name, len(self.data))).encode()


def crc32c(data: bytes) -> str:
    """The checksum that Cloud Storage sends with an object's bytes, in base64."""
    return base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode()


def ref(name: str, *, bucket: str = BUCKET) -> ImageRef:
    return ImageRef(bucket, name, GENERATION)


def _metadata(name: str, size: int) -> dict[str, Any]:
    numbers = {"generation": str(GENERATION), "metageneration": "1", "size": str(size)}
    return {"kind": "storage#object", "bucket": BUCKET, "name": name, **numbers}


@contextmanager
def refusing_storage() -> Iterator[RefusingStorage]:
    """Start one."""
    storage = RefusingStorage()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # header and body in one packet: two would wait for each other

        def do_GET(self) -> None:
            status, body = storage.answer(self.path)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("X-Goog-Hash", f"crc32c={crc32c(body)}")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128  # of the 5 by default, a burst of connections would be reset

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    storage.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield storage
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
