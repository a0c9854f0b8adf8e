"""The message of the results topic, its JSON Schema, and the table of BigQuery."""

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Any

import pytest
from google.api_core.datetime_helpers import DatetimeWithNanoseconds
from google.cloud import firestore
from jsonschema import Draft202012Validator

from devtools.docs import result_message as reference
from devtools.docs.document import DONE, RECORDED_AT, TASKS, samples
from service.document import to_document
from service.domain import (
    Alert,
    DerivedImage,
    DerivedKind,
    ImageResult,
    Severity,
    Task,
)
from service.errors import StoredResultError
from service.publish.result_message import (
    MAX_MESSAGE_BYTES,
    EncodedMessage,
    deletion_message,
    message_of,
)
from tests.masks import segmented

VALIDATOR = Draft202012Validator(reference.json_schema())
ID = DONE.ref.document_id
RICH = replace(
    DONE,
    derived=(
        DerivedImage(DerivedKind.THUMBNAIL, b"jpeg", "image/jpeg", 320, 240, uri="gs://r/t.jpg"),
        DerivedImage(DerivedKind.CROP, b"jpeg", "image/jpeg", 90, 80, 0, uri="gs://r/c.jpg"),
        DerivedImage(DerivedKind.LABELS, b"0 1", "text/plain", uri="gs://r/l.txt"),
    ),
    alerts=(Alert("a1", "person", "1", Severity.WARNING, "A person", {"person": 1}, 60),),
)


def document(result: ImageResult = DONE, **fields: Any) -> dict[str, Any]:
    return to_document(result) | {"created_at": RECORDED_AT} | fields


def message(result: ImageResult = DONE, **fields: Any) -> dict[str, Any]:
    return content(message_of(ID, document(result, **fields)))


def content(encoded: EncodedMessage) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(encoded.data)
    return fields


def every_message() -> list[dict[str, Any]]:
    return [*map(content, reference.sample_messages()), message(RICH)]


# The schemas


def test_every_message_is_valid_by_the_json_schema() -> None:
    Draft202012Validator.check_schema(reference.json_schema())
    for each in every_message():
        VALIDATOR.validate(each)


@pytest.mark.parametrize(
    "change",
    [{"generation": "7"}, {"more": 1}, {"labels": None}, {"top_label": None}],
    ids=lambda change: next(iter(change)),
)
def test_json_schema_refuses_another_form(change: dict[str, Any]) -> None:
    assert not VALIDATOR.is_valid(message() | change)


def test_committed_schemas_are_those_of_the_message() -> None:
    for path, text in reference.files().items():
        assert path.read_text(encoding="utf-8") == text


def test_table_has_the_fields_of_the_message() -> None:
    schema = reference.json_schema()
    assert shape_of_table(reference.table_schema()) == shape_of_schema(schema, schema)


def shape_of_table(columns: list[dict[str, Any]]) -> dict[str, Any]:
    """Return each column as its type in JSON, in a list if it is repeated."""
    kinds = {
        "STRING": ("string", None), "TIMESTAMP": ("string", "date-time"),
        "DATE": ("string", "date"), "INTEGER": ("integer", None), "FLOAT": ("number", None),
    }  # fmt: skip
    shape = {}
    for column in columns:
        is_record = column["type"] == "RECORD"
        kind = shape_of_table(column["fields"]) if is_record else kinds[column["type"]]
        shape[column["name"]] = [kind] if column["mode"] == "REPEATED" else kind
    return shape


