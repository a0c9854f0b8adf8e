"""The queries of the README and of docs/how-to/query-results.md, run as they are printed."""

import re
from datetime import UTC, datetime, timedelta
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
from tests.fakes import PATIENCE_SECONDS

REPOSITORY = Path(__file__).parents[2]


PAGE = "docs/how-to/query-results.md"
BY_TIME = "## Queries by time"


def blocks(text: str) -> list[str]:
    """Return the Python blocks of a text."""
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def snippets(document: str) -> tuple[str, list[str]]:
    """Return a document's Python set-up, and its queries without those by time."""
    text = (REPOSITORY / document).read_text(encoding="utf-8").partition(BY_TIME)[0]
    setup, *others = blocks(text)
    return setup, [snippet for snippet in others if snippet.startswith("results.")]


SETUP, QUERIES = snippets(PAGE)
QUERIES_BY_TIME = blocks((REPOSITORY / PAGE).read_text(encoding="utf-8").partition(BY_TIME)[2])
LOOP = "for snapshot in results.where"


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
            [f"cam1/{number}.jpg" for number in ("07", "08", "11", "07", "10", "10", "07")],
            strict=True,
        )
    ),
    ids=["person", "three-cars", "traffic-light", "confident", "failed", "reason", "uri"],
)
def test_query_finds_its_image(query: str, expected: str, seeded: list[ImageResult]) -> None:
    store().commit(seeded)
    names: dict[str, Any] = {}
    exec(SETUP, names)
    snapshots = eval(query, names).stream()
    assert [snapshot.get("name") for snapshot in snapshots] == [expected]


@pytest.mark.parametrize(
    ("query", "expected"),
    list(zip(QUERIES_BY_TIME, ["07 08 09 10 11", "07 08 09 10 11", "10", "07"], strict=True)),
    ids=["since", "newest", "newest-failed", "newest-person"],
)
def test_query_by_time_finds_its_images(
    query: str, expected: str, seeded: list[ImageResult]
) -> None:
    since = datetime.now(UTC) - timedelta(minutes=5)  # clocks may differ
    store().commit(seeded)
    names: dict[str, Any] = {"since": since}
    exec(SETUP, names)
    *before, last = query.strip().split("\n")
    exec("\n".join(before), names)
    found = {snapshot.get("name") for snapshot in eval(last, names).stream()}
    assert found == {f"cam1/{number}.jpg" for number in expected.split()}


def test_loop_over_failed_images_prints_the_reason(
    seeded: list[ImageResult], capsys: pytest.CaptureFixture[str]
) -> None:
    store().commit(seeded)
    text = (REPOSITORY / PAGE).read_text(encoding="utf-8")
    exec(SETUP + LOOP + text.partition(LOOP)[2].partition("```")[0], {})
    assert capsys.readouterr().out == (
        "gs://uploads/cam1/10.jpg corrupt_image The JPEG file is damaged or cut short.\n"
    )


def test_readme_has_two_of_the_queries() -> None:
    setup, queries = snippets("README.md")
    assert setup == SETUP
    assert queries == QUERIES[:2]
