"""The promises, with the real service and the real protocols."""

import io
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import requests
from google.cloud import firestore, pubsub_v1  # type: ignore[attr-defined]  # published without types
from google.cloud.firestore_v1.base_query import FieldFilter
from PIL import Image

from devtools.demo_model.shapes import Scene
from devtools.fuzz.corpus import saved
from devtools.local_stack.stack import Stack
from service.domain import Box, ImageRef
from service.gcp.publisher import job_message, publish_jobs
from tests.boxes import count_found
from tests.fakes import PATIENCE_SECONDS, wait_until
from tests.system.conftest import (
    COLLECTION,
    EVENT,
    Service,
    document,
    event_data,
    held_storage,
    put_aside,
    upload,
    wait_for_document,
)

Samples = list[tuple[Path, Scene]]
StartService = Callable[..., Service]

BOOT_ERROR = 3  # gunicorn does not start the worker again


def test_uploads_end_as_documents_with_their_objects(stack: Stack, samples: Samples) -> None:
    refs = [upload(stack, f"end/{path.name}", path.read_bytes()) for path, _ in samples]
    documents = [wait_for_document(ref) for ref in refs]
    scenes = [scene for _, scene in samples]
    matched = sum(
        count_found(
            [(shape.label, Box(*shape.box)) for shape in scene.objects],
            [(each["label"], Box(**each["box"])) for each in document["detections"]],
        )
        for scene, document in zip(scenes, documents, strict=True)
    )
    assert matched >= 0.95 * sum(len(scene.objects) for scene in scenes)
    sizes = [(each["image"]["height"], each["image"]["width"], 3) for each in documents]
    assert sizes == [scene.image.shape for scene in scenes]


def test_upload_replaced_before_delivery_writes_nothing(
    service: Service, stack: Stack, samples: Samples
) -> None:
    data = samples[0][0].read_bytes()
    old, new = put_aside(stack, "replaced.jpg", data), put_aside(stack, "replaced.jpg", data)
    assert service.post(old).status_code == 204
    assert document(old) is None
    assert service.post(new).status_code == 204
    assert document(new) is not None


def test_event_delivered_many_times_at_once_writes_one_document(
    start_service: StartService, stack: Stack, samples: Samples
) -> None:
    ref = put_aside(stack, "many.jpg", samples[0][0].read_bytes())
    service = start_service()
    with ThreadPoolExecutor(10) as callers:
        statuses = list(callers.map(lambda _: service.post(ref).status_code, range(10)))
    first = document(ref)
    assert service.post(ref).status_code == 204
    assert statuses == [204] * 10
    assert document(ref) == first
    service.stop()
    outcomes = service.outcomes()
    assert outcomes["done"] == 1
    assert outcomes["already_recorded"] + outcomes["superseded"] == 10


def test_outcome_of_every_delivery_is_in_the_log(
    start_service: StartService, stack: Stack, samples: Samples
) -> None:
    data = samples[0][0].read_bytes()
    good = [put_aside(stack, f"outcomes/{i}.jpg", data) for i in range(16)]
    bad = put_aside(stack, "outcomes/bad.jpg", b"no image")
    gone, folder = ImageRef(bad.bucket, "outcomes/gone", 1), ImageRef(bad.bucket, "folder/", 1)
    service = start_service()
    assert service.post_all([*good, bad, gone, folder, ImageRef("elsewhere", "a.jpg", 1)]) == {204}
    service.stop()
    assert service.outcomes() == {"done": 16, "failed": 1, "gone": 2, "ignored": 1}
    committed = [line for line in service.log() if line["message"] == "Committed"]
    assert sum(line["images"] for line in committed) == 17


def test_jobs_by_push_are_detected_if_the_object_exists(stack: Stack, samples: Samples) -> None:
    refs = [put_aside(stack, "foreign.jpg", b"not ours")]
    live = [upload(stack, f"job/{path.name}", path.read_bytes()) for path, _ in samples[:3]]
    uris = [ref.uri for ref in live] + ["gs://uploads/never-there.jpg", refs[0].uri]
    with pubsub_v1.PublisherClient() as publisher:
        topic = publisher.topic_path(stack.project, stack.jobs_topic)
        publish_jobs(publisher, topic, map(job_message, uris))
    assert all(wait_for_document(ref)["status"] == "done" for ref in live)
    assert document(refs[0]) is None


BAD = {
    "empty_object": b"",
    "unsupported_media": b"<html>not an image</html>",
    "corrupt_image": None,  # an image cut short
    "image_too_large": None,  # an image over the service's limit
}


