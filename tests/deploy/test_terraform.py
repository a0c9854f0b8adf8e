"""The Terraform module, as far as it can be checked without a cloud project or a provider."""

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from devtools.docs.terraform import blocks_of
from service.cli.alerts import alerts, check_silence
from service.cli.reconcile import reconcile
from service.health import Health
from service.operate.backfill import Redelivery
from service.server.app import create_app
from service.settings import DETECT, Settings
from tests.deploy.changes import CHANGES
from tests.deploy.standin import MODULE, REPOSITORY, ROOT
from tests.fakes import FakeDetector, FakeStorage, FakeStore, pipeline_of

CHECKER = REPOSITORY.parent / "shared" / "tools" / "check_terraform" / "check_terraform.py"
PATIENCE_SECONDS = 300
VARIANTS: list[dict[str, Any]] = [
    {},
    {"accelerator": "nvidia-l4"},
    {"accelerator": "nvidia-rtx-pro-6000"},
    {"alerts_topic": True, "results_bucket": True, "results_topic": True},
    {"batch_size": 1},
    {"batch_size": 64, "settings": {"MIN_CONFIDENCE": "0.4"}},
]
needs_terraform = pytest.mark.skipif(
    not shutil.which("terraform"),
    reason="NOT CHECKED: terraform is not installed (https://developer.hashicorp.com/terraform/install)",
)


# --- Reading the module


def _resource(kind: str, name: str) -> Any:
    for path in MODULE.glob("*.tf"):
        for block in blocks_of(path, "resource"):
            if found := block.get(kind, {}).get(name):
                return found
    raise LookupError(f"{kind}.{name}")


def _local(name: str) -> Any:
    for path in MODULE.glob("*.tf"):
        for block in blocks_of(path, "locals"):
            if name in block:
                return block[name]
    raise LookupError(f"local.{name}")


# --- Running Terraform on the files that need no provider


