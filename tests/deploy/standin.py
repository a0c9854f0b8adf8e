"""Runs Terraform on a fake of the google provider, where ../shared/tools has one.

The fake decides what Terraform itself decides: plans, replacements, their order, second plans.
It cannot say what Google's APIs would accept.
"""

import json
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]
ROOT = REPOSITORY / "terraform"
MODULE = ROOT / "modules" / "yolo-batch"
STANDIN = REPOSITORY.parent / "shared" / "tools" / "terraform_standin" / "run.sh"
BASE = {"project_id": "my-project-1", "region": "europe-west1"}
BUDGET = {"billing_account": "012345-6789AB-CDEF01", "amount": 100}
CHANNELS = [f"projects/my-project-1/notificationChannels/{number}" for number in range(6)]
# What the fixture `deployment` has applied.
DEPLOYED = BASE | {
    "alert_incidents": True,
    "alert_webhook_audience": "https://alerts.example.com",
    "alert_webhook_url": "https://alerts.example.com/a",
    "alerts_topic": True,
    "bigquery": True,
    "budget": BUDGET,
    "detect_invokers": ["group:a@example.com"],
    "detect_service": True,
    "gallery": True,
    "gallery_originals": True,
    "gallery_viewers": ["group:a@example.com"],
    "indexed_fields": ["model.name"],
    "notification_channels": CHANNELS,
    "results_topic": True,
}
# The fake does not know these types. The facts are from the provider's source, in
# google/services/bigquery. The provider also replaces a table after some changes of its fields.
# The fake cannot show that.
_DATASET = "projects/{{project}}/datasets/{{dataset_id}}"
_BIGQUERY = {
    "google_bigquery_dataset": {
        "id": _DATASET,
        "force_new": ["dataset_id", "location", "project"],
        "defaults": {"delete_contents_on_destroy": False},
        "default_labels": True,
        "default_project": True,
    },
    "google_bigquery_table": {
        "id": f"{_DATASET}/tables/{{{{table_id}}}}",
        "force_new": [
            *("dataset_id", "table_id", "project"),
            *("encryption_configuration", "time_partitioning.field"),
        ],
        "defaults": {"deletion_protection": True},
        "default_labels": True,
        "default_project": True,
    },
    "google_bigquery_table_iam_member": {
        "id": f"{_DATASET}/tables/{{{{table_id}}}}",
        "force_new": [
            *("dataset_id", "table_id", "project", "role", "member", "condition"),
            *("condition.expression", "condition.title", "condition.description"),
        ],
        "suppressed": {
            "member": "iamMemberCaseDiffSuppress",
            "table_id": "tpgresource.CompareSelfLinkOrResourceName",
        },
        "default_project": True,
    },
}
# The fake gives a notification a random number of two digits, and refuses an equal one with 409.
_NOTIFICATION = "{{bucket}}/notificationConfigs/{{uuid}}"
PATIENCE_SECONDS = 3600  # for a machine that is shared with many others
needs_standin = pytest.mark.skipif(
    not (STANDIN.exists() and shutil.which("terraform")),
    reason="NOT CHECKED: there is no ../shared/tools/terraform_standin, or no terraform",
)


@dataclass(frozen=True)
class Run:
    """A run of Terraform that has ended."""

    returncode: int
    output: str  # standard output and errors together


@dataclass(frozen=True)
class Resource:
    """A resource in Terraform's state."""

    module: str  # for example `module.yolo_batch["yolo-retail"]`
    type: str
    name: str
    values: dict[str, Any]


class Applied:
    """What an apply left.

    Attributes:
        commands: each command of gcloud, without its name.
        outputs: of the configuration.
        resources: all that Terraform manages, in all modules.
    """

    def __init__(self, state: Path, directory: Path = ROOT) -> None:
        """Read the folder that `terraform` was given as `state`, and the same `directory`."""
        file = state / "copy" / ROOT.name / directory.relative_to(ROOT) / "terraform.tfstate"
        found = json.loads(file.read_text())
        lines = (state / "gcloud.jsonl").read_text().splitlines()
        self.commands: list[list[str]] = [json.loads(line) for line in lines]
        self.outputs = {name: output["value"] for name, output in found["outputs"].items()}
        self.resources = [
            Resource(each.get("module", ""), each["type"], each["name"], instance["attributes"])
            for each in found["resources"]
            if each["mode"] == "managed"
            for instance in each["instances"]
        ]

    def all(self, kind: str) -> list[dict[str, Any]]:
        """Return the values of all resources of a type."""
        return [each.values for each in self.resources if each.type == kind]

    def one(self, kind: str, name: str) -> dict[str, Any]:
        """Return the values of the only resource with this name."""
        [values] = [
            each.values for each in self.resources if (each.type, each.name) == (kind, name)
        ]
        return values


_COPIES: list[tempfile.TemporaryDirectory[str]] = []  # removed when the process ends


@cache
def _fake() -> Path:
    """Return the command of the fake: a copy that knows BigQuery and has no equal notifications."""
    _COPIES.append(copies := tempfile.TemporaryDirectory())
    tools = Path(shutil.copytree(STANDIN.parents[1], copies.name, dirs_exist_ok=True))
    facts = tools / STANDIN.parent.name / "forcenew.json"
    known = json.loads(facts.read_text())
    known["resources"] |= _BIGQUERY
    known["resources"]["google_storage_notification"]["id"] = _NOTIFICATION
    facts.unlink()
    facts.write_text(json.dumps(known))
    return tools / STANDIN.relative_to(STANDIN.parents[1])


def terraform(
    *arguments: str,
    variables: dict[str, Any] | None = None,
    directory: Path = ROOT,
    state: Path | None = None,
    root: Path = ROOT,
    options: tuple[str, ...] = (),
) -> Run:
    """Run `terraform` on the fake provider.

    Args:
        arguments: of terraform, for example `apply`, `-auto-approve`.
        variables: values of variables, given as `-var`.
        directory: the configuration. It is copied, and never written to.
        state: folder that keeps state and cloud for the next run. None: nothing is kept.
        root: folder that is copied. It contains the configuration and the modules that it calls.
        options: of the fake, for example `--gcloud-delay`, `8`.
    """
    own = ("--state", str(state)) if state else ()
    given = [
        f"-var={name}={value if isinstance(value, str) else json.dumps(value)}"
        for name, value in (variables or {}).items()
    ]
    done = subprocess.run(
        [str(_fake()), *own, *options, "--root", str(root), str(directory), "--"]
        + ["terraform", *arguments, *given],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    return Run(done.returncode, done.stdout)


def matrix(
    changes: list[dict[str, Any]], folder: Path, options: tuple[str, ...] = ()
) -> dict[str, dict[str, Any]]:
    """Apply `BASE` once, plan each change from there, and return the reports by change."""
    wanted, found = folder / "matrix.json", folder / "found.json"
    wanted.write_text(json.dumps({"base": BASE, "change": changes}))
    done = subprocess.run(
        [str(_fake()), "matrix", "--json", str(found), *options, str(wanted), str(ROOT)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    assert done.returncode == 0, done.stdout
    reports: list[dict[str, Any]] = json.loads(found.read_text())
    return {report["change"]: report for report in reports}
