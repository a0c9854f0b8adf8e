"""The command line as a user meets it."""

import json
import os
import shutil
import signal
import socket
import subprocess
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import cv2
import pytest
import requests

from devtools.demo_model.shapes import CLASS_NAMES, Scene
from devtools.local_stack.stack import Stack
from service.settings import BUNDLED_MODEL
from tests.fakes import PATIENCE_SECONDS, wait_until
from tests.system.conftest import (
    CLI_SECONDS,
    PATIENT,
    YOLO_BATCH,
    YOLO_BATCH_DEV,
    run_cli,
    run_dev,
    upload,
    wait_for_document,
)

Samples = list[tuple[Path, Scene]]


def test_detect_prints_a_row_an_image_and_saves_copies(samples: Samples, tmp_path: Path) -> None:
    done = run_cli("detect", samples[0][0].parent, "--save", tmp_path / "out")
    rows = done.stdout.splitlines()[1:]
    assert done.returncode == 0
    assert len(rows) == len(samples)
    assert all("done" in row for row in rows)
    saved = cv2.imread(str(tmp_path / "out" / samples[0][0].name))
    assert saved is not None and saved.shape == samples[0][1].image.shape


def test_detect_json_has_labels_and_failures(samples: Samples, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("not an image")
    done = run_cli("detect", "--json", samples[0][0], tmp_path / "text.jpg")
    documents = {Path(d["uri"]).name: d for d in map(json.loads, done.stdout.splitlines())}
    assert set(documents[samples[0][0].name]["labels"]) <= set(CLASS_NAMES)
    assert documents["text.jpg"]["error"]["code"] == "unsupported_media"
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["submit", "gs://uploads/a", "gs://b"], "'gs://b' is wrong"),
        (["submit", "gs://uploads/a", "--no-check", "--topic", "nowhere"], "There is no topic"),
        (["submit", "gs://uploads/nowhere.jpg"], "1 of 1 URIs name no object"),
        (["dead-letters", "--subscription", "nowhere"], "There is no subscription"),
        (["reconcile", "gs://nowhere"], "nowhere"),
        (["smoke", "gs://nowhere"], "there is no such bucket"),
    ],
    ids=["uri", "topic", "object", "subscription", "bucket", "smoke"],
)
def test_wrong_argument_is_reported_in_a_sentence(arguments: list[str], sentence: str) -> None:
    done = run_cli(*arguments)
    assert done.returncode in (1, 2)
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_json_is_all_that_commands_print_on_stdout(stack: Stack, samples: Samples) -> None:
    prefix = "json/"
    ref = upload(stack, f"{prefix}a [bold].jpg", samples[0][0].read_bytes())
    wait_for_document(ref)
    bucket = f"gs://{stack.bucket}"

    def printed(*arguments: str | Path) -> dict[str, Any]:
        done = run_cli(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        value = json.loads(done.stdout)
        assert isinstance(value, dict)
        return value

    assert printed("results", f"{bucket}/{prefix}")["uri"] == ref.uri
    assert printed("submit", f"{bucket}/{prefix}*.jpg") == {
        "published": 1,
        "topic": f"projects/{stack.project}/topics/jobs",
        "matches": {f"{bucket}/{prefix}*.jpg": 1},
    }
    counted = printed("reconcile", f"{bucket}/{prefix}", "--enqueue", "missing", "--dry-run")
    assert (counted["objects"], counted["done"], counted["published"]) == (1, 1, None)
    assert counted["estimate"] == {"images": 0, "minutes": 0, "usd": 0}
    published = printed("reconcile", f"{bucket}/{prefix}", "--enqueue", "missing", "--yes")
    assert published["published"] == 0
    smoked = printed("smoke", f"{bucket}/{prefix}")
    assert smoked["status"] == "done" and smoked["uri"].startswith(f"{bucket}/{prefix}smoke/")
    checked = printed("check-model", BUNDLED_MODEL)
    assert checked["model"]["sha256"] == smoked["model"]["sha256"]
    assert checked["canary"] == "passed"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["detect", "FOLDER"],
        ["detect", "FOLDER", "--json"],
        ["check-model"],
        ["results", "gs://uploads/"],
        ["results", "gs://uploads/", "--json"],
        ["reconcile", "gs://uploads/"],
        ["dead-letters", "--limit", "1"],
        ["submit", "gs://uploads/a", "--no-check"],
        ["smoke", "gs://uploads"],
        ["demo"],
    ],
    ids=" ".join,
)
def test_command_whose_output_nobody_reads_ends_quietly(
    stack: Stack, samples: Samples, tmp_path: Path, arguments: list[str]
) -> None:
    wait_for_document(upload(stack, "quiet/one.jpg", samples[0][0].read_bytes()))
    folder = str(samples[0][0].parent)
    command = [folder if argument == "FOLDER" else argument for argument in arguments]
    unread, output = os.pipe()
    os.close(unread)
    try:
        done = subprocess.run(
            [YOLO_BATCH_DEV if arguments == ["demo"] else YOLO_BATCH, *command],
            env=PATIENT | dict(os.environ),
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
            timeout=CLI_SECONDS,
            check=False,
            cwd=tmp_path,
        )
    finally:
        os.close(output)
    assert done.stderr == ""
    assert done.returncode == 1


