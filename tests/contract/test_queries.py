"""The queries of the README and of docs/how-to/query-results.md, run as they are printed."""

import ast
import re
from datetime import UTC, date, datetime, timedelta
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
    SourceVersion,
)
from service.gcp.firestore import ResultStore
from tests.fakes import PATIENCE_SECONDS

REPOSITORY = Path(__file__).parents[2]


PAGE = "docs/how-to/query-results.md"
LOOP = "failed = newest.where"


def blocks(document: str) -> list[str]:
    """Return the Python blocks of a page."""
    text = (REPOSITORY / document).read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


SETUP, *BLOCKS = blocks(PAGE)
[NEWEST] = [block for block in BLOCKS if block.startswith("newest = ")]
# The images that each query finds, in its order: their numbers, 07b for a second generation.
FOUND = {
    "labels": "07 07b 09 12",
    "counts.car": "08",
    "traffic light": "11",
    "best first": "12 07b",
    "uncertain person": "09",
    "uncertain": "08",
    "zone": "08",
    "error": "10",
    "current": "07b",
    "newest": "12 11 10 09 08 07b 07 06",
    "since": "12 11 10 09 08 07b 07 06",
    "failed": "10",
    "label": "12 09 07b 07",
    "day": "12 09",
    "source": "12 08 06",
    "nothing found": "06",
    "newest of a zone": "08",
    "nothing found, of a source": "06",
}
QUERIES = [block for block in BLOCKS if block != NEWEST and not block.startswith(LOOP)]


def store() -> ResultStore:
    return ResultStore(
        firestore.Client(), collection="detections", timeout_seconds=PATIENCE_SECONDS
    )


def seen(name: str, *found: tuple[str, float], generation: int = 1, **more: Any) -> ImageResult:
    detections = (
        Detection(label, 0, score, Box(0, 0, 9, 9), zones=more.get("zones", ()))
        for label, score in found
    )
    return ImageResult(
        ImageRef("uploads", name, generation),
        image_info=ImageInfo(64, 48, "JPEG"),
        model=ModelInfo("m", "0", 640, "fp32", "openvino"),
        detections=tuple(detections),
        **more,
    )


@pytest.fixture(scope="module")
def since() -> datetime:
    return datetime.now(UTC) - timedelta(minutes=5)  # clocks may differ


@pytest.fixture
def seeded() -> list[ImageResult]:
    """Commit images one after the other, so that each has a later time than those before it."""
    day, gate = date(2026, 11, 30), SourceVersion("gate")
    images = [
        seen("cam1/06.jpg", source=gate),
        seen("cam1/07.jpg", ("person", 0.5), generation=1),
        seen("cam1/07.jpg", ("person", 0.7), ("car", 0.5), generation=2),
        seen("cam1/08.jpg", *[("car", 0.29)] * 4, source=gate, zones=("gate-1",)),
        seen("cam1/09.jpg", *[("car", 0.6)] * 3, ("person", 0.35), day=day),
        ImageResult(
            ImageRef("uploads", "cam1/10.jpg", 1),
            failure=Failure(ErrorCode.CORRUPT_IMAGE, "The JPEG file is damaged or cut short."),
        ),
        seen("cam1/11.jpg", ("traffic light", 0.7)),
        seen("cam1/12.jpg", ("person", 0.8), day=day, source=gate),
    ]
    for image in images:
        store().commit([image])
    return images


@pytest.mark.usefixtures("seeded")
@pytest.mark.parametrize(
    ("query", "expected"), list(zip(QUERIES, FOUND.values(), strict=True)), ids=list(FOUND)
)
def test_query_finds_its_images_in_order(query: str, expected: str, since: datetime) -> None:
    names: dict[str, Any] = {"since": since}
    *before, last = ast.parse(query).body
    assert isinstance(last, ast.Expr)
    exec("\n".join([SETUP, NEWEST, *map(ast.unparse, before)]), names)
    snapshots = eval(ast.unparse(last), names).stream()
    found = [snapshot.get("name")[5:7] + _letter(snapshot) for snapshot in snapshots]
    if "order_by" in query or query.startswith("newest"):
        assert found == expected.split()
    else:
        assert sorted(found) == expected.split()


def _letter(snapshot: Any) -> str:
    return {1: "", 2: "b"}[snapshot.get("generation")]


@pytest.mark.usefixtures("seeded")
def test_loop_over_failed_images_prints_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    [loop] = [block for block in BLOCKS if block.startswith(LOOP)]
    exec(SETUP + NEWEST + loop, {})
    assert capsys.readouterr().out == (
        "gs://uploads/cam1/10.jpg corrupt_image The JPEG file is damaged or cut short.\n"
    )


def test_readme_has_two_of_the_queries() -> None:
    setup, *others = blocks("README.md")
    assert setup == SETUP
    assert [block for block in others if block.startswith("results.")] == QUERIES[:2]
