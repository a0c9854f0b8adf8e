"""cloudbuild.yaml: checks that its schema lacks, and runs of its scripts with fake tools.

test_gcloud.py runs the main ways through a deployment with the real gcloud, which takes seconds
for each call. Here are the branches.
"""

import os
import re
import shutil
import subprocess
import sys
import tomllib
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
IMAGE_NAME = "${_REGION}-docker.pkg.dev/${PROJECT_ID}/${_REPOSITORY}/service"
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
    assert set(STEPS["push"]["waitFor"]) == {"test", "audit", "check-model"}


def test_build_has_the_time_of_its_longest_chain() -> None:
    ends = {"-": 0}
    for name, step in STEPS.items():
        ends[name] = max(ends[other] for other in step["waitFor"]) + seconds(step["timeout"])
    assert max(ends.values()) <= seconds(CONFIG["timeout"])


def test_substitutions_are_those_that_scripts_use() -> None:
    text = TEXT + "".join(CONFIG["images"])
    assert set(re.findall(r"\$\{?(_[A-Z_]+)", text)) == set(SUBSTITUTIONS)


def test_first_build_downloads_only_images_that_it_uses() -> None:
    images = {step["name"] for step in STEPS.values()}
    assert images == {"gcr.io/cloud-builders/docker", STEPS["audit"]["name"]}
    assert STEPS["audit"]["name"].startswith("mirror.gcr.io/library/python:")


def test_audit_has_the_version_of_python_in_the_container() -> None:
    version = STEPS["audit"]["name"].rpartition(":")[2]
    assert SUBSTITUTIONS["_BASE"].startswith(f"python:{version}-")


def test_provenance_is_recorded_for_the_pushed_image() -> None:
    assert [f'docker push "{IMAGE_NAME}:${{BUILD_ID}}"'] == re.findall(
        r"docker push .*", STEPS["push"]["script"].replace("${image}", IMAGE_NAME)
    )
    assert CONFIG["images"] == [f"{IMAGE_NAME}:${{BUILD_ID}}"]


def test_scripts_use_no_other_variable_of_the_environment() -> None:
    used = set(re.findall(r"\$\{?([A-Z][A-Z_]*)", TEXT))
    assert used == set(BUILT_IN)
    assert CONFIG["options"]["automapSubstitutions"] is True
    assert "$$" not in TEXT, "scripts are not substituted: $$ is the shell's own number"


@pytest.mark.parametrize("name", STEPS)
def test_script_stops_at_the_first_error(name: str) -> None:
    first, second = STEPS[name]["script"].splitlines()[:2]
    assert (first, second) == ("#!/usr/bin/env bash", "set -euo pipefail")


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
    build = (MODULE / "build.tf").read_text(encoding="utf-8")
    chosen = re.search(r'target = local\.has_gpu \? "(\w+)" : "(\w+)"', build)
    assert chosen
    assert set(chosen.groups()) == {"gpu", SUBSTITUTIONS["_TARGET"]}
    assert set(chosen.groups()) <= set(
        re.findall(r"^FROM .* AS (\w+)", dockerfile(), re.MULTILINE | re.I)
    )


def test_terraform_sets_every_substitution_of_a_project() -> None:
    text = (MODULE / "build.tf").read_text(encoding="utf-8")
    given = set(re.findall(r"^\s+(_[A-Z]+)\s+=", text, re.MULTILINE))
    given |= set(re.findall(r",(_[A-Z]+)=", text))
    assert given <= set(SUBSTITUTIONS)
    assert {"_BUCKET", "_REGION", "_REPOSITORY", "_SERVICE", "_SERVICES", "_JOBS"} <= given
    assert "_DEPLOY" in given


def test_terraform_first_deploys_the_pushed_image() -> None:
    text = (MODULE / "build.tf").read_text(encoding="utf-8")
    assert "/service:latest-${local.target}" in text
    assert TEXT.count(f'image="{IMAGE_NAME}"') == 3
    assert 'docker push "${image}:latest-${_TARGET}"' in STEPS["latest"]["script"]


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


