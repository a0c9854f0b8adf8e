"""The Terraform module as others call it: its examples, and two deployments in one project."""

import re
import shutil
from collections import defaultdict
from itertools import chain
from pathlib import Path

import pytest

from devtools.docs.terraform import blocks_of
from service.operate.smoke import sample_name
from tests.deploy.conditions import allows
from tests.deploy.standin import MODULE, ROOT, Applied, Run, needs_standin, terraform

EXAMPLES = ROOT / "examples"
TFVARS = ROOT / "terraform.tfvars.example"
PROJECT = {"project_id": "my-project-1"}
# What examples/existing uses: resources that examples/minimal has created in the same project.
EXISTING = PROJECT | {
    "bucket_name": "my-project-1-yolo-batch-uploads",
    "repository_name": "yolo-batch",
}
NO_CHANGES = re.compile(r"(?m)^(No changes\.|Plan: 0 to add, 0 to change, 0 to destroy\.)")


def _example(name: str, *arguments: str, state: Path | None = None, **variables: str) -> Run:
    return terraform(
        *arguments,
        "-no-color",
        variables=PROJECT | variables,
        directory=EXAMPLES / name,
        state=state,
    )


@needs_standin
def test_module_passes_its_own_tests() -> None:
    # The refusals need no provider: tests/deploy/test_terraform.py runs them everywhere.
    files = [f"-filter=tests/{name}.tftest.hcl" for name in ("plans", "existing")]
    run = terraform("test", "-no-color", *files, directory=MODULE)
    assert re.search(r"^Success! \d+ passed, 0 failed\.", run.output, re.MULTILINE), run.output


# --- Examples


def test_every_example_is_planned_here() -> None:
    planned = {
        "existing",
        "gpu",
        "minimal",
        "object-prefix",
        "results-and-alerts",
        "two-deployments",
    }
    assert {path.name for path in EXAMPLES.iterdir() if path.is_dir()} == planned


@needs_standin
@pytest.mark.parametrize("name", ["gpu", "object-prefix"])
def test_example_plans(name: str) -> None:
    run = _example(name, "plan")
    assert run.returncode == 0, run.output
    assert re.search(r"^Plan: \d+ to add, 0 to change, 0 to destroy", run.output, re.MULTILINE)


@needs_standin
def test_webhooks_address_is_in_no_plan() -> None:
    secret = "T0/B0/3f9a"  # noqa: S105
    address = f"https://hooks.example.com/services/{secret}"
    run = _example("results-and-alerts", "plan", webhook_url=address)
    assert run.returncode == 0, run.output
    assert re.search(r"push_endpoint += \(sensitive value\)", run.output)
    assert secret not in run.output


