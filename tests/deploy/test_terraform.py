"""The Terraform module, as far as it can be checked without a cloud project or a provider."""

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from google.auth.credentials import AnonymousCredentials
from google.cloud import firestore
from google.cloud.firestore_v1.base_query import BaseQuery, FieldFilter

from devtools.docs.terraform import blocks_of
from service.cli.reconcile import reconcile
from service.deadline import NO_DEADLINE
from service.domain import Event, Outcome
from service.gcp.result_reader import ResultReader
from service.health import Health
from service.operate.backfill import Redelivery
from service.operate.smoke import sample_name
from service.server.app import create_app
from service.settings import Settings
from tests.fakes import FakeDetector, FakeStorage, FakeStore, bmp_image, pipeline_of
from tests.loglines import configure

REPOSITORY = Path(__file__).parents[2]
ROOT = REPOSITORY / "terraform"
MODULE = ROOT / "modules" / "yolo-batch"
CHECKER = REPOSITORY.parent / "shared" / "tools" / "check_terraform" / "check_terraform.py"
PATIENCE_SECONDS = 300
VARIANTS: list[dict[str, Any]] = [
    {},
    {"accelerator": "nvidia-l4"},
    {"accelerator": "nvidia-rtx-pro-6000"},
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
    name, _uri, *options = container["args"]
    assert name == reconcile.name
    known = {option for parameter in reconcile.params for option in parameter.opts}
    assert {option for option in options if option.startswith("--")} <= known
    enqueue = next(p for p in reconcile.params if "--enqueue" in p.opts)
    assert isinstance(enqueue.type, click.Choice)
    assert options[options.index("--enqueue") + 1] in enqueue.type.choices
    since = options[options.index("--since") + 1]
    assert since.startswith("gs://${google_storage_bucket.reconcile.name}/")


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
    assert '/service"' in build and ":latest" in build  # the image that the first service takes


def test_builder_touches_no_upload_but_the_smoke_tests() -> None:
    grant = _resource("google_storage_bucket_iam_member", "build_smoke")
    [prefix] = re.findall(r"/objects/(.*?)\"", grant["condition"][0]["expression"])
    assert sample_name().startswith(prefix)


# --- The dashboard


@needs_terraform
def test_dashboard_has_no_zeros_and_no_nulls(offline: Path) -> None:
    """The API returns neither zeros nor nulls, so each would show up in every plan."""
    text = (MODULE / "monitoring.tf").read_text()
    text = "\n".join(re.findall(r"^locals \{.*?^\}$", text, re.MULTILINE | re.DOTALL))
    text = text.replace("google_pubsub_subscription.dead_letters.name", '"dead-letters"')
    (offline / "monitoring.tf").write_text(text)
    tiles = _evaluate(offline, "local.dashboard", {})["mosaicLayout"]["tiles"]
    assert [(tile.get("xPos"), tile.get("yPos")) for tile in tiles[:4]] == [
        (None, None),
        (6, None),
        (None, 4),
        (6, 4),
    ]
    sets = [tile["widget"]["xyChart"]["dataSets"] for tile in tiles]
    assert "legendTemplate" not in sets[0][0]
    assert [each["legendTemplate"] for each in sets[3]] == sorted(map(str, Outcome))
    assert not re.search(r": (0|null)\b", json.dumps(tiles))


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


@needs_terraform
def test_another_kms_key_is_refused_after_the_first_apply(offline: Path) -> None:
    key = "projects/keys-1/locations/europe-west4/keyRings/ring/cryptoKeys/key"
    given = ["-var=project_id=my-project-1", "-var=region=europe-west4"]
    _terraform("init", "-backend=false", "-input=false", directory=offline)
    _terraform("apply", "-auto-approve", *given, directory=offline)
    _terraform("plan", *given, directory=offline)
    with pytest.raises(AssertionError, match=r"kms_key was none at the first\s.*apply"):
        _terraform("plan", *given, f"-var=kms_key={key}", directory=offline)


def test_every_validation_and_check_has_a_failing_run() -> None:
    runs = [
        body
        for name in ("refusals", "existing")
        for block in blocks_of(MODULE / "tests" / f"{name}.tftest.hcl", "run")
        for body in block.values()
    ]
    failing = [re.sub(r"[${}]", "", run["expect_failures"][0]) for run in runs]
    for block in blocks_of(MODULE / "variables.tf", "variable"):
        [(name, body)] = block.items()
        assert failing.count(f"var.{name}") >= len(body.get("validation", []))
    assert {"check.gpu_region", "check.write_rate"} <= set(failing)
    assert failing.count("terraform_data.agreement") == 2
    combinations = _resource("terraform_data", "combinations")["lifecycle"][0]
    assert failing.count("terraform_data.combinations") == len(combinations["precondition"])


# --- Indexes


def _fields(query: BaseQuery) -> list[str]:
    """Return the fields that a query filters and sorts by, each once."""
    # The public interface of a query does not have them.
    structured = query._to_protobuf()
    where = structured.where
    filters = [each.field_filter for each in where.composite_filter.filters] or [where.field_filter]
    fields = [each.field.field_path for each in filters]
    fields += [order.field.field_path for order in structured.order_by]
    return list(dict.fromkeys(fields))


def _client() -> firestore.Client:
    return firestore.Client(project="my-project-1", credentials=AnonymousCredentials())


def _documented_queries() -> list[BaseQuery]:
    page = (REPOSITORY / "docs" / "how-to" / "query-results.md").read_text()
    queries = re.findall(r"```python\n(results\..*?)```", page, re.DOTALL)
    assert len(queries) == 6
    names = {
        "firestore": firestore,
        "results": _client().collection("detections"),
        "FieldFilter": FieldFilter,
    }
    return [eval(query, names) for query in queries]


def test_documented_queries_have_their_indexes(monkeypatch: pytest.MonkeyPatch) -> None:
    queries = _documented_queries()

    def note(query: firestore.Query, **_: Any) -> Iterator[Any]:
        queries.append(query)
        return iter(())

    monkeypatch.setattr(firestore.Query, "stream", note)
    reader = ResultReader(_client(), collection="detections", timeout_seconds=1)
    assert list(reader.results("uploads", "cam1/")) == []

    composites = re.findall(r"\[(.*?)\]", _local("composite_indexes"), re.DOTALL)
    available = [re.findall(r'path\"?\s*[=:]\s*"(\w+)"', fields) for fields in composites]
    unindexed = {*re.findall(r'"(\w+)"', str(_local("unindexed_fields"))), "created_at"}
    assert unindexed >= {"detections", "event_time", "generation"}
    for query in queries:
        fields = _fields(query)
        assert not {field.partition(".")[0] for field in fields} & unindexed
        assert len(fields) == 1 or fields in available, f"no index for {fields}"


# --- Metrics of log lines


@pytest.fixture
def log_lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """Return the log lines of commits, of a failed image and of a rejected message."""
    configure("INFO")
    storage, store = FakeStorage(), FakeStore()
    good, bad = storage.put("good.bmp", bmp_image()), storage.put("bad.bmp", b"no image")
    pipeline = pipeline_of(storage, store, FakeDetector())
    pipeline.handle(Event(good), NO_DEADLINE)
    pipeline.handle(Event(bad), NO_DEADLINE)
    pipeline.stop()
    response = (
        create_app(pipeline)
        .test_client()
        .post("/", json={"message": {"data": "eyJ1cmkiOiAiZ3M6Ly91cGxvYWRzL2EuanBnIn0="}})
    )
    assert response.status_code == 503
    pipeline.close()
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def _messages(lines: list[dict[str, Any]], message: str) -> list[dict[str, Any]]:
    return [line for line in lines if line["message"] == message]


def test_commit_metrics_read_what_is_logged(log_lines: list[dict[str, Any]]) -> None:
    metric = _resource("google_logging_metric", "commit")
    [messages] = re.findall(r"jsonPayload\.message=\((.*?)\)", metric["filter"])
    lines = [
        line
        for message in re.findall(r'"(\w+)"', messages)
        for line in _messages(log_lines, message)
    ]
    assert metric["value_extractor"] == "EXTRACT(jsonPayload.${each.key})"
    assert sum(line.get("images", 0) for line in lines) == 2
    assert sum(line.get("done", 0) for line in lines) == 1
    assert sum(line.get("failed", 0) for line in lines) == 1
    assert any("commit_ms" in line for line in lines)
    assert set(_local("commit_metrics")) == {"images", "commit_ms", *map(str, Outcome)}


def test_line_metrics_read_what_is_logged(log_lines: list[dict[str, Any]]) -> None:
    for metric in _local("line_metrics").values():
        [line] = _messages(log_lines, metric["message"])
        assert line[metric["label"]]
