"""Files that crash, hang or bloat their decoder, and decoders that are killed from outside."""

import gzip
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import pytest
import requests
from google.cloud import storage

from devtools.bench.accounting import peak_resident_mb
from devtools.demo_model.shapes import Scene
from devtools.local_stack.stack import Stack
from service.domain import ImageRef
from service.images.decoders import DecodeLimits
from service.machine import cores
from tests.fakes import PATIENCE_SECONDS, wait_until
from tests.hostile_decoder import marked
from tests.processes import (
    LIBRARIES_MB,
    decoders_of,
    is_running,
    name_of,
    peaks_of,
    root_of,
)
from tests.system import hooks
from tests.system.conftest import ASIDE, Service, document, held_storage, put_aside
from tests.system.test_service import count_documents

Samples = list[tuple[Path, Scene]]
StartService = Callable[..., Service]

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux' /proc")

HOSTILE = hooks.settings(hooks.HostileDecodersWorker)
NEIGHBOURS = 8


def start_with_decoders(start_service: StartService, **settings: str) -> tuple[Service, set[int]]:
    """Start a service. Return it with its decoders, when all run."""
    service = start_service(**settings)
    return service, all_decoders(service)


def all_decoders(service: Service) -> set[int]:
    """Return the service's decoders, when all run. Waits until ended decoders are replaced."""
    worker = service.worker
    wait_until(
        lambda: sum(map(is_running, decoders_of(worker))) == cores(), "a decoder is not replaced"
    )
    return set(filter(is_running, decoders_of(worker)))


@pytest.mark.parametrize(
    ("fault", "reason", "crashes"),
    [
        # An earlier file may have damaged the decoder, so a new decoder tries the file again.
        ("segfault", "The file crashed its decoder (SIGSEGV).", 2),
        ("hang", f"Decoding the file took more than {hooks.WALL_SECONDS:g} s.", 1),
        # The second decoder may use the memory of the largest image with the file's size.
        ("bloat", "Decoding the file needs more memory than its number of pixels allows.", 2),
    ],
)
def test_hostile_file_fails_alone_after_at_most_two_crashes(
    start_service: StartService,
    stack: Stack,
    samples: Samples,
    fault: str,
    reason: str,
    crashes: int,
) -> None:
    data = samples[0][0].read_bytes()
    hostile = put_aside(stack, f"hostile/{fault}.jpg", marked(data, fault))
    good = [put_aside(stack, f"hostile/{fault}/{i}.jpg", data) for i in range(NEIGHBOURS)]
    service, before = start_with_decoders(start_service, **HOSTILE)
    worker = service.worker
    with ThreadPoolExecutor(NEIGHBOURS + 1) as callers:
        statuses = list(callers.map(service.deliver, [hostile, *good]))
    assert statuses == [[204]] * (NEIGHBOURS + 1)
    recorded = document(hostile)
    assert recorded is not None and recorded["error"]["code"] == "corrupt_image"
    assert recorded["error"]["message"] == reason
    assert [(document(ref) or {})["status"] for ref in good] == ["done"] * NEIGHBOURS
    assert len(before - all_decoders(service)) <= crashes
    assert service.worker == worker
    after = all_decoders(service)
    assert service.deliver(hostile) == [204]
    assert all_decoders(service) == after  # a redelivered file is not decoded again
    service.stop()
    assert service.outcomes() == {"failed": 1, "done": NEIGHBOURS, "already_recorded": 1}


def test_file_crashes_at_most_two_decoders_per_service(
    start_service: StartService, stack: Stack, samples: Samples
) -> None:
    hostile = put_aside(stack, "twice/0.jpg", marked(samples[0][0].read_bytes(), "segfault"))
    services = [start_with_decoders(start_service, **HOSTILE) for _ in range(2)]
    workers = [service.worker for service, _ in services]
    with ThreadPoolExecutor(2) as callers:
        statuses = callers.map(lambda started: started[0].deliver(hostile), services)
        assert list(statuses) == [[204], [204]]
    assert count_documents("twice/") == 1
    assert (document(hostile) or {})["error"]["code"] == "corrupt_image"
    assert all(len(before - all_decoders(service)) <= 2 for service, before in services)
    assert [service.worker for service, _ in services] == workers


UPLOADS = 32
UNPACKED_BYTES = 30 * 10**6
MAX_BUFFERED_MB = 32


def put_compressed(name: str, data: bytes) -> ImageRef:
    blob = storage.Client().bucket(ASIDE).blob(name)
    blob.content_encoding = "gzip"
    blob.upload_from_string(data, content_type="image/jpeg")
    return ImageRef(ASIDE, name, blob.generation)