@pytest.fixture(scope="module")
def neighbours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a state in which examples/existing is applied beside examples/minimal."""
    state = tmp_path_factory.mktemp("neighbours")
    for name, variables in (("minimal", PROJECT), ("existing", EXISTING)):
        run = _example(name, "apply", "-auto-approve", state=state, **variables)
        assert run.returncode == 0, run.output
    return state


@needs_standin
def test_existing_resources_are_used_and_not_managed(neighbours: Path) -> None:
    found = Applied(neighbours, EXAMPLES / "existing").resources
    names = {(each.type, each.values.get("name")) for each in found}
    assert ("google_storage_bucket", EXISTING["bucket_name"]) not in names
    assert not {"google_firestore_database", "google_artifact_registry_repository"} & {
        kind for kind, _ in names
    }
    again = _example("existing", "plan", state=neighbours, **EXISTING)
    assert NO_CHANGES.search(again.output), again.output


@needs_standin
def test_documents_of_other_databases_are_out_of_reach(neighbours: Path) -> None:
    accounts = defaultdict(list)
    for values in Applied(neighbours, EXAMPLES / "existing").all("google_project_iam_member"):
        if values["role"].startswith("roles/datastore."):
            [condition] = values["condition"]
            accounts[values["member"].partition("@")[0]].append(condition["expression"])
    assert set(accounts) == {
        "serviceAccount:yolo-cameras",
        "serviceAccount:yolo-cameras-build",
        "serviceAccount:yolo-cameras-reconcile",
    }
    database = "projects/my-project-1/databases/(default)"
    field = f"{database}/collectionGroups/cameras/fields/created_at"
    for condition in chain(*accounts.values()):
        assert allows(condition, database)
        assert allows(condition, field)
        assert not allows(condition, "projects/my-project-1/databases/other")
        assert not allows(condition, f"{database}2")


@needs_standin
def test_builder_reaches_only_the_smoke_tests_image(neighbours: Path) -> None:
    applied = Applied(neighbours, EXAMPLES / "existing")
    [condition] = applied.one("google_storage_bucket_iam_member", "build_smoke")["condition"]
    bucket = f"projects/_/buckets/{EXISTING['bucket_name']}"
    allowed = (f"{bucket}/objects/{sample_name()}", f"{bucket}/objects/smoke/a/b.jpg")
    refused = (
        bucket,
        f"{bucket}/objects/cam1/a.jpg",
        f"{bucket}/objects/smoke",
        f"{bucket}/objects/smoke.jpg",
        f"{bucket}/objects/cam1/smoke/a.jpg",
        f"{bucket}-2/objects/smoke/a.jpg",
        "projects/_/buckets/other/objects/smoke/a.jpg",
        f"projects/_/buckets/other/objects/{bucket}/objects/smoke/a.jpg",
    )
    assert [name for name in allowed if not allows(condition["expression"], name)] == []
    assert [name for name in refused if allows(condition["expression"], name)] == []


@needs_standin
def test_destroy_leaves_what_existed_before(neighbours: Path) -> None:
    plan = _example("existing", "plan", "-destroy", state=neighbours, **EXISTING)
    destroyed = set(re.findall(r"# module\.yolo_batch\.(\S+) will be destroyed", plan.output))
    assert len(destroyed) > 50
    kept = (
        "google_storage_bucket.uploads",
        "google_firestore_database.",
        "google_artifact_registry_repository.",
    )
    assert not [address for address in destroyed if address.startswith(kept)]


@needs_standin
def test_values_of_an_apply_that_created_nothing_can_change(
    neighbours: Path, tmp_path: Path
) -> None:
    """The names of the bucket, the database and the repository are taken, so none is created."""
    state = shutil.copytree(neighbours, tmp_path / "state", symlinks=True)
    first = PROJECT | {"region": "us-central1"}
    applied = terraform("apply", "-auto-approve", "-no-color", variables=first, state=state)
    assert applied.returncode == 1
    assert "already exists" in applied.output.lower(), applied.output
    region = {"region": "europe-west1"}
    plan = terraform("plan", "-no-color", variables=PROJECT | region, state=state)
    assert plan.returncode == 0, plan.output


# --- Two deployments in one project

# Of the project, not of a deployment: both have the same.
SHARED = {"google_project_service", "google_project_service_identity"}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a state in which examples/two-deployments is applied."""
    state = tmp_path_factory.mktemp("two")
    run = _example("two-deployments", "apply", "-auto-approve", state=state)
    assert run.returncode == 0, run.output
    return state


@needs_standin
def test_two_deployments_have_no_common_names(two: Path) -> None:
    owners = defaultdict(set)
    for each in Applied(two, EXAMPLES / "two-deployments").resources:
        values = each.values
        member = values.get("member", "")
        is_own = not member or member.endswith("@my-project-1.iam.gserviceaccount.com")
        if each.type.startswith("google_") and each.type not in SHARED and is_own:
            names = [values["id"], values.get("dashboard_json")]
            # An objective belongs to its deployment's monitoring service: its title may recur.
            if each.type != "google_monitoring_slo":
                names.append(values.get("display_name"))
            for name in filter(None, names):
                owners[each.type, name].add(each.module)
    assert len(owners) > 100
    assert [name for name, found in owners.items() if len(found) > 1] == []


@needs_standin
def test_two_deployments_have_nothing_left_to_change(two: Path) -> None:
    again = _example("two-deployments", "plan", state=two)
    assert NO_CHANGES.search(again.output), again.output


