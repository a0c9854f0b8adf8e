"""The figures that the simulation assumes, and where each one comes from.

docs/explanation/scaling.md contains `table()`, and a test compares them.
"""

from dataclasses import dataclass, field, fields
from typing import Any

from tabulate import tabulate


def _known(default: float, source: str) -> Any:
    """Return a field with its source. A source that starts with "assumed" is a guess."""
    return field(default=default, metadata={"source": source})


_PUSH = "Google, Push subscriptions"
_RUN = "Google, About instance autoscaling"
_OURS = "Terraform"
_MEASURED = "performance.md"


@dataclass(frozen=True)
class Push:
    """A Pub/Sub push subscription."""

    first_window: float = _known(4, f"{_PUSH}: a small single-digit window; 4 is assumed")
    window_step: float = _known(1, f"{_PUSH}: grows exponentially; one per success is assumed")
    full_window: float = _known(3000, f"{_PUSH}: then linear growth; 3,000 a round trip is assumed")
    shrink: float = _known(0.5, "assumed: factor of the window after a failure, once a second")
    slow_seconds: float = _known(1.0, f"{_PUSH}: slower than this, at most the full window")
    pause_seconds: float = _known(0.1, f"{_PUSH}: shortest push back-off")
    longest_pause_seconds: float = _known(60, f"{_PUSH}: longest push back-off")
    delivery_seconds: float = _known(0.1, "assumed: from the upload to the first request")
    backoff_seconds: float = _known(10, f"{_OURS}: shortest back-off of a message")
    longest_backoff_seconds: float = _known(600, f"{_OURS}: longest back-off of a message")
    deadline_seconds: float = _known(225, "the service's own deadline, less than the ack deadline")
    attempts: int = _known(50, f"{_OURS}: deliveries until the dead letter")


@dataclass(frozen=True)
class Platform:
    """Cloud Run's autoscaler and request queue."""

    target: float = _known(0.6, f"{_RUN}: share of the CPU and of the concurrency")
    average_seconds: float = _known(60, f"{_RUN}: the targets are averages of a minute")
    evaluation_seconds: float = _known(5, f"{_RUN}, an earlier edition")
    queue_seconds: float = _known(10, f"{_RUN}: or 3.5 start times if that is longer, then 429")
    queue_starts: float = _known(3.5, _RUN)
    max_instances: int = _known(10, f"{_OURS}: default without a GPU; 1 with a GPU")
    min_instances: int = _known(0, f"{_OURS}: default")


@dataclass(frozen=True)
class Instance:
    """An instance of the service. Times of an image are CPU milliseconds."""

    name: str = "CPU"
    vcpu: int = _known(2, f"{_OURS}: default")
    memory_gib: float = _known(2, f"{_OURS}: default")
    slots: int = _known(32, f"{_OURS}: concurrency and MAX_IN_FLIGHT, four batches")
    cpu_ms: float = _known(51.9, f"{_MEASURED}: whole service, YOLO26n int8, 640 pixels, Intel")
    serial_ms: float = _known(8.6, f"{_MEASURED}, stages: the part in one Python process")
    spread: float = _known(0.3, "assumed: standard deviation of the CPU time, as a share")
    wait_ms: float = _known(60, "assumed: download and commit, without their CPU time")
    start_seconds: float = _known(5, f"{_MEASURED}: 2.4 s; pulling the image is assumed")
    start_cpu_seconds: float = _known(3, f"{_MEASURED}: load, and compile the input shapes")
    idle_seconds: float = _known(900, f"{_RUN}: idle CPU instances stay at most 15 minutes")
    batch: int = 0
    batch_ms: float = 0.0
    image_ms: float = 0.0
    is_billed_idle: bool = False


#: Nothing was measured on a GPU: every time here is assumed, except `serial_ms`. The CPU does all
#: but the inference (51.9 - 38.6 CPU-ms, performance.md), the GPU infers a batch at a time.
GPU = Instance(
    name="GPU (assumed)", vcpu=4, memory_gib=16, slots=128, cpu_ms=13.3, start_seconds=30,
    start_cpu_seconds=10, idle_seconds=600, batch=32, batch_ms=8, image_ms=1.5, is_billed_idle=True,
)  # fmt: skip
CPU = Instance()


def table() -> str:
    """Return the assumptions with their sources as a Markdown table."""
    rows = [
        (f"`{each.name}`", f"{getattr(part, each.name):g}", each.metadata["source"])
        for part in (Push(), Platform(), CPU)
        for each in fields(part)
        if "source" in each.metadata
    ]
    return tabulate(rows, ("name", "value", "source"), "github", disable_numparse=True)
