"""An image's document, field by field, and its id."""

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

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
    ObjectMetadata,
    Timings,
)

METADATA = ObjectMetadata(1305107, "image/jpeg", "XrY7u+Ae7tCTyyK7j1rNww==", "yZRlqg==")
REF = ImageRef("uploads", "dir/cat.jpg", 1755000000000001, METADATA)
EVENT_TIME = datetime(2026, 9, 24, 11, 12, 11, tzinfo=UTC)
RESULT = ImageResult(
    ref=REF,
    image_info=ImageInfo(1280, 960, "JPEG"),
    model=ModelInfo("yolo26n.pt", "ab" * 32, 640, "fp32", "openvino 2026.0.0"),
    detections=(
        Detection("person", 0, 0.9, Box(1.0, 2.0, 3.0, 4.0)),
        Detection("cat", 15, 0.8, Box(5.5, 6.0, 7.0, 8.0)),
        Detection("person", 0, 0.3, Box(0.0, 0.0, 1280.0, 960.0)),
    ),
    batch_size=4,
    timings=Timings(download_ms=12.5, decode_ms=3.0, queue_ms=20.1, inference_ms=15.2),
    event_time=EVENT_TIME,
)
FAILED = ImageResult(
    ref=REF,
    failure=Failure(ErrorCode.CORRUPT_IMAGE, "The JPEG file is damaged or cut short."),
    event_time=EVENT_TIME,
)


def test_document_of_a_done_image_has_every_field() -> None:
    assert to_document(RESULT) == {
        "uri": "gs://uploads/dir/cat.jpg",
        "bucket": "uploads",
        "name": "dir/cat.jpg",
        "generation": 1755000000000001,
        "content_type": "image/jpeg",
        "size": 1305107,
        "md5": "XrY7u+Ae7tCTyyK7j1rNww==",
        "status": "done",
        "error": None,
        "image": {"width": 1280, "height": 960, "format": "JPEG"},
        "model": {
            "name": "yolo26n.pt",
            "sha256": "ab" * 32,
            "image_size": 640,
            "precision": "fp32",
            "runtime": "openvino 2026.0.0",
        },
        "detections": [
            {
                "label": "person",
                "class_id": 0,
                "confidence": 0.9,
                "box": {"x1": 1.0, "y1": 2.0, "x2": 3.0, "y2": 4.0},
            },
            {
                "label": "cat",
                "class_id": 15,
                "confidence": 0.8,
                "box": {"x1": 5.5, "y1": 6.0, "x2": 7.0, "y2": 8.0},
            },
            {
                "label": "person",
                "class_id": 0,
                "confidence": 0.3,
                "box": {"x1": 0.0, "y1": 0.0, "x2": 1280.0, "y2": 960.0},
            },
        ],
        "labels": ["cat", "person"],
        "counts": {"cat": 1, "person": 2},
        "num_detections": 3,
        "max_confidence": 0.9,
        "batch_size": 4,
        "timings": {
            "download_ms": 12.5,
            "decode_ms": 3.0,
            "queue_ms": 20.1,
            "inference_ms": 15.2,
        },
        "event_time": EVENT_TIME,
    }


def test_document_of_a_failed_image_has_every_field() -> None:
    assert to_document(FAILED) == {
        "uri": "gs://uploads/dir/cat.jpg",
        "bucket": "uploads",
        "name": "dir/cat.jpg",
        "generation": 1755000000000001,
        "content_type": "image/jpeg",
        "size": 1305107,
        "md5": "XrY7u+Ae7tCTyyK7j1rNww==",
        "status": "failed",
        "error": {
            "code": "corrupt_image",
            "message": "The JPEG file is damaged or cut short.",
        },
        "image": None,
        "model": None,
        "detections": [],
        "labels": [],
        "counts": {},
        "num_detections": 0,
        "max_confidence": None,
        "batch_size": 0,
        "timings": {"download_ms": 0.0, "decode_ms": 0.0, "queue_ms": 0.0, "inference_ms": 0.0},
        "event_time": EVENT_TIME,
    }


def test_document_of_an_image_without_detections_is_done() -> None:
    document = to_document(replace(RESULT, detections=()))
    assert document["status"] == "done"
    assert (document["detections"], document["counts"], document["labels"]) == ([], {}, [])
    assert document["max_confidence"] is None


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        (METADATA, {"md5": "XrY7u+Ae7tCTyyK7j1rNww=="}),
        (ObjectMetadata(md5="a"), {"md5": "a"}),
        (ObjectMetadata(crc32c="b"), {"crc32c": "b"}),
        (ObjectMetadata(), {"md5": None}),
    ],
    ids=["both", "md5", "composite", "none"],
)
def test_to_document_has_the_md5_or_else_the_crc32c(
    metadata: ObjectMetadata, expected: dict[str, str | None]
) -> None:
    document = to_document(replace(RESULT, ref=replace(REF, metadata=metadata)))
    assert {key: document[key] for key in ("md5", "crc32c") if key in document} == expected


def scalars(value: object) -> list[object]:
    if isinstance(value, dict):
        return [leaf for inner in value.values() for leaf in scalars(inner)]
    if isinstance(value, list):
        return [leaf for inner in value for leaf in scalars(inner)]
    return [value]


@pytest.mark.parametrize("result", [RESULT, FAILED], ids=["done", "failed"])
def test_to_document_is_of_plain_types(result: ImageResult) -> None:
    """Firestore rejects numpy scalars, tuples and enumerations."""
    leaves = scalars(to_document(result))
    assert {type(leaf) for leaf in leaves} <= {str, int, float, bool, datetime, type(None)}
    assert not any(isinstance(leaf, np.generic) for leaf in leaves)


def test_document_id_is_known() -> None:
    """With other ids, every image would be processed again."""
    assert REF.document_id == "72e6a25e5f451ab2ff56f145a5ba58b855397245"


def test_document_id_does_not_depend_on_metadata() -> None:
    assert ImageRef("uploads", "dir/cat.jpg", 1755000000000001).document_id == REF.document_id


def test_document_id_differs_by_bucket_name_and_generation() -> None:
    refs = [
        REF,
        replace(REF, generation=1755000000000002),
        replace(REF, bucket="other"),
        replace(REF, name="dir/dog.jpg"),
        ImageRef("uploads", "dir", 1),
        ImageRef("uploads", "dir#1", 1),
        ImageRef("uploads", "日本.jpg", 1),
    ]
    ids = [ref.document_id for ref in refs]
    assert len(set(ids)) == len(refs)
    assert all(len(one) == 40 and set(one) <= set("0123456789abcdef") for one in ids)


def test_document_id_of_following_generations_is_not_sequential() -> None:
    """Sequential ids cause hot spots in Firestore."""
    ids = [replace(REF, generation=generation).document_id for generation in range(1, 201)]
    assert len({one[:2] for one in ids}) > 100
    assert ids != sorted(ids)


def test_document_id_without_generation_raises() -> None:
    with pytest.raises(ValueError, match="gs://uploads/dir/cat.jpg has no generation yet"):
        replace(REF, generation=None).document_id  # noqa: B018 - the property raises


def test_every_error_code_has_a_description_and_a_remedy() -> None:
    for code in ErrorCode:
        assert code.description.endswith(".")
        assert code.remedy.endswith(".")
