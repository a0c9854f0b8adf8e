"""The table for a person."""

from typing import Any

import pytest

from devtools.fuzz.corpus import NAMES
from service.cli.report import bucket_note, table
from service.document import to_document
from service.domain import Box, Detection, ErrorCode, Failure, ImageRef, ImageResult, Timings

REF = ImageRef("uploads", "cat.jpg", 1)
BOX = Box(0.0, 0.0, 1.0, 1.0)


def done(*found: Detection) -> dict[str, Any]:
    timings = Timings(download_ms=10.0, decode_ms=5.0, queue_ms=20.0, inference_ms=6.6)
    return to_document(ImageResult(REF, detections=found, batch_size=4, timings=timings))


def test_table_of_done_picture_counts_labels_and_sums_its_time() -> None:
    found = [Detection("person", 0, 0.876, BOX), Detection("cat", 15, 0.5, BOX)]
    rows = table([done(*found, found[0])]).splitlines()
    assert rows[0].split() == ["picture", "status", "found", "best", "batch", "ms"]
    assert rows[2].split("  ")[0] == "cat.jpg"
    assert rows[2].split() == ["cat.jpg", "done", "1", "cat,", "2", "person", "0.88", "4", "42"]


def test_table_shows_labels_that_could_break_it() -> None:
    found = [Detection("a\n\x1b[2Jb", 0, 0.5, BOX), Detection("traffic light", 9, 0.5, BOX)]
    lines = table([done(*found)]).splitlines()
    assert len(lines) == 3
    assert "1 a??[2Jb, 1 traffic light" in lines[2]


def test_table_of_picture_of_nothing_says_so() -> None:
    row = table([done()]).splitlines()[2]
    assert row.split() == ["cat.jpg", "done", "nothing", "4", "42"]


def test_table_of_failed_picture_gives_the_reason() -> None:
    failure = Failure(ErrorCode.CORRUPT_IMAGE, "The JPEG file is damaged.")
    row = table([to_document(ImageResult(REF, failure=failure))]).splitlines()[2]
    assert row.strip() == "cat.jpg    failed    corrupt_image: The JPEG file is damaged."


def test_table_of_name_that_looks_like_a_number_keeps_it() -> None:
    document = done() | {"name": "1e5"}
    assert table([document]).splitlines()[2].startswith("1e5 ")


@pytest.mark.parametrize("name", NAMES.values(), ids=list(NAMES))
def test_table_shows_any_name_in_one_row_and_does_nothing_to_the_terminal(name: str) -> None:
    shown = table([done() | {"name": name}])
    assert shown.count("\n") == 2
    assert shown.replace("\n", "").isprintable()


def test_table_of_nothing_has_only_its_header() -> None:
    assert table([]).split()[:6] == ["picture", "status", "found", "best", "batch", "ms"]


@pytest.mark.parametrize(
    ("allowed", "is_warned"), [((), False), (("a", "b"), False), (("b",), True)], ids=str
)
def test_bucket_that_is_not_allowed_is_warned_of(allowed: tuple[str, ...], is_warned: bool) -> None:
    note = bucket_note("a", allowed)
    assert (note is not None) == is_warned
    assert not note or "gs://a is not in ALLOWED_BUCKETS" in note
