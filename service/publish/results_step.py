"""Publishes each result on the results topic, after its commit."""

import logging
from collections.abc import Mapping
from datetime import datetime
from typing import Protocol

from service.deadline import Deadline
from service.domain import ImageRef
from service.errors import StoredResultError
from service.publish.after_commit import RecordedImage
from service.publish.result_message import deletion_message, message_of

logger = logging.getLogger(__name__)


class Topic(Protocol):
    """Publishes messages. `service.gcp.topic_publisher.TopicPublisher` implements it."""

    def publish(self, data: bytes, attributes: Mapping[str, str], deadline: Deadline) -> None:
        """Publish one message. Return when it is confirmed."""


class ResultsStep:
    """The step of the results topic. Safe to use from many threads."""

    def __init__(self, topic: Topic) -> None:
        """Take the topic."""
        self._topic = topic

    def publish(self, image: RecordedImage, deadline: Deadline) -> None:
        """Publish a result.

        A document that a person has edited may have no message. It is logged, and not published,
        because each redelivery would fail in the same way.

        Raises:
            PubSubUnavailableError: it may not be published. The next delivery repeats it.
            TooLateError: the deadline has passed.
        """
        try:
            message = message_of(image.document_id, image.document)
        except StoredResultError as exc:
            logger.error(
                "A result cannot be published: its document has another form than the service "
                "writes",
                extra={"document_id": image.document_id, "reason": str(exc)},
            )
            return
        self._topic.publish(message.data, message.attributes, deadline)

    def publish_deletion(self, ref: ImageRef, deleted_at: datetime, deadline: Deadline) -> None:
        """Publish that an image's result was removed.

        Raises:
            PubSubUnavailableError: it may not be published. The next delivery repeats it.
            TooLateError: the deadline has passed.
        """
        message = deletion_message(ref.document_id, ref, deleted_at)
        self._topic.publish(message.data, message.attributes, deadline)
