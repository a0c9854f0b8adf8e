"""Downloads of the emulators, by real processes from a real server on this machine."""

import hashlib
import json
import os
import pty
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import astuple, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from devtools.local_stack.emulator_jars import MIRROR_VARIABLE, PublishedFile
from tests.fakes import PATIENCE_SECONDS, wait_until

CONTENT = os.urandom(3_000_000)
JAR = PublishedFile("Test emulator 1.0", "test-1.0.jar", 3_000_000, "")
BLOCKS = 30
DOWNLOAD = """
import json, sys
from devtools.local_stack.emulator_jars import PublishedFile, cached_jar
from devtools.local_stack.errors import MissingRequirementsError
try:
    print(cached_jar(PublishedFile(*json.loads(sys.argv[1]))))
except MissingRequirementsError as exc:
    raise SystemExit(str(exc))
"""


@dataclass
class Mirror:
    """A server with one file. A test can slow it down or make it faulty."""

    content: bytes = field(default=CONTENT, repr=False)
    status: int = 200
    cut_after_bytes: int | None = None  # then the server closes the connection
    supports_ranges: bool = True
    seconds: float = 0.0  # of one whole download
    ranges: list[str | None] = field(default_factory=list)  # one for each request
    url: str = ""

    def send(self, handler: BaseHTTPRequestHandler) -> None:
        wanted = handler.headers.get("range")
        self.ranges.append(wanted)
        is_rest = wanted is not None and self.supports_ranges
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and is_rest else 0
        handler.send_response(206 if is_rest else self.status)
        handler.send_header("content-length", str(len(self.content) - start))
        handler.end_headers()
        step = len(self.content) // BLOCKS
        for at in range(start, len(self.content), step):
            if self.cut_after_bytes is not None and at >= self.cut_after_bytes:
                return
            handler.wfile.write(self.content[at : at + step])
            time.sleep(self.seconds / BLOCKS)


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    served = Mirror()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.send(self)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Log nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        served.url = f"http://127.0.0.1:{server.server_port}/files/"
        yield served
        server.shutdown()
        thread.join()


@dataclass(frozen=True)
class Machine:
    """Starts downloads into a cache of the test's own."""

    cache: Path
    url: str

    def command(self, file: PublishedFile = JAR, sha256: str | None = None) -> list[str]:
        pinned = sha256 or hashlib.sha256(CONTENT).hexdigest()
        arguments = [*astuple(file)[:3], file.sha256 or pinned]
        return [sys.executable, "-c", DOWNLOAD, json.dumps(arguments)]

    @property
    def environment(self) -> dict[str, str]:
        own = {"XDG_CACHE_HOME": str(self.cache), MIRROR_VARIABLE: self.url, "NO_PROXY": "*"}
        return {**os.environ, **own}

    def start(self) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            self.command(), env=self.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def download(
        self, file: PublishedFile = JAR, sha256: str | None = None, url: str | None = None
    ) -> "subprocess.CompletedProcess[str]":
        environment = self.environment | ({MIRROR_VARIABLE: url} if url else {})
        return subprocess.run(
            self.command(file, sha256), env=environment,
            capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False,
        )  # fmt: skip

    def files(self) -> list[str]:
        names = (path.name for path in (self.cache / "yolo-batch").iterdir())
        return sorted(name for name in names if not name.endswith(".lock"))


@pytest.fixture
def machine(tmp_path: Path, mirror: Mirror) -> Machine:
    return Machine(tmp_path, mirror.url)


def test_download_is_verified_and_cached(machine: Machine, mirror: Mirror) -> None:
    first = machine.download()
    assert first.returncode == 0, first.stderr
    assert Path(first.stdout.strip()).read_bytes() == CONTENT
    assert first.stderr == "Downloading Test emulator 1.0 (3 MB), once ...\n"
    assert mirror.ranges == [None]
    assert machine.files() == ["test-1.0.jar"]


def test_second_run_needs_no_network(machine: Machine, mirror: Mirror) -> None:
    first = machine.download()
    second = machine.download(url="http://127.0.0.1:9/")
    assert (second.returncode, second.stdout) == (0, first.stdout)
    assert second.stderr == ""


def serve_zip(mirror: Mirror, directory: Path, jar: str) -> PublishedFile:
    """Let the mirror serve a zip like Google's, with a jar of this name in it."""
    with zipfile.ZipFile(directory / "made.zip", "w") as archive:
        archive.writestr("pubsub-emulator/bin/cloud-pubsub-emulator", "a script")
        archive.writestr(jar, CONTENT)
    mirror.content = (directory / "made.zip").read_bytes()
    sha256 = hashlib.sha256(mirror.content).hexdigest()
    return PublishedFile("Pub/Sub", "pubsub-9.9.9.zip", len(mirror.content), sha256)


def test_zip_without_the_jar_is_a_bug(machine: Machine, mirror: Mirror, tmp_path: Path) -> None:
    done = machine.download(serve_zip(mirror, tmp_path, "pubsub-emulator/other.jar"))
    assert done.returncode == 1
    assert "has no file lib/cloud-pubsub-emulator-*.jar" in done.stderr
    assert "Traceback" not in done.stderr


