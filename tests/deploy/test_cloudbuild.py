"""cloudbuild.yaml: checks that its schema lacks, and runs of its scripts with fake tools."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.cli.check_model import check_model
from service.cli.smoke import smoke

ROOT = Path(__file__).parents[2]
MODULE = ROOT / "terraform" / "modules" / "yolo-batch"
CONFIG: dict[str, Any] = yaml.safe_load((ROOT / "cloudbuild.yaml").read_text(encoding="utf-8"))
STEPS: dict[str, dict[str, Any]] = {step["id"]: step for step in CONFIG["steps"]}
SUBSTITUTIONS: dict[str, str] = CONFIG["substitutions"]
BUILT_IN = {"PROJECT_ID": "project-1", "BUILD_ID": "build-1"}  # set by Cloud Build
TEXT = "\n".join(step["script"] for step in STEPS.values())
IMAGE = "us-central1-docker.pkg.dev/project-1/yolo-batch/service"
DIGEST = f"{IMAGE}@sha256:{'ab' * 32}"
PREVIOUS = f"{IMAGE}@sha256:{'cd' * 32}"


def tool(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def seconds(duration: str) -> int:
    return int(duration.removesuffix("s"))


def test_file_has_the_schema_of_cloud_build() -> None:
    command = [tool("check-jsonschema"), "--builtin-schema", "vendor.cloudbuild"]
    done = subprocess.run(
        [*command, ROOT / "cloudbuild.yaml"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_step_has_an_id_of_its_own() -> None:
    assert len(STEPS) == len(CONFIG["steps"])


def test_steps_wait_only_for_earlier_ones() -> None:
    earlier = {"-"}
    for name, step in STEPS.items():
        assert set(step["waitFor"]) <= earlier, f"{name} waits for what is not before it"
        earlier.add(name)


def test_nothing_is_pushed_before_all_checks_passed() -> None:
    assert set(STEPS["push"]["waitFor"]) == {"test", "audit", "terraform-test", "check-model"}


def test_build_has_the_time_of_its_longest_chain() -> None:
    ends = {"-": 0}
    for name, step in STEPS.items():
        ends[name] = max(ends[other] for other in step["waitFor"]) + seconds(step["timeout"])
    assert max(ends.values()) <= seconds(CONFIG["timeout"])


def test_substitutions_are_those_that_scripts_use() -> None:
    assert set(re.findall(r"\$\{?(_[A-Z_]+)", TEXT)) == set(SUBSTITUTIONS)


def test_scripts_use_no_other_variable_of_the_environment() -> None:
    used = set(re.findall(r"\$\{?([A-Z][A-Z_]*)", TEXT))
    assert used == set(BUILT_IN)
    assert CONFIG["options"]["automapSubstitutions"] is True
    assert "$$" not in TEXT, "scripts are not substituted: $$ is the shell's own number"


@pytest.mark.parametrize("name", STEPS)
def test_script_stops_at_the_first_error(name: str) -> None:
    first, second = STEPS[name]["script"].splitlines()[:2]
    expected = {
        "#!/usr/bin/env bash": "set -euo pipefail",
        "#!/bin/sh": "set -eu",  # POSIX has no pipefail
    }
    assert second == expected[first]


@pytest.mark.parametrize("name", STEPS)
def test_script_passes_shellcheck(name: str) -> None:
    done = subprocess.run(
        [tool("shellcheck"), "-"],
        input=STEPS[name]["script"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def dockerfile() -> str:
    return (ROOT / "Dockerfile").read_text(encoding="utf-8")


def test_build_arguments_are_those_of_the_dockerfile() -> None:
    given = set(re.findall(r'--build-arg "([A-Z_]+)=', STEPS["build"]["script"]))
    assert given == {"BASE", "REVISION", "MODEL", "CALIBRATION"}
    assert given <= set(re.findall(r"^ARG ([A-Z_]+)", dockerfile(), re.MULTILINE))
    assert f"\nARG BASE={SUBSTITUTIONS['_BASE']}\n" in dockerfile()


def test_targets_are_stages_of_the_dockerfile() -> None:
    targets = set(re.findall(r"target=(\w+)", TEXT))
    assert targets == {"cpu", "gpu"}
    assert targets <= set(re.findall(r"^FROM .* AS (\w+)", dockerfile(), re.MULTILINE | re.I))


def test_accelerators_are_those_of_terraform() -> None:
    variables = (MODULE / "variables.tf").read_text(encoding="utf-8")
    known = re.search(r'contains\(\[("none".*?)\], var\.accelerator\)', variables)
    assert known
    named = re.search(
        r"^\s+none\) .*\n\s+(.*)\) target=gpu", STEPS["build"]["script"], re.MULTILINE
    )
    assert named
    assert re.findall(r'"([\w-]+)"', known[1]) == ["none", *named[1].split(" | ")]


def test_terraform_sets_every_substitution_of_a_project() -> None:
    text = (MODULE / "build.tf").read_text(encoding="utf-8")
    given = set(re.findall(r"^\s+(_[A-Z]+)\s+=", text, re.MULTILINE))
    given |= set(re.findall(r",(_[A-Z]+)=", text))
    assert given <= set(SUBSTITUTIONS)
    assert {"_BUCKET", "_REGION", "_REPOSITORY", "_SERVICE", "_JOB", "_DEPLOY"} <= given


def test_terraform_first_deploys_the_pushed_image() -> None:
    text = (MODULE / "build.tf").read_text(encoding="utf-8")
    assert "/service:latest" in text
    assert TEXT.count('image="${_REGION}-docker.pkg.dev/${PROJECT_ID}/${_REPOSITORY}/service"') == 3


NEEDED = (
    ".dockerignore",
    "Dockerfile",
    "Makefile",
    "cloudbuild.yaml",
    "pyproject.toml",
    "requirements/cpu.txt",
    "requirements/gpu.txt",
    "container/export.sh",
    "models/README.md",
    "service/bundled_model/shapes.bin",
    "terraform/examples/minimal/main.tf",
    "terraform/modules/yolo-batch/service.tf",
    "terraform/terraform.tfvars.example",
    "tests/container/test_dockerfile.py",
    "tests/deploy/test_cloudbuild.py",
    "tests/unit/test_imports.py",
)


def test_files_that_the_steps_name_exist() -> None:
    assert [path for path in NEEDED if not (ROOT / path).exists()] == []
    assert re.search(r"^check:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


def test_upload_has_what_the_steps_need_and_nothing_else(tmp_path: Path) -> None:
    if not shutil.which("gcloud"):
        pytest.skip("needs the Google Cloud CLI, whose own reading of .gcloudignore is asked")
    own = [
        "models/own.pt",
        "models/calibration/one.jpg",
    ]  # paths that _MODEL and _CALIBRATION may have
    rubbish = [".venv/bin/python", ".git/HEAD", "service/__pycache__/cli.pyc"]
    rubbish += ["terraform/.terraform/providers/x", "terraform/terraform.tfstate", "build/lib/x"]
    # `terraform test` would read a user's own values.
    rubbish += ["terraform/terraform.tfvars", "terraform/own.auto.tfvars.json"]
    for path in (*NEEDED, *own, *rubbish):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    shutil.copy(ROOT / ".gcloudignore", tmp_path)
    done = subprocess.run(
        ["gcloud", "meta", "list-files-for-upload", tmp_path],
        env={**os.environ, "CLOUDSDK_CONFIG": str(tmp_path / "build" / "gcloud")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == {*NEEDED, *own, ".gcloudignore"}


# Runs of the scripts, with a fake `docker` and `gcloud` that record how they are called.

_DOCKER = f"""\
#!/usr/bin/env bash
echo "docker $*" >> calls.txt
case $1 in
  image) echo "{DIGEST}" ;;
  run) exit "${{FAKE_RUN_EXIT:-0}}" ;;