@pytest.mark.parametrize("code", BAD)
def test_bad_image_gets_a_failed_document_and_is_acknowledged(
    code: str,
    start_service: StartService,
    service: Service,
    stack: Stack,
    samples: Samples,
) -> None:
    whole = samples[0][0].read_bytes()
    data = BAD[code]
    if data is None:
        data = whole[: len(whole) // 2] if code == "corrupt_image" else whole
    ref = put_aside(stack, f"bad/{code}.jpg", data)
    if code == "image_too_large":
        service = start_service(MAX_IMAGE_PIXELS="1000")
    assert service.post(ref).status_code == 204
    fields = document(ref)
    assert fields is not None
    assert (fields["status"], fields["error"]["code"]) == ("failed", code)
    lines = [line for line in service.log() if line.get("uri") == ref.uri]
    assert [line["code"] for line in lines if "code" in line] == [code]


def test_bad_image_does_not_fail_its_neighbours(
    service: Service, stack: Stack, samples: Samples
) -> None:
    data = samples[0][0].read_bytes()
    refs = [put_aside(stack, f"mixed/{i}.jpg", data if i % 4 else data[:999]) for i in range(16)]
    assert service.post_all(refs) == {204}
    statuses = [(document(ref) or {})["status"] for ref in refs]
    assert statuses == ["done" if i % 4 else "failed" for i in range(16)]


def test_malformed_files_do_not_affect_images_beside_them(
    service: Service, stack: Stack, samples: Samples
) -> None:
    """Each file is decoded after good images, and may get their buffers."""
    good = samples[0][0].read_bytes()
    image = Image.open(io.BytesIO(good))
    width, height = image.size
    turned = image.transpose(Image.Transpose.ROTATE_90)
    tags = Image.Exif()
    tags[0x0112] = 6
    pfm = b"Pf\n%d %d\n-1.0\n" % image.size
    files = {
        "good.jpg": (good, "done"),
        "grey.pfm": (pfm + np.zeros((height, width), "<f4").tobytes(), "unsupported_media"),
        "no-end.jpg": (good[:-2], "done"),
        "half.jpg": (good[: len(good) // 2] + good[-2:], "corrupt_image"),
        "turned.avif": (saved("AVIF", turned, exif=tags.tobytes(), quality=95), "done"),
        "maximum.ppm": (with_maximum(image, 1023), "done"),
    }
    refs = {
        (number, name): put_aside(stack, f"malformed/{number}/{name}", data)
        for number in range(3)
        for name, (data, _) in files.items()
    }
    assert service.post_all(list(refs.values())) == {204}
    documents = {key: document(ref) or {} for key, ref in refs.items()}
    endings = {
        key: fields["error"]["code"] if fields["error"] else "done"
        for key, fields in documents.items()
    }
    assert endings == {key: files[key[1]][1] for key in refs}
    expected = documents[0, "good.jpg"]
    for key, ending in endings.items():
        if ending == "done":
            assert documents[key]["image"] | {"format": ""} == expected["image"] | {"format": ""}
            assert documents[key]["counts"].keys() == expected["counts"].keys()


def with_maximum(image: Image.Image, top: int) -> bytes:
    samples = np.asarray(image).astype(np.uint32) * top // 255
    return b"P6 %d %d %d\n" % (*image.size, top) + samples.astype(">u2").tobytes()


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"{not json", 400), (b'{"uri": "https://example.com/a.jpg"}', 400), (b"x" * 5_000_000, 413)],
    ids=["not-json", "foreign-uri", "too-large"],
)
def test_invalid_request_gets_an_error_without_echo(stack: Stack, body: bytes, status: int) -> None:
    response = requests.post(stack.service_url, data=body, timeout=PATIENCE_SECONDS)
    assert response.status_code == status
    assert response.json()["error"]["message"]
    assert b"example.com" not in response.content


def test_message_beyond_the_slots_gets_429_and_none_is_lost(
    start_service: StartService, stack: Stack, samples: Samples
) -> None:
    data = samples[0][0].read_bytes()
    refs = [put_aside(stack, f"queue/{i}.jpg", data) for i in range(24)]
    with held_storage() as (url, gate), ThreadPoolExecutor(24) as callers:
        service = start_service(STORAGE_EMULATOR_HOST=url, MAX_IN_FLIGHT="2")
        gate.close()
        futures = {callers.submit(service.post, ref): ref for ref in refs}
        rejected = list(islice(as_completed(futures, PATIENCE_SECONDS), 22))  # two have slots
        gate.open()
        accepted = set(futures).difference(rejected)
        assert {future.result().status_code for future in accepted} == {204}
    responses = [future.result() for future in rejected]
    assert {response.status_code for response in responses} == {429}
    assert all(int(response.headers["Retry-After"]) > 0 for response in responses)
    assert all(document(futures[future]) for future in accepted)
    assert all(document(futures[future]) is None for future in rejected)
    assert all(service.post(ref).status_code == 204 for ref in refs)
    assert all(document(ref) for ref in refs)


