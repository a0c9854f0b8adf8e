"""`yolo-batch gallery` as a person starts it: a process of its own, on the emulators."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from tests.fakes import PATIENCE_SECONDS

YOLO_BATCH = Path(sys.executable).with_name("yolo-batch")
ADDRESS = re.compile(r"(http://127\.0\.0\.1:(\d+))/\?token=([\w-]{43})\n")


@contextmanager
def gallery(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """Run the command. Yield its process, its address and the token."""
    with subprocess.Popen(
        [YOLO_BATCH, "gallery", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout is not None
            address = ADDRESS.fullmatch(process.stdout.readline())
            assert address is not None
            yield process, address[1], address[3]
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_address_opens_once_and_ctrl_c_ends_it(number: signal.Signals) -> None:
    with gallery() as (process, address, token), requests.Session() as session:
        refused = session.get(f"{address}/", timeout=PATIENCE_SECONDS)
        assert refused.status_code == 403
        assert "yolo-batch gallery" in refused.text
        page = session.get(f"{address}/?token={token}", timeout=PATIENCE_SECONDS)
        assert (page.status_code, page.url) == (200, f"{address}/")
        assert token not in page.text
        process.send_signal(number)
        output, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0
    assert token not in output + errors  # no request is logged
    assert "Traceback" not in errors


def test_gallery_listens_on_this_machine_only() -> None:
    with gallery() as (process, address, _):
        port = int(address.rpartition(":")[2])
        others = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None)}
        for host in others - {"127.0.0.1"}:
            with pytest.raises(OSError), socket.create_connection((str(host), port)):
                pass
        assert process.poll() is None


def test_port_that_is_taken_says_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            [YOLO_BATCH, "gallery", "--port", str(port)],
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
    assert done.returncode == 1
    assert "Choose another --port" in done.stderr


def test_two_galleries_have_cookies_of_their_own() -> None:
    with gallery() as (_, first, token), gallery() as (_, second, other):
        assert token != other
        with requests.Session() as session:
            session.get(f"{first}/?token={token}", timeout=PATIENCE_SECONDS)
            for address, status in ((first, 200), (second, 403)):
                response = session.get(f"{address}/problems", timeout=PATIENCE_SECONDS)
                assert response.status_code == status


def test_gallery_without_credentials_says_what_to_do(tmp_path: Path) -> None:
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.endswith("_EMULATOR_HOST") and name != "GOOGLE_CLOUD_PROJECT"
    }
    environment |= {"HOME": str(tmp_path), "NO_GCE_CHECK": "true"}
    environment["CLOUDSDK_CONFIG"] = str(tmp_path)
    done = subprocess.run(
        [YOLO_BATCH, "gallery"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 1
    assert "credentials or the project are missing" in done.stderr
