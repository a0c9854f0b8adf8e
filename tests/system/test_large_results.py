"""Results that are larger than a document, from the real service to the command line."""

import json
import uuid
from collections.abc import Callable
from pathlib import Path

from click.testing import CliRunner
from google.cloud import storage

from devtools.demo_model.shapes import Scene
from devtools.local_stack.stack import Stack
from service.cli.main import main
from service.document import detections_of
from tests.masks import segmented
from tests.system import hooks
from tests.system.conftest import Service, document, put_aside

Samples = list[tuple[Path, Scene]]
StartService = Callable[..., Service]


def test_large_result_is_read_by_the_command(
    start_service: StartService, stack: Stack, samples: Samples
) -> None:
    results = storage.Client().create_bucket(f"results-{uuid.uuid4().hex}")
    service = start_service(RESULTS_BUCKET=results.name, **hooks.settings(hooks.MaskingWorker))
    prefix = f"large-{uuid.uuid4().hex}"
    ref = put_aside(stack, f"{prefix}/a.jpg", samples[0][0].read_bytes())
    assert service.deliver(ref)[-1] == 204
    stored = document(ref)
    assert stored
    [blob] = [each for each in results.list_blobs() if each.name.endswith(".json.gz")]
    assert stored["detections_uri"] == f"gs://{results.name}/{blob.name}"
    assert (stored["num_detections"], stored["left_out"]) == (300, ["polygons"])

    run = CliRunner().invoke(main, ["results", f"gs://{ref.bucket}/{prefix}", "--json"])
    assert run.exit_code == 0, run.output
    assert json.loads(run.stdout)["detections"] == detections_of(segmented(""))


def test_large_result_without_a_bucket_is_simplified(
    start_service: StartService, stack: Stack, samples: Samples
) -> None:
    service = start_service(**hooks.settings(hooks.MaskingWorker))
    ref = put_aside(stack, "large/b.jpg", samples[0][0].read_bytes())
    assert service.deliver(ref)[-1] == 204
    stored = document(ref)
    assert stored and stored["status"] == "done"
    assert (stored["simplified_pixels"], stored["left_out"]) == (2.0, [])
    assert len(stored["detections"]) == 300


def test_missing_bucket_of_results_rejects_large_results(
    start_service: StartService, stack: Stack, samples: Samples
) -> None:
    service = start_service(RESULTS_BUCKET="does-not-exist", **hooks.settings(hooks.MaskingWorker))
    ref = put_aside(stack, "large/c.jpg", samples[0][0].read_bytes())
    response = service.post(ref)
    assert response.status_code == 503
    assert "RESULTS_BUCKET does not exist" in response.text
    assert document(ref) is None
