"""Build and run the image with podman, on the storage of the tool that makes its base.

The tool (CONTAINER_TOOL, or ../shared/tools/build_container.sh) installs podman where it is
missing, makes a Python base without a registry, builds, starts once, and says what it saw.
"""

import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from devtools.local_stack.processes import Child, Processes, is_answering

ROOT = Path(__file__).parents[2]
TOOL = Path(os.environ.get("CONTAINER_TOOL", ROOT.parent / "shared/tools/build_container.sh"))
STORAGE = Path(os.environ.get("BASE_DIR", "/var/tmp/container-base"))
MEMORY = "1g"  # the default of the deployment
_TOOL_SECONDS = 1500
_READY_SECONDS = 300
_STOP_SECONDS = 120  # Cloud Run allows 10
# Output that shows a fault of the machine, not of the Dockerfile.
_NETWORK = re.compile(
    "Temporary failure in name resolution|Connection refused|Connection reset|timed out|"
    "Max retries exceeded|NewConnectionError|IncompleteRead|No space left on device|HTTP error 5"
)
# Checks that podman can build and run containers, and that pip reaches its index.
_PROBE = """\
FROM {base}
COPY build.txt .
RUN python -m pip install --no-deps --require-hashes -r build.txt
USER 10001:10001
CMD ["python", "-c", "import http.server as h, os, signal; \
signal.signal(signal.SIGTERM, lambda *_: os._exit(0)); \
h.test(h.SimpleHTTPRequestHandler, port=int(os.environ['PORT']))"]
"""


@dataclass(frozen=True)
class Image:
    """A built image, and the output of its build."""

    name: str
    report: str

    def own_megabytes(self) -> float:
        """Uncompressed size of the layers above those of the base image."""
        found = re.search(r"own layers ([\d.]+) MB", self.report)
        assert found, self.report
        return float(found[1])


@dataclass(frozen=True)
class Container:
    """A running container."""

    child: Child
    pid: int  # of its first process, in the host's numbering
    url: str

    def terminate(self) -> int:
        """Send SIGTERM to the first process, as a platform does. Return the exit code."""
        os.kill(self.pid, signal.SIGTERM)
        return self.child.process.wait(_STOP_SECONDS)


def skip_without_engine(directory: Path) -> None:
    """Skip the test, with a reason, if this machine cannot build containers."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("no container is built: only root on Linux can do it with podman and no engine")
    if not TOOL.is_file():
        pytest.skip(f"no container is built: no {TOOL}; name the tool by CONTAINER_TOOL")
    (directory / "build.txt").write_bytes((ROOT / "requirements/build.txt").read_bytes())
    base = re.search(r"^ARG BASE=(\S+)", (ROOT / "Dockerfile").read_text(), re.M)
    assert base
    (directory / "Dockerfile").write_text(_PROBE.format(base=base[1]))
    environment = {"DOCKERFILE": str(directory / "Dockerfile")}
    code, output = _run_tool(directory, "-", "/", environment)
    if code != 0:
        pytest.skip(f"no container is built: this machine cannot even build a probe:\n{output}")


def build(*, target: str = "cpu") -> Image:
    """Build the repository's image, and let the tool start it once."""
    revision = f"test-{uuid.uuid4().hex}"
    # It becomes ready without an emulator, because clients connect when they are used.
    environment = {
        "BUILD_ARGS": f"REVISION={revision}",
        "RUN_ENV": "GOOGLE_CLOUD_PROJECT=test FIRESTORE_EMULATOR_HOST=127.0.0.1:9 "
        "STORAGE_EMULATOR_HOST=http://127.0.0.1:9",
    }
    started = time.monotonic()
    code, output = _run_tool(ROOT, target, "/health/ready", environment)
    if code != 0:
        if _NETWORK.search(output) or (
            "build failed" in output and time.monotonic() - started > 570
        ):
            pytest.skip(f"the image could not be built here and now:\n{output}")
        pytest.fail(f"the image does not build or start:\n{output}", pytrace=False)
    label = f"label=org.opencontainers.image.revision={revision}"
    built = podman("images", "--quiet", "--no-trunc", "--filter", label).split()[0]
    name = f"localhost/yolo-batch:{revision}"
    podman("tag", built, name)
    return Image(name, output)


def podman(*arguments: str | Path, timeout: float = 300) -> str:
    """Run podman, and return its output."""
    done = subprocess.run(
        [*_podman(), *arguments], capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, f"podman {arguments}: {done.stdout}{done.stderr}"
    return done.stdout


def run_options(environment: Mapping[str, str]) -> list[str]:
    """Run as nobody on a read-only file system, with no capability and 1 GiB."""
    variables = [f"--env={name}={value}" for name, value in environment.items()]
    return [
        "run", "--rm", "--pull=never", "--network=host", f"--memory={MEMORY}",
        "--ulimit=nofile=4096:4096", "--ulimit=nproc=4096:4096",
        "--cap-drop=ALL", "--security-opt=no-new-privileges",
        "--read-only", "--read-only-tmpfs=false", "--tmpfs=/tmp", *variables,
    ]  # fmt: skip


@contextmanager
def run_service(
    image: Image, logs: Path, environment: Mapping[str, str], port: int
) -> Iterator[Container]:
    """Run the image's own command until the end of the block."""
    name = f"yolo-batch-{uuid.uuid4().hex}"
    command = [
        *_podman(), *run_options({**environment, "PORT": str(port), "BIND_ADDRESS": "127.0.0.1"}),
        f"--name={name}", image.name,
    ]  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    with Processes(logs) as processes:
        child = processes.start("container", command, os.environ)
        try:
            child.wait_until(
                lambda: is_answering(f"{url}/health/ready"), timeout_seconds=_READY_SECONDS
            )
            pid = int(podman("inspect", "--format", "{{.State.Pid}}", name))
            yield Container(child, pid, url)
        finally:
            podman("rm", "--force", "--ignore", "--time=10", name)
            with suppress(subprocess.TimeoutExpired):
                child.process.wait(30)


def remove(image: Image) -> None:
    """Remove the image; KEEP_CACHE=1 keeps its layers for the next run."""
    if os.environ.get("KEEP_CACHE"):
        podman("untag", image.name, image.name)
    else:
        podman("rmi", "--force", image.name)
        podman("image", "prune", "--force")


def _podman() -> list[str | Path]:
    driver = (STORAGE / "driver").read_text().strip()
    return [
        "podman", "--root", STORAGE / "storage", "--runroot", STORAGE / "run",
        "--storage-driver", driver, "--cgroup-manager", "cgroupfs", "--runtime", "runc",
        "--events-backend", "none",
    ]  # fmt: skip


def _run_tool(
    project: Path, target: str, health: str, environment: Mapping[str, str]
) -> tuple[int, str]:
    own = {"PORT": str(_tool_port()), "WAIT_S": "300", "MEMORY": MEMORY, "KEEP_CACHE": "1"}
    try:
        done = subprocess.run(
            [TOOL, project, target, health],
            env={**os.environ, **own, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_TOOL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"no container is built: {TOOL.name} took over {_TOOL_SECONDS} s here")
    return done.returncode, done.stdout


def _tool_port() -> int:
    """Return a free port in the range that the tool accepts."""
    ports = random.sample(range(18500, 18600), 100)
    return next(port for port in ports if not _is_taken(port))


def _is_taken(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