# Runs of the scripts, with fake tools that record how they are called.

_DOCKER = f"""\
#!/usr/bin/env bash
echo "docker $*" >> calls.txt
case $1 in
  image) echo "{DIGEST}" ;;
  run)
    if [[ $* == *google-cloud-cli* ]]; then
      while [[ $1 != gcloud ]]; do shift; done
      exec "$@"
    fi
    exit "${{FAKE_RUN_EXIT:-0}}"
    ;;
esac
"""
_GCLOUD = f"""\
#!/usr/bin/env bash
echo "gcloud $*" >> calls.txt
case "$*" in
  *"services describe"*Revision*)
    echo "${{FAKE_PREVIOUS:-{PREVIOUS}}} ${{FAKE_REVISION-revision-1}}"
    ;;
  *"services describe"*) echo "${{FAKE_DEPLOYED-{DIGEST}}}"; exit "${{FAKE_DEPLOYED_EXIT:-0}}" ;;
  *"revisions describe"*) echo "${{FAKE_DIGEST-{PREVIOUS}}}"; exit "${{FAKE_DIGEST_EXIT:-0}}" ;;
  *"services update"*) exit "${{FAKE_UPDATE_EXIT:-0}}" ;;
esac
"""


_PIP = """\
#!/usr/bin/env bash
exit "${FAKE_PIP_EXIT:-0}"
"""
# Writes its table only if it has looked up every package, and there are findings.
_PIP_AUDIT = """\
#!/usr/bin/env bash
echo "pip-audit $*" >> calls.txt
while [[ $1 != --output ]]; do shift; done
printf '%s' "${FAKE_FINDINGS:-}" > "$2"
exit "${FAKE_AUDIT_EXIT:-0}"
"""
FINDINGS = """\
Name   Version ID                  Fix Versions
------ ------- ------------------- ------------
flask  0.12    PYSEC-2018-66       0.12.3
flask  0.12    GHSA-m2qf-hxjv-5gpq 2.2.5
pillow 9.0     PYSEC-2018-66       10.0
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


_FAKES = {"docker": _DOCKER, "gcloud": _GCLOUD, "pip": _PIP, "pip-audit": _PIP_AUDIT}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    (tmp_path / "bin").mkdir()
    for name, text in _FAKES.items():
        (tmp_path / "bin" / name).write_text(text, encoding="utf-8")
        (tmp_path / "bin" / name).chmod(0o755)
    return Workspace(tmp_path)


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_build_has_the_target_and_downloads_from_the_mirror(
    workspace: Workspace, target: str
) -> None:
    done = workspace.run("build", _TARGET=target, _CALIBRATION="my images")
    assert done.returncode == 0, done.stderr
    create, build, store = workspace.calls()
    assert " --driver-opt image=mirror.gcr.io/moby/buildkit:" in create
    config = re.search(r" --config (\S+)", create)
    assert config
    assert tomllib.loads(Path(config[1]).read_text(encoding="utf-8")) == {
        "registry": {"docker.io": {"mirrors": ["mirror.gcr.io"]}}
    }
    assert f" --target {target} " in build
    assert " --build-arg BASE=python:3.13-slim-bookworm --build-arg REVISION=build-1 " in build
    assert " --build-arg MODEL=yolo26n.pt --build-arg CALIBRATION=my images " in build
    cache = f"type=registry,ref={IMAGE}:cache-{target}"
    same, _, own = build.partition(" --load ")
    assert own == f"--tag {IMAGE}:build-1 --cache-from {cache} ."
    # Otherwise, the second command would build again.
    assert store.startswith(f"{same} --cache-to {cache},")


def test_build_without_a_bucket_fails_at_once(workspace: Workspace) -> None:
    done = workspace.run("build", _BUCKET="")
    assert done.returncode == 1
    assert "_BUCKET is empty" in done.stderr
    assert workspace.calls() == []


# What was found, whether `pip` and `pip-audit` succeed, and what is said.
FINDING = {"FAKE_FINDINGS": FINDINGS, "FAKE_AUDIT_EXIT": "1"}
NO_NETWORK = {"FAKE_AUDIT_EXIT": "1"}
NO_PIP = {"FAKE_PIP_EXIT": "1"}


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        (FINDING, "There are known vulnerabilities"),
        (NO_NETWORK, "The audit could not run"),
        (NO_PIP, "The audit could not run"),
    ],
    ids=["finding", "no-network", "no-pip"],
)
def test_audit_warns_in_the_first_build_and_fails_later(
    workspace: Workspace, variables: dict[str, str], sentence: str
) -> None:
    later = workspace.run("audit", **variables)
    first = workspace.run("audit", **variables, _DEPLOY="false")
    accepted = workspace.run("audit", **variables, _IGNORE_VULNERABILITIES="all")
    assert (later.returncode, first.returncode, accepted.returncode) == (1, 0, 0)
    assert f"ERROR: {sentence}" in later.stderr
    for done in (first, accepted):
        assert f"WARNING: {sentence}" in done.stderr
        assert done.stdout == later.stdout == variables.get("FAKE_FINDINGS", "")


def test_failed_audit_names_the_line_that_accepts_the_findings(workspace: Workspace) -> None:
    done = workspace.run("audit", **FINDING, _IGNORE_VULNERABILITIES="CVE-1")
    line = done.stderr.splitlines()[-1].partition("in cloudbuild.yaml: ")[2]
    assert yaml.safe_load(line) == {
        "_IGNORE_VULNERABILITIES": "CVE-1 GHSA-m2qf-hxjv-5gpq PYSEC-2018-66"
    }
    workspace.run("audit", **yaml.safe_load(line))
    assert workspace.calls()[-1].endswith(
        " --ignore-vuln CVE-1 --ignore-vuln GHSA-m2qf-hxjv-5gpq --ignore-vuln PYSEC-2018-66"
    )


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_audit_reads_the_lock_of_the_target(workspace: Workspace, target: str) -> None:
    assert workspace.run("audit", _TARGET=target).returncode == 0
    assert f" --requirement requirements/{target}.txt " in workspace.calls()[-1]


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
    calls = [call for call in workspace.calls() if call.startswith("gcloud ")]
    updates = [call for call in calls if " update " in call]
    assert len(updates) == 2
    assert updates[0].startswith("gcloud run services update yolo-batch ")
    assert f" --image {DIGEST} " in updates[0]
    assert updates[1].startswith("gcloud run jobs update yolo-batch-reconcile ")
    assert DIGEST in updates[1]
    assert workspace.calls()[-2:] == [
        f"docker tag {IMAGE}:build-1 {IMAGE}:latest-cpu",
        f"docker push {IMAGE}:latest-cpu",
    ]


def test_passed_smoke_test_updates_all_jobs_and_services(workspace: Workspace) -> None:
    done = workspace.deploy(_JOBS="my-reconcile my-silence", _SERVICES="my-detect my-gallery")
    assert done.returncode == 0, done.stderr
    updated = [
        re.findall(r"gcloud run (\w+) update (\S+) .*--image (\S+)", call)[0]
        for call in workspace.calls()
        if call.startswith("gcloud run") and " update " in call
    ]
    assert updated[1:] == [
        ("jobs", "my-reconcile", DIGEST),
        ("jobs", "my-silence", DIGEST),
        ("services", "my-detect", DIGEST),
        ("services", "my-gallery", DIGEST),
    ]


def test_failed_smoke_test_leaves_the_other_services_alone(workspace: Workspace) -> None:
    done = workspace.deploy(_SERVICES="my-detect", FAKE_RUN_EXIT="1")
    assert done.returncode == 1
    assert not [call for call in workspace.calls() if "my-detect" in call]


def test_image_without_result_rolls_back_and_fails_the_build(workspace: Workspace) -> None:
    done = workspace.deploy(FAKE_RUN_EXIT="1")
    assert done.returncode == 1
    assert "The smoke test of " in done.stderr
    assert workspace.calls()[-1].endswith(f" --image {PREVIOUS} --quiet")
    assert not [call for call in workspace.calls() if "jobs update" in call]


@pytest.mark.parametrize(
    ("variables", "restored"),
    [
        ({}, PREVIOUS),
        ({"FAKE_REVISION": ""}, f"{IMAGE}:latest-cpu"),
        ({"FAKE_DIGEST": "", "FAKE_DIGEST_EXIT": "1"}, f"{IMAGE}:latest-cpu"),
    ],
    ids=["digest", "never-started", "refused"],
)
def test_rollback_from_the_first_tag_is_not_to_the_bad_image(
    workspace: Workspace, variables: dict[str, str], restored: str
) -> None:
    done = workspace.deploy(FAKE_RUN_EXIT="1", FAKE_PREVIOUS=f"{IMAGE}:latest-cpu", **variables)
    assert done.returncode == 1
    assert workspace.calls()[-1].endswith(f" --image {restored} --quiet")
    assert f"docker push {IMAGE}:latest-cpu" not in workspace.calls()


def test_rollback_to_the_same_image_is_left_out(workspace: Workspace) -> None:
    done = workspace.deploy(FAKE_RUN_EXIT="1", FAKE_PREVIOUS=DIGEST)
    assert done.returncode == 1
    assert not [call for call in workspace.calls() if call.endswith(f"--image {PREVIOUS} --quiet")]
    assert (
        len([call for call in workspace.calls() if call.startswith("gcloud run services up")]) == 1
    )


@pytest.mark.parametrize(
    "unknown", [{"FAKE_DEPLOYED": ""}, {"FAKE_DEPLOYED": "", "FAKE_DEPLOYED_EXIT": "1"}], ids=str
)
def test_unreadable_service_stops_neither_decision(
    workspace: Workspace, unknown: dict[str, str]
) -> None:
    assert workspace.deploy(**unknown).returncode == 0
    assert workspace.calls()[-1] == f"docker push {IMAGE}:latest-cpu"
    assert workspace.deploy(**unknown, FAKE_RUN_EXIT="1").returncode == 1
    assert workspace.calls()[-1].endswith(f" --image {PREVIOUS} --quiet")


def test_revision_that_does_not_start_fails_the_build(workspace: Workspace) -> None:
    assert workspace.run("push").returncode == 0
    assert workspace.run("deploy", FAKE_UPDATE_EXIT="1").returncode == 1


def test_first_build_pushes_and_deploys_nothing(workspace: Workspace) -> None:
    done = workspace.deploy(_DEPLOY="false", _BUCKET="")
    assert done.returncode == 0, done.stderr
    assert all(call.startswith("docker ") for call in workspace.calls())
    assert not [call for call in workspace.calls() if call.startswith("docker run")]
    assert workspace.calls()[-1] == f"docker push {IMAGE}:latest-cpu"


def test_first_build_does_not_depend_on_unlocked_tools(workspace: Workspace) -> None:
    done = workspace.run("test", _DEPLOY="false")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Skipped the tests")


def test_service_without_reconcile_job_is_deployed(workspace: Workspace) -> None:
    assert workspace.deploy(_JOBS="").returncode == 0
    assert not [call for call in workspace.calls() if "jobs update" in call]


def test_commands_in_the_container_take_these_arguments(workspace: Workspace) -> None:
    assert workspace.run("check-model").returncode == 0
    workspace.deploy()
    check, sample = (call for call in workspace.calls() if re.search(r"yolo-batch [cs]\w", call))
    check_model.make_context("check-model", check.partition("yolo-batch check-model")[2].split())
    context = smoke.make_context("smoke", sample.partition("yolo-batch smoke ")[2].split())
    assert context.params["uri"] == ("uploads", "")
