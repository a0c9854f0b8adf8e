"""The bytes of each upload, and the detections that are correct for it."""

import base64
import hashlib
import itertools
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2

from devtools.chaos.audit import is_same_image
from devtools.chaos.plan import Kind, Plan, Upload
from devtools.chaos.poison import mark
from devtools.demo_model.shapes import draw_scene, encode_jpeg, scene_generator
from service.domain import ErrorCode
from service.errors import YoloBatchError
from service.inference.detector import Detector
from service.operate.detect import detect_files
from service.settings import Settings

#: A setting of the services, in bytes. It is small, so that a larger file is quick to make.
MAX_IMAGE_BYTES = 600_000

CODES: Mapping[Kind, ErrorCode] = {
    Kind.EMPTY: ErrorCode.EMPTY_OBJECT,
    Kind.TEXT: ErrorCode.UNSUPPORTED_MEDIA,
    Kind.TRUNCATED: ErrorCode.CORRUPT_IMAGE,
    Kind.TOO_MANY_PIXELS: ErrorCode.IMAGE_TOO_LARGE,
    Kind.TOO_MANY_BYTES: ErrorCode.IMAGE_TOO_LARGE,
    **{kind: ErrorCode.CORRUPT_IMAGE for kind in Kind if kind.poison},
}

_SEED = 2605  # no other set of drawn images uses it
_SIZES = ((480, 360), (360, 480), (400, 400), (960, 720))  # the last size is decoded at 1/2
_QUALITY = 90
_OTHER_EVERY = 6  # one scene in six is not a JPEG
_OTHER_FORMATS: tuple[tuple[str, list[int]], ...] = (
    (".gif", []),
    (".tiff", []),
    (".webp", [cv2.IMWRITE_WEBP_QUALITY, 101]),  # lossless
)
_MIN_OBJECTS = 3  # so that no two images have the same detections
_HUGE_SIDE = 30_000
_JPEG = b"\xff\xd8"


class SceneError(YoloBatchError):
    """The drawn images are too similar to detect that two results were swapped."""


class Images:
    """The bytes of the uploads. All files differ, except for empty files."""

    def __init__(self, plan: Plan) -> None:
        """Draw every scene of the plan."""
        self._seed = plan.seed
        self.scenes = [_draw(index) for index in range(plan.scenes)]

    def content(self, upload: Upload) -> bytes:
        """Return the bytes of an upload."""
        unique = f"yolo-batch-dev chaos {self._seed} {upload.index}".encode()
        if upload.kind is Kind.EMPTY:
            return b""
        if upload.kind is Kind.TEXT:
            return b"<html>" + unique + b"</html>"
        if upload.kind is Kind.TOO_MANY_PIXELS:
            return _huge_png(unique)
        scene = self.scenes[upload.scene]
        if upload.kind is Kind.TRUNCATED:
            return _with_comment(scene[: len(scene) // 2], unique)
        if upload.kind.poison:
            unique = mark(upload.kind.poison) + unique
        image = _with_comment(scene, unique)
        if upload.kind is Kind.TOO_MANY_BYTES:
            return image + bytes(MAX_IMAGE_BYTES)
        return image


def md5(content: bytes) -> str:
    """Return the MD5 in base64, as Cloud Storage reports it."""
    return base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()


def detect_alone(
    scenes: Sequence[bytes], detector: Detector, directory: Path
) -> list[Mapping[str, Any]]:
    """Run the detector on each image alone. Return the documents, in the same order.

    Raises:
        SceneError: the audit cannot distinguish two images, or an image has no detections.
    """
    files = [directory / f"scene-{index:04d}" for index in range(len(scenes))]
    for file, scene in zip(files, scenes, strict=True):
        file.write_bytes(scene)
    by_name: dict[str, Mapping[str, Any]] = {}

    def receive(document: Mapping[str, Any]) -> None:
        by_name[document["name"]] = document

    detect_files(files, detector, replace(Settings(), max_batch_size=1), receive)
    documents = [by_name[str(file)] for file in files]
    pairs = itertools.combinations(documents, 2)
    if any(is_same_image(*pair) for pair in pairs) or not all(d["detections"] for d in documents):
        raise SceneError("Two drawn images have the same detections, or one has none")
    return documents


def _draw(index: int) -> bytes:
    group, position = divmod(index, _OTHER_EVERY)
    if position == _OTHER_EVERY - 1:
        # Without the largest size, which exceeds MAX_IMAGE_BYTES as a TIFF.
        image = _draw_scene(index, *_SIZES[group % (len(_SIZES) - 1)])
        extension, parameters = _OTHER_FORMATS[group % len(_OTHER_FORMATS)]
        _, data = cv2.imencode(extension, image, parameters)
        return data.tobytes()
    return encode_jpeg(_draw_scene(index, *_SIZES[index % len(_SIZES)]), _QUALITY)


def _draw_scene(index: int, width: int, height: int) -> Any:
    generator = scene_generator(_SEED, index)
    return draw_scene(generator, width, height, min_objects=_MIN_OBJECTS).image


def _with_comment(image: bytes, comment: bytes) -> bytes:
    """Return a file with other bytes and the same pixels."""
    if not image.startswith(_JPEG):
        return image + comment  # decoders ignore bytes after the end
    segment = b"\xff\xfe" + struct.pack(">H", 2 + len(comment)) + comment
    return image[:2] + segment + image[2:]


def _huge_png(comment: bytes) -> bytes:
    """Return a PNG whose header claims too many pixels. The file contains none."""
    header = struct.pack(">IIBBBBB", _HUGE_SIDE, _HUGE_SIDE, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"tEXt", b"Comment\0" + comment), (b"IDAT", b""), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_png_chunk(*chunk) for chunk in chunks)


def _png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
