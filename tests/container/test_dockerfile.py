"""Checks of the Dockerfile and its scripts, without a build."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("stage", ["cpu-dependencies", "gpu-dependencies"])
def test_heic_can_be_left_out_of_each_container_image(stage: str) -> None:
    text = DOCKERFILE.read_text(encoding="utf-8").replace("\\\n", " ")
    [steps] = re.findall(rf"^FROM \S+ AS {stage}\n(.*?)^FROM ", text, re.M | re.S)
    assert re.search(r"^ARG HEIC=true\n", steps, re.M)
    assert re.search(r'if \[ "\$HEIC" = false \].* uninstall .*pi-heif; +fi', steps)


def test_every_package_is_installed_by_its_hash_or_from_here() -> None:
    text = "\n".join([*instructions("RUN"), (ROOT / "container/install-export.sh").read_text()])
    installs = re.findall(r"\binstall .*?(?=&&|;;|$)", text.replace("\\\n", " "), re.M)
    assert len(installs) >= 5
    for install in installs:
        assert "--require-hashes" in install or "--no-index" in install, install


@pytest.mark.parametrize(
    ("size", "arguments"),
    [
        ("", "export yolo26n.pt --output OUT"),
        ("1280", "export yolo26n.pt --output OUT --image-size 1280"),
    ],
    ids=["trained", "given"],
)
def test_weights_are_exported_at_their_own_size_by_default(
    size: str, arguments: str, tmp_path: Path
) -> None:
    """The script runs unchanged, with fake tools that record how they are called."""
    for tool in ("python", "yolo-batch"):
        (tmp_path / tool).write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/{tool}.txt\n')
        (tmp_path / tool).chmod(0o755)
    script = (ROOT / "container/export.sh").read_text(encoding="utf-8")
    target = tmp_path / "model"
    target.mkdir()
    subprocess.run(
        ["sh", "-c", script.replace("/opt/export/bin", str(tmp_path)), "export.sh", str(target)],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "MODEL": "yolo26n.pt", "CALIBRATION": ""}
        | {"IMAGE_SIZE": size},
        check=True,
    )
    called = (tmp_path / "yolo-batch.txt").read_text(encoding="utf-8").strip()
    assert called == arguments.replace("OUT", str(target))
    assert "IMAGE_SIZE=" in instructions("ARG")


@pytest.mark.parametrize("name", ["mine.engine", "mine.onnx"])
def test_gpu_image_refuses_a_model_that_it_cannot_run(name: str, tmp_path: Path) -> None:
    """The lock has neither TensorRT nor ONNX Runtime (docs/decisions/0013-gpu-image.md)."""
    lock = (ROOT / "requirements/gpu.txt").read_text(encoding="utf-8")
    assert not re.search(r"^(tensorrt|onnxruntime)", lock, re.MULTILINE)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / name).touch()
    done = subprocess.run(
        ["sh", ROOT / "container/weights.sh", tmp_path / "out"],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "MODEL": f"models/{name}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "neither TensorRT nor ONNX Runtime: set MODEL to the .pt file" in done.stderr
    assert not (tmp_path / "out").exists()
