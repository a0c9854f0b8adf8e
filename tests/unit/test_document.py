"""An image's document, field by field, and its id."""

from collections import Counter
from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.document import SHARDS, detection_fields, shard_of, to_document
from service.domain import (
    Box,
    Camera,
    CapturedAtSource,
    ClassScore,
    Detection,
    ErrorCode,
    Failure,
    GeoPoint,
    ImageInfo,
    ImageRef,
    ImageResult,
    Keypoint,
    ModelInfo,
    ObjectMetadata,
    Polygon,
    Prediction,
    RotatedBox,
    SourceVersion,
    Task,
    Timings,
)
from service.evaluation import evaluate
from service.faint import pack, unpack
from service.sources.rules import Rules
from service.sources.schema import Mode, Zone

METADATA = ObjectMetadata(1305107, "image/jpeg", "XrY7u+Ae7tCTyyK7j1rNww==", "yZRlqg==")
REF = ImageRef("uploads", "dir/cat.jpg", 1755000000000001, METADATA)
EVENT_TIME = datetime(2026, 9, 24, 11, 12, 11, tzinfo=UTC)
CAPTURED_AT = datetime(2026, 9, 23, 11, 12, 11, tzinfo=UTC)
RESULT = ImageResult(
    ref=REF,
    image_info=ImageInfo(1280, 960, "JPEG"),
    model=ModelInfo("yolo26n.pt", "ab" * 32, 640, "fp32", "openvino 2026.0.0", version="7"),
    detections=(
        Detection("person", 0, 0.9, Box(1.0, 2.0, 3.0, 4.0), zones=("gate",)),
        Detection("cat", 15, 0.8, Box(5.5, 6.0, 7.0, 8.0)),
        Detection("person", 0, 0.3, Box(0.0, 0.0, 1280.0, 960.0), zones=("gate",)),
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


FAINT = (Detection("dog", 16, 0.1, Box(1.0, 1.0, 9.0, 9.0)),)


def test_document_of_a_done_image_has_every_field() -> None:
    custom = {"survey": "autumn"}
    result = replace(
        RESULT,
        ref=replace(REF, metadata=replace(METADATA, custom=custom, is_custom_cut=True)),
        faint=FAINT,
        captured_at=CAPTURED_AT,
        captured_at_source=CapturedAtSource.EXIF_OFFSET,
        camera=Camera("Reconyx", "HC600", None),
        location=GeoPoint(46.6, 8.03),
        day=date(2026, 9, 23),
        source=SourceVersion("cam1", EVENT_TIME),
        zones=("gate", "street"),
    )
    assert to_document(result) == {
        "schema": 2,
        "uri": "gs://uploads/dir/cat.jpg",
        "bucket": "uploads",
        "name": "dir/cat.jpg",
        "generation": 1755000000000001,
        "content_type": "image/jpeg",
        "size": 1305107,
        "md5": "XrY7u+Ae7tCTyyK7j1rNww==",
        "metadata": custom,
        "metadata_cut": True,
        "status": "done",
        "error": None,
        "image": {"width": 1280, "height": 960, "format": "JPEG"},
        "captured_at": CAPTURED_AT,
        "captured_at_source": "exif_offset",
        "camera": {"make": "Reconyx", "model": "HC600", "serial": None},
        "location": GeoPoint(46.6, 8.03),
        "task": "detect",
        "model": {
            "name": "yolo26n.pt",
            "sha256": "ab" * 32,
            "image_size": 640,
            "precision": "fp32",
            "runtime": "openvino 2026.0.0",
            "version": "7",
        },
        "source": {"id": "cam1", "version": EVENT_TIME},
        "detections": [
            {
                "label": "person",
                "class_id": 0,
                "confidence": 0.9,
                "box": {"x1": 1.0, "y1": 2.0, "x2": 3.0, "y2": 4.0},
                "zones": ["gate"],
            },
            {
                "label": "cat",
                "class_id": 15,
                "confidence": 0.8,
                "box": {"x1": 5.5, "y1": 6.0, "x2": 7.0, "y2": 8.0},
                "zones": [],
            },
            {
                "label": "person",
                "class_id": 0,
                "confidence": 0.3,
                "box": {"x1": 0.0, "y1": 0.0, "x2": 1280.0, "y2": 960.0},
                "zones": ["gate"],
            },
        ],
        "detections_uri": None,
        "left_out": [],
        "simplified_pixels": None,
        "faint": pack(FAINT).data,
        "faint_cut": 0.05,
        "classes": [],
        "labels": ["cat", "person"],
        "counts": {"cat": 1, "person": 2},
        "counts_by_zone": {"gate": {"person": 2}, "street": {}},
        "zone_labels": ["gate", "gate/person"],
        "best": {"cat": 0.8, "person": 0.9},
        "found": True,
        "num_detections": 3,
        "top_label": "person",
        "max_confidence": 0.9,
        "uncertain_confidence": 0.3,
        "batch_size": 4,
        "timings": {
            "download_ms": 12.5,
            "decode_ms": 3.0,
            "queue_ms": 20.1,
            "inference_ms": 15.2,
        },
        "event_time": EVENT_TIME,
        "day": "2026-09-23",
        "shard": 5,
        "derived": [],
        "derived_error": None,
        "alerts": [],
    }


def test_document_of_a_failed_image_has_the_same_fields() -> None:
    document, done = to_document(FAILED), to_document(RESULT)
    assert set(document) == set(done)
    assert document["status"] == "failed"
    assert document["error"] == {
        "code": "corrupt_image",
        "message": "The JPEG file is damaged or cut short.",
    }
    empty = {key for key, value in document.items() if value is None or value in ([], {})}
    assert empty == {
        "alerts", "best", "camera", "captured_at", "classes", "counts", "counts_by_zone", "day",
        "derived", "derived_error", "detections", "detections_uri", "faint", "faint_cut", "found",
        "image", "labels", "left_out", "location", "max_confidence", "metadata", "model",
        "simplified_pixels", "task", "top_label", "uncertain_confidence", "zone_labels",
    }  # fmt: skip


def of_task(task: Task, **fields: Any) -> dict[str, Any]:
    """Return the document of a result with one detection of this task."""
    assert RESULT.model
    model = replace(RESULT.model, task=task)
    found = (replace(RESULT.detections[0], **fields),)
    return to_document(replace(RESULT, model=model, detections=found, faint=()))


BASIC = {"label", "class_id", "confidence", "box", "zones"}


def test_segment_has_polygons_and_area() -> None:
    rings = (Polygon((0.0, 0.0, 9.0, 0.0, 9.0, 9.0)), Polygon((1.0, 1.0, 2.0, 1.0, 2.0, 2.0)))
    document = of_task(Task.SEGMENT, polygons=rings, area=40.5)
    [found] = document["detections"]
    assert document["task"] == "segment"
    assert set(found) == BASIC | {"polygons", "area"}
    assert found["polygons"] == [{"points": list(ring.points)} for ring in rings]
    assert found["area"] == 40.5


def test_pose_has_keypoints() -> None:
    document = of_task(Task.POSE, keypoints=(Keypoint("nose", 1.0, 2.0, 0.5),))
    [found] = document["detections"]
    assert set(found) == BASIC | {"keypoints"}
    assert found["keypoints"] == [{"name": "nose", "x": 1.0, "y": 2.0, "confidence": 0.5}]


def test_obb_has_the_rotated_box_and_its_corners() -> None:
    document = of_task(Task.OBB, rotated_box=RotatedBox(50.0, 50.0, 20.0, 10.0, 0.0))
    [found] = document["detections"]
    assert set(found) == BASIC | {"obb", "corners"}
    assert found["obb"] == {
        "cx": 50.0, "cy": 50.0, "width": 20.0, "height": 10.0, "angle_degrees": 0.0
    }  # fmt: skip
    assert found["corners"] == [60.0, 55.0, 60.0, 45.0, 40.0, 45.0, 40.0, 55.0]


def test_classify_has_classes_and_no_detections() -> None:
    assert RESULT.model
    scores = tuple(ClassScore(label, i, 0.5 - i / 10) for i, label in enumerate("abcde"))
    result = ImageResult(
        REF,
        model=replace(RESULT.model, task=Task.CLASSIFY),
        faint=(),
        classes=scores,
        kept_classes=scores[:2],
    )
    document = to_document(result)
    assert document["detections"] == []
    assert [each["label"] for each in document["classes"]] == list("abcde")
    assert document["classes"][1] == {"label": "b", "class_id": 1, "confidence": 0.4}
    assert (document["labels"], document["counts"]) == (["a", "b"], {"a": 1, "b": 1})
    assert document["best"] == {"a": 0.5, "b": 0.4}
    assert (document["num_detections"], document["top_label"]) == (0, "a")
    assert (document["max_confidence"], document["uncertain_confidence"]) == (0.5, 0.4)
    assert (document["faint"], document["faint_cut"]) == (None, None)


def test_faint_detections_that_are_not_recorded_are_null() -> None:
    document = to_document(replace(RESULT, faint=None))
    assert (document["faint"], document["faint_cut"]) == (None, None)


def test_cut_of_the_faint_detections_is_recorded() -> None:
    many = tuple(
        Detection("a" * 1000, 0, round(0.2 - i / 10000, 4), Box(0.0, 0.0, 9.0, float(i)))
        for i in range(300)
    )
    document = to_document(replace(RESULT, faint=many, store_confidence=0.01))
    kept = unpack(document["faint"])
    assert len(document["faint"]) <= 2048
    assert kept == many[: len(kept)]
    assert document["faint_cut"] == many[len(kept)].confidence


def test_shards_have_about_the_same_number_of_documents() -> None:
    shards = Counter(shard_of(replace(REF, generation=i).document_id) for i in range(2000))
    assert set(shards) == set(range(SHARDS))
    assert max(shards.values()) < 1.5 * 2000 / SHARDS


numbers = st.floats(0, 640)
boxes = st.builds(
    lambda x, y, width, height: Box(x, y, x + width, y + height),
    numbers, numbers, numbers, numbers,
)  # fmt: skip
detections = st.builds(
    Detection, st.sampled_from(["cat", "dog", "fox"]), st.just(0), st.floats(0.05, 1), boxes
)
thresholds = st.floats(0.05, 1)


@given(st.lists(detections, max_size=20), thresholds, thresholds)
def test_document_has_everything_that_its_rules_need(
    found: list[Detection], before: float, after: float
) -> None:
    """Rules that are applied to the stored detections give the same as at the commit."""
    half = ((0.0, 0.0), (0.5, 0.0), (0.5, 1.0), (0.0, 1.0))
    zone = Zone("half", half, mode=Mode.INCLUDE)
    old, new = (Rules(min_confidence=one, zones=(zone,)) for one in (before, after))
    base = replace(RESULT, detections=(), image_info=ImageInfo(1280, 1280, "JPEG"))
    stored = to_document(evaluate(base, Prediction(tuple(found)), old))
    read = [
        Detection(item["label"], item["class_id"], item["confidence"], Box(**item["box"]))
        for item in stored["detections"]
    ]
    again = evaluate(base, Prediction((*read, *unpack(stored["faint"]))), new)
    assert detection_fields(again) == detection_fields(
        evaluate(base, Prediction(tuple(found)), new)
    )


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
    plain = {str, int, float, bool, bytes, datetime, type(None)}
    assert {type(leaf) for leaf in leaves} <= plain
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
