"""What happens after the commit of a document, and before its message is acknowledged.

Each step publishes what the document says: the results topic, and the alerts. A crash between the
commit and a step loses nothing. The message is not acknowledged then, so it is redelivered, and the
next delivery repeats the steps with the stored document. So a step may run twice for a document,
but never for a result that was not committed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from service.deadline import Deadline
from service.document import STATUS_PARKED, to_document
from service.domain import Alert, ImageRef, ImageResult


@dataclass(frozen=True)
class RecordedImage:
    """A committed, final document, as a step after the commit needs it."""

    document_id: str
    document: Mapping[str, Any]  # its fields, with `created_at`
    # Its alerts. None: another delivery created some of them, so they are read from Firestore.
    alerts: tuple[Alert, ...] | None = None


class Publisher(Protocol):
    """Publishes something of recorded images."""

    def publish(self, image: RecordedImage, deadline: Deadline) -> None:
        """Publish what a document says. It is safe to repeat.

        Raises:
            TransientError: it may not be published. The next delivery repeats it.
        """


class Step(Publisher, Protocol):
    """One thing that is published of every image."""

    def publish_deletion(self, ref: ImageRef, deleted_at: datetime, deadline: Deadline) -> None:
        """Publish that an image's document was removed with its object. It is safe to repeat.

        Raises:
            TransientError: it may not be published. The next delivery repeats it.
        """


class AfterCommit:
    """The steps. Safe to use from many threads."""

    def __init__(
        self,
        steps: Sequence[Step],
        read: Callable[[str, Deadline], Mapping[str, Any] | None],
        alerts: Callable[[], Publisher] | None = None,
    ) -> None:
        """Take the steps, in their order.

        Args:
            steps: what is published of every image.
            read: returns the fields of the document with an id, or None if there is none.
            alerts: returns what publishes alerts, after the other steps. It is called only for
                images that may have alerts. None: there are no alerts.
        """
        self._steps = steps
        self._read = read
        self._alerts = alerts

    def committed(self, result: ImageResult, created_at: datetime, deadline: Deadline) -> None:
        """Publish a result that this delivery has committed.

        Args:
            result: as it is recorded.
            created_at: when its document was created, by Firestore's clock.
            deadline: the delivery's. The seconds reserved for the commit are used too.

        Raises:
            TransientError: it may not be published.
        """
        publishers = self._publishers(has_alerts=bool(result.alerts or result.earlier_alerts))
        if not publishers:
            return
        document = to_document(result) | {"created_at": created_at}
        # Alerts of an earlier commit may be undecided or unpublished, so all of them are read.
        alerts = None if result.earlier_alerts else result.alerts
        image = RecordedImage(result.ref.document_id, document, alerts)
        for publisher in publishers:
            publisher.publish(image, deadline.for_commit())

    def stored(self, document_id: str, deadline: Deadline, *, has_rules: bool = False) -> None:
        """Publish a document that another delivery has committed.

        A document that was deleted meanwhile, or that is not final, is not published. Nothing is
        read if there is nothing to publish.

        Args:
            document_id: the document.
            deadline: the delivery's. The seconds reserved for the commit are used too.
            has_rules: whether the image's source has alert rules.

        Raises:
            TransientError: it may not be published.
        """
        publishers = self._publishers(has_alerts=has_rules)
        if not publishers:
            return
        document = self._read(document_id, deadline.for_commit())
        if document is None or document.get("status") == STATUS_PARKED:
            return
        for publisher in publishers:
            publisher.publish(RecordedImage(document_id, document), deadline.for_commit())

    def deleted(self, ref: ImageRef, deleted_at: datetime, deadline: Deadline) -> None:
        """Publish that an image's document was removed.

        Raises:
            TransientError: it may not be published.
        """
        for step in self._steps:
            step.publish_deletion(ref, deleted_at, deadline.for_commit())

    def _publishers(self, *, has_alerts: bool) -> list[Publisher]:
        alerts = [self._alerts()] if has_alerts and self._alerts else []
        return [*self._steps, *alerts]
