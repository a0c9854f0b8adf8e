"""What a change of a variable does to Firestore's indexes and to the expiry of documents.

On a fake provider: it shows what Terraform replaces and deletes, and in which order. What a
deletion of a field does is in the provider's source: it resets indexes and TTL to the configuration
of `*`, or does nothing with `deletion_policy = "ABANDON"`.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.standin import BASE, matrix, needs_standin, terraform

MODULE = "module.yolo_batch."
FIELD = MODULE + "google_firestore_field."
INDEX = MODULE + "google_firestore_index.main"
# A deployment that uses everything. `max_instances` keeps it below the limit of an index by time.
FULL = {"results_ttl_days": 30, "query_by_time": True, "indexed_fields": ["model.name"]}
CHANGES: list[dict[str, Any]] = [
    {"name": "first ttl", "set": {"results_ttl_days": 30}},
    {"name": "all fields", "set": {"index_all_fields": True}},
    {"name": "by time", "set": {"query_by_time": True}},
    {"name": "own field", "set": {"indexed_fields": ["model.name"]}},
    {"name": "longer ttl", "from": FULL, "set": {"results_ttl_days": 60}},
    {"name": "no ttl", "from": FULL, "set": {"results_ttl_days": None}},
    {"name": "not by time", "from": FULL, "set": {"query_by_time": False}},
    {"name": "no own field", "from": FULL, "set": {"indexed_fields": []}},
]
ALL_INDEXED = ["counts", "error.code", "labels", "max_confidence", "status", "uri"]

pytestmark = needs_standin


@pytest.fixture(scope="module")
def changes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """Return what each change does to fields and indexes, by address."""
    reports = matrix(CHANGES, tmp_path_factory.mktemp("matrix"), base=BASE | {"max_instances": 5})
    return {
        name: {
            action["address"]: action["action"]
            for action in report["actions"]
            if action["address"].startswith((FIELD, INDEX))
        }
        for name, report in reports.items()
    }


def test_ttl_change_replaces_nothing_but_its_field(changes: dict[str, dict[str, str]]) -> None:
    for name in ("first ttl", "longer ttl", "no ttl"):
        assert changes[name] == {FIELD + "created_at": "replace, OLD ONE FIRST"}


def test_index_variables_only_update_fields_in_place(changes: dict[str, dict[str, str]]) -> None:
    fields = {f'{FIELD}indexed["{field}"]': "update" for field in ALL_INDEXED}
    assert changes["all fields"] == {FIELD + "others": "update", **fields}
    assert changes["own field"] == {f'{FIELD}indexed["model.name"]': "create"}
    assert changes["no own field"] == {f'{FIELD}indexed["model.name"]': "DESTROY"}


def test_query_by_time_updates_created_at_in_place(changes: dict[str, dict[str, str]]) -> None:
    both = [f'{INDEX}["labels_time"]', f'{INDEX}["status_time"]']
    for name, action in (("by time", "create"), ("not by time", "DESTROY")):
        expected = {FIELD + "created_at": "update", **dict.fromkeys(both, action)}
        assert changes[name] == expected


def _fields(state: Path) -> dict[str, dict[str, Any]]:
    """Return the configured fields of the fake Firestore, by path."""
    [cloud] = state.glob("cloud.json")
    objects = json.loads(cloud.read_text())["objects"]
    return {
        each["field"]: each
        for key, each in objects.items()
        if key.startswith("google_firestore_field:")
    }


def _apply(state: Path, **variables: Any) -> dict[str, dict[str, Any]]:
    done = terraform(
        "apply",
        "-auto-approve",
        variables=BASE | {"protect_data": False} | variables,
        state=state,
    )
    assert done.returncode == 0, done.output
    return _fields(state)


def test_no_reset_builds_an_index_and_none_keeps_a_ttl(tmp_path: Path) -> None:
    fields = _apply(tmp_path, indexed_fields=["model.name"])
    assert fields["created_at"]["deletion_policy"] == "ABANDON"  # its indexes stay as they are
    fields = _apply(tmp_path, results_ttl_days=30)
    assert "model.name" not in fields  # it lost its index
    assert fields["created_at"]["deletion_policy"] == "DELETE"  # a change removes the TTL for sure
    assert fields["created_at"]["ttl_config"][0]["expiration_offset"] == "2592000s"

    variables = BASE | {"protect_data": False, "results_ttl_days": 30}
    done = terraform("destroy", "-auto-approve", variables=variables, state=tmp_path)
    assert done.returncode == 0, done.output
    left = _fields(tmp_path)
    assert "created_at" not in left  # documents that stay no longer expire
    assert left["*"]["index_config"] in ([{}], [{"indexes": []}])  # and are not indexed again
    assert {"labels", "counts", "detections"} < set(left)
