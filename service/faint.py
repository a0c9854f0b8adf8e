"""The codec of faint detections, which a document has as bytes instead of in `detections`.

The bytes need no model to be read, because they have the labels. They have boxes only: no polygons,
keypoints or rotated boxes. All integers are unsigned LEB128 varints, as in Protocol Buffers:
https://protobuf.dev/programming-guides/encoding/#varints

    version      one byte: 1
    label count  number of labels
    labels       for each: class id, number of bytes, the label in UTF-8
    detections   until the end, for each: index of the label, confidence, x1, y1, width, height

A confidence is stored as its distance below the confidence of the detection before, or below 1 for
the first detection, in steps of 0.0001. The numbers of a box are hundredths of a pixel of the full
upright image. They can be negative, so they are zigzag-encoded: 0, -1, 1, -2, ... become 0, 1, 2,
3, ...

`rounded` moves a prediction onto the grid of these numbers before the thresholds are applied. So
the thresholds give the same for detections that were read back.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from service.domain import Box, ClassScore, Detection, Prediction
from service.errors import FaintBytesError

MAX_BYTES = 2048
_VERSION = 1
_CONFIDENCES = 10_000  # steps from 0 to 1
STEP = 1 / _CONFIDENCES  # between two confidences
_STEPS = 100  # per pixel
_MAX_PIXELS = 1e9  # no image is so large. A larger coordinate is a fault of the model.
_MAX_VARINT_BITS = 63


@dataclass(frozen=True)
class Packed:
    """Faint detections as bytes.

    `cut` is None if all detections are in `data`. Otherwise, it is the confidence of the best
    detection that did not fit: each detection with a higher confidence is in `data`.
    """

    data: bytes
    cut: float | None


def rounded(prediction: Prediction) -> Prediction:
    """Return a prediction on the codec's grid, in an order that does not depend on the model.

    Confidences become multiples of 0.0001, and coordinates of boxes multiples of 0.01 pixels. A
    box of 5 x 5 pixels keeps an IoU of 0.99 or more. Detections are sorted by `sort_key`. A
    detection is `unusable`, and a class is left out, if its confidence is negative or NaN. So is a
    detection if a coordinate of its box is not finite or too large.
    """
    detections = (
        replace(item, confidence=_rounded_confidence(item), box=_rounded_box(item.box))
        for item in prediction.detections
        if _is_sound(item)
    )
    unusable = (item for item in prediction.detections if not _is_sound(item))
    classes = (
        replace(item, confidence=_rounded_confidence(item))
        for item in prediction.classes
        if item.confidence >= 0
    )
    return Prediction(
        tuple(sorted(detections, key=sort_key)), tuple(classes), (*prediction.unusable, *unusable)
    )


def sort_key(detection: Detection) -> tuple[float, ...]:
    """Return the key of the one order that all detections have: the most confident first.

    Detections of equal confidence are sorted by class and box.
    """
    box = detection.box
    return (-detection.confidence, detection.class_id, box.x1, box.y1, box.x2, box.y2)


def pack(detections: Iterable[Detection], *, max_bytes: int = MAX_BYTES) -> Packed:
    """Return the best detections that fit.

    Args:
        detections: detections of `rounded`.
        max_bytes: limit of the bytes, 2 or more.

    Raises:
        UnicodeEncodeError: a label cannot be encoded as UTF-8.
    """
    labels: dict[tuple[int, str], int] = {}  # index by class and label
    table, body = bytearray(), bytearray()
    last = _CONFIDENCES
    for item in sorted(detections, key=sort_key):
        key = item.class_id, item.label
        entry = b"" if key in labels else _label(item)
        index = labels.get(key, len(labels))
        confidence = round(item.confidence * _CONFIDENCES)
        record = _varint(index) + _varint(last - confidence) + _box(item.box)
        count = _varint(len(labels) + bool(entry))
        if 1 + len(count) + len(table) + len(entry) + len(body) + len(record) > max_bytes:
            cut: float | None = item.confidence
            break
        labels[key] = index
        table += entry
        body += record
        last = confidence
    else:
        cut = None
    return Packed(bytes([_VERSION]) + _varint(len(labels)) + bytes(table) + bytes(body), cut)


def unpack(data: bytes) -> tuple[Detection, ...]:
    """Return the detections, the most confident first.

    Raises:
        FaintBytesError: the bytes are not those of `pack`.
    """
    reader = _Reader(data)
    if not data or reader.take(1)[0] != _VERSION:
        raise FaintBytesError("The bytes are not faint detections of a known version.")
    labels = [(reader.varint(), reader.text()) for _ in range(reader.varint())]
    detections = []
    confidence = _CONFIDENCES
    while not reader.is_at_end:
        index = reader.varint()
        confidence -= reader.varint()
        if index >= len(labels) or confidence < 0:
            raise FaintBytesError("The bytes of faint detections are damaged.")
        class_id, label = labels[index]
        x1, y1, width, height = (_unzigzag(reader.varint()) for _ in range(4))
        box = Box(x1 / _STEPS, y1 / _STEPS, (x1 + width) / _STEPS, (y1 + height) / _STEPS)
        detections.append(Detection(label, class_id, confidence / _CONFIDENCES, box))
    return tuple(detections)


class _Reader:
    """Reads bytes from their start."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def is_at_end(self) -> bool:
        return self._at == len(self._data)

    def take(self, count: int) -> bytes:
        """Return the next bytes.

        Raises:
            FaintBytesError: there are fewer.
        """
        taken = self._data[self._at : self._at + count]
        if len(taken) < count:
            raise FaintBytesError("The bytes of faint detections end too early.")
        self._at += count
        return taken

    def varint(self) -> int:
        """Return the next integer.

        Raises:
            FaintBytesError: it is incomplete or too large.
        """
        value = 0
        for shift in range(0, _MAX_VARINT_BITS, 7):
            (byte,) = self.take(1)
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise FaintBytesError("The bytes of faint detections have a number that is too large.")

    def text(self) -> str:
        """Return the next string.

        Raises:
            FaintBytesError: it is incomplete, or not UTF-8.
        """
        try:
            return self.take(self.varint()).decode()
        except UnicodeDecodeError as exc:
            raise FaintBytesError("The bytes of faint detections have a broken label.") from exc


def _is_sound(item: Detection) -> bool:
    box = item.box
    is_box = all(abs(value) < _MAX_PIXELS for value in (box.x1, box.y1, box.x2, box.y2))
    return is_box and item.confidence >= 0


def _rounded_confidence(item: Detection | ClassScore) -> float:
    return round(min(item.confidence, 1.0) * _CONFIDENCES) / _CONFIDENCES


def _rounded_box(box: Box) -> Box:
    return Box(*(round(value * _STEPS) / _STEPS for value in (box.x1, box.y1, box.x2, box.y2)))


def _label(detection: Detection) -> bytes:
    label = detection.label.encode()
    return _varint(detection.class_id) + _varint(len(label)) + label


def _box(box: Box) -> bytes:
    x1, y1, x2, y2 = (round(value * _STEPS) for value in (box.x1, box.y1, box.x2, box.y2))
    return b"".join(_varint(_zigzag(value)) for value in (x1, y1, x2 - x1, y2 - y1))


def _zigzag(value: int) -> int:
    return -2 * value - 1 if value < 0 else 2 * value


def _unzigzag(value: int) -> int:
    return -(value + 1) // 2 if value % 2 else value // 2


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
