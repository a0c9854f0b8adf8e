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
    # The alerts that were created with it. None: another delivery created them, so they are in
    # Firestore.
    alerts: tuple[Alert, ...] | None = None


class Step(Protocol):
    """One thing that is published."""

    def publish(self, image: RecordedImage, deadline: Deadline) -> None:
        """Publish what a document says. It is safe to repeat.

        Raises:
            TransientError: it may not be published. The next delivery repeats it.
        """

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
    ) -> None:
        """Take the steps, in their order.

        Args:
            steps: what is published.
            read: returns the fields of the document with an id, or None if there is none.
        """
        self._steps = steps
        self._read = read

    def committed(self, result: ImageResult, created_at: datetime, deadline: Deadline) -> None:
        """Publish a result that this delivery has committed.

        Args:
            result: as it is recorded.
            created_at: when its document was created, by Firestore's clock.
            deadline: the delivery's. The seconds reserved for the commit are used too.

        Raises:
            TransientError: it may not be published.
        """
        document = to_document(result) | {"created_at": created_at}
        image = RecordedImage(result.ref.document_id, document, result.alerts)
        for step in self._steps:
            step.publish(image, deadline.for_commit())

    def stored(self, document_id: str, deadline: Deadline) -> None:
        """Publish a document that another delivery has committed.

        A document that was deleted meanwhile, or that is not final, is not published.

        Raises:
            TransientError: it may not be published.
        """
        document = self._read(document_id, deadline.for_commit())
        if document is None or document.get("status") == STATUS_PARKED:
            return
        for step in self._steps:
            step.publish(RecordedImage(document_id, document), deadline.for_commit())

    def deleted(self, ref: ImageRef, deleted_at: datetime, deadline: Deadline) -> None:
        """Publish that an image's document was removed.

        Raises:
            TransientError: it may not be published.
        """
        for step in self._steps:
            step.publish_deletion(ref, deleted_at, deadline.for_commit())
