"""The programs in examples/, run as a user runs them."""

import json
import os
import signal
import subprocess
import sys
import threading
from ast import literal_eval
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import cv2
import pytest
from google.cloud.storage import Client

from devtools.demo_model.shapes import Scene
from devtools.local_stack.processes import Processes, free_port
from devtools.local_stack.stack import Stack
from service.domain import ImageRef
from tests.fakes import PATIENCE_SECONDS, wait_until
from tests.system.conftest import (
    CLI_SECONDS,
    Service,
    document,
    put_aside,
    start,
    upload,
    wait_for_document,
)

EXAMPLES = Path(__file__).parents[2] / "examples"
Samples = list[tuple[Path, Scene]]


def run_example(
    name: str, *arguments: str | Path, env: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, EXAMPLES / name, *arguments],
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=CLI_SECONDS,
        check=False,
    )


def run_shell(name: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = ["sh", str(EXAMPLES / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=CLI_SECONDS, check=False)


def uploaded_by(stack: Stack, camera: str) -> list[ImageRef]:
    blobs = Client().list_blobs(stack.bucket, prefix=f"{camera}/")
    return [ImageRef(stack.bucket, blob.name, blob.generation) for blob in blobs]


@pytest.fixture(scope="module")
def queried(stack: Stack, samples: Samples) -> dict[str, dict[str, int]]:
    """Recorded images: their labels and counts by uri, empty for a failed one."""
    with pytest.MonkeyPatch.context() as environment:
        for name, value in stack.environment.items():
            environment.setenv(name, value)
        images = [path.read_bytes() for path, _ in samples[:3]] + [b"not an image"]
        refs = [upload(stack, f"examples/{i}.jpg", data) for i, data in enumerate(images)]
        return {ref.uri: wait_for_document(ref)["counts"] for ref in refs}


def test_query_results_finds_images_by_each_condition(
    queried: dict[str, dict[str, int]],
) -> None:
    def found(*conditions: str) -> set[str]:
        done = run_example("query_results.py", *conditions, "--limit", "10000")
        assert done.returncode == 0, done.stderr
        return {line.split()[0] for line in done.stdout.splitlines()} & queried.keys()

    label = next(iter(next(iter(queried.values()))))
    with_label = {uri for uri, counts in queried.items() if label in counts}
    with_two = {uri for uri, counts in queried.items() if counts.get(label, 0) > 1}
    failed = {uri for uri, counts in queried.items() if not counts}
    assert found("--label", label) == with_label != set()
    assert found("--label", label, "--more-than", "1") == with_two
    assert found("--label", label, "--confidence", "0.25") == with_label
    assert found("--newest") == queried.keys()
    assert found("--failed") == failed != set()


@pytest.mark.parametrize("source", ["folder", "video"])
def test_upload_camera_uploads_each_frame_once(
    source: str, stack: Stack, samples: Samples, tmp_path: Path
) -> None:
    images = [scene.image for _, scene in samples[:3]]
    height, width = images[0].shape[:2]
    if source == "folder":
        for number, image in enumerate(images):
            cv2.imwrite(str(tmp_path / f"{number}.jpg"), image)
        (tmp_path / "notes.txt").write_text("no image")
        path = tmp_path
    else:
        path = tmp_path / "gate.avi"
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 5, (width, height))
        for image in images:
            writer.write(cv2.resize(image, (width, height)))
        writer.release()
    camera = f"camera-{source}"
    done = run_example(
        "upload_camera.py", path, f"gs://{stack.bucket}", "--camera", camera, "--interval", "0.1"
    )
    assert done.returncode == 0, done.stderr
    refs = uploaded_by(stack, camera)
    assert [line.split()[1] for line in done.stdout.splitlines()] == [ref.uri for ref in refs]
    documents = [wait_for_document(ref) for ref in refs]
    assert [(found["status"], found["image"]["format"]) for found in documents] == [
        ("done", "JPEG")
    ] * 3


def test_upload_camera_drops_frames_during_an_outage(
    stack: Stack, samples: Samples, tmp_path: Path
) -> None:
    (tmp_path / "1.jpg").write_bytes(samples[0][0].read_bytes())
    nobody = {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{free_port()}"}
    done = run_example(
        "upload_camera.py", tmp_path, f"gs://{stack.bucket}", "--camera", "outage", env=nobody
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Dropped outage/")
    assert uploaded_by(stack, "outage") == []


def test_upload_camera_to_no_bucket_says_so(samples: Samples, tmp_path: Path) -> None:
    done = run_example("upload_camera.py", samples[0][0], "gs://nowhere", "--camera", "lost")
    assert done.returncode == 1
    assert done.stderr.startswith("Cloud Storage rejected lost/")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_upload_camera_stops_on_a_signal(
    number: signal.Signals, stack: Stack, samples: Samples
) -> None:
    camera = f"stopped-by-{number.name}"
    folder = samples[0][0].parent
    command: list[str | Path] = [sys.executable, EXAMPLES / "upload_camera.py", folder]
    command += [f"gs://{stack.bucket}", "--camera", camera, "--interval", "3600"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            wait_until(lambda: len(uploaded_by(stack, camera)) == 1, "no frame is uploaded")
            assert process.stdout and process.stdout.readline().startswith(b"Uploaded ")
            process.send_signal(number)
            _, stderr = process.communicate(timeout=CLI_SECONDS)
        finally:
            process.kill()
    assert (process.returncode, stderr) == (0, b"")


@pytest.fixture(scope="module")
def detect_url(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    settings = {"ENDPOINTS": "detect", "DETECT_TIMEOUT_SECONDS": f"{2 * PATIENCE_SECONDS:g}"}
    with Processes(tmp_path_factory.mktemp("detect")) as processes:
        yield start(processes, ready=True, **stack.environment, **settings).url


@pytest.mark.parametrize("kind", ["file", "uri"])
def test_detect_prints_what_is_in_an_image(
    kind: str, detect_url: str, stack: Stack, samples: Samples
) -> None:
    path, _ = samples[0]
    ref = put_aside(stack, 'examples/a "b" \\ & $c.jpg', path.read_bytes())
    image = str(path) if kind == "file" else ref.uri
    in_python = run_example("detect.py", detect_url, image)
    assert in_python.returncode == 0, in_python.stderr
    with_curl = run_shell("detect.sh", detect_url, image)
    assert with_curl.returncode == 0, with_curl.stderr
    detections = json.loads(with_curl.stdout)["detections"]
    printed = [line.split(maxsplit=2) for line in in_python.stdout.splitlines()]
    assert [(label, literal_eval(box)) for label, _, box in printed] == [
        (found["label"], found["box"]) for found in detections
    ]
    assert detections and document(ref) is None


def test_detect_stores_the_result_of_an_object(
    detect_url: str, stack: Stack, samples: Samples
) -> None:
    ref = put_aside(stack, "examples/stored.jpg", samples[1][0].read_bytes())
    done = run_example("detect.py", detect_url, ref.uri, "--store")
    assert done.returncode == 0, done.stderr
    stored = document(ref)
    assert stored and len(done.stdout.splitlines()) == stored["num_detections"] > 0


@pytest.mark.parametrize("run", ["detect.py", "detect.sh"])
def test_detect_shows_why_an_image_failed(detect_url: str, run: str) -> None:
    done = (run_example if run.endswith(".py") else run_shell)(run, detect_url, str(EXAMPLES / run))
    assert done.returncode != 0
    assert "unsupported_media" in done.stdout + done.stderr


def test_detect_shows_the_last_of_many_refusals() -> None:
    class Busy(BaseHTTPRequestHandler):
        calls = 0

        def do_POST(self) -> None:
            Busy.calls += 1
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(429)
            self.send_header("Retry-After", "1")
            self.end_headers()
            self.wfile.write(b"daily_image_limit")

    with HTTPServer(("127.0.0.1", 0), Busy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        done = run_example("detect.py", url, EXAMPLES / "detect.py")
        server.shutdown()
    assert (done.returncode, done.stderr.strip()) == (1, "429: daily_image_limit")
    assert Busy.calls == 6


def test_publish_jobs_prints_the_result_of_each_job(
    service: Service, stack: Stack, samples: Samples, make_topic: Callable[..., str]
) -> None:
    good = put_aside(stack, "examples/good.jpg", samples[0][0].read_bytes())
    bad = put_aside(stack, "examples/bad.jpg", b"not an image")
    topic = make_topic(push_config={"push_endpoint": service.url})
    done = run_example("publish_jobs.py", good.uri, bad.uri, "--topic", topic)
    assert done.returncode == 0, done.stderr
    printed = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    documents = {ref.uri: document(ref) or {} for ref in (good, bad)}
    assert {uri: literal_eval(text) for uri, text in printed.items()} == {
        good.uri: documents[good.uri]["counts"],
        bad.uri: documents[bad.uri]["error"],
    }


def test_publish_jobs_names_images_without_a_document(
    stack: Stack, samples: Samples, make_topic: Callable[..., str]
) -> None:
    ref = put_aside(stack, "examples/late.jpg", samples[0][0].read_bytes())
    done = run_example("publish_jobs.py", ref.uri, "--topic", make_topic(), "--timeout", "1")
    assert done.returncode == 1
    assert done.stderr == f"No document after 1 s: ['{ref.uri}#{ref.generation}']\n"


def test_publish_jobs_names_what_does_not_exist(stack: Stack, samples: Samples) -> None:
    there = put_aside(stack, "examples/there.jpg", samples[0][0].read_bytes()).uri
    for uri, topic, sentence in (
        ("there.jpg", "jobs", "there.jpg: URI pattern must be gs://bucket/object"),
        (f"{there}.png", "jobs", f"{there}.png: 404 "),
        (there, "nowhere", "There is no topic projects/"),
    ):
        done = run_example("publish_jobs.py", uri, "--topic", topic)
        assert done.returncode == 1
        assert done.stderr.startswith(sentence)
