"""The README's queries, run as they stand there."""

import re
from pathlib import Path
from typing import Any

import pytest
from google.cloud import firestore

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
from service.gcp.firestore import ResultStore
from service.gcp.result_reader import ResultReader
from tests.fakes import PATIENCE_SECONDS

README = (Path(__file__).parents[2] / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
SETUP, QUERIES = SNIPPETS[0], SNIPPETS[1:]


def store() -> ResultStore:
    return ResultStore(
        firestore.Client(), collection="detections", timeout_seconds=PATIENCE_SECONDS
    )


def seen(name: str, *found: tuple[str, float]) -> ImageResult:
    return ImageResult(
        ImageRef("uploads", name, 1),
        image_info=ImageInfo(64, 48, "JPEG"),
        model=ModelInfo("m", "0", 640, "fp32", "openvino"),
        detections=tuple(Detection(label, 0, score, Box(0, 0, 9, 9)) for label, score in found),
    )


@pytest.fixture(scope="module")
def seeded() -> list[ImageResult]:
    return [
        seen("cam1/07.jpg", ("person", 0.95), ("car", 0.5)),
        seen("cam1/08.jpg", *[("car", 0.6)] * 4),
        seen("cam1/11.jpg", ("traffic light", 0.7)),
        seen("cam1/09.jpg", *[("car", 0.6)] * 3),
        ImageResult(
            ImageRef("uploads", "cam1/10.jpg", 1),
            failure=Failure(ErrorCode.CORRUPT_IMAGE, "The JPEG file is damaged or cut short."),
        ),
    ]


@pytest.mark.parametrize(
    ("query", "expected"),
    list(
        zip(
            QUERIES,
            [f"cam1/{number}.jpg" for number in ("07", "08", "11", "07", "10", "07")],
            strict=True,
        )
    ),
    ids=["person", "three-cars", "traffic-light", "confident", "failed", "uri"],
)
def test_readme_query_finds_its_image(query: str, expected: str, seeded: list[ImageResult]) -> None:
    store().commit(seeded)
    names: dict[str, Any] = {}
    exec(SETUP, names)
    found = eval(query, names).stream()
    assert [snapshot.get("name") for snapshot in found] == [expected]


def test_readme_shows_every_field_of_a_document(seeded: list[ImageResult]) -> None:
    example = re.search(r"```json\n(.*?)```", README, re.DOTALL)
    assert example
    store().commit(seeded)
    (document,) = ResultReader(
        firestore.Client(), collection="detections", timeout_seconds=PATIENCE_SECONDS
    ).results("uploads", "cam1/07.jpg")
    shown = set(re.findall(r'"(\w+)":', example[1]))
    assert set(document) <= shown