def shape_of_schema(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Any:
    """Return the same for a JSON Schema."""
    schema = [*schema.get("allOf", ()), schema][0]
    if reference := schema.get("$ref"):
        schema = root["$defs"][reference.removeprefix("#/$defs/")]
    match schema["type"]:
        case "object":
            properties = schema["properties"].items()
            return {name: shape_of_schema(each, root) for name, each in properties}
        case "array":
            return [shape_of_schema(schema["items"], root)]
        case kind:
            return kind, schema.get("format")


def test_every_message_fits_into_the_table() -> None:
    for each in every_message():
        check_row(each, reference.table_schema())


def test_samples_have_every_field_of_the_message() -> None:
    seen: dict[str, set[str]] = {}
    for each in every_message():
        for name, value in each.items():
            if value not in ([], {}):
                seen.setdefault(name, set()).update(*(value if isinstance(value, list) else [""]))
    columns = {column["name"]: column for column in reference.table_schema()}
    assert set(seen) == set(columns)
    for name, column in columns.items():
        assert {field["name"] for field in column.get("fields", ())} <= seen[name], name


def check_row(row: Mapping[str, Any], columns: list[dict[str, Any]]) -> None:
    """Check that BigQuery can convert a JSON object to a row: names, types and modes."""
    by_name = {column["name"]: column for column in columns}
    required = {name for name, column in by_name.items() if column["mode"] == "REQUIRED"}
    assert required <= set(row) <= set(by_name)
    for name, value in row.items():
        column = by_name[name]
        is_repeated = column["mode"] == "REPEATED"
        assert isinstance(value, list) is is_repeated, name
        for element in value if is_repeated else [value]:
            check_value(element, column)


def check_value(value: Any, column: Mapping[str, Any]) -> None:
    match column["type"]:
        case "RECORD":
            check_row(value, column["fields"])
        case "STRING":
            assert type(value) is str
        case "INTEGER":
            assert type(value) is int and -(2**63) <= value < 2**63
        case "FLOAT":
            assert type(value) in (int, float)
        case "TIMESTAMP":
            assert datetime.fromisoformat(value).tzinfo and value.endswith("Z")
        case "DATE":
            assert str(date.fromisoformat(value)) == value
        case other:
            raise AssertionError(other)


# The message


def test_message_has_the_flat_fields_of_its_document() -> None:
    fields = message()
    assert (fields["document_id"], fields["generation"]) == (ID, 1732832936756275)
    assert (fields["model_name"], fields["source_id"]) == ("yolo26n.pt", "cam1")
    assert (fields["latitude"], fields["longitude"]) == (46.6, 8.03)
    assert fields["metadata"] == [{"key": "survey", "value": "autumn"}]
    [found] = fields["detections"]
    assert found == {
        "label": "person", "class_id": 0, "confidence": 0.93, "zones": ["gate"],
        "x1": 12.5, "y1": 40.0, "x2": 181.2, "y2": 470.9,
    }  # fmt: skip


def test_message_of_a_stored_document_is_the_same() -> None:
    created_at = DatetimeWithNanoseconds(2026, 11, 21, 3, 26, 1, 678901, tzinfo=UTC)
    plain = datetime(2026, 11, 21, 3, 26, 1, 678901, tzinfo=UTC)
    stored = document(created_at=created_at, location=firestore.GeoPoint(46.6, 8.03))
    assert message_of(ID, stored) == message_of(ID, document(created_at=plain))


def test_message_does_not_depend_on_the_order_of_maps() -> None:
    """Firestore does not keep it."""
    committed, stored = ({"a": "1", "b": "2"}, {"b": "2", "a": "1"})
    assert message_of(ID, document(metadata=committed)) == message_of(ID, document(metadata=stored))


@pytest.mark.parametrize("task", [Task.SEGMENT, Task.POSE, Task.OBB, Task.CLASSIFY])
def test_message_has_the_detections_of_each_task(task: Task) -> None:
    fields = message(TASKS[task])
    [found, *_] = fields["classes"] or fields["detections"]
    own = {"polygons", "area", "keypoints", "rotated_box"} & set(found)
    assert own == {
        Task.SEGMENT: {"polygons", "area"},
        Task.POSE: {"keypoints"},
        Task.OBB: {"rotated_box"},
        Task.CLASSIFY: set(),
    }.get(task)


def test_large_message_has_no_detections_and_says_so() -> None:
    encoded = message_of(ID, document(segmented("a.jpg"), detections_uri="gs://r/all.json.gz"))
    fields = content(encoded)
    assert len(encoded.data) <= MAX_MESSAGE_BYTES < len(json.dumps(document_json()))
    assert (fields["detections"], fields["left_out"]) == ([], ["detections"])
    assert fields["detections_uri"] == "gs://r/all.json.gz"
    assert fields["num_detections"] == 300
    VALIDATOR.validate(fields)


def document_json() -> Any:
    return to_document(segmented("a.jpg"))["detections"]


def test_deletion_names_the_image_and_the_time() -> None:
    encoded = deletion_message(ID, DONE.ref, RECORDED_AT)
    fields = {key: value for key, value in content(encoded).items() if value != []}
    assert fields == {
        "document_id": ID,
        "uri": "gs://uploads/cam1/07.jpg",
        "bucket": "uploads",
        "name": "cam1/07.jpg",
        "generation": 1732832936756275,
        "status": "deleted",
        "created_at": "2026-11-21T03:26:01Z",
    }
    assert encoded.attributes == {"status": "deleted"}


def test_attributes_are_those_that_filters_need() -> None:
    done, failed, *_ = (message_of(ID, each).attributes for each in samples())
    assert done == {"status": "done", "task": "detect", "source": "cam1", "top_label": "person"}
    assert failed == {"status": "failed"}


@pytest.mark.parametrize(("label", "is_there"), [("é" * 512, True), ("é" * 513, False)])
def test_label_too_long_for_an_attribute_is_left_out(label: str, is_there: bool) -> None:
    encoded = message_of(ID, document(top_label=label))
    assert ("top_label" in encoded.attributes) is is_there
    assert content(encoded)["top_label"] == label


@pytest.mark.parametrize(
    "change",
    [
        {"generation": "seven"},
        {"created_at": None},
        {"status": 7},
        {"status": ""},
        {"status": "deleted"},  # it would remove the image from the views for ever
        {"uri": None},
        {"error": "none"},
        {"location": "here"},
        {"labels": "person"},
        {"labels": [None]},
        {"day": "yesterday"},
        {"metadata": ["a"]},
        {"detections": [{"label": "person"}]},
        {"detections": ["person"]},
        {"detections": 7},
        {"derived": ["a"]},
        {"name": "\ud800"},
    ],
    ids=str,
)
def test_edited_document_has_no_message(change: dict[str, Any]) -> None:
    with pytest.raises(StoredResultError, match="another form"):
        message_of(ID, document(**change))


def test_document_of_an_older_version_has_a_message() -> None:
    newer = ("derived", "derived_error", "alerts", "left_out", "camera", "source", "metadata")
    old = {key: value for key, value in document().items() if key not in newer}
    VALIDATOR.validate(content(message_of(ID, old)))
