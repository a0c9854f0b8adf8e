"""A worker in which something hangs is replaced; what it did not answer comes again."""

import cv2
import numpy as np
import pytest
import requests

from devtools.local_stack.stack import Stack
from tests.fakes import PATIENCE_SECONDS
from tests.system import hooks
from tests.system.conftest import READY_SECONDS, Service, answers, document, put_aside
from tests.system.test_overload import Samples, StartService

LIMITS = {
    "STUCK_SECONDS": "25",  # more than the two others
    "STORAGE_TIMEOUT_SECONDS": "12",
    "FIRESTORE_TIMEOUT_SECONDS": "12",
}


def test_worker_that_hangs_ends_and_its_successor_serves(
    start_service: StartService, stack: Stack, samples: Samples
) -> None:
    endless = cv2.imencode(".jpg", np.full(hooks.POISON_SHAPE, 128, np.uint8))[1].tobytes()
    hanging = put_aside(stack, "stuck/hangs.jpg", endless)
    good = put_aside(stack, "stuck/good.jpg", samples[0][0].read_bytes())
    service = start_service(**LIMITS, **hooks.settings(hooks.HangingWorker))
    with pytest.raises(requests.ConnectionError):
        service.post(hanging)
    assert document(hanging) is None
    service.child.wait_until(
        lambda: answers(service.url + "/health/ready"), timeout_seconds=READY_SECONDS
    )
    assert service.post(good, timeout=PATIENCE_SECONDS).status_code == 204
    assert document(good) is not None
    assert_says_where_it_hung(service)


def assert_says_where_it_hung(service: Service) -> None:
    [said] = [line for line in service.log() if line["severity"] == "CRITICAL"]
    assert "stuck" in said["message"]
    [stack] = [calls for name, calls in said["threads"].items() if name.startswith("batcher ")]
    assert any(call.startswith("tests.system.hooks:") for call in stack)
