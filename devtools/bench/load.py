"""The load generator: posts requests and notes when each was due, sent and answered."""

import random
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate

import urllib3

_ANSWER_SECONDS = 300.0
_OPEN_CLIENTS = 96  # of an open load: more than the service admits, so that none waits for a client


@dataclass(frozen=True)
class Request:
    """One POST."""

    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Answer:
    """What became of one request; times in seconds of one clock, 0 at the first one's."""

    due: float
    sent: float
    answered: float
    status: int  # 0: no answer

    @property
    def is_good(self) -> bool:
        """Whether the request was answered with success."""
        return 200 <= self.status < 300


def send_closed(url: str, requests: Sequence[Request], *, clients: int) -> list[Answer]:
    """Keep so many clients busy: each sends its next request when it has its answer."""
    return _send(url, requests, [0.0] * len(requests), clients)


def send_open(
    url: str, requests: Sequence[Request], *, rate: float, seed: int = 26
) -> list[Answer]:
    """Send at random moments, so many a second on average, whatever is still unanswered.

    Arrivals are a Poisson process. A request that finds no client free counts from when it was
    due, so that a slow service does not hide its own latencies.
    """
    generator = random.Random(seed)
    due = list(accumulate(generator.expovariate(rate) for _ in requests))
    return _send(url, requests, due, min(_OPEN_CLIENTS, len(requests)))


def _send(
    url: str, requests: Sequence[Request], due: Sequence[float], clients: int
) -> list[Answer]:
    pool = urllib3.PoolManager(maxsize=clients, retries=False, timeout=_ANSWER_SECONDS)
    start = time.monotonic()

    def post(request: Request, due: float) -> Answer:
        time.sleep(max(0.0, start + due - time.monotonic()))
        sent = time.monotonic() - start
        try:
            status = pool.request("POST", url, body=request.body, headers=request.headers).status
        except urllib3.exceptions.HTTPError:
            status = 0
        return Answer(due, sent, time.monotonic() - start, status)

    with ThreadPoolExecutor(clients) as threads:
        return list(threads.map(post, requests, due))