@pytest.mark.parametrize(
    "down",
    [
        {"FIRESTORE_EMULATOR_HOST": "127.0.0.1:9", "FIRESTORE_TIMEOUT_SECONDS": "0.5"},
        {"STORAGE_EMULATOR_HOST": "http://127.0.0.1:9", "STORAGE_TIMEOUT_SECONDS": "0.5"},
    ],
    ids=["firestore", "storage"],
)
def test_outage_returns_503_and_writes_nothing(
    down: dict[str, str], start_service: StartService, stack: Stack, samples: Samples
) -> None:
    ref = put_aside(stack, f"outage/{len(down)}-{min(down)}.jpg", samples[0][0].read_bytes())
    response = start_service(**down).post(ref)
    assert response.status_code == 503
    assert int(response.headers["Retry-After"]) > 0
    assert document(ref) is None


def test_kill_during_a_batch_loses_and_repeats_nothing(stack: Stack, samples: Samples) -> None:
    data = samples[0][0].read_bytes()
    killed = threading.Event()

    def take(number: int) -> ImageRef:
        assert number < 60 or killed.wait(PATIENCE_SECONDS)
        return upload(stack, f"kill/{number}.jpg", data)

    with ThreadPoolExecutor(1) as camera:  # goes on while the service is down
        uploads = [camera.submit(take, number) for number in range(80)]
        wait_until(lambda: count_documents("kill/") > 0, "no image is done")
        stack.kill_service()
        killed.set()
        refs = [future.result() for future in uploads]
    before = {ref.name: document(ref) for ref in refs}
    assert None in before.values()
    stack.start_service()
    after = {ref.name: wait_for_document(ref) for ref in refs}
    assert all(after[name] == fields for name, fields in before.items() if fields)
    assert count_documents("kill/") == len(refs)


def test_two_services_on_the_same_images_write_each_once(
    start_service: StartService, service: Service, stack: Stack, samples: Samples
) -> None:
    data = samples[0][0].read_bytes()
    refs = [put_aside(stack, f"two/{i}.jpg", data) for i in range(16)]
    services = [service, start_service()]
    with ThreadPoolExecutor(32) as callers:
        futures = [callers.submit(each.post, ref) for ref in refs for each in services]
        assert {future.result().status_code for future in futures} == {204}
    assert count_documents("two/") == 16


def test_service_loads_neither_torch_nor_ultralytics(service: Service) -> None:
    if not Path("/proc/self/task").is_dir():
        pytest.skip("needs Linux' /proc")
    maps = Path(f"/proc/{service.worker}/maps").read_text()
    assert "openvino" in maps
    assert "libtorch" not in maps


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"MAX_BATCH_SIZE": "many"}, "MAX_BATCH_SIZE='many' is wrong"),
        ({"MODEL_PATH": "/nowhere"}, "no model at MODEL_PATH=/nowhere"),
    ],
    ids=["setting", "model"],
)
def test_wrong_setting_stops_the_start_and_is_named(
    settings: dict[str, str], sentence: str, start_service: StartService
) -> None:
    service = start_service(ready=False, **settings)
    assert service.child.process.wait(PATIENCE_SECONDS) != 0
    assert sentence in service.child.log_text()
    assert "Traceback" not in service.child.log_text()


def test_model_that_does_not_load_ends_the_process(
    start_service: StartService, stack: Stack, samples: Samples, tmp_path: Path
) -> None:
    broken = tmp_path / "broken_openvino_model"
    broken.mkdir()
    (broken / "metadata.yaml").write_text("task: depth\nnames: {0: a}\nimgsz: [32, 32]\nstride: 32")
    ref = put_aside(stack, "no-model.jpg", samples[0][0].read_bytes())
    service = start_service(ready=False, MODEL_PATH=str(broken))
    assert service.child.process.wait(PATIENCE_SECONDS) == BOOT_ERROR
    assert "a model for the task depth" in service.child.log_text()
    assert "Traceback" not in service.child.log_text()
    with pytest.raises(requests.ConnectionError):
        service.post(ref)
    assert document(ref) is None


def test_structured_event_and_wrapped_notification_are_accepted(
    service: Service, stack: Stack, samples: Samples
) -> None:
    data = samples[0][0].read_bytes()
    first, second = (put_aside(stack, f"forms/{name}.jpg", data) for name in ("ce", "push"))
    event = {"type": EVENT["ce-type"], "specversion": "1.0", "data": event_data(first)}
    attributes = {
        "eventType": "OBJECT_FINALIZE",
        "bucketId": second.bucket,
        "objectId": second.name,
        "objectGeneration": str(second.generation),
        "payloadFormat": "NONE",
    }
    structured = {"content-type": "application/cloudevents+json"}
    post = partial(requests.post, service.url, timeout=PATIENCE_SECONDS)
    responses = [
        post(data=json.dumps(event), headers=structured),
        post(json={"message": {"attributes": attributes}}),
    ]
    assert [response.status_code for response in responses] == [204, 204]
    assert document(first)
    assert document(second)


def count_documents(prefix: str) -> int:
    query = (
        firestore.Client()
        .collection(COLLECTION)
        .where(filter=FieldFilter("name", ">=", prefix))
        .where(filter=FieldFilter("name", "<", prefix + "\U0010ffff"))
    )
    return sum(1 for _ in query.stream())
