"""The load generator: posts requests, and records when each was due, sent and completed."""

import random
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate

import urllib3

_RESPONSE_SECONDS = 300.0
_OPEN_CLIENTS = 96  # in an open loop: more than the service's slots, so that no request waits


@dataclass(frozen=True)
class Request:
    """A POST request: its headers and body."""

    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Response:
    """The response to one request. Times are seconds since the start of the load."""

    due: float
    sent: float
    completed: float
    status: int  # 0: no response

    @property
    def is_good(self) -> bool:
        """Whether the request succeeded."""
        return 200 <= self.status < 300


def send_closed(url: str, requests: Sequence[Request], *, clients: int) -> list[Response]:
    """Keep `clients` clients busy: each sends its next request when its last has completed."""
    return _send(url, requests, [0.0] * len(requests), clients)


def send_open(
    url: str, requests: Sequence[Request], *, rate: float, seed: int = 26
) -> list[Response]:
    """Send `rate` requests per second on average, independent of the responses.

    Arrivals are a Poisson process. The latency of a request counts from the time when it was due,
    even if no client was free. Otherwise waiting in the load generator would hide latency.
    """
    generator = random.Random(seed)
    due = list(accumulate(generator.expovariate(rate) for _ in requests))
    return _send(url, requests, due, min(_OPEN_CLIENTS, len(requests)))


def _send(
    url: str, requests: Sequence[Request], due: Sequence[float], clients: int
) -> list[Response]:
    pool = urllib3.PoolManager(maxsize=clients, retries=False, timeout=_RESPONSE_SECONDS)
    start = time.monotonic()

    def post(request: Request, due: float) -> Response:
        time.sleep(max(0.0, start + due - time.monotonic()))
        sent = time.monotonic() - start
        try:
            status = pool.request("POST", url, body=request.body, headers=request.headers).status
        except urllib3.exceptions.HTTPError:
            status = 0
        return Response(due, sent, time.monotonic() - start, status)

    with ThreadPoolExecutor(clients) as threads:
        return list(threads.map(post, requests, due))