@needs_standin
def test_two_deployments_label_what_is_theirs(two: Path) -> None:
    labelled = [
        each
        for each in Applied(two, EXAMPLES / "two-deployments").resources
        if each.type.startswith("google_") and "terraform_labels" in each.values
    ]
    assert len(labelled) > 15
    for each in labelled:
        [name] = re.findall(r'^module\.yolo_batch\["([\w-]+)"\]$', each.module)
        assert each.values["labels"] == {"app": name, "deployment": name}, each


# --- A caller's depends_on

# Terraform reads no data source of a module before what the module depends on has been changed.
DEPENDENT = """
variable "value" {}

resource "terraform_data" "before" {
  input = var.value
}

resource "google_storage_bucket" "mine" {
  name                        = "cameras"
  location                    = "EUROPE-WEST1"
  project                     = "my-project-1"
  uniform_bucket_level_access = true
}

resource "google_artifact_registry_repository" "mine" {
  repository_id = "images"
  location      = "europe-west1"
  format        = "DOCKER"
  project       = "my-project-1"
}

module "yolo_batch" {
  source = "../modules/yolo-batch"

  project_id        = "my-project-1"
  region            = "europe-west1"
  create_bucket     = false
  bucket_name       = google_storage_bucket.mine.name
  create_repository = false
  repository_name   = google_artifact_registry_repository.mine.repository_id
  upload_events     = "both"

  depends_on = [terraform_data.before]
}
"""


@needs_standin
def test_change_of_what_the_module_depends_on_changes_nothing(tmp_path: Path) -> None:
    root, state = tmp_path / "terraform", tmp_path / "state"
    shutil.copytree(MODULE, root / "modules" / "yolo-batch")
    caller = root / "caller"
    caller.mkdir()
    state.mkdir()
    shutil.copy(ROOT / "versions.tf", caller)
    (caller / "main.tf").write_text(DEPENDENT)

    def run(*arguments: str, value: str) -> Run:
        given = {"value": value}
        return terraform(
            *arguments, "-no-color", variables=given, directory=caller, root=root, state=state
        )

    applied = run("apply", "-auto-approve", value="1")
    assert applied.returncode == 0, applied.output
    again = run("plan", "-detailed-exitcode", value="1")
    assert again.returncode == 0, again.output
    changed = run("plan", value="2")
    assert changed.output.count("will be read during apply") > 2, changed.output
    assert "Plan: 0 to add, 1 to change, 0 to destroy." in changed.output, changed.output


# --- terraform.tfvars.example


def test_example_values_are_of_variables_that_exist() -> None:
    names = re.findall(r"^(\w+) += ", TFVARS.read_text(encoding="utf-8"), re.MULTILINE)
    known = {name for block in blocks_of(ROOT / "variables.tf", "variable") for name in block}
    assert len(names) > 15 and set(names) <= known
    assert len(names) == len(set(names))


@needs_standin
def test_example_values_plan() -> None:
    run = terraform("plan", "-no-color", f"-var-file={TFVARS.name}")
    assert run.returncode == 0, run.output
    assert "undeclared variable" not in run.output


# --- Addresses in the documentation


def _pages() -> list[Path]:
    repository = ROOT.parent
    return [*(repository / "docs").rglob("*.md"), ROOT / "README.md", repository / "README.md"]


def test_documented_addresses_exist() -> None:
    defined = {
        f"{kind}.{name}"
        for path in MODULE.glob("*.tf")
        for block in blocks_of(path, "resource")
        for kind, bodies in block.items()
        for name in bodies
    }
    found = {
        address
        for page in _pages()
        for address in re.findall(
            r"module\.yolo_batch\.(\w+\.\w+)", page.read_text(encoding="utf-8")
        )
    }
    assert len(found) > 4 and found <= defined


def test_documented_commands_name_resources_in_the_module() -> None:
    for page in _pages():
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"(-target=|-replace=|state rm )'?(google_|terraform_data)", text), (
            page
        )
