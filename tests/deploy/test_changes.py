"""What a change, a neighbour in the project and a tear-down do to a deployment.

Terraform runs on a fake of the google provider. It cannot show what Google's APIs would accept.
"""

import json
import re
import shutil
from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import Any

import pytest

from devtools.docs.terraform import blocks_of
from tests.deploy.changes import CHANGES, OTHER, Change, Effect, effects
from tests.deploy.standin import (
    BASE,
    DEPLOYED,
    MODULE,
    REPOSITORY,
    ROOT,
    Applied,
    Run,
    matrix,
    needs_standin,
    terraform,
)

pytestmark = needs_standin
IN_PLACE = "all variables that are changed in place"
REFUSED = "all variables that cannot be changed"
# These are planned together, because each plan takes seconds.
DESTROYING = {"what the defaults have": {}, "what others have": OTHER}
TOGETHER = {
    IN_PLACE: [change for change in CHANGES.values() if change.is_in_place],
    REFUSED: [change for change in CHANGES.values() if change.refused],
} | {
    name: [change for change in CHANGES.values() if change.only_destroys and change.start == start]
    for name, start in DESTROYING.items()
}
ALONE = {
    name: change
    for name, change in CHANGES.items()
    if not any(change in changes for changes in TOGETHER.values())
}
Steps = Mapping[str, tuple[Run, Path]]


def _merged(changes: list[Change]) -> Change:
    """Return one change for many that start from the same values."""
    return Change(
        reduce(lambda values, change: values | change.set, changes, {}),
        changes[0].start,
        destroys=frozenset().union(*(change.destroys for change in changes)),
    )


KNOWN = ALONE | {name: _merged(TOGETHER[name]) for name in TOGETHER}


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Effect]:
    """Return what the changes do."""
    return effects(KNOWN, tmp_path_factory.mktemp("changes"))


def _objects(state: Path) -> list[str]:
    """Return what exists in the fake cloud, without the indexes, which go with their database."""
    objects = json.loads((state / "cloud.json").read_text())["objects"]
    return sorted(name for name in objects if not name.startswith("google_firestore_field:"))


def _managed(state: Path) -> list[tuple[str, str]]:
    """Return the resources in Terraform's state."""
    return sorted((each.type, each.name) for each in Applied(state).resources)


def _calls(state: Path) -> list[str]:
    """Return the commands of gcloud that Terraform ran."""
    return [" ".join(command) for command in Applied(state).commands]


# --- Changes of variables


def test_second_plan_is_empty(planned: dict[str, Effect]) -> None:
    again = [effect for name, effect in planned.items() if name.startswith("nothing changed")]
    assert len(again) == len({str(change.start) for change in CHANGES.values()})
    assert again == [Effect({}, frozenset(), "")] * len(again)


@pytest.mark.parametrize("name", [name for name in KNOWN if name != REFUSED])
def test_change_replaces_only_what_is_known(name: str, planned: dict[str, Effect]) -> None:
    change, effect = KNOWN[name], planned[name]
    assert effect.refused == ""
    assert effect.addresses("replace, new one first") == change.replaces
    assert effect.addresses("replace, OLD ONE FIRST") == change.interrupts
    assert effect.addresses("DESTROY") == change.destroys
    assert effect.warnings == change.warnings


def test_changes_in_place_reach_the_service(planned: dict[str, Effect]) -> None:
    assert "google_cloud_run_v2_service.main" in planned[IN_PLACE].addresses("update")


def test_change_that_would_delete_data_is_refused(planned: dict[str, Effect]) -> None:
    refused = [change.refused for change in CHANGES.values() if change.refused]
    [fixed] = [each["fixed"] for each in blocks_of(MODULE / "guards.tf", "locals")]
    assert {text.split()[0] for text in refused} == set(fixed)
    error = planned[REFUSED].refused
    assert [text for text in refused if text not in error] == []
    assert error.count("Set it back. To move, make a second deployment:") == len(refused)


# --- Indexes and the expiry of documents

# The provider's source says what a deletion of a field does: it resets indexes and TTL to the
# configuration of `*`, or does nothing with `deletion_policy = "ABANDON"`.


def _on_firestore(effect: Effect) -> dict[str, dict[str, int]]:
    """Return the number of fields and indexes that a plan changes, by action."""
    found = {
        action: {
            address.removeprefix("google_firestore_"): count
            for address, count in addresses.items()
            if address.startswith(("google_firestore_field", "google_firestore_index"))
        }
        for action, addresses in effect.actions.items()
    }
    return {action: addresses for action, addresses in found.items() if addresses}


@pytest.mark.parametrize("change", ["= 30", "= 60, from 30", "= null, from 30"])
def test_ttl_change_replaces_nothing_but_its_field(change: str, planned: dict[str, Effect]) -> None:
    effect = planned[f"results_ttl_days {change}"]
    assert _on_firestore(effect) == {"replace, OLD ONE FIRST": {"field.created_at": 2}}