def _terraform(*arguments: str, directory: Path, text: str = "") -> str:
    """Run terraform offline, and return its output. Fail with the output if it fails."""
    done = subprocess.run(
        ["terraform", *arguments],
        cwd=directory,
        input=text,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        env=os.environ | {"CHECKPOINT_DISABLE": "1", "TF_IN_AUTOMATION": "1", "NO_COLOR": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def offline(tmp_path: Path) -> Path:
    """Return a module with only the variables and the values derived from them."""
    for name in ("variables.tf", "locals.tf", "combinations.tf"):
        shutil.copy(MODULE / name, tmp_path)
    return tmp_path


def _evaluate(directory: Path, expression: str, variables: dict[str, Any]) -> Any:
    variables = {"project_id": "my-project-1", "region": "europe-west4"} | variables
    (directory / "terraform.tfvars.json").write_text(json.dumps(variables))
    output = _terraform("console", directory=directory, text=f"jsonencode({expression})\n")
    return json.loads(json.loads(output.strip().splitlines()[-1]))


# --- Form


@needs_terraform
def test_files_are_formatted() -> None:
    assert _terraform("fmt", "-check", "-recursive", "-diff", directory=ROOT) == ""


@pytest.mark.skipif(
    not CHECKER.exists(), reason="NOT CHECKED: there is no ../shared/tools/check_terraform"
)
def test_module_fits_the_providers_schema() -> None:
    done = subprocess.run(
        [sys.executable, str(CHECKER), str(ROOT)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_variables_and_outputs_are_sorted_and_described() -> None:
    for kind in ("variable", "output"):
        found = {
            name: body
            for block in blocks_of(MODULE / f"{kind}s.tf", kind)
            for name, body in block.items()
        }
        assert list(found) == sorted(found)
        assert all(body["description"] for body in found.values())


def test_every_variable_has_a_change() -> None:
    """test_changes.py plans the changes, if it can run Terraform."""
    variables = {name for block in blocks_of(MODULE / "variables.tf", "variable") for name in block}
    assert {name for change in CHANGES.values() for name in change.set} == variables


# --- The container's environment


@needs_terraform
@pytest.mark.parametrize("variables", VARIANTS, ids=str)
def test_environment_is_valid_settings(offline: Path, variables: dict[str, Any]) -> None:
    environment = _evaluate(offline, "local.service_environment", variables)
    settings = Settings.from_env(environment)
    assert {name.lower() for name in environment} <= set(vars(settings))
    assert settings.max_in_flight == _evaluate(offline, "local.max_in_flight", variables)
    assert settings.delivery_seconds == _evaluate(offline, "local.delivery_seconds", variables)


@needs_terraform
@pytest.mark.parametrize("variables", VARIANTS, ids=str)
def test_environment_of_the_detect_service_is_valid(
    offline: Path, variables: dict[str, Any]
) -> None:
    variables = variables | {"detect_service": True}
    environment = _evaluate(offline, "local.detect_environment", variables)
    settings = Settings.from_env(environment)
    assert {name.lower() for name in environment} <= set(vars(settings))
    assert settings.endpoints == DETECT
    assert settings.max_in_flight == _evaluate(offline, "local.detect_in_flight", variables)
    assert settings.detect_timeout_seconds == _evaluate(offline, "local.detect_seconds", variables)


@needs_terraform
@pytest.mark.parametrize("cpu", [1, 2, 4, 8])
def test_one_stream_and_decoder_for_each_vcpu(offline: Path, cpu: int) -> None:
    """With 1 vCPU, a container sees two CPUs."""
    environment = _evaluate(offline, "local.service_environment", {"cpu": cpu})
    settings = Settings.from_env(environment)
    assert settings.inference_streams == settings.decoders == cpu


@needs_terraform
def test_defaults_of_timeouts_are_the_services_own(offline: Path) -> None:
    names = ("hang_timeout_seconds", "firestore_timeout_seconds", "graceful_timeout_seconds")
    settings = Settings.from_env(_evaluate(offline, "local.service_environment", {}))
    assert [getattr(settings, name) for name in names] == [
        getattr(Settings(), name) for name in names
    ]


def test_cloud_runs_limits_match_those_of_the_service() -> None:
    [template] = _resource("google_cloud_run_v2_service", "main")["template"]
    assert template["max_instance_request_concurrency"] == "${local.max_in_flight}"
    assert template["timeout"] == "${local.ack_deadline_seconds}s"


def test_time_between_liveness_probes_counts_in_full() -> None:
    [container] = _resource("google_cloud_run_v2_service", "main")["template"][0]["containers"]
    counted = inspect.signature(Health).parameters["max_probe_seconds"].default
    assert container["liveness_probe"][0]["period_seconds"] <= counted


def test_probes_ask_paths_that_the_service_has() -> None:
    [container] = _resource("google_cloud_run_v2_service", "main")["template"][0]["containers"]
    pipeline = pipeline_of(FakeStorage(), FakeStore(), FakeDetector())
    client = create_app(pipeline).test_client()
    for probe in ("startup_probe", "liveness_probe"):
        assert client.get(container[probe][0]["http_get"][0]["path"]).status_code == 200
    pipeline.close()


def test_reconcile_job_calls_the_command_as_it_is() -> None:
    [container] = _resource("google_cloud_run_v2_job", "reconcile")["template"][0]["template"][0][
        "containers"
    ]
    assert container["command"] == ["yolo-batch"]
    name, _uri, *options = _local("reconcile_args")
    assert container["args"].startswith("${concat(local.reconcile_args,")
    assert name == reconcile.name
    known = {option for parameter in reconcile.params for option in parameter.opts}
    assert {option for option in options if option.startswith("--")} <= known
    enqueue = next(p for p in reconcile.params if "--enqueue" in p.opts)
    assert isinstance(enqueue.type, click.Choice)
    assert enqueue.multiple
    assert {options[options.index("--enqueue") + 1], "parked"} <= set(enqueue.type.choices)
    since = options[options.index("--since") + 1]
    assert since.startswith("gs://${google_storage_bucket.reconcile.name}/")


@needs_terraform
def test_silence_job_calls_the_command_as_it_is(offline: Path) -> None:
    group, name = _local("silence_args")
    assert (group, name) == (alerts.name, check_silence.name)
    command = alerts.commands[name]
    command.make_context(name, [])  # it needs no arguments
    environment = _evaluate(offline, "local.silence_environment", {"alerts_topic": True})
    settings = Settings.from_env(environment)
    assert {each.lower() for each in environment} <= set(vars(settings))
    assert settings.alerts_topic == "projects/my-project-1/topics/yolo-batch-alerts"


def test_backfill_uses_the_redeliveries_of_the_subscription() -> None:
    retry = _local("retry")
    assert Redelivery() == Redelivery(
        deliveries=retry["attempts"],
        minimum_backoff_seconds=float(retry["minimum_backoff"].removesuffix("s")),
        maximum_backoff_seconds=float(retry["maximum_backoff"].removesuffix("s")),
    )


def test_substitutions_are_those_of_the_build() -> None:
    build = (REPOSITORY / "cloudbuild.yaml").read_text()
    defined = set(re.findall(r"^  (_[A-Z]+):", build, re.MULTILINE))
    assert set(_local("substitutions")) | {"_DEPLOY"} <= defined
    assert '/service"' in build and ":latest-${_TARGET}" in build  # what the first service takes


# --- The recipe


def test_both_readmes_deploy_by_the_same_commands() -> None:
    recipes = []
    for path in (REPOSITORY / "README.md", ROOT / "README.md"):
        block = re.search(
            r"\n(```\w*\n| {4})(gcloud auth login .*?)\n(```)?\n", path.read_text(), re.DOTALL
        )
        assert block, path
        recipes.append([line.strip() for line in block[2].splitlines()])
    assert recipes[0] == recipes[1]
    assert len(recipes[0]) <= 5


# --- Invalid values


@needs_terraform
def test_every_invalid_value_fails(offline: Path) -> None:
    """Run `terraform test` of refusals.tftest.hcl on the files that need no provider."""
    text = (MODULE / "tests" / "refusals.tftest.hcl").read_text()
    text = re.sub(r"^mock_provider .*\n", "", text, flags=re.MULTILINE)
    text = text.replace(", check.uploads_subscription", "")
    (offline / "tests").mkdir()
    (offline / "tests" / "refusals.tftest.hcl").write_text(text)
    _terraform("init", "-backend=false", "-input=false", directory=offline)
    output = _terraform("test", "-no-color", directory=offline)
    assert f"Success! {len(re.findall('^run ', text, re.MULTILINE))} passed, 0 failed." in output


def test_every_validation_and_check_has_a_failing_run() -> None:
    runs = [
        body
        for name in ("refusals", "existing")
        for block in blocks_of(MODULE / "tests" / f"{name}.tftest.hcl", "run")
        for body in block.values()
        if "expect_failures" in body
    ]
    failing = [re.sub(r"[${}]", "", run["expect_failures"][0]) for run in runs]
    for block in blocks_of(MODULE / "variables.tf", "variable"):
        [(name, body)] = block.items()
        assert failing.count(f"var.{name}") >= len(body.get("validation", []))
    checks = {
        f"check.{name}"
        for path in MODULE.glob("*.tf")
        for block in blocks_of(path, "check")
        for name in block
    }
    assert checks <= set(failing)
    assert failing.count("check.quota") == 2
    for name in ("agreement", "combinations"):
        [lifecycle] = _resource("terraform_data", name)["lifecycle"]
        assert failing.count(f"terraform_data.{name}") == len(lifecycle["precondition"])
