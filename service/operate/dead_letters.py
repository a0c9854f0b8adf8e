"""What lies in a dead-letter subscription: which images it is about, and how to try them again.

Pub/Sub adds to a dead letter's own attributes where it comes from and how often it was tried
(https://cloud.google.com/pubsub/docs/handling-failures).
"""

import base64
import json
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from service.domain import Event
from service.errors import EnvelopeError
from service.events import parse_event

if TYPE_CHECKING:
    from service.gcp.subscriber import DeadLetter

_CE_TYPE = "ce-type"  # the attribute of a CloudEvent in Pub/Sub's binary mode


class Kind(StrEnum):
    """What a dead letter was."""

    NOTIFICATION = "notification"  # an upload, reported by Cloud Storage or Eventarc
    JOB = "job"
    UNREADABLE = "unreadable"


@dataclass(frozen=True)
class Reading:
    """What a dead letter says: its image, or why there is none to be read in it."""

    kind: Kind
    event: Event
    reason: str | None = None

    @property
    def uri(self) -> str | None:
        """Its image, as a job names it."""
        image = self.event.ref
        if image and image.generation:
            return f"{image.uri}#{image.generation}"
        return image.uri if image else None


def read(letter: "DeadLetter") -> Reading:
    """Read a dead letter as the service would."""
    attributes = letter.own_attributes
    try:
        if _CE_TYPE in attributes:
            return Reading(Kind.NOTIFICATION, parse_event(attributes, letter.data))
        message = {"data": base64.b64encode(letter.data).decode(), "attributes": attributes}
        event = parse_event({}, json.dumps({"message": message}).encode())
    except EnvelopeError as exc:
        return Reading(Kind.UNREADABLE, Event(), str(exc))
    kind = Kind.JOB if event.is_job else Kind.NOTIFICATION
    return Reading(kind, event, event.ignored)
