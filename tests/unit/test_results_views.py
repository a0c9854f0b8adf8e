"""The views of BigQuery, run by DuckDB over messages: one row for each image that has a result.

sqlglot translates the SQL of the views. DuckDB converts the JSON of each message to the types of
the table.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest
import sqlglot

from devtools.docs.document import DONE, FAILED, RECORDED_AT, TASKS
from devtools.docs.result_message import sample_messages, table_schema
from service.document import to_document
from service.domain import ImageResult, Task
from service.result_message import EncodedMessage, deletion_message, message_of

VIEWS = Path(__file__).parents[2] / "terraform" / "modules" / "yolo-batch" / "views"
NAMES = {"table": "p.d.messages", "results": "p.d.results"}


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


class Warehouse:
    """A table with a row for each message, and the views."""

    def __init__(self, messages: Sequence[EncodedMessage]) -> None:
        self._database = duckdb.connect()
        self._database.execute("SET TimeZone = 'UTC'")
        self._database.execute("ATTACH ':memory:' AS p")
        self._database.execute("CREATE SCHEMA p.d")
        kinds = {column["name"]: duckdb_type(column) for column in table_schema()}
        columns = ", ".join(f'"{name}" {kind}' for name, kind in kinds.items())
        self._database.execute(f"CREATE TABLE p.d.messages ({columns})")
        for each in messages:
            text = json.dumps(json.loads(each.data) | {})
            values = ", ".join(
                f"from_json(json_extract(m, '$.{name}'), '{json.dumps(duckdb_shape(column))}')"
                for name, column in ((c["name"], c) for c in table_schema())
            )
            self._database.execute(
                f"INSERT INTO p.d.messages SELECT {values} FROM (SELECT ?::JSON AS m)", [text]
            )
        for name in ("results", "detections"):
            self._database.execute(f"CREATE VIEW p.d.{name} AS {translated(name)}")

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Run a query in BigQuery's dialect."""
        [statement] = sqlglot.transpile(sql, read="bigquery", write="duckdb")
        return self._database.execute(statement).fetchall()


def translated(view: str) -> str:
    """Return a view's SQL for DuckDB."""
    text = (VIEWS / f"{view}.sql").read_text(encoding="utf-8")
    for name, value in NAMES.items():
        text = text.replace(f"${{{name}}}", value)
    [statement] = sqlglot.transpile(text, read="bigquery", write="duckdb")
    return statement


def duckdb_type(column: dict[str, Any]) -> str:
    kinds = {
        "STRING": "VARCHAR", "TIMESTAMP": "TIMESTAMPTZ", "DATE": "DATE", "INTEGER": "BIGINT",
        "FLOAT": "DOUBLE",
    }  # fmt: skip
    if column["type"] == "RECORD":
        fields = ", ".join(f'"{each["name"]}" {duckdb_type(each)}' for each in column["fields"])
        kind = f"STRUCT({fields})"
    else:
        kind = kinds[column["type"]]
    return f"{kind}[]" if column["mode"] == "REPEATED" else kind


def duckdb_shape(column: dict[str, Any]) -> Any:
    """Return a type as the structure that DuckDB's from_json reads."""
    if column["type"] == "RECORD":
        shape: Any = {each["name"]: duckdb_shape(each) for each in column["fields"]}
    else:
        shape = duckdb_type(column | {"mode": ""})
    return [shape] if column["mode"] == "REPEATED" else shape


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
        assert names(Warehouse(delivered)) == expected


def test_late_message_of_a_deleted_image_adds_no_row() -> None:
    gone, other = result("gone", "fox"), result("other", "cat")
    late = [deletion(gone, seconds=5), message(gone), message(gone, seconds=9), message(other)]
    warehouse = Warehouse(late)
    assert names(warehouse) == [("other", ["cat"], "done")]
    assert warehouse.query("SELECT DISTINCT name FROM `p.d.detections`") == [("other",)]


def test_detections_are_rows_with_the_fields_of_their_image() -> None:
    two = result("two", "cat", "dog")
    none = result("none")
    warehouse = Warehouse([message(two), message(two), message(none)])
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
    rows = Warehouse(sample_messages()[:1]).query("SELECT * FROM `p.d.detections`")
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
    assert Warehouse([message(TASKS[task])]).query(sql) == [expected]


def test_columns_keep_their_types() -> None:
    warehouse = Warehouse(sample_messages()[:1])
    [row] = warehouse.query("SELECT created_at, day, generation, latitude FROM `p.d.results`")
    assert row == (RECORDED_AT, DONE.day, DONE.ref.generation, 46.6)


def test_no_message_means_no_row() -> None:
    assert names(Warehouse([])) == []
