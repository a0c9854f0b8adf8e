"""How fast a back-fill may be published, how long it takes and what it costs.

A job that the service has no slot for is rejected (429) and delivered again later. Each delivery
counts, and after the last one the message becomes a dead letter. So a back-fill is published at
once only as far as the deployment finishes it well before that, and then no faster than the
deployment works.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

# Cloud Run in us-central1, billed by request, in USD a second; Firestore there reads for 0.03 and
# writes for 0.09 a 100,000 documents, and 10,000 reads of objects are 0.004.
_VCPU_PRICE = 0.000024
_GIB_PRICE = 0.0000025
IMAGE_PRICE = 0.0000016
# Of the time until a message becomes a dead letter. The rest is for instances that are slower or
# fewer than estimated, and for uploads, which come first.
_BURST_SHARE = 0.25


@dataclass(frozen=True)
class Redelivery:
    """How Pub/Sub delivers a rejected message again; by default as `terraform/locals.tf` sets it.

    The back-off doubles from the minimum to the maximum
    (https://cloud.google.com/pubsub/docs/handling-failures#exponential_backoff).
    """

    deliveries: int = 50  # then it becomes a dead letter
    minimum_backoff_seconds: float = 10.0
    maximum_backoff_seconds: float = 600.0

    @property
    def seconds(self) -> float:
        """From the first delivery of a message to the last one, if all are rejected at once."""
        back_off, total = self.minimum_backoff_seconds, 0.0
        for _ in range(self.deliveries - 1):
            total += back_off
            back_off = min(2 * back_off, self.maximum_backoff_seconds)
        return total


@dataclass(frozen=True)
class Deployment:
    """What the deployed service can do."""

    cpu_ms: float = 80.0  # CPU time of one image, in milliseconds
    vcpu: float = 2.0  # of one instance
    instances: int = 10  # at work at once
    images_per_second: float | None = None  # of one instance; None: as many as the CPU allows
    instance_price: float | None = None  # USD an hour; None: of `vcpu`, and a GiB for each
    image_price: float = IMAGE_PRICE  # USD for what Firestore and Cloud Storage do for one

    @property
    def instance_rate(self) -> float:
        """Images a second of one instance."""
        return self.images_per_second or self.vcpu * 1000 / self.cpu_ms

    @property
    def rate(self) -> float:
        """Images a second of all instances."""
        return self.instance_rate * self.instances

    def burst(self, redelivery: Redelivery) -> int:
        """How many jobs may wait at once: what is done in a share of the time until dead letters.

        At least one.
        """
        return max(1, int(self.rate * redelivery.seconds * _BURST_SHARE))


@dataclass(frozen=True)
class Estimate:
    """What a back-fill takes, on instances that are busy all the time."""

    images: int
    at_once: int  # of them, jobs that are published without waiting
    minutes: float
    dollars: float


def backfill_estimate(
    images: int, deployment: Deployment, redelivery: Redelivery = Redelivery()
) -> Estimate:
    """Estimate a back-fill of so many images."""
    instance_seconds = images / deployment.instance_rate
    an_hour = deployment.instance_price
    if an_hour is None:
        gib = max(2.0, deployment.vcpu)
        an_hour = 3600 * (deployment.vcpu * _VCPU_PRICE + gib * _GIB_PRICE)
    return Estimate(
        images=images,
        at_once=min(images, deployment.burst(redelivery)),
        minutes=images / deployment.rate / 60,
        dollars=instance_seconds / 3600 * an_hour + images * deployment.image_price,
    )


class TokenBucket:
    """Lets `burst` jobs pass at once, then `rate` a second. For one thread."""

    def __init__(
        self,
        rate: float,
        burst: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Begin with a full bucket: nothing waits yet."""
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._sleep = sleep
        self._tokens = float(burst)
        self._filled_at = clock()

    def take(self) -> None:
        """Wait until one more job may be published."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._filled_at) * self._rate) - 1
        self._filled_at = now
        if self._tokens < 0:
            self._sleep(-self._tokens / self._rate)

    def paced(self, jobs: Iterable[str]) -> Iterator[str]:
        """Let jobs through, each when it may be published."""
        for job in jobs:
            self.take()
            yield job


def token_bucket(deployment: Deployment, redelivery: Redelivery = Redelivery()) -> TokenBucket:
    """Return what paces the jobs for a deployment."""
    return TokenBucket(deployment.rate, deployment.burst(redelivery))
