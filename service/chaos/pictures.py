"""The bytes of each upload, and what a detector finds on them when nothing goes wrong."""

import base64
import hashlib
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from service.chaos.plan import Kind, Plan, Upload
from service.demo.shapes import draw_scene, encode_jpeg, scene_generator
from service.detect import detect_files
from service.detector import Detector
from service.domain import ErrorCode
from service.errors import YoloBatchError
from service.pipeline import PipelineOptions

#: What the service is told, so that a picture over it is quick to make.
MAX_IMAGE_BYTES = 400_000

CODES: Mapping[Kind, ErrorCode] = {
    Kind.EMPTY: ErrorCode.EMPTY_OBJECT,
    Kind.TEXT: ErrorCode.UNSUPPORTED_MEDIA,
    Kind.TRUNCATED: ErrorCode.CORRUPT_IMAGE,
    Kind.TOO_MANY_PIXELS: ErrorCode.IMAGE_TOO_LARGE,
    Kind.TOO_MANY_BYTES: ErrorCode.IMAGE_TOO_LARGE,
}

_SEED = 2605  # of no other set of drawn pictures
_SIZES = ((480, 360), (360, 480), (400, 400), (960, 720))  # the last is decoded at a half
_QUALITY = 90
_MIN_OBJECTS = 3  # so that no two pictures have the same detections
_HUGE_SIDE = 30_000


class SceneError(YoloBatchError):
    """The drawn pictures cannot tell a crossed result from a right one."""


class Pictures:
    """The uploads' bytes; no two are the same but the empty ones."""

    def __init__(self, plan: Plan) -> None:
        """Draw every scene of the plan."""
        self._seed = plan.seed
        self.scenes = [_draw(index) for index in range(plan.scenes)]

    def content(self, upload: Upload) -> bytes:
        """What is uploaded."""
        unique = f"yolo-batch chaos {self._seed} {upload.index}".encode()
        if upload.kind is Kind.EMPTY:
            return b""
        if upload.kind is Kind.TEXT:
            return b"<html>" + unique + b"</html>"
        if upload.kind is Kind.TOO_MANY_PIXELS:
            return _huge_png(unique)
        picture = _with_comment(self.scenes[upload.scene], unique)
        if upload.kind is Kind.TRUNCATED:
            return picture[: len(picture) // 2]
        if upload.kind is Kind.TOO_MANY_BYTES:
            return picture + bytes(MAX_IMAGE_BYTES)
        return picture


def md5(content: bytes) -> str:
    """The checksum as Cloud Storage writes it."""
    return base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()


def find_alone(
    scenes: Sequence[bytes], detector: Detector, directory: Path
) -> list[Mapping[str, Any]]:
    """Detect on each picture alone; return their documents, in the same order.

    Raises:
        SceneError: two pictures have the same detections, or one has none.
    """
    files = [directory / f"scene-{index:04d}.jpg" for index in range(len(scenes))]
    for file, scene in zip(files, scenes, strict=True):
        file.write_bytes(scene)
    found: dict[str, Mapping[str, Any]] = {}

    def receive(document: Mapping[str, Any]) -> None:
        found[document["name"]] = document

    detect_files(files, detector, PipelineOptions(max_batch_size=1, max_queue=2), receive)
    documents = [found[str(file)] for file in files]
    different = {str(document["detections"]) for document in documents if document["detections"]}
    if len(different) < len(documents):
        raise SceneError("Two of the drawn pictures look the same to the model, or empty")
    return documents


def _draw(index: int) -> bytes:
    width, height = _SIZES[index % len(_SIZES)]
    scene = draw_scene(scene_generator(_SEED, index), width, height, min_objects=_MIN_OBJECTS)
    return encode_jpeg(scene.image, _QUALITY)


def _with_comment(jpeg: bytes, comment: bytes) -> bytes:
    """Put a comment segment after the start of the image: other bytes, the same pixels."""
    return jpeg[:2] + b"\xff\xfe" + struct.pack(">H", 2 + len(comment)) + comment + jpeg[2:]


def _huge_png(comment: bytes) -> bytes:
    """A picture whose header claims more pixels than may be decoded, and has none."""
    header = struct.pack(">IIBBBBB", _HUGE_SIDE, _HUGE_SIDE, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"tEXt", b"Comment\0" + comment), (b"IDAT", b""), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_png_chunk(*chunk) for chunk in chunks)


def _png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
