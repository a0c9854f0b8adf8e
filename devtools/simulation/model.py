"""The simulation: one event for each response, retry, start and evaluation of the autoscaler.

    upload -> Pub/Sub: push window, push back-off, back-off of a message, dead letters
           -> Cloud Run: routing, request queue, 429, autoscaler
           -> instance: slots, CPU cores, one Python process, batches of a GPU

A run is determined by its arguments. The seed sets the CPU time of each image.
"""

import heapq
import math
import random
from array import array
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

from devtools.simulation.assumptions import Instance, Platform, Push

_WAITING, _DONE, _DEAD = range(3)
_STEADY_SHARE = 0.99  # of acknowledged deliveries, for a window above Push.full_window
_MEMORY = 0.02  # weight of a response in the moving averages of the push window


class _Event(IntEnum):
    RETRY = 0
    RESPONSE = 1
    READY = 2
    EVALUATE = 3
    RESUME = 4


@dataclass(slots=True)
class _Server:
    """One instance."""

    started: float
    cores: list[float]  # when each core is free
    in_flight: int = 0
    python_free: float = 0.0
    gpu_free: float = 0.0
    busy_since: float = 0.0  # valid while in_flight > 0
    idle_since: float = 0.0  # valid while in_flight == 0
    billed: float = 0.0


class Sample(NamedTuple):
    """The state at one moment."""

    elapsed: float  # seconds
    waiting: int  # uploads without a document, of those that Pub/Sub has
    instances: int
    wanted: int  # instances that the autoscaler wants; the others get requests if these are full
    done: int
    billed_seconds: float  # of all instances so far


@dataclass
class Result:
    """What happened. Times are seconds since the first upload could arrive."""

    uploads: int
    done: int = 0
    dead: int = 0
    deliveries: int = 0
    rejected: int = 0
    arrived: "array[float]" = field(default_factory=lambda: array("d"))  # of done uploads
    latencies: "array[float]" = field(default_factory=lambda: array("d"))  # upload to document
    ended: float = 0.0  # last response
    max_backlog: int = 0  # uploads without a document, without those in an instance
    max_instances: int = 0
    billed_seconds: float = 0.0  # of all instances
    cpu_seconds: float = 0.0
    samples: list["Sample"] = field(default_factory=list)  # one a second

    @property
    def left(self) -> int:
        """Uploads that are neither done nor dead letters at the end."""
        return self.uploads - self.done - self.dead


