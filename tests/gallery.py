"""A gallery with results that were made up, on the emulators. The pages are the real ones."""

import random
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

from google.cloud import firestore, storage

from devtools.demo_model.shapes import Scene, encode_jpeg, sample_scenes
from service.document import to_document
from service.domain import (
    Box,
    Camera,
    CapturedAtSource,
    ClassScore,
    Detection,
    ErrorCode,
    Failure,
    ImageInfo,
    ImageRef,
    ImageResult,
    Keypoint,
    ModelInfo,
    ObjectMetadata,
    Polygon,
    RotatedBox,
    SourceVersion,
    Task,
    Timings,
)
from service.gallery.access import LocalAccess
from service.gallery.app import create_app
from service.gallery.build import build_gallery
from service.gallery.parts import GalleryParts
from service.gallery.serve import HOST, bind, serve
from service.gallery.settings import GallerySettings
from service.settings import Settings
from tests.fakes import PATIENCE_SECONDS

NEWEST = datetime(2026, 11, 30, 12, tzinfo=UTC)
HOSTILE = (
    "cam1/<script>window.hacked=1</script>.jpg",
    'cam1/"><img src=x onerror=window.hacked=1>.jpg',
    "cam1/'+alert(1)+'{{7*7}}${7*7}.jpg",
    "cam1/\u202egpj.exe\u2066.jpg",
    "cam1/" + "/".join(["x" * 200] * 5),  # the emulator stores each part as a file name
)
MODEL = ModelInfo("shapes.pt", "ab" * 32, 320, "fp32", "openvino 2026.0.0")


@dataclass
class Gallery:
    """A gallery that a test looks at."""

    url: str  # with the token
    address: str  # without it
    collection: str
    parts: GalleryParts
    results: dict[str, ImageResult] = field(default_factory=dict)  # by the document's id
    files: list[tuple[bytes, ImageInfo]] = field(default_factory=list)
    folder: str | None = None  # of the objects' names. None: one that only this gallery has

    def upload(self, name: str, data: bytes) -> ImageRef:
        """Upload an object, and return its generation."""
        folder = f"{self.collection}/" if self.folder is None else self.folder
        blob = storage.Client().bucket("uploads").blob(f"{folder}{name}")
        blob.upload_from_string(data, content_type="image/jpeg")
        metadata = ObjectMetadata(len(data), "image/jpeg", blob.md5_hash, blob.crc32c)
        return ImageRef("uploads", blob.name, int(blob.generation), metadata)

    def add(self, result: ImageResult, *, age: timedelta = timedelta(0), **edited: Any) -> str:
        """Store a result's document, perhaps edited by a person. Return its id."""
        document = to_document(result) | {"created_at": NEWEST - age} | edited
        document_id = result.ref.document_id
        self._documents.document(document_id).set(document)
        self.results[document_id] = result
        return document_id

    def add_image(
        self, name: str, *detections: Detection, age: timedelta = timedelta(0), **fields: Any
    ) -> str:
        """Upload a drawn image, and store a result of it. Return the document's id."""
        if not self.files:
            images = (scene.image for _, scene in sample_scenes(count=6, seed=7))
            self.files += [
                (encode_jpeg(image, 85), ImageInfo(image.shape[1], image.shape[0], "JPEG"))
                for image in images
            ]
        data, info = self.files[len(self.results) % len(self.files)]
        result = done(self.upload(name, data), info, detections, NEWEST - age)
        return self.add(replace(result, **fields), age=age)

    def add_scene(
        self, name: str, scene: Scene, *, age: timedelta = timedelta(0), **fields: Any
    ) -> str:
        """Upload a drawn image, and store its own shapes as detections, some of them faint."""
        chosen = random.Random(name)
        height, width = scene.image.shape[:2]
        detections = [
            Detection(
                each.label,
                each.class_id,
                round(chosen.betavariate(5, 1.2), 4),
                Box(*(round(float(value), 2) for value in each.box)),
                zones=("door",) if each.box[0] < width / 3 else (),
            )
            for each in scene.objects
        ]
        kept = tuple(item for item in detections if item.confidence >= 0.6)
        faint = tuple(replace(i, zones=()) for i in detections if i.confidence < 0.6)
        info = ImageInfo(width, height, "JPEG")
        result = done(self.upload(name, encode_jpeg(scene.image, 85)), info, kept, NEWEST - age)
        result = replace(result, faint=faint, zones=("door",), source=SourceVersion("gate", NEWEST))
        return self.add(replace(result, **fields), age=age)

    @property
    def _documents(self) -> Any:
        return firestore.Client().collection(self.collection)


def done(
    ref: ImageRef, info: ImageInfo, detections: tuple[Detection, ...], time: datetime
) -> ImageResult:
    """Return a result without faint detections."""
    return ImageResult(
        ref,
        image_info=info,
        model=MODEL,
        detections=detections,
        faint=(),
        timings=Timings(12.0, 3.0, 20.0, 15.0),
        batch_size=4,
        event_time=time,
        day=date(2026, 11, 30),
    )


