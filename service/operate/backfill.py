"""Estimates how long a back-fill takes and what it costs, and paces its jobs.

A job without a free slot is rejected (429) and redelivered later. After the last delivery, the
message becomes a dead letter. So only as many jobs are published at once as the deployment can
finish well before then. The other jobs are published as fast as the deployment works.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

# Prices in us-central1, in USD. Cloud Run with request-based billing: one second of one vCPU, and
# of one GiB. For one image: a read (0.03 for 100,000 documents) and a write (0.09) in Firestore,
# and a read in Cloud Storage (0.004 for 10,000 objects).
_VCPU_SECOND_PRICE = 0.000024
_GIB_SECOND_PRICE = 0.0000025
IMAGE_PRICE = 0.0000016
# The burst takes this share of the time until a message becomes a dead letter. The rest is a margin
# for fewer or slower instances, and for uploads, which have priority.
_BURST_SHARE = 0.25


@dataclass(frozen=True)
class Redelivery:
    """How Pub/Sub redelivers a rejected message. Terraform (`locals.tf`) sets the same values.

    The back-off doubles from the minimum to the maximum. Source:
    https://cloud.google.com/pubsub/docs/handling-failures#exponential_backoff
    """

    deliveries: int = 50  # then the message becomes a dead letter
    minimum_backoff_seconds: float = 10.0
    maximum_backoff_seconds: float = 600.0

    @property
    def seconds(self) -> float:
        """Seconds from the first to the last delivery of a message, if all are rejected at once."""
        back_off, total = self.minimum_backoff_seconds, 0.0
        for _ in range(self.deliveries - 1):
            total += back_off
            back_off = min(2 * back_off, self.maximum_backoff_seconds)
        return total


@dataclass(frozen=True)
class Deployment:
    """Speed and price of the deployed service."""

    cpu_ms: float = 80.0  # CPU time of one image
    vcpu: float = 2.0  # vCPUs of one instance
    instances: int = 10  # running at once
    # Rate of one instance. None: computed from `cpu_ms` and `vcpu`.
    images_per_second: float | None = None
    # USD an hour. None: Cloud Run's price for `vcpu` and as many GiB, at least 2.
    instance_price: float | None = None
    image_price: float = IMAGE_PRICE  # USD, for Firestore and Cloud Storage

    @property
    def instance_rate(self) -> float:
        """Images a second of one instance."""
        return self.images_per_second or self.vcpu * 1000 / self.cpu_ms

    @property
    def rate(self) -> float:
        """Images a second of all instances."""
        return self.instance_rate * self.instances

    def burst(self, redelivery: Redelivery) -> int:
        """Return how many jobs may be published at once, at least 1.

        The deployment finishes them in a quarter of the time until a message becomes a dead letter.
        """
        return max(1, int(self.rate * redelivery.seconds * _BURST_SHARE))


@dataclass(frozen=True)
class Estimate:
    """Time and cost of a back-fill, if the instances are busy all the time."""

    images: int
    at_once: int  # how many of their jobs are published at once
    minutes: float
    dollars: float


def backfill_estimate(
    images: int, deployment: Deployment, redelivery: Redelivery = Redelivery()
) -> Estimate:
    """Return the time and cost of a back-fill of this many images."""
    instance_seconds = images / deployment.instance_rate
    hour_price = deployment.instance_price
    if hour_price is None:
        gib = max(2.0, deployment.vcpu)
        hour_price = 3600 * (deployment.vcpu * _VCPU_SECOND_PRICE + gib * _GIB_SECOND_PRICE)
    return Estimate(
        images=images,
        at_once=min(images, deployment.burst(redelivery)),
        minutes=images / deployment.rate / 60,
        dollars=instance_seconds / 3600 * hour_price + images * deployment.image_price,
    )


class TokenBucket:
    """Lets `burst` jobs through at once, then `rate` jobs a second. For one thread."""

    def __init__(
        self,
        rate: float,
        burst: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Start with a full bucket. `clock` returns seconds, `sleep` takes seconds."""
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._sleep = sleep
        self._tokens = float(burst)
        self._filled_at = clock()

    def take(self) -> None:
        """Wait until the next job may be published."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._filled_at) * self._rate) - 1
        self._filled_at = now
        if self._tokens < 0:
            self._sleep(-self._tokens / self._rate)

    def paced(self, jobs: Iterable[str]) -> Iterator[str]:
        """Yield each job when it may be published."""
        for job in jobs:
            self.take()
            yield job


def token_bucket(deployment: Deployment, redelivery: Redelivery = Redelivery()) -> TokenBucket:
    """Return a token bucket with the rate and the burst of a deployment."""
    return TokenBucket(deployment.rate, deployment.burst(redelivery))