class Simulation:
    """One run. `run` may be called once."""

    def __init__(
        self, arrivals: Sequence[float], instance: Instance, platform: Platform, push: Push,
        *, seed: int = 26,
    ) -> None:  # fmt: skip
        """Take the ascending times of the uploads, in seconds."""
        self._arrivals, self._instance, self._platform, self._push = (
            arrivals, instance, platform, push,
        )  # fmt: skip
        self._random = random.Random(seed)
        self._result = Result(len(arrivals))
        self._now = 0.0
        self._events: list[tuple[float, int, _Event, int, _Server | None, float]] = []
        self._sequence = 0
        self._state = bytearray(len(arrivals))
        self._attempts = array("I", bytes(4 * len(arrivals)))
        self._backlog: deque[int] = deque()
        self._window, self._outstanding = push.first_window, 0
        self._paused_until, self._last_shrink = 0.0, -math.inf
        self._failure_share, self._mean_seconds = 0.0, 0.0
        self._queue: deque[tuple[float, int, float]] = deque()  # since, message, sent
        self._servers: list[_Server] = []
        self._starting, self._wanted, self._free_slots = 0, platform.min_instances, 0
        keep = max(1, round(platform.average_seconds / platform.evaluation_seconds))
        self._history: deque[tuple[float, int]] = deque(maxlen=keep)  # CPU-s, in flight
        self._cpu_seconds, self._in_flight = 0.0, 0
        self._patience = max(platform.queue_seconds, platform.queue_starts * instance.start_seconds)
        sigma = math.sqrt(math.log(1 + instance.spread**2))
        self._draw = (-(sigma**2) / 2, sigma)  # of a log-normal distribution with the mean 1

    def run(self, until: float = math.inf) -> Result:
        """Run until every upload is done or a dead letter, or until a time in seconds."""
        for _ in range(self._platform.min_instances):
            self._add_server()
        self._schedule(0.0, _Event.EVALUATE)
        index, count, result = 0, len(self._arrivals), self._result
        delay = self._push.delivery_seconds
        while result.done + result.dead < count:
            arrival = self._arrivals[index] + delay if index < count else math.inf
            if min(arrival, self._events[0][0]) > until:
                break
            if arrival <= self._events[0][0]:
                self._now = arrival
                self._backlog.append(index)
                index += 1
                self._dispatch()
            else:
                self._now, _, event, message, server, sent = heapq.heappop(self._events)
                self._handle(event, message, server, sent)
        self._finish()
        return result

    def _handle(self, event: _Event, message: int, server: _Server | None, sent: float) -> None:
        if event is _Event.RESPONSE and server:
            self._respond(message, server, sent)
        elif event is _Event.RETRY:
            self._backlog.append(message)
            self._dispatch()
        elif event is _Event.READY:
            self._starting -= 1
            self._add_server()
            self._take_from_queue()
        elif event is _Event.EVALUATE:
            self._evaluate()
            self._schedule(1.0, _Event.EVALUATE)
        else:
            self._dispatch()

    def _schedule(
        self, delay: float, event: _Event, message: int = -1, server: _Server | None = None,
        sent: float = 0.0,
    ) -> None:  # fmt: skip
        self._sequence += 1  # events at the same time keep their order
        entry = (self._now + delay, self._sequence, event, message, server, sent)
        heapq.heappush(self._events, entry)

    # Pub/Sub

    def _dispatch(self) -> None:
        while self._backlog and self._outstanding < self._window:
            if self._now < self._paused_until:
                return
            message = self._backlog.popleft()
            self._outstanding += 1
            self._attempts[message] += 1
            self._result.deliveries += 1
            if server := self._route():
                self._assign(message, server, self._now)
            else:
                self._queue.append((self._now, message, self._now))
                self._start_for_queue()

    def _acknowledge(self, message: int, sent: float) -> None:
        if self._state[message] != _WAITING:
            raise AssertionError("An upload got a second document")
        self._state[message] = _DONE
        self._outstanding -= 1
        self._result.done += 1
        self._result.ended = self._now
        self._result.arrived.append(self._arrivals[message])
        self._result.latencies.append(self._now - self._arrivals[message])
        push = self._push
        self._failure_share *= 1 - _MEMORY
        self._mean_seconds += _MEMORY * (self._now - sent - self._mean_seconds)
        steady = self._failure_share < 1 - _STEADY_SHARE
        if self._window < push.full_window:
            self._window = min(push.full_window, self._window + push.window_step)
        elif steady and self._mean_seconds < push.slow_seconds:
            self._window += push.full_window / self._window
        else:
            self._window = push.full_window
        self._dispatch()

    def _reject(self, message: int) -> None:
        """Nack: the message waits, the window shrinks, and the subscription pauses."""
        push, result = self._push, self._result
        self._outstanding -= 1
        result.rejected += 1
        result.ended = self._now
        self._failure_share += _MEMORY * (1 - self._failure_share)
        if self._now >= self._last_shrink + 1:
            self._window = max(push.first_window, self._window * push.shrink)
            self._last_shrink = self._now
        # 0.4 s if a fifth of the responses are failures, 60 s if all are (Push subscriptions).
        ratio = push.longest_pause_seconds / push.pause_seconds
        pause = push.pause_seconds * ratio**self._failure_share
        if self._now >= self._paused_until:
            self._paused_until = self._now + pause
            self._schedule(pause, _Event.RESUME)
        if self._attempts[message] >= push.attempts:
            self._state[message] = _DEAD
            result.dead += 1
            return
        doublings = min(self._attempts[message] - 1, 20)
        wait = min(push.longest_backoff_seconds, push.backoff_seconds * 2**doublings)
        self._schedule(wait, _Event.RETRY, message)

    # Cloud Run

    def _route(self) -> _Server | None:
        """Return the emptier of two random instances, or any with a free slot."""
        if not self._free_slots:
            return None
        slots, servers = self._instance.slots, self._servers
        active = max(1, min(self._wanted, len(servers)))
        first, second = (servers[int(self._random.random() * active)] for _ in range(2))
        best = first if first.in_flight <= second.in_flight else second
        if best.in_flight < slots:
            return best
        return next(server for server in servers if server.in_flight < slots)

    def _take_from_queue(self) -> None:
        while self._queue and (server := self._route()):
            _, message, sent = self._queue.popleft()
            self._assign(message, server, sent)

    def _start_for_queue(self) -> None:
        """Start an instance for each `slots` requests in the queue, without waiting a minute."""
        needed = math.ceil(len(self._queue) / self._instance.slots)
        self._start(needed - self._starting)

    def _start(self, more: int) -> None:
        room = self._platform.max_instances - len(self._servers) - self._starting
        for _ in range(min(more, room)):
            self._starting += 1
            self._schedule(self._instance.start_seconds, _Event.READY)

    def _add_server(self) -> None:
        instance, now = self._instance, self._now
        # The first images wait until their input shapes are compiled.
        free = now + instance.start_cpu_seconds / instance.vcpu
        server = _Server(now, [free] * instance.vcpu, idle_since=now)
        server.billed = instance.start_seconds
        self._servers.append(server)
        self._free_slots += instance.slots
        self._wanted = max(self._wanted, 1)
        self._result.max_instances = max(self._result.max_instances, len(self._servers))

    def _evaluate(self) -> None:
        platform, second = self._platform, round(self._now)
        self._sample()
        while self._queue and self._now - self._queue[0][0] >= self._patience:
            self._reject(self._queue.popleft()[1])
        if second % platform.evaluation_seconds:
            return
        self._history.append((self._cpu_seconds, self._in_flight))
        seconds = (len(self._history) - 1) * platform.evaluation_seconds
        cores = (self._history[-1][0] - self._history[0][0]) / seconds if seconds else 0.0
        in_flight = sum(count for _, count in self._history) / len(self._history)
        by_cpu = cores / (platform.target * self._instance.vcpu)
        by_requests = in_flight / (platform.target * self._instance.slots)
        self._wanted = max(math.ceil(max(by_cpu, by_requests)), platform.min_instances)
        self._start(self._wanted - len(self._servers) - self._starting)
        self._stop_idle()

    def _stop_idle(self) -> None:
        latest = self._now - self._instance.idle_seconds
        for server in self._servers[self._platform.min_instances :]:
            if not server.in_flight and server.idle_since <= latest:
                self._servers.remove(server)
                self._free_slots -= self._instance.slots
                self._result.billed_seconds += self._billed(server)

    # The instance

    def _assign(self, message: int, server: _Server, sent: float) -> None:
        """Compute when the instance responds. Cores and the GPU serve in order of arrival."""
        instance, now = self._instance, self._now
        if not server.in_flight:
            server.busy_since = now
        server.in_flight += 1
        self._free_slots -= 1
        self._in_flight += 1
        seconds = instance.cpu_ms / 1000 * self._random.lognormvariate(*self._draw)
        core = server.cores.index(min(server.cores))
        begin = max(now, server.cores[core], server.python_free)
        server.python_free = begin + instance.serial_ms / 1000
        server.cores[core] = end = begin + max(seconds, instance.serial_ms / 1000)
        if instance.batch:
            together = min(instance.batch, max(1, server.in_flight // 2))
            image = (instance.batch_ms / together + instance.image_ms) / 1000
            server.gpu_free = end = max(end, server.gpu_free) + image
        self._cpu_seconds += seconds
        end += instance.wait_ms / 1000
        response = min(end, max(now, sent + self._push.deadline_seconds))
        self._schedule(response - now, _Event.RESPONSE, message, server, sent)

    def _respond(self, message: int, server: _Server, sent: float) -> None:
        server.in_flight -= 1
        self._free_slots += 1
        self._in_flight -= 1
        if not server.in_flight:
            server.idle_since = self._now
            server.billed += self._now - server.busy_since
        self._take_from_queue()
        if self._now >= sent + self._push.deadline_seconds:
            self._reject(message)
        else:
            self._acknowledge(message, sent)

    def _billed(self, server: _Server) -> float:
        if self._instance.is_billed_idle:
            return self._now - server.started + self._instance.start_seconds
        return server.billed + (self._now - server.busy_since if server.in_flight else 0.0)

    def _sample(self) -> None:
        result, waiting = self._result, self._outstanding + len(self._backlog)
        billed = result.billed_seconds + sum(map(self._billed, self._servers))
        backlog = len(self._backlog) + len(self._queue)
        result.max_backlog = max(result.max_backlog, backlog)
        result.samples.append(
            Sample(self._now, waiting, len(self._servers), self._wanted, result.done, billed)
        )

    def _finish(self) -> None:
        self._sample()
        self._result.billed_seconds = self._result.samples[-1].billed_seconds
        if self._instance.is_billed_idle:  # an idle instance with a GPU is paid until it is removed
            self._result.billed_seconds += len(self._servers) * self._instance.idle_seconds
        self._result.cpu_seconds = self._cpu_seconds
