"""A fake Cloud Storage that refuses requests, because no emulator does.

Its errors have the forms of the real one: JSON with a reason for metadata, lists and permissions,
and text for downloads (`alt=media`).
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
PERMISSIONS = ["storage.objects.get", "storage.objects.list"]


@dataclass(frozen=True)
class ErrorResponse:
    """A refusal: its status, the reason in its JSON, and its text."""

    status: int
    reason: str = ""
    text: str = "refused"

    def as_json(self) -> bytes:
        errors = [{"message": self.text, "domain": "global", "reason": self.reason}]
        error = {"code": self.status, "message": self.text, "errors": errors}
        return json.dumps({"error": error}).encode()


CUSTOMER_KEY = ErrorResponse(
    400,
    "resourceIsEncryptedWithCustomerEncryptionKey",
    "The target object is encrypted by a customer-supplied encryption key.",
)
KMS_KEY = ErrorResponse(
    400, "cloudKmsDisabledKey", "Cloud KMS key is disabled, destroyed, or scheduled."
)
REQUESTER_PAYS = ErrorResponse(
    400, "userProjectMissing", "Bucket is a requester pays bucket but no user project provided."
)
FORBIDDEN = ErrorResponse(
    403, "forbidden", "sa@p does not have storage.objects.get access to the object."
)
DISABLED = ErrorResponse(
    403, "accountDisabled", "The billing account for the owning project is disabled."
)
TOO_FAST = ErrorResponse(403, "rateLimitExceeded", "The rate limit was exceeded.")


@dataclass
class RefusingStorage:
    """The refusals by object name. An object without a refusal exists and is served."""

    url: str = ""
    media: dict[str, ErrorResponse] = field(default_factory=dict)
    metadata: dict[str, ErrorResponse] = field(default_factory=dict)
    listing: ErrorResponse | None = None
    permissions: list[str] = field(default_factory=lambda: list(PERMISSIONS))
    data: bytes = b"image"
    requests: list[str] = field(default_factory=list)

    def refuse(self, name: str, refusal: ErrorResponse) -> ImageRef:
        """Refuse both the bytes and the metadata of an object."""
        self.media[name] = self.metadata[name] = refusal
        return ref(name)

    def respond(self, path: str) -> tuple[int, bytes]:
        """Return the status and the body for one GET."""
        parts = urlsplit(path)
        query = parse_qs(parts.query)
        if "/iam/testPermissions" in parts.path:
            self.requests.append("permissions")
            return 200, json.dumps({"permissions": self.permissions}).encode()
        if "/o/" not in parts.path:
            self.requests.append("list")
            if self.listing:
                return self.listing.status, self.listing.as_json()
            return 200, json.dumps({"items": []}).encode()
        name = unquote(parts.path.rpartition("/o/")[2])
        if query.get("alt") == ["media"]:
            self.requests.append(f"bytes of {name}")
            if refusal := self.media.get(name):
                return refusal.status, refusal.text.encode()
            return 200, self.data
        self.requests.append(f"metadata of {name}")
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
    """Start a server."""
    storage = RefusingStorage()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # headers and body in one packet, to avoid a delayed second one

        def do_GET(self) -> None:
            status, body = storage.respond(self.path)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("X-Goog-Hash", f"crc32c={crc32c(body)}")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Log nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128  # with the default of 5, a burst of connections is reset

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
