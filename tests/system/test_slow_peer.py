"""A Cloud Storage that sends some objects byte by byte."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from devtools.demo_model.shapes import Scene
from service.domain import ImageRef
from tests.contract.test_storage_slow import Peer, peer
from tests.fakes import wait_until
from tests.system.conftest import Service, document

SLOW, GOOD = (
    [ImageRef("peer", f"{kind}/{i}.jpg", 1) for i in range(8)] for kind in ("slow", "good")
)


def test_slow_download_ends_at_its_limit_and_delays_no_other(
    start_service: Callable[..., Service], samples: list[tuple[Path, Scene]]
) -> None:
    """Each byte renews the client's read timeout, so only a limit on the total time ends it."""
    data = samples[0][0].read_bytes()

    def respond(running: Peer, handler: BaseHTTPRequestHandler, number: int) -> None:
        if "slow" in handler.path:
            running.head(handler, Content_Length="1000000")
            running.drip(handler)
        else:
            running.send(handler, data)

    with peer(respond) as (running, url), ThreadPoolExecutor(len(SLOW)) as callers:
        service = start_service(STORAGE_EMULATOR_HOST=url, STORAGE_TIMEOUT_SECONDS="6")
        worker = service.worker
        rejected = [callers.submit(service.post, ref) for ref in SLOW]
        wait_until(lambda: len(running.requests) == len(SLOW), "not every download has started")
        assert service.post_all(GOOD) == {204}
        assert [future.result().status_code for future in rejected] == [503] * len(SLOW)
        assert service.is_live()
        assert service.worker == worker
    assert [(document(ref) or {})["status"] for ref in GOOD] == ["done"] * len(GOOD)
    assert not any(map(document, SLOW))
