"""What a change, a neighbour in the project and a tear-down do to a deployment.

Terraform runs on a fake of the google provider. It cannot show what Google's APIs would accept.
"""

import json
import re
import shutil
from collections.abc import Iterator
from functools import reduce
from pathlib import Path

import pytest

from devtools.docs.terraform import blocks_of
from tests.deploy.changes import CHANGES, Change, Effect, effects
from tests.deploy.standin import BASE, MODULE, ROOT, Run, matrix, needs_standin, terraform

pytestmark = needs_standin
IN_PLACE = "all variables that are changed in place"
REFUSED = "all variables that cannot be changed"
ALONE = {
    name: change for name, change in CHANGES.items() if not (change.is_in_place or change.refused)
}


def _merged(changes: Iterator[Change]) -> Change:
    """Return one change for many, because each plan takes seconds."""
    return Change(reduce(lambda values, change: values | change.set, changes, {}))


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Effect]:
    """Return what the changes do."""
    everything = CHANGES.values()
    changes = ALONE | {
        IN_PLACE: _merged(change for change in everything if change.is_in_place),
        REFUSED: _merged(change for change in everything if change.refused),
    }
    return effects(changes, tmp_path_factory.mktemp("changes"))


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an applied deployment. Tests that change it copy it first."""
    state = tmp_path_factory.mktemp("deployment")
    done = terraform("apply", "-auto-approve", variables=BASE, state=state)
    assert done.returncode == 0, done.output
    return state


def _objects(state: Path) -> list[str]:
    """Return what exists in the fake cloud, without the indexes, which go with their database."""
    objects = json.loads((state / "cloud.json").read_text())["objects"]
    return sorted(name for name in objects if not name.startswith("google_firestore_field:"))


def _managed(state: Path) -> list[str]:
    """Return the resources in Terraform's state."""
    addresses = terraform("state", "list", state=state).output.splitlines()
    return [address for address in addresses if ".data." not in address]


def _calls(state: Path) -> list[str]:
    """Return the commands of gcloud that Terraform ran."""
    lines = (state / "gcloud.jsonl").read_text().splitlines()
    return [" ".join(json.loads(line)) for line in lines]


# --- Changes of variables


def test_second_plan_is_empty(planned: dict[str, Effect]) -> None:
    again = [effect for name, effect in planned.items() if name.startswith("nothing changed")]
    assert len(again) == len({str(change.start) for change in CHANGES.values()})
    assert again == [Effect({}, frozenset(), "")] * len(again)


@pytest.mark.parametrize("name", ALONE)
def test_change_replaces_only_what_is_known(name: str, planned: dict[str, Effect]) -> None:
    change, effect = ALONE[name], planned[name]
    assert effect.refused == ""
    assert effect.addresses("replace, new one first") == change.replaces
    assert effect.addresses("replace, OLD ONE FIRST") == change.interrupts
    assert effect.addresses("DESTROY") == change.destroys
    assert effect.warnings == change.warnings


def test_other_changes_replace_nothing(planned: dict[str, Effect]) -> None:
    effect = planned[IN_PLACE]
    assert effect.refused == ""
    assert effect.warnings == frozenset()
    assert set(effect.actions) <= {"create", "update"}
    assert "google_cloud_run_v2_service.main" in effect.addresses("update")


def test_change_that_would_delete_data_is_refused(planned: dict[str, Effect]) -> None:
    refused = [change.refused for change in CHANGES.values() if change.refused]
    [fixed] = [each["fixed"] for each in blocks_of(MODULE / "guards.tf", "locals")]
    assert {text.split()[0] for text in refused} == set(fixed)
    error = planned[REFUSED].refused
    assert [text for text in refused if text not in error] == []
    assert error.count("Set it back. To move, make a second deployment:") == len(refused)


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
        variables=BASE | {"accelerator": "nvidia-l4"},
        state=state,
        options=("--gcloud-fail", "builds submit"),
    )
    assert done.returncode == 1
    assert "gcloud builds submit" in done.output
    assert "Destr" not in done.output
    assert set(_objects(state)) == set(_objects(deployment))


# --- Tear-down


def test_destroy_of_protected_data_destroys_nothing(deployment: Path, tmp_path: Path) -> None:
    state = shutil.copytree(deployment, tmp_path / "state", symlinks=True)
    managed = _managed(state)
    done = terraform("destroy", "-auto-approve", variables=BASE, state=state)
    assert done.returncode == 1
    assert "Apply with protect_data=false first" in " ".join(done.output.split())
    assert "Destruction complete" not in done.output
    assert _objects(state) == _objects(deployment)
    assert _managed(state) == managed

    unprotected = BASE | {"protect_data": False}
    done = terraform("apply", "-auto-approve", variables=unprotected, state=state)
    assert done.returncode == 0, done.output
    done = terraform("destroy", "-auto-approve", variables=unprotected, state=state)
    assert done.returncode == 0, done.output
    # APIs and Google's own service agents stay, as docs/how-to/tear-down.md says.
    left = {name.partition(":")[0] for name in _objects(state)}
    assert left == {"google_project_service", "google_project_service_identity"}
    assert not [call for call in _calls(state) if "remove-iam-policy-binding" in call]


def test_destroy_after_a_failed_apply_needs_the_database_alone(tmp_path: Path) -> None:
    """As docs/how-to/tear-down.md says: no other build is needed to unprotect the database."""
    state = tmp_path / "state"
    state.mkdir()
    failing = ("--gcloud-fail", "builds submit")
    done = terraform("apply", "-auto-approve", variables=BASE, state=state, options=failing)
    assert done.returncode == 1
    database = "-target=module.yolo_batch.google_firestore_database.main[0]"
    unprotected = BASE | {"protect_data": False}
    done = terraform(
        *("apply", "-auto-approve", database), variables=unprotected, state=state, options=failing
    )
    assert done.returncode == 0, done.output
    done = terraform("destroy", "-auto-approve", variables=BASE, state=state)
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
    done = terraform("plan", "-no-color", "-detailed-exitcode", variables=BASE, state=state)
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