def test_jar_is_extracted_from_a_zip(machine: Machine, mirror: Mirror, tmp_path: Path) -> None:
    jar = "pubsub-emulator/lib/cloud-pubsub-emulator-9.9.9-all.jar"
    done = machine.download(serve_zip(mirror, tmp_path, jar))
    assert done.returncode == 0, done.stderr
    extracted = Path(done.stdout.strip())
    assert extracted.name == "pubsub-9.9.9.jar"
    assert extracted.read_bytes() == CONTENT


def test_wrong_checksum_keeps_nothing(machine: Machine) -> None:
    done = machine.download(sha256="0" * 64)
    assert done.returncode == 1
    assert "its size or SHA-256 is not the one that Google published" in done.stderr
    assert machine.files() == []


@pytest.mark.parametrize("change", [CONTENT + b"more", b"<html>Log in to the Wi-Fi</html>" * 30])
def test_wrong_size_is_rejected(machine: Machine, mirror: Mirror, change: bytes) -> None:
    mirror.content = change
    done = machine.download()
    assert done.returncode == 1
    assert "Test emulator 1.0 could not be downloaded" in done.stderr
    assert JAR.name not in machine.files()


def test_cut_transfer_continues_in_the_next_run(machine: Machine, mirror: Mirror) -> None:
    mirror.cut_after_bytes = 1_000_000
    cut = machine.download()
    assert cut.returncode == 1
    assert "the connection closed before the end" in cut.stderr
    mirror.cut_after_bytes = None
    done = machine.download()
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).read_bytes() == CONTENT
    first, second = mirror.ranges
    assert first is None
    assert second is not None
    assert second > "bytes=0-"
    assert machine.files() == ["test-1.0.jar"]


def test_server_without_ranges_sends_all_again(machine: Machine, mirror: Mirror) -> None:
    mirror.supports_ranges = False
    mirror.cut_after_bytes = 1_000_000
    machine.download()
    mirror.cut_after_bytes = None
    done = machine.download()
    assert Path(done.stdout.strip()).read_bytes() == CONTENT


def test_damaged_file_is_downloaded_again(machine: Machine, mirror: Mirror) -> None:
    jar = Path(machine.download().stdout.strip())
    jar.write_bytes(CONTENT[:-1] + b"x" if CONTENT[-1:] != b"x" else CONTENT[:-1] + b"y")
    machine.download()
    assert jar.read_bytes() == CONTENT
    assert len(mirror.ranges) == 2


def test_two_runs_download_once(machine: Machine, mirror: Mirror) -> None:
    mirror.seconds = 2.0
    with machine.start() as first:
        wait_until(lambda: len(mirror.ranges) == 1, "the first run requests nothing")
        with machine.start() as second:
            outputs = [run.communicate(timeout=PATIENCE_SECONDS) for run in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0]
    assert len(mirror.ranges) == 1
    assert outputs[0][0] == outputs[1][0]
    assert outputs[1][1] == "Waiting for another process to download Test emulator 1.0 ...\n"


def test_killed_download_leaves_no_lock(machine: Machine, mirror: Mirror) -> None:
    mirror.seconds = 60.0
    partial = machine.cache / "yolo-batch" / "test-1.0.jar.part"
    with machine.start() as first:
        wait_until(lambda: partial.is_file() and partial.stat().st_size > 0, "nothing arrives")
        first.kill()
    mirror.seconds = 0.0
    done = machine.download()
    assert Path(done.stdout.strip()).read_bytes() == CONTENT


def test_log_shows_the_progress_of_a_long_download(machine: Machine, mirror: Mirror) -> None:
    mirror.seconds = 3.5
    lines = machine.download().stderr.splitlines()
    assert lines[0] == "Downloading Test emulator 1.0 (3 MB), once ..."
    assert lines[1:] in (["  1 of 3 MB"], ["  2 of 3 MB"])


def test_terminal_shows_a_bar(machine: Machine, mirror: Mirror) -> None:
    mirror.seconds = 1.0
    terminal, stderr = pty.openpty()
    with subprocess.Popen(
        machine.command(), env=machine.environment | {"TERM": "xterm"},
        stdout=subprocess.DEVNULL, stderr=stderr,
    ) as run:  # fmt: skip
        os.close(stderr)
        shown = b""
        try:
            while block := os.read(terminal, 4096):
                shown += block
        except OSError:  # the end of a terminal, on Linux
            pass
    os.close(terminal)
    assert run.returncode == 0
    assert b"###" in shown
    assert b"100%" in shown


def test_offline_names_the_command(machine: Machine) -> None:
    done = machine.download(url="http://127.0.0.1:9")
    assert done.returncode == 1
    _, *message = done.stderr.splitlines()
    assert message == [
        "Test emulator 1.0 could not be downloaded: no connection.",
        "  http://127.0.0.1:9/test-1.0.jar",
        "With a network connection, run: make emulators",
        "If your company has a mirror of these files, set YOLO_BATCH_EMULATORS_URL to its address.",
    ]


def test_missing_file_names_the_status(machine: Machine, mirror: Mirror) -> None:
    mirror.status = 404
    assert "the server responded with status 404" in machine.download().stderr


def test_unwritable_cache_names_the_variable(mirror: Mirror, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = Machine(tmp_path / "file", mirror.url).download()
    assert done.returncode == 1
    assert "export XDG_CACHE_HOME=DIRECTORY" in done.stderr
