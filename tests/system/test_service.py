"""The promises, kept by the real service on the real protocols."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from google.cloud import firestore, pubsub_v1
from google.cloud.firestore_v1.base_query import FieldFilter

from service.demo.shapes import Scene
from service.domain import Box, ImageRef
from service.local.stack import Stack
from tests.boxes import count_found
from tests.system.conftest import (
    COLLECTION,
    EVENT,
    Service,
    document,
    event_data,
    put_aside,
    upload,
    wait_for_document,
)

Samples = list[tuple[Path, Scene]]
StartService = Callable[..., Service]


def test_uploads_end_as_documents_with_their_objects(stack: Stack, samples: Samples) -> None:
    refs = [upload(stack, f"end/{path.name}", path.read_bytes()) for path, _ in samples]
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
    sizes = [(found["image"]["height"], found["image"]["width"], 3) for found in documents]
    assert sizes == [scene.image.shape for scene in scenes]


def test_upload_replaced_before_delivery_writes_nothing(
    start_service: StartService, stack: Stack, samples: Samples
) -> None:
    data = samples[0][0].read_bytes()
    old, new = put_aside(stack, "replaced.jpg", data), put_aside(stack, "replaced.jpg", data)
    service = start_service()
    assert service.post(old).status_code == 204
    assert document(old) is None
    assert service.post(new).status_code == 204
    assert document(new) is not None


def test_event_delivered_many_times_at_once_is_inferred_once(
    start_service: StartService, stack: Stack, samples: Samples
) -> None:
    ref = put_aside(stack, "many.jpg", samples[0][0].read_bytes())
    service = start_service()
    with ThreadPoolExecutor(10) as callers:
        answers = list(callers.map(lambda _: service.post(ref).status_code, range(10)))
    first = document(ref)
    assert service.post(ref).status_code == 204
    assert answers == [204] * 10
    assert document(ref) == first
    assert sum(line.get("batch_size", 0) for line in service.log()) == 1


def test_concurrent_events_share_batches(
    start_service: StartService, stack: Stack, samples: Samples
) -> None:
    data = samples[0][0].read_bytes()
    refs = [put_aside(stack, f"share/{i}.jpg", data) for i in range(32)]
    service = start_service()
    with ThreadPoolExecutor(32) as callers:
        assert {answer.status_code for answer in callers.map(service.post, refs)} == {204}
    sizes = [line["batch_size"] for line in service.log() if "batch_size" in line]
    assert sum(sizes) == 32
    assert max(sizes) == 8
    assert all(document(ref) for ref in refs)


def test_job_by_push_is_detected_and_skips_what_is_not_there(
    stack: Stack, samples: Samples
) -> None:
    refs = [put_aside(stack, "foreign.jpg", b"not ours")]
    live = [upload(stack, f"job/{path.name}", path.read_bytes()) for path, _ in samples[:3]]
    uris = [ref.uri for ref in live] + ["gs://uploads/never-there.jpg", refs[0].uri]
    with pubsub_v1.PublisherClient() as publisher:
        topic = publisher.topic_path(stack.project, stack.jobs_topic)
        publisher.publish(topic, json.dumps({"uris": uris}).encode()).result(timeout=10)
    assert all(wait_for_document(ref)["status"] == "done" for ref in live)
    assert document(refs[0]) is None


BAD = {
    "empty_object": b"",
    "unsupported_media": b"<html>not a picture</html>",
    "corrupt_image": None,  # a picture cut short
    "image_too_large": None,  # a picture over the service's limit
}


@pytest.mark.parametrize("code", BAD)
def test_bad_picture_gets_a_record_and_is_acknowledged(
    code: str, start_service: StartService, stack: Stack, samples: Samples
) -> None:
    whole = samples[0][0].read_bytes()
    data = BAD[code]
    if data is None:
        data = whole[: len(whole) // 2] if code == "corrupt_image" else whole
    ref = put_aside(stack, f"bad/{code}.jpg", data)
    settings = {"MAX_IMAGE_PIXELS": "1000"} if code == "image_too_large" else {}
    service = start_service(**settings)
    assert service.post(ref).status_code == 204
    found = document(ref)
    assert found is not None
    assert (found["status"], found["error"]["code"]) == ("failed", code)
    assert [line["code"] for line in service.log() if "code" in line] == [code]


def test_bad_picture_does_not_fail_its_neighbours(
    start_service: StartService, stack: Stack, samples: Samples
) -> None:
    data = samples[0][0].read_bytes()
    refs = [put_aside(stack, f"mixed/{i}.jpg", data if i % 4 else data[:999]) for i in range(16)]
    service = start_service()
    assert service.post_job(refs).status_code == 204
    found = [(document(ref) or {})["status"] for ref in refs]
    assert found == ["done" if i % 4 else "failed" for i in range(16)]


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"{not json", 400), (b'{"uri": "https://example.com/a.jpg"}', 400), (b"x" * 5_000_000, 413)],
    ids=["not-json", "foreign-uri", "too-large"],
)
def test_unreadable_request_is_refused_without_echo(stack: Stack, body: bytes, status: int) -> None:
    answer = requests.post(stack.service_url, data=body, timeout=10)
    assert answer.status_code == status
    assert answer.json()["error"]["message"]
    assert b"example.com" not in answer.content


def test_full_queue_answers_429_and_loses_nothing(
    start_service: StartService, stack: Stack, samples: Samples
) -> None:
    data = samples[0][0].read_bytes()
    refs = [put_aside(stack, f"queue/{i}.jpg", data) for i in range(24)]
    service = start_service(MAX_QUEUE="1", MAX_BATCH_SIZE="1")
    with ThreadPoolExecutor(24) as callers:
        answers = list(callers.map(service.post, refs))
    refused = [answer for answer in answers if answer.status_code == 429]
    assert {answer.status_code for answer in answers} == {204, 429}
    assert all(int(answer.headers["Retry-After"]) > 0 for answer in refused)
    for ref, answer in zip(refs, answers, strict=True):
        assert (document(ref) is not None) == (answer.status_code == 204)
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
def test_outage_answers_503_and_writes_nothing(
    down: dict[str, str], start_service: StartService, stack: Stack, samples: Samples
) -> None:
    ref = put_aside(stack, f"outage/{len(down)}-{min(down)}.jpg", samples[0][0].read_bytes())
    answer = start_service(**down).post(ref)
    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) > 0
    assert document(ref) is None


def test_sigterm_under_load_answers_or_gives_back_every_picture(
    start_service: StartService, stack: Stack, samples: Samples
) -> None:
    data = samples[0][0].read_bytes()
    refs = [put_aside(stack, f"term/{i}.jpg", data) for i in range(40)]
    service = start_service()
    acknowledged: list[ImageRef] = []
    begun = threading.Semaphore(0)

    def deliver(ref: ImageRef) -> None:
        begun.release()
        try:
            if service.post(ref).status_code == 204:
                acknowledged.append(ref)
        except requests.ConnectionError:
            return  # not answered is not acknowledged

    with ThreadPoolExecutor(20) as callers:
        futures = [callers.submit(deliver, ref) for ref in refs]
        for _ in range(20):
            begun.acquire()
        os.kill(service.child.process.pid, signal.SIGTERM)
        for future in futures:
            future.result()
    assert service.child.process.wait(15) == 0
    assert all(document(ref) for ref in acknowledged)
    successor = start_service()
    assert all(successor.post(ref).status_code == 204 for ref in refs)
    assert count_documents("term/") == 40


def test_sigterm_during_a_job_gives_it_back(
    start_service: StartService, stack: Stack, samples: Samples
) -> None:
    data = samples[0][0].read_bytes()
    refs = [put_aside(stack, f"job-term/{i}.jpg", data) for i in range(200)]
    service = start_service()
    with ThreadPoolExecutor(1) as caller:
        answer = caller.submit(service.post_job, refs)
        while not any("batch_size" in line for line in service.log()):
            time.sleep(0.02)
        os.kill(service.child.process.pid, signal.SIGTERM)
        assert answer.result().status_code == 503
    assert service.child.process.wait(15) == 0
    assert 0 < count_documents("job-term/") < 200


def test_kill_in_mid_batch_loses_and_repeats_nothing(stack: Stack, samples: Samples) -> None:
    data = samples[0][0].read_bytes()
    with ThreadPoolExecutor(1) as camera:  # goes on while the service is dead
        uploads = [camera.submit(upload, stack, f"kill/{i}.jpg", data) for i in range(80)]
        while not count_documents("kill/"):
            time.sleep(0.01)
        stack.kill_service()
        refs = [future.result() for future in uploads]
    before = {ref.name: document(ref) for ref in refs}
    assert None in before.values()
    stack.start_service()
    after = {ref.name: wait_for_document(ref) for ref in refs}
    assert all(after[name] == found for name, found in before.items() if found)
    assert count_documents("kill/") == len(refs)


def test_two_services_on_the_same_pictures_write_each_once(
    start_service: StartService, stack: Stack, samples: Samples
) -> None:
    data = samples[0][0].read_bytes()
    refs = [put_aside(stack, f"two/{i}.jpg", data) for i in range(16)]
    services = [start_service(), start_service()]
    with ThreadPoolExecutor(32) as callers:
        futures = [callers.submit(service.post, ref) for ref in refs for service in services]
        assert {future.result().status_code for future in futures} == {204}
    assert count_documents("two/") == 16


def test_service_holds_neither_torch_nor_ultralytics(start_service: StartService) -> None:
    service = start_service()
    master = service.child.process.pid
    children = Path(f"/proc/{master}/task/{master}/children")
    if not children.exists():
        pytest.skip("needs /proc/PID/task/PID/children, which only Linux has")
    (worker,) = children.read_text().split()
    maps = Path(f"/proc/{worker}/maps").read_text()
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
def test_wrong_setting_stops_the_start_and_names_it(
    settings: dict[str, str], sentence: str, start_service: StartService
) -> None:
    service = start_service(ready=False, **settings)
    assert service.child.process.wait(30) != 0
    assert sentence in service.child.log_text()
    assert "Traceback" not in service.child.log_text()


def test_model_that_does_not_load_is_never_ready_and_acknowledges_nothing(
    start_service: StartService, stack: Stack, samples: Samples, tmp_path: Path
) -> None:
    broken = tmp_path / "broken_openvino_model"
    broken.mkdir()
    (broken / "metadata.yaml").write_text(
        "task: segment\nnames: {0: a}\nimgsz: [32, 32]\nstride: 32"
    )
    ref = put_aside(stack, "no-model.jpg", samples[0][0].read_bytes())
    service = start_service(ready=False, MODEL_PATH=str(broken))
    service.child.wait_until(lambda: "did not load" in service.child.log_text(), timeout_seconds=30)
    answers = [
        requests.get(f"{service.url}/health/{kind}", timeout=5) for kind in ("live", "ready")
    ]
    assert [answer.status_code for answer in answers] == [503, 503]
    assert "not for detection" in service.child.log_text()
    assert service.post(ref).status_code == 503
    assert document(ref) is None


def test_structured_event_and_wrapped_notification_are_taken(
    start_service: StartService, stack: Stack, samples: Samples
) -> None:
    data = samples[0][0].read_bytes()
    first, second = (put_aside(stack, f"forms/{name}.jpg", data) for name in ("ce", "push"))
    service = start_service()
    event = {"type": EVENT["ce-type"], "specversion": "1.0", "data": event_data(first)}
    attributes = {
        "eventType": "OBJECT_FINALIZE",
        "bucketId": second.bucket,
        "objectId": second.name,
        "objectGeneration": str(second.generation),
        "payloadFormat": "NONE",
    }
    structured = {"content-type": "application/cloudevents+json"}
    answers = [
        requests.post(service.url, data=json.dumps(event), headers=structured, timeout=30),
        requests.post(service.url, json={"message": {"attributes": attributes}}, timeout=30),
    ]
    assert [answer.status_code for answer in answers] == [204, 204]
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