def seed_scenes(gallery: Gallery, count: int) -> list[str]:
    """Store results of drawn images, as a camera would upload them. Return the documents' ids."""
    gallery.folder = ""
    return [
        gallery.add_scene(
            f"gate/2026-11-30/{1159 - number:04}.jpg",
            scene,
            age=timedelta(minutes=number),
            captured_at=NEWEST - timedelta(minutes=number + 1),
            captured_at_source=CapturedAtSource.EXIF_OFFSET,
            camera=Camera("Reconyx", "HC600", "H600HF05"),
        )
        for number, (_, scene) in enumerate(sample_scenes(count=count, seed=7))
    ]


def detection(label: str, confidence: float, left: float = 20.0, **fields: Any) -> Detection:
    """Return a detection of 100 x 80 pixels."""
    class_id = sum(map(ord, label)) % 80
    box = Box(left, 30.0, left + 100, 110.0)
    return Detection(label, class_id, confidence, box, **fields)


def of_task(task: Task) -> ModelInfo:
    return replace(MODEL, task=task)


def seed(gallery: Gallery) -> None:
    """Store results of every kind: 75 images of two sources, the newest first."""
    minute = timedelta(minutes=1)
    ring = Polygon((20.0, 30.0, 120.0, 30.0, 120.0, 110.0, 20.0, 110.0))
    hole = Polygon((50.0, 50.0, 80.0, 50.0, 80.0, 80.0))
    points = tuple(Keypoint(f"p{n}", 40.0 + 10 * n, 60.0, 0.3 + 0.2 * n) for n in range(4))
    rotated = RotatedBox(90.0, 90.0, 80.0, 40.0, 30.0)
    gate, yard = SourceVersion("gate", NEWEST), SourceVersion("yard", NEWEST)
    gallery.add_image(
        "gate/mask.jpg",
        detection("star", 0.9, polygons=(ring, hole), area=7000.0),
        age=minute,
        model=of_task(Task.SEGMENT),
        source=gate,
    )
    gallery.add_image(
        "gate/pose.jpg",
        detection("person", 0.8, keypoints=points),
        age=2 * minute,
        model=of_task(Task.POSE),
        source=gate,
    )
    gallery.add_image(
        "gate/rotated.jpg",
        detection("ship", 0.85, rotated_box=rotated),
        age=3 * minute,
        model=of_task(Task.OBB),
        source=gate,
    )
    gallery.add_image(
        "gate/class.jpg",
        age=4 * minute,
        model=of_task(Task.CLASSIFY),
        classes=(ClassScore("fox", 1, 0.8), ClassScore("wolf", 2, 0.1)),
        kept_classes=(ClassScore("fox", 1, 0.8),),
        source=gate,
    )
    gallery.add_image("gate/nothing.jpg", age=5 * minute, source=gate)
    for number, code in enumerate((ErrorCode.CORRUPT_IMAGE, ErrorCode.EMPTY_OBJECT)):
        failure = Failure(code, code.description)
        ref = gallery.upload(f"gate/failed-{number}.jpg", b"no image")
        gallery.add(ImageResult(ref, failure=failure, event_time=NEWEST), age=6 * minute)
    parked = Failure(ErrorCode.DAILY_IMAGE_LIMIT, ErrorCode.DAILY_IMAGE_LIMIT.description)
    ref = gallery.upload("gate/parked.jpg", b"x")
    gallery.add(ImageResult(ref, failure=parked, event_time=NEWEST), age=7 * minute)
    for number, name in enumerate(HOSTILE):
        label = "<b>bold</b>" if number == 0 else "star"
        gallery.add_image(name, detection(label, 0.7), age=(8 + number) * minute)
    for number in range(62):
        confidence = 0.3 + 0.01 * number
        gallery.add_image(
            f"yard/{number:03}.jpg",
            detection("heart" if number % 2 else "star", confidence, zones=("door",)),
            detection("circle", confidence / 2 + 0.1, 150.0),
            age=(20 + number) * minute,
            source=yard,
            zones=("door",),
            faint=(detection("circle", 0.12, 250.0), detection("heart", 0.08, 300.0)),
            captured_at=NEWEST - timedelta(hours=1),
            captured_at_source=CapturedAtSource.EXIF_OFFSET,
            camera=Camera("Reconyx", "HC600", "1"),
        )


@contextmanager
def running_gallery(**own: Any) -> Iterator[Gallery]:
    """Run a gallery without results, in a thread, on the emulators of the environment.

    Args:
        own: fields of `GallerySettings`.
    """
    collection = f"gallery-{uuid.uuid4().hex[:12]}"
    settings = replace(
        Settings.from_env(),
        allowed_buckets=("uploads",),
        firestore_collection=collection,
        firestore_timeout_seconds=PATIENCE_SECONDS,
        storage_timeout_seconds=PATIENCE_SECONDS,
    )
    listener = bind(0)
    port = listener.getsockname()[1]
    access = LocalAccess(port)
    parts = build_gallery(settings, GallerySettings(**own), access, is_emulator=True)
    server = serve(create_app(parts), listener)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://{HOST}:{port}"
    try:
        yield Gallery(address + access.first_path, address, collection, parts)
    finally:
        server.shutdown()
        thread.join(PATIENCE_SECONDS)
        server.server_close()
        parts.images.close()
