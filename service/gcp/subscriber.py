"""Messages pulled from a Pub/Sub subscription, and given back or acknowledged."""

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import islice

from google.api_core import exceptions, retry
from google.auth.exceptions import GoogleAuthError
from google.cloud import pubsub_v1  # type: ignore[attr-defined]  # published without types

from service.errors import CredentialsError, YoloBatchError

# Pub/Sub adds attributes to a dead letter; source:
# https://cloud.google.com/pubsub/docs/handling-failures
_ADDED = "CloudPubSubDeadLetterSource"  # how the attributes begin that Pub/Sub adds
_ATTEMPTS = _ADDED + "DeliveryCount"
_SUBSCRIPTION = _ADDED + "Subscription"
_PROJECT = _ADDED + "SubscriptionProject"
_PUBLISHED = _ADDED + "TopicPublishTime"  # RFC 3339, of the first publish

_CALL_SECONDS = 30.0
_PULL_SECONDS = 5.0  # an empty pull would wait longer
_PULL_SIZE = 100
_HOLD_SECONDS = 120  # a lease, extended while `holding`; after a kill, messages come back by then
# Pub/Sub may answer with nothing while it has something: two in a row are taken for the end.
_EMPTY_PULLS = 2
_ACK_SIZE = 500  # ids in one call: a request has 512 KiB at most


@dataclass(frozen=True)
class DeadLetter:
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


class SubscriptionError(YoloBatchError):
    """Pub/Sub did not give the messages, or did not take the answer."""


class Subscription:
    """One pull subscription, by its full name."""

    def __init__(
        self,
        client: pubsub_v1.SubscriberClient,
        name: str,
        *,
        hold_seconds: int = _HOLD_SECONDS,
    ) -> None:
        """Take a client; see `connect`.

        Args:
            client: the vendor's client.
            name: the subscription's full name.
            hold_seconds: how long nobody else gets a message that was pulled.
        """
        self._client = client
        self.name = name
        self._hold_seconds = hold_seconds
        # By message: if one comes twice, only its last acknowledgement counts.
        self._ack_ids: dict[str, str] = {}
        self._lock = threading.Lock()

    def letters(self, limit: int) -> Iterator[DeadLetter]:
        """Pull and lease at most `limit` messages. `holding` keeps the leases.

        Raises:
            SubscriptionError: there is no such subscription, or Pub/Sub did not answer.
        """
        seen: set[str] = set()
        empty = 0
        while len(seen) < limit and empty < _EMPTY_PULLS:
            found = self._pull(min(_PULL_SIZE, limit - len(seen)))
            self._set_deadline((letter.ack_id for letter in found), self._hold_seconds)
            with self._lock:
                self._ack_ids |= {letter.message_id: letter.ack_id for letter in found}
            new = [letter for letter in found if letter.message_id not in seen]
            empty = 0 if new else empty + 1
            seen.update(letter.message_id for letter in new)
            yield from new

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Extend the leases of the messages that are pulled; at the end, release those left.

        Raises:
            SubscriptionError: they could not be released. An error of the body goes first.
        """
        is_over = threading.Event()

        def extend() -> None:
            while not is_over.wait(self._hold_seconds / 3):
                with self._lock:
                    ack_ids = list(self._ack_ids.values())
                with suppress(SubscriptionError):  # tried again before the lease ends
                    self._set_deadline(ack_ids, self._hold_seconds)

        thread = threading.Thread(target=extend, name="leases", daemon=True)
        thread.start()
        try:
            yield
        except BaseException:
            with suppress(SubscriptionError):  # the first error says more
                self._end(is_over, thread)
            raise
        self._end(is_over, thread)

    def _end(self, is_over: threading.Event, thread: threading.Thread) -> None:
        is_over.set()
        thread.join()
        self.release()

    def acknowledge(self, letters: Iterable[DeadLetter]) -> None:
        """Take messages out of the subscription for good.

        Raises:
            SubscriptionError: Pub/Sub did not answer; the messages may come again.
        """
        for ids in _groups(self._forget(letters)):
            with _translated(self.name):
                self._client.acknowledge(
                    subscription=self.name, ack_ids=ids, retry=_policy(), timeout=_CALL_SECONDS
                )

    def release(self) -> None:
        """Release all messages that are held: they can be pulled again at once.

        Raises:
            SubscriptionError: Pub/Sub did not answer; they come back by themselves later.
        """
        with self._lock:
            ack_ids = list(self._ack_ids.values())
            self._ack_ids.clear()
        self._set_deadline(ack_ids, 0)

    def _forget(self, letters: Iterable[DeadLetter]) -> list[str]:
        """Stop extending the leases of messages; return their ack ids."""
        with self._lock:
            return [self._ack_ids.pop(letter.message_id, letter.ack_id) for letter in letters]

    def topic_of(self, subscription: str) -> str:
        """Return the full name of the topic that a subscription reads.

        Raises:
            SubscriptionError: there is no such subscription, or Pub/Sub did not answer.
        """
        with _translated(subscription):
            found = self._client.get_subscription(
                subscription=subscription, retry=_policy(), timeout=_CALL_SECONDS
            )
            return str(found.topic)

    def _pull(self, size: int) -> list[DeadLetter]:
        with _translated(self.name):
            try:
                answer = self._client.pull(
                    subscription=self.name, max_messages=size, retry=None, timeout=_PULL_SECONDS
                )
            except exceptions.DeadlineExceeded:
                return []
        return [
            DeadLetter(
                ack_id=received.ack_id,
                message_id=received.message.message_id,
                data=received.message.data,
                attributes=dict(received.message.attributes),
                publish_time=received.message.publish_time,
            )
            for received in answer.received_messages
        ]

    def _set_deadline(self, ack_ids: Iterable[str], seconds: int) -> None:
        for ids in _groups(ack_ids):
            with _translated(self.name):
                self._client.modify_ack_deadline(
                    subscription=self.name,
                    ack_ids=ids,
                    ack_deadline_seconds=seconds,
                    retry=_policy(),
                    timeout=_CALL_SECONDS,
                )


def connect(subscription: str, project: str | None) -> Subscription:
    """Connect to a subscription, by its name or its full name.

    Raises:
        CredentialsError: there are none, or the project is not known.
    """
    if "/" not in subscription:
        if not project:
            raise CredentialsError
        subscription = f"projects/{project}/subscriptions/{subscription}"
    try:
        return Subscription(pubsub_v1.SubscriberClient(), subscription)
    except GoogleAuthError as exc:
        raise CredentialsError from exc


def _policy() -> retry.Retry:
    return retry.Retry(
        predicate=retry.if_exception_type(
            exceptions.ServiceUnavailable, exceptions.InternalServerError, exceptions.Aborted
        ),
        timeout=_CALL_SECONDS,
    )


def _groups(ids: Iterable[str]) -> Iterator[Sequence[str]]:
    remaining = iter(ids)
    while group := list(islice(remaining, _ACK_SIZE)):
        yield group


@contextmanager
def _translated(subscription: str) -> Iterator[None]:
    """Turn the vendor's errors into ours."""
    try:
        yield
    except exceptions.NotFound as exc:
        raise SubscriptionError(f"There is no subscription {subscription}") from exc
    except (exceptions.GoogleAPIError, GoogleAuthError) as exc:
        raise SubscriptionError(f"Pub/Sub did not answer for {subscription}: {exc}") from exc