esac
"""
_GCLOUD = f"""\
#!/usr/bin/env bash
echo "gcloud $*" >> calls.txt
case "$*" in
  *"services describe"*) echo "${{FAKE_PREVIOUS:-{PREVIOUS}}} ${{FAKE_REVISION-revision-1}}" ;;
  *"revisions describe"*) echo "${{FAKE_DIGEST-{PREVIOUS}}}"; exit "${{FAKE_DIGEST_EXIT:-0}}" ;;
  *"services update"*) exit "${{FAKE_UPDATE_EXIT:-0}}" ;;
esac
"""


@dataclass
class Workspace:
    """The workspace of a build, and the calls of its steps."""

    directory: Path

    def run(self, name: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        """Run a step's script as Cloud Build does: with the substitutions as variables."""
        script = self.directory / f"{name}.sh"
        script.write_text(STEPS[name]["script"], encoding="utf-8")
        script.chmod(0o755)
        path = f"{self.directory / 'bin'}:{os.environ['PATH']}"
        environment = {**SUBSTITUTIONS, **BUILT_IN, "_BUCKET": "uploads", "PATH": path}
        return subprocess.run(
            [script],
            cwd=self.directory,
            env={**environment, **variables},
            capture_output=True,
            text=True,
            check=False,
        )

    def calls(self) -> list[str]:
        log = self.directory / "calls.txt"
        return log.read_text(encoding="utf-8").splitlines() if log.exists() else []

    def deploy(self, **variables: str) -> "subprocess.CompletedProcess[str]":
        """Run the steps from the push to `keep-or-roll-back`, or to the last one."""
        for name in ("push", "deploy", "smoke"):
            done = self.run(name, **variables)
            assert done.returncode == 0, done.stderr
        done = self.run("keep-or-roll-back", **variables)
        return self.run("latest", **variables) if done.returncode == 0 else done


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    (tmp_path / "bin").mkdir()
    for name, text in (("docker", _DOCKER), ("gcloud", _GCLOUD)):
        (tmp_path / "bin" / name).write_text(text, encoding="utf-8")
        (tmp_path / "bin" / name).chmod(0o755)
    return Workspace(tmp_path)


