"""What lies in a dead-letter subscription: which pictures it is about, and how to try them again.

Pub/Sub adds to a dead letter's own attributes where it comes from and how often it was tried
(https://cloud.google.com/pubsub/docs/handling-failures).
"""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from service.domain import Event
from service.errors import EnvelopeError
from service.events import parse_event

_ADDED = "CloudPubSubDeadLetterSource"  # how the attributes begin that Pub/Sub adds
_ATTEMPTS = _ADDED + "DeliveryCount"
_SUBSCRIPTION = _ADDED + "Subscription"
_PROJECT = _ADDED + "SubscriptionProject"
_PUBLISHED = _ADDED + "TopicPublishTime"  # RFC 3339, of the first publish
_BUCKET_ID = "bucketId"  # an attribute of every Cloud Storage notification
_CE_TYPE = "ce-type"  # the attribute of a CloudEvent in Pub/Sub's binary mode


class Kind(StrEnum):
    """What a dead letter was."""

    NOTIFICATION = "notification"  # an upload, told by Cloud Storage or Eventarc
    JOB = "job"
    UNREADABLE = "unreadable"


@dataclass(frozen=True)
class Letter:
    """One message as pulled."""

    ack_id: str
    message_id: str
    data: bytes
    attributes: Mapping[str, str]
    publish_time: datetime

    @property
    def attempts(self) -> int | None:
        """How often it was delivered before it came here; None where Pub/Sub did not say."""
        text = self.attributes.get(_ATTEMPTS, "")
        return int(text) if text.isascii() and text.isdigit() else None

    @property
    def source(self) -> str | None:
        """Full name of the subscription that gave it up."""
        name, project = self.attributes.get(_SUBSCRIPTION), self.attributes.get(_PROJECT)
        return f"projects/{project}/subscriptions/{name}" if name and project else None

    @property
    def published_at(self) -> datetime:
        """When it was first published; to the dead-letter topic, where Pub/Sub did not say."""
        try:
            first = datetime.fromisoformat(self.attributes.get(_PUBLISHED, ""))
        except ValueError:
            return self.publish_time
        return first if first.tzinfo else self.publish_time

    @property
    def own_attributes(self) -> dict[str, str]:
        """The attributes that it was published with."""
        return {k: v for k, v in self.attributes.items() if not k.startswith(_ADDED)}


@dataclass(frozen=True)
class Reading:
    """What a letter says: its pictures, or why nothing can be read in it."""

    kind: Kind
    event: Event
    reason: str | None = None

    @property
    def uris(self) -> list[str]:
        """Its pictures, as a job names them."""
        return [
            f"{image.uri}#{image.generation}" if image.generation else image.uri
            for image in self.event.images
        ]


def read(letter: Letter) -> Reading:
    """Read a letter as the service would."""
    attributes = letter.own_attributes
    try:
        if _CE_TYPE in attributes:
            return Reading(Kind.NOTIFICATION, parse_event(attributes, letter.data))
        message = {"data": base64.b64encode(letter.data).decode(), "attributes": attributes}
        event = parse_event({}, json.dumps({"message": message}).encode())
    except EnvelopeError as exc:
        return Reading(Kind.UNREADABLE, Event(), str(exc))
    kind = Kind.NOTIFICATION if _BUCKET_ID in attributes else Kind.JOB
    return Reading(kind, event, event.ignored)
