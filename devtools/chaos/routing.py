"""One subscription's events, each delivered to an instance drawn at random."""

from collections.abc import Sequence
from random import Random

from devtools.local_stack.eventarc import Delivery, Eventarc, EventarcOptions


class RandomRouting(Eventarc):
    """Cloud Run's front end, but careless: it also sends to instances that are away."""

    def __init__(
        self,
        pubsub_host: str,
        subscription: str,
        instances: Sequence[Eventarc],
        rng: Random,
        options: EventarcOptions,
    ) -> None:
        """Take what delivers to each instance, not started; connect to nothing yet.

        Args:
            pubsub_host: where the emulator listens.
            subscription: its full name.
            instances: each with its own url and `on_answer`.
            rng: draws the instance of each delivery, so that it is not that of the one before.
            options: of all instances together.
        """
        super().__init__(pubsub_host, subscription, "", options)
        self._instances = instances
        self._rng = rng

    def stop(self) -> None:
        """Deliver no more; waits for the requests under way."""
        super().stop()
        for instance in self._instances:
            instance.stop()

    def _post(self, delivery: Delivery) -> bool:
        return self._rng.choice(self._instances)._post(delivery)
