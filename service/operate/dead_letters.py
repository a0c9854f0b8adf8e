"""Finds the images that dead letters name, to process them again."""

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

_CE_TYPE = "ce-type"  # attribute of a CloudEvent that Pub/Sub carries in binary mode


class Kind(StrEnum):
    """The form of a dead letter."""

    NOTIFICATION = "notification"  # of an upload or a deletion, from Cloud Storage or Eventarc
    JOB = "job"
    UNREADABLE = "unreadable"


@dataclass(frozen=True)
class Reading:
    """The parsed content of a dead letter: its image, or why it has none."""

    kind: Kind
    event: Event
    reason: str | None = None

    @property
    def uri(self) -> str | None:
        """The image's URI, with its generation if known. None: no image."""
        ref = self.event.ref
        if ref and ref.generation:
            return f"{ref.uri}#{ref.generation}"
        return ref.uri if ref else None


def read(dead_letter: "DeadLetter") -> Reading:
    """Parse a dead letter as the service does."""
    attributes = dead_letter.own_attributes
    try:
        if _CE_TYPE in attributes:
            event = parse_event(attributes, dead_letter.data)
        else:
            message = {
                "data": base64.b64encode(dead_letter.data).decode(),
                "attributes": attributes,
            }
            event = parse_event({}, json.dumps({"message": message}).encode())
    except EnvelopeError as exc:
        return Reading(Kind.UNREADABLE, Event(), str(exc))
    if event.ref and event.is_deletion:  # a job would process the image, not remove its result
        reason = f"it reports that {event.ref.uri}#{event.ref.generation} was deleted"
        return Reading(Kind.NOTIFICATION, Event(), reason)
    kind = Kind.JOB if event.is_job else Kind.NOTIFICATION
    return Reading(kind, event, event.ignored)