@pytest.mark.parametrize(
    ("accelerator", "target"),
    [("none", "cpu"), ("nvidia-l4", "gpu"), ("nvidia-rtx-pro-6000", "gpu")],
)
def test_build_takes_the_target_of_the_accelerator(
    workspace: Workspace, accelerator: str, target: str
) -> None:
    done = workspace.run("build", _ACCELERATOR=accelerator, _CALIBRATION="my images")
    assert done.returncode == 0, done.stderr
    build = workspace.calls()[-1]
    assert f" --target {target} --tag {IMAGE}:build-1 " in build
    assert " --build-arg BASE=python:3.13-slim-bookworm --build-arg REVISION=build-1 " in build
    assert " --build-arg MODEL=yolo26n.pt --build-arg CALIBRATION=my images " in build
    assert f" --cache-from type=registry,ref={IMAGE}:cache-{target} " in build


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"_ACCELERATOR": "l4"}, "_ACCELERATOR=l4 must be none, nvidia-l4 or"),
        ({"_BUCKET": ""}, "_BUCKET is empty"),
    ],
    ids=["accelerator", "bucket"],
)
def test_wrong_substitution_fails_the_build(
    workspace: Workspace, variables: dict[str, str], sentence: str
) -> None:
    done = workspace.run("build", **variables)
    assert done.returncode == 1
    assert sentence in done.stderr
    assert workspace.calls() == []


def test_push_names_the_digest(workspace: Workspace) -> None:
    done = workspace.run("push")
    assert done.returncode == 0, done.stderr
    assert (workspace.directory / "image.txt").read_text(encoding="utf-8").strip() == DIGEST
    assert [call for call in workspace.calls() if " push " in call] == [
        f"docker push {IMAGE}:build-1"
    ]


