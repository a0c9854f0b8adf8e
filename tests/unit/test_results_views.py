"""The views of BigQuery over messages: one row for each image that has a result."""

import random
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from devtools.docs.document import DONE, FAILED, RECORDED_AT, TASKS
from devtools.docs.result_message import sample_messages, table_schema
from devtools.warehouse import Warehouse
from service.document import to_document
from service.domain import ImageResult, Task
from service.publish.result_message import EncodedMessage, deletion_message, message_of

GUIDE = Path(__file__).parents[2] / "docs" / "how-to" / "bigquery.md"


def result(name: str, *labels: str, base: ImageResult = DONE) -> ImageResult:
    ref = replace(base.ref, name=name)
    [pattern, *_] = DONE.detections
    found = tuple(replace(pattern, label=label, class_id=7) for label in labels)
    return replace(base, ref=ref, detections=found)


def message(result: ImageResult, *, seconds: int = 0) -> EncodedMessage:
    """Return the message of a document that was created so many seconds after the first one."""
    created_at = RECORDED_AT + timedelta(seconds=seconds)
    return message_of(result.ref.document_id, to_document(result) | {"created_at": created_at})


def deletion(result: ImageResult, *, seconds: int) -> EncodedMessage:
    deleted_at = RECORDED_AT + timedelta(seconds=seconds)
    return deletion_message(result.ref.document_id, result.ref, deleted_at)


def warehouse_of(messages: Sequence[EncodedMessage]) -> Warehouse:
    return Warehouse([each.data for each in messages])


def names(warehouse: Warehouse) -> list[tuple[Any, ...]]:
    return warehouse.query("SELECT name, labels, status FROM `p.d.results` ORDER BY name")


def test_rows_are_the_documents_whatever_order_and_repeats() -> None:
    cat, dog, broken = result("cat", "cat"), result("dog", "dog"), result("bad", base=FAILED)
    gone = result("gone", "fox")
    again = result("dog", "wolf", "wolf")  # a later run with another model
    messages = [
        message(cat), message(dog), message(broken), message(gone),
        message(again, seconds=60), deletion(gone, seconds=90),
    ]  # fmt: skip
    expected = [("bad", [], "failed"), ("cat", ["cat"], "done"), ("dog", ["wolf"], "done")]
    shuffler = random.Random(7)
    for _ in range(10):
        delivered = messages + shuffler.choices(messages, k=9)
        shuffler.shuffle(delivered)
        assert names(warehouse_of(delivered)) == expected


def test_settings_applied_to_a_stored_result_replace_its_row() -> None:
    before = result("cat", "cat", "dog")
    version = replace(DONE.source, version=RECORDED_AT + timedelta(days=1))
    after = replace(result("cat", "cat"), source=version)
    for order in ([before, after], [after, before], [after, before, before]):
        assert names(warehouse_of([message(each) for each in order])) == [("cat", ["cat"], "done")]


def test_late_message_of_a_deleted_image_adds_no_row() -> None:
    gone, other = result("gone", "fox"), result("other", "cat")
    late = [deletion(gone, seconds=5), message(gone), message(gone, seconds=9), message(other)]
    warehouse = warehouse_of(late)
    assert names(warehouse) == [("other", ["cat"], "done")]
    assert warehouse.query("SELECT DISTINCT name FROM `p.d.detections`") == [("other",)]


def test_detections_are_rows_with_the_fields_of_their_image() -> None:
    two = result("two", "cat", "dog")
    none = result("none")
    warehouse = warehouse_of([message(two), message(two), message(none)])
    # BigQuery counts `detection_index` from 0, DuckDB from 1.
    rows = warehouse.query(
        "SELECT name, source_id, detection_index - MIN(detection_index) OVER (), label, "
        "confidence, x1, zones FROM `p.d.detections` ORDER BY detection_index"
    )
    assert rows == [
        ("two", "cam1", 0, "cat", 0.93, 12.5, ["gate"]),
        ("two", "cam1", 1, "dog", 0.93, 12.5, ["gate"]),
    ]


def test_columns_of_the_views_have_different_names() -> None:
    """BigQuery refuses a view with two columns of the same name."""
    [detections] = [column for column in table_schema() if column["name"] == "detections"]
    image = {column["name"] for column in table_schema() if column["mode"] != "REPEATED"}
    found = {field["name"] for field in detections["fields"]} | {"detection_index"}
    assert not image & found
    rows = warehouse_of(sample_messages()[:1]).query("SELECT * FROM `p.d.detections`")
    assert [len(row) for row in rows] == [len(image) + len(found)]


@pytest.mark.parametrize(
    ("task", "sql", "expected"),
    [
        (Task.SEGMENT, "SELECT area, polygons[0].points[1] FROM `p.d.detections`", (52310.0, 40.0)),
        (Task.POSE, "SELECT keypoints[0].name FROM `p.d.detections`", ("nose",)),
        (Task.OBB, "SELECT rotated_box.cx FROM `p.d.detections`", (150.0,)),
        (Task.CLASSIFY, "SELECT classes[0].label FROM `p.d.results`", ("fox",)),
    ],
    ids=str,
)
def test_fields_of_each_task_are_in_the_views(
    task: Task, sql: str, expected: tuple[Any, ...]
) -> None:
    assert warehouse_of([message(TASKS[task])]).query(sql) == [expected]


def test_columns_keep_their_types() -> None:
    warehouse = warehouse_of(sample_messages()[:1])
    [row] = warehouse.query("SELECT created_at, day, generation, latitude FROM `p.d.results`")
    assert row == (RECORDED_AT, DONE.day, DONE.ref.generation, 46.6)


def test_no_message_means_no_row() -> None:
    assert names(warehouse_of([])) == []


def queries() -> list[str]:
    return re.findall(r"```sql\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)


def test_queries_of_the_guide_run() -> None:
    found = queries()
    assert len(found) >= 5
    two = result("two", "person", "person")
    warehouse = warehouse_of([message(two), message(two), message(result("bad", base=FAILED))])
    rows = [warehouse.query(sql.replace("yolo_batch.", "p.d.")) for sql in found]
    days, persons, hours, failures, surveys, repeats = rows
    assert days == [(DONE.day, "person", 2, 0.93)]
    assert persons == [("gs://uploads/two", DONE.captured_at, 2)]
    assert hours == [(RECORDED_AT.replace(minute=0, second=0), 2)]
    assert failures == [("empty_object", 1, "gs://uploads/bad")]
    assert surveys == [("gs://uploads/two", ["person"])]
    assert repeats == [(1, 0)]