def test_up_whose_log_nobody_reads_stops_quietly() -> None:
    command: list[str | Path] = [YOLO_BATCH_DEV, "up"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        for line in process.stdout:
            if line.startswith("The service listens at"):
                url = line.split()[-1].rstrip(".")
                break
        process.stdout.close()
        requests.post(url, data=b"unreadable", timeout=PATIENCE_SECONDS)  # a line for the log
        assert process.wait(PATIENCE_SECONDS) == 1
        assert process.stderr.read() == ""


def test_commands_without_credentials_say_what_to_do(tmp_path: Path) -> None:
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.endswith("_EMULATOR_HOST") and name != "GOOGLE_CLOUD_PROJECT"
    }
    environment |= {"HOME": str(tmp_path), "NO_GCE_CHECK": "true"}
    environment["CLOUDSDK_CONFIG"] = str(tmp_path)
    for command in (
        ["results", "gs://a"],
        ["submit", "gs://uploads/a", "--topic", "projects/p/topics/t"],
        ["submit", "gs://uploads/a", "--no-check", "--topic", "projects/p/topics/t"],
    ):
        done = run_cli(*command, env=environment)
        assert done.returncode == 1
        assert "credentials or the project are missing" in done.stderr
        assert "Traceback" not in done.stderr


def test_up_with_a_broken_model_says_so_at_once(tmp_path: Path) -> None:
    shutil.copytree(BUNDLED_MODEL, tmp_path / "model")
    (tmp_path / "model" / "shapes.xml").write_text("<net")
    done = run_dev("up", "--model", tmp_path / "model")
    assert done.returncode == 1
    assert "service ended with exit code 3" in done.stderr
    assert "is damaged: its .xml or .bin file has changed" in done.stderr


def test_results_prints_documents_of_a_prefix(stack: Stack, samples: Samples) -> None:
    ref = upload(stack, "results/one.jpg", samples[0][0].read_bytes())
    wait_for_document(ref)
    table = run_cli("results", "gs://uploads/results/")
    lines = run_cli("results", "gs://uploads/results/", "--json").stdout.splitlines()
    assert "results/one.jpg" in table.stdout
    assert [json.loads(line)["uri"] for line in lines] == [ref.uri]


def test_submit_reads_uris_from_standard_input(stack: Stack, samples: Samples) -> None:
    refs = [upload(stack, f"submit/{i}.jpg", samples[i][0].read_bytes()) for i in range(3)]
    done = run_cli("submit", "-", input="".join(f"{ref.uri}\n" for ref in refs))
    assert done.stdout.startswith("Published 3 jobs to ")
    assert all(wait_for_document(ref) for ref in refs)


def test_demo_shows_the_document_of_every_upload(tmp_path: Path) -> None:
    done = run_dev("demo", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "12 of 12 uploads have their document" in done.stdout
    assert len(list((tmp_path / "demo-output").rglob("*.jpg"))) == 12
    assert "Uploaded with gcloud storage cp" in done.stdout


def test_demo_of_segmentation_shows_masks(tmp_path: Path) -> None:
    done = run_dev("demo", "--task", "segment", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "12 of 12 uploads have their document" in done.stdout
    assert done.stdout.count("% of the image") == 12
    lines = (tmp_path / "demo-output" / "documents.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 12
    for document in map(json.loads, lines):
        assert document["task"] == "segment"
        assert all(each["polygons"] and each["area"] > 0 for each in document["detections"])


def test_demo_takes_a_folder_of_any_name_and_bad_images(samples: Samples, tmp_path: Path) -> None:
    images = tmp_path / "my cam[1]"
    (images / "deep").mkdir(parents=True)
    (images / "deep" / "good #1.jpg").write_bytes(samples[0][0].read_bytes())
    (images / "bad.jpg").write_bytes(b"not an image")
    done = run_dev("demo", "--images", images, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "2 of 2 uploads have their document" in done.stdout
    assert "unsupported_media" in done.stdout
    assert (tmp_path / "out" / "my cam[1]" / "deep" / "good #1.jpg").exists()


def test_demo_without_a_network_still_detects(tmp_path: Path) -> None:
    offline = {"YOLO_BATCH_EMULATORS_URL": "http://127.0.0.1:9", "XDG_CACHE_HOME": str(tmp_path)}
    environment = os.environ | offline | {"PATH": "/nowhere", "NO_PROXY": "*"}
    done = run_dev("demo", cwd=tmp_path, env=environment)
    assert done.returncode == 1
    assert "run: make emulators" in done.stdout
    assert done.stdout.count("done") == 12
    assert len(list((tmp_path / "demo-output").rglob("*.jpg"))) == 12


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_up_prints_its_environment_and_stops_everything(how: signal.Signals) -> None:
    # With SIGINT ignored at its start, as a shell starts its background jobs.
    command: list[str | Path] = [
        "sh",
        "-c",
        'trap "" INT; exec "$0" up',
        YOLO_BATCH_DEV,
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        exports: dict[str, str] = {}
        for line in process.stdout:
            if line.startswith("export "):
                name, _, value = line.removeprefix("export ").strip().partition("=")
                exports[name] = value
            if line.startswith("Ctrl-C"):
                break
        firestore = f"http://{exports['FIRESTORE_EMULATOR_HOST']}/"
        assert requests.get(firestore, timeout=PATIENCE_SECONDS).status_code == 200
        process.send_signal(how)
        process.stdout.read()
        process.wait(PATIENCE_SECONDS)
    for url in (firestore, exports["STORAGE_EMULATOR_HOST"]):
        wait_until(partial(is_down, url), "the stack runs longer than its command")


def is_down(url: str) -> bool:
    return not is_up(url)


def is_up(url: str) -> bool:
    """Whether somebody listens there, however slow."""
    where = urlsplit(url)
    try:
        socket.create_connection((where.hostname, where.port), PATIENCE_SECONDS).close()
    except ConnectionError:
        return False
    return True
