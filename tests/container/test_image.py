"""Builds the container image, inspects it, and runs it with the emulators like a platform."""

import ast
import itertools
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import requests
from google.cloud import firestore, storage
from PIL import Image as Pillow

from devtools.demo_model.shapes import Scene, write_samples
from devtools.fuzz.corpus import CASES, saved
from devtools.local_stack.processes import free_port
from devtools.local_stack.stack import Stack, StackOptions
from service.domain import Box, ImageRef
from tests.boxes import count_found
from tests.container.engine import (
    Container,
    Image,
    build,
    podman,
    remove,
    run_options,
    run_service,
    skip_without_engine,
)
from tests.processes import children_of, decoders_of
from tests.system.conftest import (
    EVENT,
    PATIENT,
    document,
    event_data,
    upload,
    wait_for_document,
)

MAX_OWN_MEGABYTES = 450
USER = 10001
# The first test that needs the image also waits for the tool. On a new machine, it installs podman
# and creates a base image.
pytestmark = [pytest.mark.timeout(3600), pytest.mark.emulator]

RunService = Callable[[], Container]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    skip_without_engine(tmp_path_factory.mktemp("probe"))
    built = build()
    yield built
    remove(built)


@pytest.fixture(scope="module")
def stack(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Start the emulators. They push to the port that the tests' containers listen on."""
    options = StackOptions(
        with_service=False,
        service_url=f"http://127.0.0.1:{free_port()}",
        directory=tmp_path_factory.mktemp("stack"),
    )
    with Stack(options) as running:
        yield running


@pytest.fixture
def client_environment(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Return the environment variables for the emulators, and set them for the test too."""
    suffixes = ("_EMULATOR_HOST", "CLOUD_PROJECT", "NO_PROXY")
    found = {
        name: value
        for name, value in stack.environment.items()
        if name.upper().endswith(suffixes) and not name.startswith("CLOUDSDK_")
    }
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    return found | PATIENT


@pytest.fixture
def container(
    image: Image, stack: Stack, client_environment: dict[str, str], tmp_path: Path
) -> Iterator[Container]:
    port = int(stack.service_url.rpartition(":")[2])
    with run_service(image, tmp_path, client_environment, port) as running:
        yield running


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, Scene]]:
    return write_samples(tmp_path_factory.mktemp("samples"))


def test_own_layers_are_small(image: Image) -> None:
    print(image.report)
    assert image.own_megabytes() <= MAX_OWN_MEGABYTES


def test_configuration_is_that_of_the_service(image: Image, tmp_path: Path) -> None:
    archive = tmp_path / "image.tar"
    podman("save", "--quiet", "--format=docker-archive", f"--output={archive}", image.name)
    done = subprocess.run(
        [
            Path(sys.executable).with_name("container-structure-test"),
            "test", "--driver=tar", f"--image={archive}",
            f"--config={Path(__file__).with_name('structure.yaml')}",
        ],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


# Paths in the image, below its folders; `*` is the Python version.
PRESENT = (
    "/app/bin/yolo-batch",
    "/app/*.dist-info/licenses/LICENSE",
    "/model/metadata.yaml",
    # Bytecode, because compiling would take a second at each start on one CPU.
    "/app/service/server/__pycache__/wsgi.*.pyc",
    "/opt/yolo-batch/lib/*/site-packages/flask/__pycache__/app.*.pyc",
    "/usr/local/lib/*/json/__pycache__/decoder.*.pyc",
)
ABSENT = (
    "/app/devtools",
    "/app/tests",
    *(
        f"{root}/lib/*/site-packages/{package}"
        for root in ("/opt/yolo-batch", "/usr/local")
        for package in ("torch", "ultralytics", "pip", "setuptools", "openvino_telemetry")
    ),
    "/usr/local/bin/pip*",
    "/usr/bin/*gcc*",
    "/root/.cache",
    "/build",
)


def test_image_holds_what_runs_and_nothing_else(image: Image) -> None:
    code = f"import glob; print([p for p in {PRESENT + ABSENT!r} if glob.glob(p)])"
    found = podman(*run_options({}), image.name, "python", "-c", code)
    assert ast.literal_eval(found) == list(PRESENT)


@pytest.mark.parametrize("command", ["reconcile", "dead-letters", "smoke", "results", "submit"])
def test_operator_commands_start(image: Image, command: str) -> None:
    shown = podman(*run_options({}), image.name, "yolo-batch", command, "--help")
    assert f"yolo-batch {command}" in shown


def test_model_is_loaded_and_checked_without_a_network(image: Image) -> None:
    options = [option for option in run_options({}) if option != "--network=host"]
    shown = podman(*options, "--network=none", image.name, "yolo-batch", "check-model")
    assert "shapes.pt" in shown


def test_uploads_become_documents(
    container: Container, stack: Stack, samples: list[tuple[Path, Scene]]
) -> None:
    refs = [upload(stack, f"image/{path.name}", path.read_bytes()) for path, _ in samples]
    documents = [wait_for_document(ref) for ref in refs]
    scenes = [scene for _, scene in samples]
    matched = sum(
        count_found(
            [(thing.label, Box(*thing.box)) for thing in scene.objects],
            [(found["label"], Box(**found["box"])) for found in document["detections"]],
        )
        for scene, document in zip(scenes, documents, strict=True)
    )
    assert matched >= 0.95 * sum(len(scene.objects) for scene in scenes)
    assert users_of(container.pid) == {USER}
    assert container.terminate() == 0


FORMATS = ("AVIF", "GIF", "JPEG2000", "TIFF")  # by Pillow's names
ODD_OR_HOSTILE = (
    "GIF, animated",
    "LZW TIFF",
    "TIFF, JPEG inside",
    "AVIF, alpha",
    "HEIC, turned by irot",
    "HEIC, cut at 60%",
    "JPEG 2000, bare codestream",
    "TIFF, cut at 60%",
    "TIFF with a packed tile of 30000x30000",  # 2.7 GB of pixels in 0.4 MB
    "GIF of 5000x5000 without pixels",
    "AVIF whose header says 96x64, its data 8000x6000",
    "JPEG 2000 with 16384 channels",
)


def test_unusual_and_hostile_files_get_their_documents(
    container: Container, stack: Stack, samples: list[tuple[Path, Scene]]
) -> None:
    scene = samples[0][1]
    workers = children_of(container.pid)
    drawn = Pillow.fromarray(scene.image[:, :, ::-1])
    whole = [upload(stack, f"formats/{kind}", saved(kind, drawn)) for kind in FORMATS]
    refs = {name: upload(stack, f"formats/{name}", CASES[name].make()) for name in ODD_OR_HOSTILE}
    matched = 0
    for ref in whole:
        found = wait_for_document(ref)
        assert found["image"]["format"] == ref.name.removeprefix("formats/")
        matched += count_found(
            [(thing.label, Box(*thing.box)) for thing in scene.objects],
            [(one["label"], Box(**one["box"])) for one in found["detections"]],
        )
    assert matched >= 0.95 * len(whole) * len(scene.objects)
    records = {name: record_of(wait_for_document(ref)) for name, ref in refs.items()}
    assert records == {name: CASES[name].expected[0] for name in ODD_OR_HOSTILE}
    assert all(map(decoders_of, workers))
    assert children_of(container.pid) == workers  # none was killed for memory and restarted


def record_of(found: dict[str, Any]) -> str:
    """Return a document in the form of the corpus."""
    if found["status"] == "failed":
        return str(found["error"]["code"])
    return f"done {found['image']['width']}x{found['image']['height']}"


def test_smoke_command_gets_a_result(
    container: Container, image: Image, client_environment: dict[str, str]
) -> None:
    shown = podman(
        *run_options(client_environment), image.name,
        "yolo-batch", "smoke", "gs://uploads", "--timeout", "120",
    )  # fmt: skip
    assert "done after" in shown


def test_termination_under_load_loses_no_acknowledged_image(
    container: Container, stack: Stack, samples: list[tuple[Path, Scene]]
) -> None:
    data = samples[0][0].read_bytes()
    numbers = itertools.count()
    bucket = storage.Client().create_bucket("container-load")  # its events are delivered too
    acknowledged: list[ImageRef] = []

    def upload_until_refused(_: int) -> None:
        """Keep images in flight, however fast or slow the machine is."""
        while True:
            blob = bucket.blob(f"{next(numbers)}.jpg")
            blob.upload_from_string(data, content_type="image/jpeg")
            ref = ImageRef(bucket.name, blob.name, blob.generation)
            try:
                response = requests.post(
                    container.url, json=event_data(ref), headers=EVENT, timeout=300
                )
            except requests.RequestException:
                return  # the container has ended
            if response.status_code == 204:
                acknowledged.append(ref)
            elif response.status_code not in (429, 503):
                pytest.fail(f"responded {response.status_code}: {response.text}")

    with ThreadPoolExecutor(16) as clients:
        running = [clients.submit(upload_until_refused, number) for number in range(16)]
        while len(acknowledged) < 32 and not any(future.done() for future in running):
            container.child.raise_if_dead()
        code = container.terminate()
        for future in running:
            future.result()
    assert code == 0
    assert len(acknowledged) >= 32
    collection = firestore.Client().collection("detections")
    documents = firestore.Client().get_all(
        [collection.document(ref.document_id) for ref in acknowledged]
    )
    assert all(snapshot.exists for snapshot in documents)


def test_all_slots_with_large_images_fit_into_a_gibibyte(container: Container) -> None:
    """32 images of 12 megapixels would be 1.1 GiB of pixels together."""
    noise = np.random.default_rng(0).integers(0, 255, (300, 400, 3), np.uint8)
    data = cv2.imencode(".jpg", cv2.resize(noise, (4000, 3000)))[1].tobytes()
    bucket = storage.Client().create_bucket("container-memory")
    refs = []
    for number in range(32):
        blob = bucket.blob(f"{number}.jpg")
        blob.upload_from_string(data, content_type="image/jpeg")
        refs.append(ImageRef(bucket.name, blob.name, blob.generation))

    def post(ref: ImageRef) -> int:
        """Retry while it is rejected, because the stack may deliver earlier uploads too."""
        while True:
            response = requests.post(
                container.url, json=event_data(ref), headers=EVENT, timeout=600
            )
            if response.status_code != 429:
                return response.status_code
            time.sleep(0.1)

    workers = children_of(container.pid)
    with ThreadPoolExecutor(32) as clients:
        assert list(clients.map(post, refs)) == [204] * 32
    print(f"peak of the container's memory: {peak_megabytes(container.pid):.0f} MB of 1 GiB")
    assert all(document(ref) for ref in refs)
    assert children_of(container.pid) == workers  # none was killed for memory and restarted


def users_of(pid: int) -> set[int]:
    """Return the effective users of a process and its children."""
    pids = [pid, *children_of(pid)]
    statuses = [Path(f"/proc/{number}/status").read_text().splitlines() for number in pids]
    return {int(line.split()[2]) for lines in statuses for line in lines if line.startswith("Uid:")}


def peak_megabytes(pid: int) -> float:
    """Return the peak memory of the container's cgroup (version 1 or 2), with the page cache."""
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    groups = {line.split(":")[1]: line.split(":", 2)[2].lstrip("/") for line in lines}
    root = Path("/sys/fs/cgroup")
    if "memory" in groups:
        peak = root / "memory" / groups["memory"] / "memory.max_usage_in_bytes"
    else:
        peak = root / groups[""] / "memory.peak"
    return int(peak.read_text()) / 2**20 if peak.is_file() else float("nan")
