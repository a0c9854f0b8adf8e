"""Runs Terraform on a fake of the google provider, where ../shared/tools has one.

The fake decides what Terraform itself decides: plans, replacements, their order, second plans.
It cannot say what Google's APIs would accept.
"""

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]
ROOT = REPOSITORY / "terraform"
MODULE = ROOT / "modules" / "yolo-batch"
STANDIN = REPOSITORY.parent / "shared" / "tools" / "terraform_standin" / "run.sh"
BASE = {"project_id": "my-project-1", "region": "europe-west1"}
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
        [str(STANDIN), *own, *options, "--root", str(root), str(directory), "--"]
        + ["terraform", *arguments, *given],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    return Run(done.returncode, done.stdout)


def matrix(
    changes: list[dict[str, Any]],
    folder: Path,
    options: tuple[str, ...] = (),
    base: dict[str, Any] = BASE,
) -> dict[str, dict[str, Any]]:
    """Apply `base` once, plan each change from there, and return the reports by change."""
    wanted, found = folder / "matrix.json", folder / "found.json"
    wanted.write_text(json.dumps({"base": base, "change": changes}))
    done = subprocess.run(
        [str(STANDIN), "matrix", "--json", str(found), *options, str(wanted), str(ROOT)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    assert done.returncode == 0, done.stdout
    reports: list[dict[str, Any]] = json.loads(found.read_text())
    return {report["change"]: report for report in reports}