def test_compressed_uploads_do_not_grow_the_service(
    start_service: StartService, stack: Stack
) -> None:
    """Each object has 31 KiB with its Content-Encoding, and 30 MB without."""
    image = cv2.imencode(".jpg", np.full((480, 640, 3), 128, np.uint8))[1].tobytes()
    first = put_aside(stack, "compressed/first.jpg", image)
    stored = gzip.compress(image + bytes(UNPACKED_BYTES - len(image)))
    assert len(stored) < 2**15
    refs = [put_compressed(f"compressed/{i}.jpg", stored) for i in range(UPLOADS)]
    with held_storage() as (url, gate), ThreadPoolExecutor(UPLOADS) as callers:
        service = start_service(
            STORAGE_EMULATOR_HOST=url, MAX_BUFFERED_BYTES=str(MAX_BUFFERED_MB * 2**20)
        )
        assert service.deliver(first) == [204]
        worker = service.worker
        before = peak_resident_mb(worker)
        gate.close()
        responses = callers.map(service.post, refs)
        wait_until(lambda: gate.waiting >= UPLOADS, "not every image waits for its download")
        gate.open()
        assert {response.status_code for response in responses} == {204}
    peaks = peaks_of(all_decoders(service))
    print(f"service: {before:.0f} MB and then {peak_resident_mb(worker):.0f}; decoders: {peaks}")
    assert peak_resident_mb(worker) < before + MAX_BUFFERED_MB
    assert max(peaks) < DecodeLimits().small_bytes / 2**20 + LIBRARIES_MB
    assert [(document(ref) or {})["status"] for ref in refs] == ["done"] * UPLOADS


def test_upload_is_detected_after_decoders_were_killed(
    start_service: StartService, stack: Stack, samples: Samples
) -> None:
    data = samples[0][0].read_bytes()
    refs = [put_aside(stack, f"killed/{i}.jpg", data) for i in range(2)]
    service, decoders = start_with_decoders(start_service)
    for decoder in decoders:
        os.kill(decoder, signal.SIGKILL)
    wait_until(lambda: not any(map(is_running, decoders)), "the decoders do not end")
    assert service.deliver(refs[0]) == [204]
    root = root_of(service.worker)
    decoders = set(decoders_of(service.worker))
    os.kill(root, signal.SIGKILL)
    wait_until(lambda: not any(map(is_running, {root, *decoders})), "the decoders outlive the root")
    assert service.deliver(refs[1]) == [204]
    assert [(document(ref) or {})["status"] for ref in refs] == ["done", "done"]
    assert root_of(service.worker) != root


def test_image_of_a_killed_decoder_is_rejected_and_then_done(
    start_service: StartService, service: Service, stack: Stack, samples: Samples
) -> None:
    """The kernel may kill a decoder when memory is short. The file is not the cause."""
    data = samples[0][0].read_bytes()
    ref = put_aside(stack, "short/0.jpg", marked(data, "hang"))
    short, decoders = start_with_decoders(start_service, **HOSTILE)
    with ThreadPoolExecutor(1) as caller:
        posted = caller.submit(short.post, ref)
        wait_until(lambda: "hanging" in map(name_of, decoders), "the decoder does not hang")
        for decoder in decoders:
            os.kill(decoder, signal.SIGKILL)
        response = posted.result()
    assert response.status_code == 503
    assert int(response.headers["Retry-After"]) > 0
    assert document(ref) is None
    assert service.deliver(ref) == [204]
    assert (document(ref) or {})["status"] == "done"


def end_by_sigterm(service: Service) -> None:
    os.kill(service.child.process.pid, signal.SIGTERM)


def kill_worker_and_arbiter(service: Service) -> None:
    os.killpg(service.child.process.pid, signal.SIGKILL)


def kill_arbiter(service: Service) -> None:
    os.kill(service.child.process.pid, signal.SIGKILL)


@pytest.mark.parametrize("end", [end_by_sigterm, kill_worker_and_arbiter, kill_arbiter])
def test_no_process_outlives_the_service(
    start_service: StartService,
    stack: Stack,
    samples: Samples,
    end: Callable[[Service], None],
) -> None:
    """Not even if a decoder hangs."""
    data = samples[0][0].read_bytes()
    ref = put_aside(stack, f"outlives/{end.__name__}.jpg", marked(data, "hang"))
    service, decoders = start_with_decoders(start_service, GRACEFUL_TIMEOUT_SECONDS="1", **HOSTILE)
    worker = service.worker
    processes = {worker, root_of(worker), *decoders}
    with ThreadPoolExecutor(1) as caller:
        posted = caller.submit(service.post, ref)
        wait_until(lambda: "hanging" in map(name_of, decoders), "the decoder does not hang")
        end(service)
        wait_until(lambda: not any(map(is_running, processes)), "a process is left")
        # A worker that still has time rejects the message; otherwise the connection breaks.
        with suppress(requests.ConnectionError):
            assert posted.result(PATIENCE_SECONDS).status_code == 503
    assert document(ref) is None
