"""Delivers each event of a subscription to a randomly drawn instance."""

from collections.abc import Sequence
from random import Random

from devtools.local_stack.eventarc import Delivery, Eventarc, EventarcOptions


class RandomRouting(Eventarc):
    """Like Cloud Run's front end, but it also sends to instances that are down."""

    def __init__(
        self,
        pubsub_host: str,
        subscription: str,
        instances: Sequence[Eventarc],
        rng: Random,
        options: EventarcOptions,
    ) -> None:
        """Take a delivery client for each instance. The clients are not started.

        Args:
            pubsub_host: host:port of the Pub/Sub emulator.
            subscription: full name of the subscription.
            instances: the clients, each with its own URL and `on_answer`.
            rng: draws an instance for each delivery.
            options: delivery options, which apply to all instances together.
        """
        super().__init__(pubsub_host, subscription, "", options)
        self._instances = instances
        self._rng = rng

    def stop(self) -> None:
        """Stop delivering, and wait for the requests in flight."""
        super().stop()
        for instance in self._instances:
            instance.stop()

    def _post(self, delivery: Delivery) -> bool:
        return self._rng.choice(self._instances)._post(delivery)
