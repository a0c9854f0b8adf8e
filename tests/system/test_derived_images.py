"""Derived images, from a source's settings to the objects in the bucket, by the real service."""

import base64
import io
import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from google.cloud import storage
from PIL import Image

from devtools.demo_model.shapes import CLASS_NAMES, Scene
from devtools.local_stack.stack import Stack
from service.domain import ImageRef
from tests.fakes import PATIENCE_SECONDS
from tests.system import hooks
from tests.system.conftest import ASIDE, Service, document, put_aside, run_cli

pytestmark = pytest.mark.emulator

Samples = list[tuple[Path, Scene]]
StartService = Callable[..., Service]
EVERYTHING = {
    "annotated": True,
    "crops": {},
    "normalized": {"max_pixels": 40_000, "format": "png"},
    "max_side": 400,
}
REDACTED = {**EVERYTHING, "redacted": {"group": "shapes", "mode": "mosaic"}}


@pytest.fixture
def bucket() -> storage.Bucket:
    return storage.Client().create_bucket(f"results-{uuid.uuid4().hex}")


@pytest.fixture
def apply(tmp_path: Path) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Give the images of a prefix these derived images. The test's end removes all sources."""
    file = tmp_path / "sources.yaml"

    def write(sources: list[dict[str, Any]]) -> None:
        content = {"sources": sources, "groups": {"shapes": list(CLASS_NAMES)}}
        file.write_text(json.dumps(content), encoding="utf-8")  # JSON is YAML
        done = run_cli("sources", "apply", file, "--yes")
        assert done.returncode == 0, done.stderr

    def apply_to(derived: dict[str, Any]) -> None:
        write([{"id": "a", "bucket": ASIDE, "prefix": "derived/", "derived": derived}])

    yield apply_to
    write([])


def put(stack: Stack, data: bytes) -> ImageRef:
    return put_aside(stack, f"derived/{uuid.uuid4().hex}.jpg", data)


def stored(ref: ImageRef) -> dict[str, Any]:
    fields = document(ref)
    assert fields
    return fields


def contents(bucket: storage.Bucket, fields: dict[str, Any]) -> dict[str, list[bytes]]:
    """Return the objects that a document refers to, by their kind."""
    by_kind: dict[str, list[bytes]] = {}
    for image in fields["derived"]:
        name = image["uri"].removeprefix(f"gs://{bucket.name}/")
        data = bucket.blob(name).download_as_bytes()
        assert len(data) == image["size"]
        by_kind.setdefault(image["kind"], []).append(data)
    return by_kind


def pixels(data: bytes, size: tuple[int, int]) -> "np.ndarray[Any, np.dtype[np.float64]]":
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB").resize(size), np.float64)


def test_every_kind_is_made_and_named_in_the_document(
    start_service: StartService,
    stack: Stack,
    samples: Samples,
    bucket: storage.Bucket,
    apply: Callable[[dict[str, Any]], None],
) -> None:
    apply(EVERYTHING)
    service = start_service(RESULTS_BUCKET=bucket.name)
    ref = put(stack, samples[0][0].read_bytes())
    assert service.deliver(ref)[-1] == 204
    fields = stored(ref)
    found = contents(bucket, fields)
    assert found.keys() == {"thumbnail", "annotated", "crop", "normalized", "labels"}
    assert len(found["crop"]) == fields["num_detections"] > 0
    assert len(found["labels"][0].splitlines()) == fields["num_detections"]
    for image in fields["derived"]:
        if image["kind"] != "labels":
            name = image["uri"].removeprefix(f"gs://{bucket.name}/")
            opened = Image.open(io.BytesIO(bucket.blob(name).download_as_bytes()))
            assert opened.size == (image["width"], image["height"])
            assert not opened.getexif()
    assert {blob.name for blob in bucket.list_blobs()} == {
        image["uri"].removeprefix(f"gs://{bucket.name}/") for image in fields["derived"]
    }


