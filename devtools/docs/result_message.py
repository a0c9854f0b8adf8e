"""The reference of the result message: its JSON Schema, and the schema of the BigQuery table."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from devtools.docs.document import DONE, RECORDED_AT, samples
from devtools.docs.markdown import code, fence, table
from service.publish.result_message import (
    EncodedMessage,
    ResultMessage,
    deletion_message,
    message_of,
)

_REPOSITORY = Path(__file__).parents[2]
JSON_SCHEMA = _REPOSITORY / "docs" / "reference" / "result-message.schema.json"
TABLE_SCHEMA = _REPOSITORY / "terraform" / "modules" / "yolo-batch" / "results_table.json"
# BigQuery's types: https://cloud.google.com/bigquery/docs/schemas#standard_sql_data_types
_TYPES = {
    ("string", None): "STRING",
    ("string", "date-time"): "TIMESTAMP",
    ("string", "date"): "DATE",
    ("integer", None): "INTEGER",
    ("number", None): "FLOAT",
    ("boolean", None): "BOOLEAN",
}


def files() -> dict[Path, str]:
    """Return the text of both schemas, by file."""
    return {JSON_SCHEMA: schema_text(json_schema()), TABLE_SCHEMA: schema_text(table_schema())}


def json_schema(kind: type[msgspec.Struct] = ResultMessage) -> dict[str, Any]:
    """Return the JSON Schema of a message."""
    [root], definitions = msgspec.json.schema_components([kind], ref_template="#/$defs/{name}")
    definitions = {name: _closed(each) for name, each in definitions.items()}
    message = definitions.pop(root["$ref"].rpartition("/")[2])
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **message,
        "$defs": definitions,
    }


def table_schema() -> list[dict[str, Any]]:
    """Return the columns of the BigQuery table, as BigQuery's API has them.

    Only the columns that every message has are required. So fields can be added later.
    """
    schema = json_schema()
    return [
        _column(name, each, schema["$defs"], is_required=name in schema["required"])
        for name, each in schema["properties"].items()
    ]


def sample_messages() -> list[EncodedMessage]:
    """Return messages of results of each kind, and of a deletion."""
    messages = [message_of(DONE.ref.document_id, document) for document in samples()]
    return [*messages, deletion_message(DONE.ref.document_id, DONE.ref, RECORDED_AT)]


def fields_table() -> str:
    """Return a table of the message's fields."""
    rows = [
        (code(path), column["type"], column["mode"].lower(), column["description"])
        for path, column in _columns(table_schema())
    ]
    return table(("field", "BigQuery type", "mode", "meaning"), rows)


def examples() -> str:
    """Return the message of a result and that of a deletion, as JSON."""
    done, *_, deleted = sample_messages()
    return (
        f"An image that was processed:\n\n{message_text(done)}\n\n"
        f"An image whose result was removed:\n\n{message_text(deleted)}"
    )


def _closed(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of an object that has no other properties, without defaults."""
    properties = {
        name: {key: value for key, value in each.items() if key != "default"}
        for name, each in schema["properties"].items()
    }
    return {**schema, "properties": properties, "additionalProperties": False}


def _column(
    name: str, schema: Mapping[str, Any], definitions: Mapping[str, Any], *, is_required: bool
) -> dict[str, Any]:
    description = schema.get("description")
    is_repeated = schema.get("type") == "array"
    if is_repeated:
        schema = schema["items"]
    for part in schema.get("allOf", ()):  # a reference with a description
        schema = {**schema, **part}
    mode = "REPEATED" if is_repeated else "REQUIRED" if is_required else "NULLABLE"
    column: dict[str, Any] = {"name": name, "mode": mode}
    if reference := schema.get("$ref"):
        record = definitions[reference.rpartition("/")[2]]
        column["type"] = "RECORD"
        # All nullable: BigQuery cannot add a required column later, nor relax one in a record.
        column["fields"] = [
            _column(each, field, definitions, is_required=False)
            for each, field in record["properties"].items()
        ]
    else:
        column["type"] = _TYPES[schema["type"], schema.get("format")]
    return column | ({"description": description} if description else {})


def _columns(
    columns: list[dict[str, Any]], prefix: str = ""
) -> Iterator[tuple[str, dict[str, Any]]]:
    for column in columns:
        path = f"{prefix}{column['name']}"
        yield path, column
        dots = "[]." if column["mode"] == "REPEATED" else "."
        yield from _columns(column.get("fields", []), f"{path}{dots}")


def message_text(message: EncodedMessage) -> str:
    """Return a message as JSON, with its attributes."""
    text = json.dumps(json.loads(message.data), indent=2, ensure_ascii=False)
    attributes = ", ".join(f"`{key}` = `{value}`" for key, value in message.attributes.items())
    return f"{fence('json', text)}\n\nIts attributes: {attributes}."


def schema_text(value: object) -> str:
    """Return a schema as the text of its file."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
