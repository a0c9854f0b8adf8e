"""The Dockerfile and its scripts, read: nothing is built."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "Dockerfile"


def check(tool: str, *arguments: str | Path) -> None:
    """Run a linter of the development environment."""
    command = [Path(sys.executable).with_name(tool), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def instructions(name: str) -> list[str]:
    text = DOCKERFILE.read_text(encoding="utf-8").replace("\\\n", " ")
    return re.findall(rf"^{name} +(.*)$", text, re.M)


def test_dockerfile_has_no_lint() -> None:
    check("hadolint", "--failure-threshold", "info", DOCKERFILE)


def test_scripts_have_no_lint() -> None:
    check("shellcheck", *sorted((ROOT / "container").glob("*.sh")))


def test_targets_are_there_and_cpu_is_the_default() -> None:
    stages = [line.split()[-1] for line in instructions("FROM")]
    assert stages[-1] == "cpu"
    assert "gpu" in stages


def test_every_copied_source_is_there_and_reaches_the_builder() -> None:
    ignore = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for line in instructions("COPY"):
        if "--from=" in line:
            continue
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert f"!{source.partition('/')[0]}" in ignore, source


def test_every_package_is_installed_by_its_hash_or_from_here() -> None:
    text = "\n".join([*instructions("RUN"), (ROOT / "container/install-export.sh").read_text()])
    installs = re.findall(r"\binstall .*?(?=&&|;;|$)", text.replace("\\\n", " "), re.M)
    assert len(installs) >= 5
    for install in installs:
        assert "--require-hashes" in install or "--no-index" in install, install
