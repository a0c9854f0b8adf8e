"""The table and the views of BigQuery on this machine: sqlglot translates them for DuckDB."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import duckdb
import sqlglot

from devtools.docs.result_message import table_schema

_VIEWS = Path(__file__).parents[1] / "terraform" / "modules" / "yolo-batch" / "views"
_NAMES = {"table": "p.d.messages", "results": "p.d.results"}


class Warehouse:
    """A table with a row for each message, and the views."""

    def __init__(self, messages: Iterable[bytes]) -> None:
        self._database = duckdb.connect()
        self._database.execute("SET TimeZone = 'UTC'")
        self._database.execute("ATTACH ':memory:' AS p")
        self._database.execute("CREATE SCHEMA p.d")
        columns = table_schema()
        types = ", ".join(f'"{column["name"]}" {_type(column)}' for column in columns)
        values = ", ".join(
            f"from_json(m->'$.{column['name']}', '{json.dumps(_shape(column))}')"
            for column in columns
        )
        self._database.execute(f"CREATE TABLE p.d.messages ({types})")
        for data in messages:
            self._database.execute(
                f"INSERT INTO p.d.messages SELECT {values} FROM (SELECT ?::JSON AS m)",
                [data.decode()],
            )
        for name in ("results", "detections"):
            self._database.execute(f"CREATE VIEW p.d.{name} AS {_translated(name)}")

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Run a query in BigQuery's dialect."""
        [statement] = sqlglot.transpile(sql, read="bigquery", write="duckdb")
        return self._database.execute(statement).fetchall()


def _translated(view: str) -> str:
    """Return a view's SQL for DuckDB."""
    text = (_VIEWS / f"{view}.sql").read_text(encoding="utf-8")
    for name, value in _NAMES.items():
        text = text.replace(f"${{{name}}}", value)
    [statement] = sqlglot.transpile(text, read="bigquery", write="duckdb")
    return statement


def _type(column: dict[str, Any]) -> str:
    kinds = {
        "STRING": "VARCHAR", "TIMESTAMP": "TIMESTAMPTZ", "DATE": "DATE", "INTEGER": "BIGINT",
        "FLOAT": "DOUBLE",
    }  # fmt: skip
    if column["type"] == "RECORD":
        fields = ", ".join(f'"{each["name"]}" {_type(each)}' for each in column["fields"])
        kind = f"STRUCT({fields})"
    else:
        kind = kinds[column["type"]]
    return f"{kind}[]" if column["mode"] == "REPEATED" else kind


def _shape(column: dict[str, Any]) -> Any:
    """Return a type as the structure that DuckDB's from_json reads."""
    if column["type"] == "RECORD":
        shape: Any = {each["name"]: _shape(each) for each in column["fields"]}
    else:
        shape = _type(column | {"mode": ""})
    return [shape] if column["mode"] == "REPEATED" else shape
