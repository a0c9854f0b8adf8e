"""The server of a report's page: on this machine, for whoever has its address."""

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from flask.testing import FlaskClient

from service.gallery.access import LocalAccess
from service.gallery.report import ReportParts, create_report_app
from service.settings import BUNDLED_MODEL
from tests.fakes import PATIENCE_SECONDS
from tests.labelled import write_drawn_samples

YOLO_BATCH = Path(sys.executable).with_name("yolo-batch")
PORT = 4321
HOST = f"127.0.0.1:{PORT}"


class OneImage:
    """Has an image with the index 0."""

    def read(self, index: int, *, is_large: bool) -> tuple[bytes, str] | None:
        return (b"large" if is_large else b"thumbnail", "image/jpeg") if index == 0 else None


REPORT = {
    "path": "photos",
    "labels_file": "labels.json",
    "images": 0,
    "objects": 0,
    "map50_95": {"value": 0.5, "low": None, "high": None},
    "map50": {"value": 0.5, "low": None, "high": None},
    "labels": [],
}


@pytest.fixture
def client() -> FlaskClient:
    access = LocalAccess(PORT, token="secret", command="yolo-batch evaluate")
    return create_report_app(ReportParts("evaluate", REPORT, access, OneImage())).test_client()


@pytest.fixture
def visitor(client: FlaskClient) -> FlaskClient:
    """A client that has opened the printed address."""
    client.get("/?token=secret", headers={"Host": HOST})
    return client


def test_address_without_its_token_is_forbidden(client: FlaskClient) -> None:
    response = client.get("/", headers={"Host": HOST})
    assert response.status_code == 403
    assert "`yolo-batch evaluate` printed" in response.text


def test_other_host_names_are_forbidden(visitor: FlaskClient) -> None:
    assert visitor.get("/", headers={"Host": "evil.example"}).status_code == 403


def test_page_has_the_headers_of_the_gallery(visitor: FlaskClient) -> None:
    response = visitor.get("/", headers={"Host": HOST})
    assert response.status_code == 200
    assert response.headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/images/0/large", 200),
        ("/images/0/thumbnail", 200),
        ("/images/0/original", 404),
        ("/images/1/large", 404),
        ("/images/-1/large", 404),
        ("/images/..%2F..%2Fetc%2Fpasswd/large", 404),
        ("/static/..%2Freport.py", 404),
    ],
)
def test_only_images_of_the_report_are_served(visitor: FlaskClient, path: str, status: int) -> None:
    response = visitor.get(path, headers={"Host": HOST})
    assert response.status_code == status
    if status == 200:
        assert response.data == path.rpartition("/")[2].encode()
        assert response.content_type == "image/jpeg"


def test_image_needs_the_token_too(client: FlaskClient) -> None:
    assert client.get("/images/0/large", headers={"Host": HOST}).status_code == 403


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    write_drawn_samples(tmp_path / "samples", count=1)
    return tmp_path / "samples"


@pytest.fixture
def running(samples: Path) -> Iterator["subprocess.Popen[str]"]:
    arguments: list[str | Path] = [YOLO_BATCH, "compare", BUNDLED_MODEL, BUNDLED_MODEL, samples]
    with subprocess.Popen(
        arguments, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as process:
        yield process
        process.kill()


def test_command_serves_its_page_until_ctrl_c(running: "subprocess.Popen[str]") -> None:
    assert running.stderr is not None
    address = next(line for line in running.stderr if line.startswith("Open "))
    with requests.Session() as session:
        response = session.get(address.split()[1], timeout=PATIENCE_SECONDS)
        assert "Where the models disagree" in response.text
        assert "token" not in response.url
    running.send_signal(signal.SIGINT)
    assert running.stderr.read() == "Ctrl-C ends the page.\n"
    assert running.wait(PATIENCE_SECONDS) == 0


def test_port_in_use_is_named(samples: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            [YOLO_BATCH, "compare", BUNDLED_MODEL, BUNDLED_MODEL, samples, "--port", str(port)],
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE_SECONDS,
        )
    assert done.returncode == 1
    assert f"Error: Port {port} is not free" in done.stderr