def test_redaction_changes_every_derived_image(
    start_service: StartService,
    stack: Stack,
    samples: Samples,
    bucket: storage.Bucket,
    apply: Callable[[dict[str, Any]], None],
) -> None:
    data = samples[0][0].read_bytes()
    apply(EVERYTHING)  # before the start: a running service takes a change only after a while
    service = start_service(RESULTS_BUCKET=bucket.name)
    shown = put(stack, data)
    assert service.deliver(shown)[-1] == 204
    service.stop()
    apply(REDACTED)
    service = start_service(RESULTS_BUCKET=bucket.name)
    hidden = put(stack, data)
    assert service.deliver(hidden)[-1] == 204
    before, after = contents(bucket, stored(shown)), contents(bucket, stored(hidden))
    assert after.keys() == before.keys() | {"redacted"}
    image = stored(hidden)["image"]
    size = (image["width"], image["height"])
    redacted = pixels(after["redacted"][0], size)
    for detection in stored(hidden)["detections"]:
        box = detection["box"]
        rows = slice(int(box["y1"]) + 1, int(box["y2"]))
        columns = slice(int(box["x1"]) + 1, int(box["x2"]))
        original = pixels(data, size)[rows, columns]
        for kind in ("thumbnail", "normalized"):
            copy = pixels(after[kind][0], size)[rows, columns]
            assert np.abs(copy - redacted[rows, columns]).mean() < np.abs(copy - original).mean()
        assert np.abs(original - redacted[rows, columns]).mean() > 5
    assert before["crop"] != after["crop"]


def test_crash_before_the_commit_loses_and_repeats_nothing(
    start_service: StartService, stack: Stack, samples: Samples, bucket: storage.Bucket
) -> None:
    ref = put(stack, samples[0][0].read_bytes())
    crashing = start_service(
        RESULTS_BUCKET=bucket.name, **hooks.settings(hooks.CrashingAtCommitWorker)
    )
    with pytest.raises(requests.ConnectionError):
        crashing.post(ref)
    assert document(ref) is None
    [left] = bucket.list_blobs()
    service = start_service(RESULTS_BUCKET=bucket.name)
    assert service.deliver(ref)[-1] == 204
    [blob] = bucket.list_blobs()
    assert (blob.name, blob.generation) == (left.name, left.generation)
    assert [image["uri"] for image in stored(ref)["derived"]] == [f"gs://{bucket.name}/{blob.name}"]


def test_service_never_processes_what_a_service_made(
    start_service: StartService, stack: Stack, samples: Samples, bucket: storage.Bucket
) -> None:
    """Neither its own objects nor those of another deployment, as events or as jobs."""
    own = start_service(RESULTS_BUCKET=bucket.name)
    other = start_service()  # another deployment that serves this bucket
    ref = put(stack, samples[0][0].read_bytes())
    assert own.deliver(ref)[-1] == 204
    [blob] = bucket.list_blobs()
    thumbnail = ImageRef(bucket.name, blob.name, blob.generation)
    for service in (own, other):
        assert service.post(thumbnail).status_code == 204
        assert service.post_job(thumbnail).status_code == 204
        service.stop()
        assert service.outcomes()["ignored"] == 2
    assert document(thumbnail) is None
    assert len(list(bucket.list_blobs())) == 1


def test_job_that_replaces_a_result_replaces_its_images(
    start_service: StartService,
    stack: Stack,
    samples: Samples,
    bucket: storage.Bucket,
    apply: Callable[[dict[str, Any]], None],
) -> None:
    apply({"crops": {}})
    service = start_service(RESULTS_BUCKET=bucket.name)
    ref = put(stack, samples[0][0].read_bytes())
    assert service.deliver(ref)[-1] == 204
    service.stop()
    first = {image["uri"] for image in stored(ref)["derived"]}
    apply({"crops": {"margin": 0.5}, "thumbnail": False})
    service = start_service(RESULTS_BUCKET=bucket.name)
    assert post_replacement(service, ref) == 204
    second = {image["uri"] for image in stored(ref)["derived"]}
    assert second and not first & second
    assert {f"gs://{bucket.name}/{blob.name}" for blob in bucket.list_blobs()} == second


def post_replacement(service: Service, ref: ImageRef) -> int:
    """Deliver a job that replaces the result, as `reconcile` publishes it. Return the status."""
    job = {
        "uri": f"{ref.uri}#{ref.generation}",
        "replace": {"if_created_before": "2100-01-01T00:00:00Z", "unless_model": None},
    }
    data = base64.b64encode(json.dumps(job).encode()).decode()
    message = {"message": {"data": data}}
    return requests.post(service.url, json=message, timeout=PATIENCE_SECONDS).status_code