def test_passed_smoke_test_keeps_the_image_and_updates_the_job(
    workspace: Workspace,
) -> None:
    done = workspace.deploy()
    assert done.returncode == 0, done.stderr
    updates = [call for call in workspace.calls() if " update " in call]
    assert len(updates) == 2
    assert updates[0].startswith("gcloud run services update yolo-batch ")
    assert f" --image {DIGEST} " in updates[0]
    assert updates[1].startswith("gcloud run jobs update yolo-batch-reconcile ")
    assert DIGEST in updates[1]
    assert workspace.calls()[-2:] == [
        f"docker tag {IMAGE}:build-1 {IMAGE}:latest",
        f"docker push {IMAGE}:latest",
    ]


def test_image_without_result_rolls_back_and_fails_the_build(workspace: Workspace) -> None:
    done = workspace.deploy(FAKE_RUN_EXIT="1")
    assert done.returncode == 1
    assert "The smoke test of " in done.stderr
    assert f" --image {DIGEST} " in workspace.calls()[-3]
    assert workspace.calls()[-1].endswith(f" --image {PREVIOUS} --quiet")
    assert not [call for call in workspace.calls() if "jobs update" in call]


@pytest.mark.parametrize(
    ("variables", "restored"),
    [
        ({}, PREVIOUS),
        ({"FAKE_REVISION": ""}, f"{IMAGE}:latest"),
        ({"FAKE_DIGEST": "", "FAKE_DIGEST_EXIT": "1"}, f"{IMAGE}:latest"),
    ],
    ids=["digest", "never-started", "refused"],
)
def test_rollback_from_the_first_tag_is_not_to_the_bad_image(
    workspace: Workspace, variables: dict[str, str], restored: str
) -> None:
    done = workspace.deploy(FAKE_RUN_EXIT="1", FAKE_PREVIOUS=f"{IMAGE}:latest", **variables)
    assert done.returncode == 1
    assert workspace.calls()[-1].endswith(f" --image {restored} --quiet")
    assert f"docker push {IMAGE}:latest" not in workspace.calls()


def test_rollback_to_the_same_image_is_left_out(workspace: Workspace) -> None:
    done = workspace.deploy(FAKE_RUN_EXIT="1", FAKE_PREVIOUS=DIGEST)
    assert done.returncode == 1
    assert len([call for call in workspace.calls() if "services" in call]) == 2


def test_revision_that_does_not_start_fails_the_build(workspace: Workspace) -> None:
    assert workspace.run("push").returncode == 0
    assert workspace.run("deploy", FAKE_UPDATE_EXIT="1").returncode == 1


def test_first_build_pushes_and_deploys_nothing(workspace: Workspace) -> None:
    done = workspace.deploy(_DEPLOY="false", _BUCKET="")
    assert done.returncode == 0, done.stderr
    assert all(call.startswith("docker ") for call in workspace.calls())
    assert not [call for call in workspace.calls() if call.startswith("docker run")]
    assert workspace.calls()[-1] == f"docker push {IMAGE}:latest"


@pytest.mark.parametrize("name", ["test", "terraform-test"])
def test_first_build_does_not_depend_on_unlocked_tools(workspace: Workspace, name: str) -> None:
    done = workspace.run(name, _DEPLOY="false")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Skipped the tests")


def test_service_without_reconcile_job_is_deployed(workspace: Workspace) -> None:
    assert workspace.deploy(_JOB="").returncode == 0
    assert not [call for call in workspace.calls() if "jobs update" in call]


def test_commands_in_the_container_take_these_arguments(workspace: Workspace) -> None:
    assert workspace.run("check-model").returncode == 0
    workspace.deploy()
    check, sample = (call for call in workspace.calls() if call.startswith("docker run"))
    check_model.make_context("check-model", check.partition("yolo-batch check-model")[2].split())
    context = smoke.make_context("smoke", sample.partition("yolo-batch smoke ")[2].split())
    assert context.params["uri"] == ("uploads", "")
