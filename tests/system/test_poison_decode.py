"""A picture that crashes its decoder takes the process along once, and nobody else."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from devtools.demo_model.shapes import Scene
from devtools.local_stack.stack import Stack
from service.domain import ImageRef
from tests.fakes import wait_until
from tests.system import hooks
from tests.system.conftest import Service, document, put_aside

ATTEMPTS = 5
NEIGHBOURS = 7


@pytest.mark.parametrize(("part", "status"), [(1.0, "done"), (0.5, "failed")], ids=["sound", "cut"])
def test_picture_that_kills_its_decoder_is_decoded_apart_and_convicts_nobody(
    start_service: Callable[..., Service],
    stack: Stack,
    samples: list[tuple[Path, Scene]],
    tmp_path: Path,
    part: float,
    status: str,
) -> None:
    data = samples[0][0].read_bytes()
    fatal = data[: int(len(data) * part)] + hooks.FATAL
    poison = put_aside(stack, f"fatal/{status}/poison.jpg", fatal)
    good = [put_aside(stack, f"fatal/{status}/{i}.jpg", data) for i in range(NEIGHBOURS)]
    has_run = tmp_path / "has-run"
    settings = hooks.settings(hooks.FragileWorker)
    service = start_service(**settings, **{hooks.HAS_RUN: str(has_run)})

    def deliver(ref: ImageRef) -> list[int]:
        """As Pub/Sub does; the answers, 0 for none."""
        statuses: list[int] = []
        while 204 not in statuses and len(statuses) < ATTEMPTS:
            try:
                statuses.append(service.post(ref).status_code)
            except requests.ConnectionError:
                statuses.append(0)
        return statuses

    with ThreadPoolExecutor(NEIGHBOURS + 1) as callers:
        neighbours = callers.map(deliver, good)
        wait_until(has_run.exists, "the network does not begin")
        assert callers.submit(deliver, poison).result() == [0, 204]
        assert all(statuses in ([0, 204], [204]) for statuses in neighbours)
    assert [found_status(ref) for ref in good] == ["done"] * NEIGHBOURS
    assert found_status(poison) == status
    log = service.log()
    [decoded] = [line["decoded_ids"] for line in log if "decoded_ids" in line]
    [suspects] = [line["document_ids"] for line in log if "document_ids" in line]
    assert poison.document_id in decoded
    assert suspects and set(suspects) <= {ref.document_id for ref in good}


def found_status(ref: ImageRef) -> str | None:
    found = document(ref)
    return found and found["status"]
