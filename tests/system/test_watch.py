"""`watch` and `submit --wait` with the service, while images are uploaded."""

import json
import subprocess
import uuid
from pathlib import Path

from devtools.demo_model.shapes import Scene
from devtools.local_stack.stack import Stack
from service.cli.exit_codes import ExitCode
from service.domain import ErrorCode, Failure, ImageResult
from service.gcp.clients import build_store
from service.settings import Settings
from tests.system.conftest import (
    CLI_SECONDS,
    YOLO_BATCH,
    Service,
    put_aside,
    run_cli,
    upload,
)

Samples = list[tuple[Path, Scene]]


def test_watch_ends_when_every_image_has_its_result(
    stack: Stack, samples: Samples, service: Service
) -> None:
    """While it watches, an image is uploaded, one fails, and one is parked."""
    prefix = f"watch-{uuid.uuid4().hex}/"
    data = samples[0][0].read_bytes()
    first = put_aside(stack, f"{prefix}first.jpg", data)
    with subprocess.Popen(
        [YOLO_BATCH, "watch", f"gs://aside/{prefix}", "--interval", "0.2", "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as watching:  # fmt: skip
        assert watching.stderr is not None
        assert "1 uploaded = 0 done" in watching.stderr.readline()
        second = put_aside(stack, f"{prefix}second.jpg", data)
        text = put_aside(stack, f"{prefix}text.jpg", b"not an image")
        parked = put_aside(stack, f"{prefix}parked.jpg", data)
        limit = Failure(ErrorCode.DAILY_IMAGE_LIMIT, "The day's limit is reached.")
        build_store(Settings.from_env()).commit([ImageResult(parked, failure=limit)])
        for ref in (second, text, first):
            service.deliver(ref)
        output, errors = watching.communicate(timeout=CLI_SECONDS)
    assert watching.returncode == ExitCode.NOT_ALL_DONE, errors
    report = json.loads(output)
    states = ("uploaded", "done", "failed", "parked", "missing")
    assert [report[state] for state in states] == [4, 2, 1, 1, 0]


def test_submit_waits_for_the_results_of_its_jobs(stack: Stack, samples: Samples) -> None:
    prefix = f"watch-{uuid.uuid4().hex}/"
    for number, (file, _) in enumerate(samples[:3]):
        upload(stack, f"{prefix}{number}.jpg", file.read_bytes())
    pattern = f"gs://{stack.bucket}/{prefix}*"
    done = run_cli("submit", pattern, "--topic", stack.jobs_topic, "--wait", "--interval", "0.2")
    assert done.returncode == ExitCode.DONE, done.stderr
    assert "3 uploaded = 3 done" in done.stdout