def test_index_variables_change_fields_in_place(planned: dict[str, Effect]) -> None:
    assert _on_firestore(planned[IN_PLACE]) == {
        "update": {"field.indexed": 7, "field.others": 1},
        "create": {"field.indexed": 1},
    }
    assert _on_firestore(planned["what others have"]) == {"DESTROY": {"field.indexed": 1}}


def _fields(state: Path) -> dict[str, dict[str, Any]]:
    """Return the configured fields of results in the fake Firestore, by path."""
    objects = json.loads((state / "cloud.json").read_text())["objects"]
    return {
        each["field"]: each
        for key, each in objects.items()
        if key.startswith("google_firestore_field:") and each["collection"] == "detections"
    }


def test_no_reset_builds_an_index_and_none_keeps_a_ttl(deployment: Path, tear_down: Steps) -> None:
    fields = _fields(deployment)
    assert "model.name" in fields
    assert fields["created_at"]["deletion_policy"] == "ABANDON"  # its indexes stay as they are
    fields = _fields(tear_down["unprotected"][1])
    assert "model.name" not in fields  # it lost its index
    assert fields["created_at"]["deletion_policy"] == "DELETE"  # a change removes the TTL for sure
    assert fields["created_at"]["ttl_config"][0]["expiration_offset"] == "2592000s"
    left = _fields(tear_down["destroyed"][1])
    assert "created_at" not in left  # documents that stay no longer expire
    assert left["*"]["index_config"] in ([{}], [{"indexes": []}])  # and are not indexed again
    assert {"labels", "counts", "detections"} < set(left)


# --- Another accelerator


def test_service_keeps_its_callers_until_the_next_one_has_them(tmp_path: Path) -> None:
    change = {"name": "accelerator", "set": {"accelerator": "nvidia-l4"}}
    report = matrix([change], tmp_path, ("--order", "--gcloud-delay", "2"))["accelerator"]
    assert report["refused"] == ""
    assert report["warnings"] == []
    events = {
        (event["action"], event["address"].removeprefix("module.yolo_batch.")): event
        for event in report["events"]
    }
    grant = 'google_cloud_run_v2_service_iam_member.events["uploads"]'
    move = events["update", 'google_eventarc_trigger.uploads["uploads"]']
    assert events["create", grant]["end"] <= move["begin"]
    assert move["end"] <= events["delete", grant]["begin"]


def test_service_keeps_its_callers_if_the_build_fails(deployment: Path, tmp_path: Path) -> None:
    state = shutil.copytree(deployment, tmp_path / "state", symlinks=True)
    done = terraform(
        *("apply", "-auto-approve"),
        variables=DEPLOYED | {"accelerator": "nvidia-l4"},
        state=state,
        options=("--gcloud-fail", "builds submit"),
    )
    assert done.returncode == 1
    assert "gcloud builds submit" in done.output
    assert "Destr" not in done.output
    assert set(_objects(state)) == set(_objects(deployment))


# --- Tear-down


def test_destroy_of_protected_data_destroys_nothing(deployment: Path, tear_down: Steps) -> None:
    done, state = tear_down["refused"]
    assert done.returncode == 1
    assert "Apply with protect_data=false first" in " ".join(done.output.split())
    assert "Destruction complete" not in done.output
    assert _objects(state) == _objects(deployment)
    assert _managed(state) == _managed(deployment)


def test_apply_that_would_delete_rows_destroys_nothing(deployment: Path, tmp_path: Path) -> None:
    state = shutil.copytree(deployment, tmp_path / "state", symlinks=True)
    without = DEPLOYED | {"bigquery": False}
    done = terraform("apply", "-auto-approve", variables=without, state=state)
    assert done.returncode == 1
    assert "protect_data is true, so no row was deleted" in " ".join(done.output.split())
    assert set(_objects(deployment)) == set(_objects(state))


def test_rows_stay_if_the_guide_is_followed(deployment: Path, tmp_path: Path) -> None:
    """docs/how-to/terraform-module.md: remove the dataset and the table from the state."""
    state = shutil.copytree(deployment, tmp_path / "state", symlinks=True)
    guide = (REPOSITORY / "docs" / "how-to" / "terraform-module.md").read_text()
    [block] = re.findall(r"```sh\n(terraform [^`]*state rm [^`]*bigquery[^`]*)```", guide)
    removed = re.findall(r"'(.+?)'", block)
    done = terraform("state", "rm", *removed, state=state)
    assert done.returncode == 0, done.output
    without = DEPLOYED | {"bigquery": False}
    done = terraform("apply", "-auto-approve", variables=without, state=state)
    assert done.returncode == 0, done.output
    left = {name for name in _objects(state) if "bigquery_" in name}
    assert {name.partition(":")[0] for name in left} == {
        "google_bigquery_dataset",
        "google_bigquery_table",
    }
    assert [name for name in left if name.endswith("/tables/messages")]


