"""How long a back-fill takes and what it costs, and how many pictures one message may name."""

import math
from dataclasses import dataclass

from service.events import MAX_URIS

ACK_DEADLINE_SECONDS = 600  # the longest that Pub/Sub has, and the one that jobs get
# Cloud Run in us-central1, billed by request, in USD a second; Firestore there reads for 0.03 and
# writes for 0.09 a 100,000 documents, and 10,000 reads of objects are 0.004.
_VCPU_PRICE = 0.000024
_GIB_PRICE = 0.0000025
PICTURE_PRICE = 0.0000016
_DEADLINE_SHARE = 0.5  # the other half is for what a picture takes at worst


@dataclass(frozen=True)
class Pace:
    """What the deployed service can do."""

    cpu_ms: float = 80.0  # CPU time of one picture, in milliseconds
    vcpu: float = 2.0  # of one instance
    instances: int = 10  # at work at once
    concurrency: int = 32  # requests that one instance has at once
    pictures_per_second: float | None = None  # of one instance; None: as many as the CPU allows
    instance_price: float | None = None  # USD an hour; None: of `vcpu`, and a GiB for each
    picture_price: float = PICTURE_PRICE  # USD for what Firestore and Cloud Storage do for one

    @property
    def rate(self) -> float:
        """Pictures a second of one instance."""
        return self.pictures_per_second or self.vcpu * 1000 / self.cpu_ms

    @property
    def uris_per_message(self) -> int:
        """As many as one instance finishes in time when all its requests are such messages."""
        in_time = self.rate * ACK_DEADLINE_SECONDS * _DEADLINE_SHARE / self.concurrency
        return max(1, min(MAX_URIS, int(in_time)))

    def estimate(self, pictures: int) -> "Estimate":
        """Say what so many pictures take, on instances that are busy all the time."""
        instance_seconds = pictures / self.rate
        an_hour = self.instance_price
        if an_hour is None:
            an_hour = 3600 * (self.vcpu * _VCPU_PRICE + max(2.0, self.vcpu) * _GIB_PRICE)
        return Estimate(
            pictures=pictures,
            messages=math.ceil(pictures / self.uris_per_message),
            minutes=instance_seconds / self.instances / 60,
            dollars=instance_seconds / 3600 * an_hour + pictures * self.picture_price,
        )


@dataclass(frozen=True)
class Estimate:
    """What a back-fill takes."""

    pictures: int
    messages: int
    minutes: float
    dollars: float
