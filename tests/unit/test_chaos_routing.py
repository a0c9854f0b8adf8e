"""Each delivery goes to a randomly drawn instance."""

from random import Random
from typing import cast

from devtools.chaos.routing import RandomRouting
from devtools.local_stack.eventarc import Delivery, Eventarc, EventarcOptions

DELIVERY = Delivery("1", "a.jpg", {}, b"")
DELIVERIES = 200


class Instance:
    def __init__(self, acknowledges: bool) -> None:
        self.acknowledges = acknowledges
        self.deliveries = 0
        self.is_stopped = False

    def _post(self, delivery: Delivery) -> bool:
        self.deliveries += 1
        return self.acknowledges

    def stop(self) -> None:
        self.is_stopped = True


def test_deliveries_are_spread_over_all_instances() -> None:
    instances = [Instance(True), Instance(False), Instance(False)]
    router = RandomRouting(
        "127.0.0.1:1",
        "projects/p/subscriptions/s",
        [cast(Eventarc, instance) for instance in instances],
        Random(1),
        EventarcOptions(),
    )
    acknowledged = sum(router._post(DELIVERY) for _ in range(DELIVERIES))
    router.stop()
    assert acknowledged == instances[0].deliveries
    assert sum(instance.deliveries for instance in instances) == DELIVERIES
    assert min(instance.deliveries for instance in instances) > DELIVERIES / 6
    assert all(instance.is_stopped for instance in instances)
