"""Firestore writes, replaces, finds and reads every label that a model may have."""

import json
import unicodedata
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from click.testing import CliRunner
from google.api_core.exceptions import InvalidArgument
from google.cloud import firestore
from google.cloud.firestore_v1.base_query import FieldFilter

from service.cli.main import main
from service.domain import Box, Detection, ImageInfo, ImageRef, ImageResult, ModelInfo, Replace
from service.gcp.firestore import ResultStore
from service.gcp.result_reader import ResultReader
from service.inference.labels import MAX_LABEL_BYTES, broken_rule

COCO = [
    "person",
    "bicycle",
    "car",
    "motorcycle",
    "airplane",
    "bus",
    "train",
    "truck",
    "boat",
    "traffic light",
    "fire hydrant",
    "stop sign",
    "parking meter",
    "bench",
    "bird",
    "cat",
    "dog",
    "horse",
    "sheep",
    "cow",
    "elephant",
    "bear",
    "zebra",
    "giraffe",
    "backpack",
    "umbrella",
    "handbag",
    "tie",
    "suitcase",
    "frisbee",
    "skis",
    "snowboard",
    "sports ball",
    "kite",
    "baseball bat",
    "baseball glove",
    "skateboard",
    "surfboard",
    "tennis racket",
    "bottle",
    "wine glass",
    "cup",
    "fork",
    "knife",
    "spoon",
    "bowl",
    "banana",
    "apple",
    "sandwich",
    "orange",
    "broccoli",
    "carrot",
    "hot dog",
    "pizza",
    "donut",
    "cake",
    "chair",
    "couch",
    "potted plant",
    "bed",
    "dining table",
    "toilet",
    "tv",
    "laptop",
    "mouse",
    "remote",
    "keyboard",
    "cell phone",
    "microwave",
    "oven",
    "toaster",
    "sink",
    "refrigerator",
    "book",
    "clock",
    "vase",
    "scissors",
    "teddy bear",
    "hair drier",
    "toothbrush",
]
UNUSUAL = [
    "back`tick",
    "back\\slash",
    "both\\`",
    "`",
    "\\",
    "full.stop",
    "..",
    'double "quotes"',
    "single 'quotes'",
    "sl/ash",
    "*~[]/",
    "a,b",
    "7",
    "no",
    "__",
    "__open",
    " ",
    " blanks around ",
    "two\nlines\t",
    "\x01\x1b\x7f",
    "piéton",
    "信号灯",
    "🛑",
    "\u200b",
    "\uffff",
    "\x85",
    "x" * MAX_LABEL_BYTES,
    "`" * MAX_LABEL_BYTES,
    "é" * (MAX_LABEL_BYTES // 2),
]
# All characters that end lines, are invisible or control a terminal, except refused ones.
CONTROLS = [
    label
    for character in map(chr, range(0x3001))
    if unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp", "Zs")
    for label in (character, f"a{character}b")
    if broken_rule(label) is None
]
REFUSED = ["", "__x__", "__a\nb__", "x" * 1500, "half a \ud83d"]
MODEL = ModelInfo("yolo26n.pt", "0" * 64, 640, "fp32", "openvino")


def seen(label: str, *, permission: Replace | None = None, count: int = 2) -> ImageResult:
    return ImageResult(
        ImageRef(
            "uploads", f"{label.encode('utf-8', 'replace').hex()[:900]}.jpg", 1, replace=permission
        ),
        image_info=ImageInfo(64, 48, "JPEG"),
        model=MODEL,
        detections=(Detection(label, 0, 0.5, Box(1.0, 2.0, 3.5, 4.0)),) * count,
        batch_size=1,
    )


def test_coco_has_80_labels() -> None:
    assert len(set(COCO)) == 80
    assert sum(" " in label for label in COCO) == 15


def test_every_label_is_found_by_the_readmes_queries(store: ResultStore, collection: str) -> None:
    labels = [*COCO, *UNUSUAL]
    assert [broken_rule(label) for label in labels] == [None] * len(labels)
    store.commit([seen(label) for label in labels])
    client = firestore.Client()
    results = client.collection(collection)
    for label in labels:
        path = client.field_path("counts", label)
        for query in (
            results.where(filter=FieldFilter(path, ">", 1)),
            results.where(filter=FieldFilter("labels", "array_contains", label)),
        ):
            [document] = query.stream()
            assert document.get(path) == 2
            assert document.get("counts") == {label: 2}
            assert [detection["label"] for detection in document.get("detections")] == [label] * 2


def test_every_control_character_is_found_as_it_is(collection: str) -> None:
    client = firestore.Client()
    results = client.collection(collection)
    for start in range(0, len(CONTROLS), 100):
        batch = client.batch()
        for index, label in enumerate(CONTROLS[start : start + 100], start):
            batch.set(results.document(str(index)), {"counts": {label: 1}})
        batch.commit()
    for index, label in enumerate(CONTROLS):
        path = client.field_path("counts", label)
        matches = results.where(filter=FieldFilter(path, ">", 0)).stream()
        assert [document.id for document in matches] == [str(index)], repr(label)


def test_carriage_return_is_refused_because_queries_miss_it(collection: str) -> None:
    assert broken_rule("a\rb")
    client = firestore.Client()
    results = client.collection(collection)
    results.document("cr").set({"counts": {"a\rb": 1}})
    path = client.field_path("counts", "a\rb")
    assert not list(results.where(filter=FieldFilter(path, ">", 0)).stream())


def test_replacement_replaces_every_labels_document(
    store: ResultStore, reader: ResultReader
) -> None:
    labels = [*COCO, *UNUSUAL]
    store.commit([seen(label) for label in labels])
    permission = Replace(datetime.now(UTC) + timedelta(minutes=1))
    store.commit([seen(label, permission=permission, count=3) for label in labels])
    documents = list(reader.results("uploads", ""))
    counts = sorted((document["counts"] for document in documents), key=str)
    assert counts == sorted(({label: 3} for label in labels), key=str)


@pytest.mark.parametrize("as_json", [True, False], ids=["json", "table"])
def test_results_shows_every_label(
    as_json: bool, store: ResultStore, collection: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = [*COCO, *UNUSUAL]
    monkeypatch.setenv("FIRESTORE_COLLECTION", collection)
    store.commit([seen(label) for label in labels])
    command = ["results", "gs://uploads/", *(["--json"] if as_json else [])]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    if as_json:
        documents: list[dict[str, Any]] = [
            json.loads(line) for line in done.output.split("\n") if line
        ]
        assert {label for document in documents for label in document["counts"]} == set(labels)
    else:
        lines = done.output.splitlines()
        assert len(lines) == len(labels) + 1  # with the headers
        for label in COCO:
            assert any(f" done 2 {label} " in " ".join(line.split()) for line in lines), label


@pytest.mark.parametrize("label", REFUSED, ids=["empty", "reserved", "lines", "long", "surrogate"])
def test_firestore_refuses_what_the_rules_refuse(label: str, collection: str) -> None:
    assert broken_rule(label)
    with pytest.raises((InvalidArgument, ValueError)):
        firestore.Client().collection(collection).document("a").create(
            {"counts": {label: 1}, "at": firestore.SERVER_TIMESTAMP}
        )
