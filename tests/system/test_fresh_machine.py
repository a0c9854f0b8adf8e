"""The demo on a machine that has only Python: no Java, no `gcloud`, an empty cache.

A local server replaces Google's. It serves the official emulators that this machine has installed.
"""

import hashlib
import json
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from devtools.local_stack.emulator_jars import FIRESTORE, MIRROR_VARIABLE, PUBSUB
from devtools.local_stack.programs import find_programs
from devtools.local_stack.stack import Stack

DEMO_SECONDS = 500
# Runs the demo with the sizes and checksums of the files that this test serves.
DEMO = """
import json, sys
from devtools.cli.main import main
from devtools.local_stack import programs
from devtools.local_stack.emulator_jars import PublishedFile
pubsub, firestore = json.loads(sys.argv.pop(1))
programs.PUBSUB, programs.FIRESTORE = PublishedFile(*pubsub), PublishedFile(*firestore)
main()
"""


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Log nothing."""


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A folder with the two files, as Google publishes them."""
    installed, folder = find_programs(), tmp_path / "published"
    folder.mkdir()
    (folder / FIRESTORE.name).symlink_to(installed.firestore_jar)
    with zipfile.ZipFile(folder / PUBSUB.name, "w") as archive:
        name = "pubsub-emulator/lib/cloud-pubsub-emulator-0.8.37-all.jar"
        archive.write(installed.pubsub_jar, name)
    return folder


@pytest.fixture
def mirror_url(published: Path) -> Iterator[str]:
    handler = partial(QuietHandler, directory=str(published))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def pinned(file: Path) -> list[str | int]:
    with file.open("rb") as opened:
        sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
    return [file.name, file.name, file.stat().st_size, sha256]


def test_demo_needs_python_only(
    stack: Stack, published: Path, mirror_url: str, tmp_path: Path
) -> None:
    files = json.dumps([pinned(published / PUBSUB.name), pinned(published / FIRESTORE.name)])
    hidden = {"JAVA_HOME", *stack.environment}
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {"PATH": "/nowhere", "XDG_CACHE_HOME": str(tmp_path / "cache"), "NO_PROXY": "*"}
    done = subprocess.run(
        [sys.executable, "-c", DEMO, files, "demo", "--output", tmp_path / "out"],
        env=environment | {MIRROR_VARIABLE: mirror_url},
        capture_output=True, text=True, timeout=DEMO_SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "12 of 12 uploads have their document" in done.stdout
    assert "Uploaded with the Python client: gcloud is not installed" in done.stdout
    assert done.stderr.count("Downloading ") == 2
    cached = {path.name for path in (tmp_path / "cache" / "yolo-batch").glob("*.jar")}
    assert cached == {"pubsub-emulator-0.8.37.jar", FIRESTORE.name}
