"""The gallery on the emulators, for tests of its pages: documents as a test gives them."""

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from flask.testing import FlaskClient
from google.cloud import firestore, storage
from PIL import Image
from werkzeug.serving import make_server

from service.deadline import NO_DEADLINE, Deadline
from service.document import to_document
from service.domain import (
    Box,
    Detection,
    ErrorCode,
    Failure,
    ImageInfo,
    ImageRef,
    ImageResult,
    ModelInfo,
)
from service.gallery.access import LocalAccess
from service.gallery.app import create_app
from service.gallery.images import GalleryImages, NoImageError, ShownImage, View
from service.gallery.parts import GalleryParts
from service.gcp.alert_reader import AlertReader
from service.gcp.listing import ObjectLister
from service.gcp.result_pages import ResultPages
from service.sources.current import CurrentSources, StoredSources
from service.sources.schema import Source, Sources
from service.sources.schema import to_document as sources_document
from tests.fakes import BUCKET, PATIENCE_SECONDS, in_thread

HOSTILE = "<script>window.hacked = 1</script>\"'&\u202egpj.exe" + "x" * 300
START = datetime(2026, 11, 29, 12, tzinfo=UTC)


class OneImage(GalleryImages):
    """The same image for every document. Documents in `missing` have none."""

    def __init__(self) -> None:
        self.missing: set[str] = set()
        file = io.BytesIO()
        Image.new("RGB", (640, 480), "#345").save(file, "PNG")
        self._data = file.getvalue()

    def remember(self, document_id: str, document: Mapping[str, Any]) -> None:
        return

    def read(self, document_id: str, generation: int, view: View) -> ShownImage:
        if document_id in self.missing:
            raise NoImageError("The object is gone.")
        return ShownImage(self._data, "image/png")


@dataclass
class Pages:
    """A gallery, and the collection that it shows."""

    collection: str
    images: OneImage = field(default_factory=OneImage)
    count: int = 0

    def put(self, result: ImageResult, **edited: Any) -> str:
        """Write a document, with fields as a person has edited them. Return its id."""
        self.count += 1
        created_at = START + timedelta(minutes=self.count)
        document_id = result.ref.document_id
        document = to_document(result) | {"created_at": created_at} | edited
        self._write(self.collection, document_id, document)
        return document_id

    def put_raw(self, document_id: str, document: Mapping[str, Any]) -> str:
        """Write any document."""
        self._write(self.collection, document_id, dict(document))
        return document_id

    def put_alert(self, alert_id: str, document: Mapping[str, Any]) -> None:
        self._write(f"{self.collection}-alerts", alert_id, dict(document))

    def _write(self, collection: str, document_id: str, document: dict[str, Any]) -> None:
        if (place := document.get("location")) is not None:
            document["location"] = firestore.GeoPoint(place.latitude, place.longitude)
        firestore.Client().collection(collection).document(document_id).set(document)

    def parts(self, access: LocalAccess, **others: Any) -> GalleryParts:
        limits: dict[str, Any] = {
            "collection": self.collection,
            "timeout_seconds": PATIENCE_SECONDS,
        }
        client = firestore.Client()
        defaults: dict[str, Any] = {
            "results": ResultPages(client, **limits),
            "images": self.images,
            "access": access,
            "sources": sources_of(),
            "alerts": AlertReader(client, **limits),
            "objects": ObjectLister(storage.Client()),
        }
        return GalleryParts(**(defaults | others))

    def client(self, **others: Any) -> "Visitor":
        """Return a visitor with the cookie, without a server."""
        access = LocalAccess(8000)
        return Visitor(create_app(self.parts(access, **others)).test_client(), access)

    @contextmanager
    def served(self, **others: Any) -> Iterator[str]:
        """Serve the gallery. Yield the first URL, with its token."""
        server = make_server("127.0.0.1", 0, lambda *_: iter(()), threaded=True)
        access = LocalAccess(server.port)
        server.app = create_app(self.parts(access, **others))
        thread = in_thread(server.serve_forever)
        try:
            yield f"http://127.0.0.1:{server.port}{access.first_path}"
        finally:
            server.shutdown()
            thread.result(PATIENCE_SECONDS)
            server.server_close()


class StoredInMemory:
    """The documents of the sources, without a database."""

    def __init__(self, stored: StoredSources) -> None:
        self._stored = stored

    def read(self, deadline: Deadline) -> StoredSources | None:
        return self._stored

    def last_good(self, deadline: Deadline) -> StoredSources | None:
        return self._stored

    def remember(self, good: StoredSources, deadline: Deadline) -> None:
        return


def sources_of(*sources: Source, broken: bool = False) -> CurrentSources:
    """Return current sources. `broken`: neither they nor the last good ones can be used."""
    data = {"sources": 1} if broken else sources_document(Sources(sources=sources))
    current = CurrentSources(
        StoredInMemory(StoredSources(data, START)),
        min_confidence=0.25,
        store_confidence=0.05,
        refresh_seconds=60,
    )
    current.look(NO_DEADLINE)
    return current


class Visitor:
    """A browser without scripts."""

    def __init__(self, client: FlaskClient, access: LocalAccess) -> None:
        self._client = client
        self._access = access
        self._base = "http://127.0.0.1:8000"
        self.get(access.first_path)

    def get(self, path: str) -> Any:
        return self._client.get(path, base_url=self._base)

    def text(self, path: str) -> str:
        response = self.get(path)
        assert response.status_code == 200, response.text
        return str(response.text)

    def post(self, path: str, *, token: str | None = None) -> Any:
        headers = {"X-CSRF-Token": self._access.csrf_token() if token is None else token}
        return self._client.post(path, base_url=self._base, headers=headers)


def reads(response: Any) -> int:
    """Return how many documents a response has read."""
    return int(response.headers["X-Firestore-Usage"].rpartition("=")[2])


MODEL = ModelInfo("yolo26n.pt", "0" * 64, 640, "fp32", "openvino")


def found(name: str, *detections: Detection, **fields: Any) -> ImageResult:
    """Return a done result with detections. Their boxes are in an image of 640 x 480 pixels."""
    generation = fields.pop("generation", 1)
    defaults: dict[str, Any] = {
        "image_info": ImageInfo(640, 480, "PNG"),
        "model": MODEL,
        "faint": (),
        "batch_size": 1,
    }
    ref = ImageRef(BUCKET, name, generation)
    return ImageResult(ref, detections=detections, **(defaults | fields))


def failed(name: str, code: ErrorCode = ErrorCode.CORRUPT_IMAGE) -> ImageResult:
    """Return a failed result, or that of a parked image."""
    return ImageResult(ImageRef(BUCKET, name, 1), failure=Failure(code, f"The reason of {name}."))


def person(confidence: float = 0.9, **fields: Any) -> Detection:
    defaults: dict[str, Any] = {"box": Box(100.0, 50.0, 300.0, 450.0), "zones": ("gate",)}
    return Detection("person", 0, confidence, **(defaults | fields))