def test_destroy_leaves_what_the_page_says(tear_down: Steps) -> None:
    """docs/how-to/tear-down.md: APIs and Google's own service agents stay."""
    for name in ("unprotected", "destroyed"):
        done, state = tear_down[name]
        assert done.returncode == 0, done.output
    left = {name.partition(":")[0] for name in _objects(state)}
    assert left == {"google_project_service", "google_project_service_identity"}
    assert not [call for call in _calls(state) if "remove-iam-policy-binding" in call]


def test_destroy_after_a_failed_apply_needs_no_build(tmp_path: Path) -> None:
    """As docs/how-to/tear-down.md says: no other build is needed to unprotect the data."""
    state = tmp_path / "state"
    state.mkdir()
    variables = BASE | {"results_topic": True, "bigquery": True}
    failing = ("--gcloud-fail", "builds submit")
    done = terraform("apply", "-auto-approve", variables=variables, state=state, options=failing)
    assert done.returncode == 1
    targets = (
        "-target=module.yolo_batch.google_firestore_database.main[0]",
        "-target=module.yolo_batch.google_bigquery_table.messages[0]",
    )
    done = terraform(
        *("apply", "-auto-approve", *targets),
        variables=variables | {"protect_data": False},
        state=state,
        options=failing,
    )
    assert done.returncode == 0, done.output
    done = terraform("destroy", "-auto-approve", variables=variables, state=state)
    assert done.returncode == 0, done.output
    assert not [name for name in _objects(state) if "database" in name]


def test_nothing_is_destroyed_before_the_protection() -> None:
    """Every resource must be one on which `tear_down` depends, directly or through others."""
    done = terraform("graph", directory=MODULE)
    assert done.returncode == 0, done.output
    depends: dict[str, set[str]] = {}
    for dependent, dependency in re.findall(r'"(\S+)" -> "(\S+)"', done.output):
        depends.setdefault(dependent, set()).add(dependency)
    covered, waiting = set(), {"terraform_data.tear_down"}
    while waiting:
        covered.add(address := waiting.pop())
        waiting |= depends.get(address, set()) - covered
    resources = {
        f"{kind}.{name}"
        for path in MODULE.glob("*.tf")
        for block in blocks_of(path, "resource")
        for kind, named in block.items()
        for name in named
    }
    assert resources - covered == set()


def test_changed_subscription_is_reported_with_its_repair(deployment: Path, tmp_path: Path) -> None:
    state = shutil.copytree(deployment, tmp_path / "state", symlinks=True)
    [tuned] = [call for call in _calls(state) if call.startswith("pubsub subscriptions update")]
    log = state / "gcloud.jsonl"
    lines = [
        line for line in log.read_text().splitlines() if '"subscriptions", "update"' not in line
    ]
    log.write_text("\n".join([*lines, ""]))
    done = terraform("plan", "-no-color", "-detailed-exitcode", variables=DEPLOYED, state=state)
    assert done.returncode == 0, done.output
    assert done.output.count(f"\n  gcloud {tuned}\n") == 3  # a line that can be copied
    assert "does not have an ack deadline of 600 s" in " ".join(done.output.split())


# --- Neighbours in the project


def test_grants_of_googles_accounts_are_made_and_left(deployment: Path) -> None:
    grants = [
        call for call in _calls(deployment) if call.startswith("projects add-iam-policy-binding")
    ]
    assert len(grants) == 2
    assert all("--condition=None" in call for call in grants)
    assert re.findall(
        r"--member=serviceAccount:service-\d+@\S+ --role=(\S+)", "\n".join(grants)
    ) == [
        "roles/eventarc.serviceAgent",
        "roles/pubsub.publisher",
    ]


def _write_deployments(folder: Path, *names: str) -> None:
    """Write a configuration with one deployment for each name, in the same project."""
    shutil.copytree(MODULE, folder / "modules" / "yolo-batch", dirs_exist_ok=True)
    directory = folder / "two"
    directory.mkdir(exist_ok=True)
    shutil.copy(ROOT / "versions.tf", directory)
    calls = [
        f'''
        module "{name}" {{
          source             = "../modules/yolo-batch"
          name               = "{name}-batch"
          project_id         = "my-project-1"
          region             = "europe-west1"
          firestore_database = "{name}-results"
          protect_data       = false
        }}
        '''
        for name in names
    ]
    (directory / "main.tf").write_text("".join(calls))


def test_removing_a_deployment_leaves_its_neighbour_whole(tmp_path: Path) -> None:
    folder, state = tmp_path / "terraform", tmp_path / "state"
    state.mkdir()

    def run(*arguments: str) -> Run:
        return terraform(*arguments, directory=folder / "two", root=folder, state=state)

    for names in (("street", "quay"), ("street",)):
        _write_deployments(folder, *names)
        done = run("apply", "-auto-approve")
        assert done.returncode == 0, done.output
    assert not [name for name in _objects(state) if "quay" in name]
    done = run("plan", "-detailed-exitcode")
    assert done.returncode == 0, done.output
