"""Pulls dead letters from a Pub/Sub subscription, and acknowledges or releases them."""

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

# Pub/Sub adds attributes with this prefix to a dead letter:
# https://cloud.google.com/pubsub/docs/handling-failures
_ADDED = "CloudPubSubDeadLetterSource"
_ATTEMPTS = _ADDED + "DeliveryCount"
_SUBSCRIPTION = _ADDED + "Subscription"
_PROJECT = _ADDED + "SubscriptionProject"
_PUBLISHED = _ADDED + "TopicPublishTime"  # RFC 3339: when it was first published

_CALL_SECONDS = 30.0
_PULL_SECONDS = 5.0  # without it, a pull of an empty subscription waits longer
_PULL_SIZE = 100
_LEASE_SECONDS = 120  # extended in `leases`. After a kill, messages stay leased this long.
# Pub/Sub may return no message although it has some, so stop only after this many empty pulls.
_EMPTY_PULLS = 2
_ACK_SIZE = 500  # ids in one call: a request may have 512 KiB


@dataclass(frozen=True)
class DeadLetter:
    """One message of a dead-letter subscription."""

    ack_id: str
    message_id: str
    data: bytes
    attributes: Mapping[str, str]
    publish_time: datetime

    @property
    def attempts(self) -> int | None:
        """How often it was delivered before it became a dead letter, or None if not known."""
        text = self.attributes.get(_ATTEMPTS, "")
        return int(text) if text.isascii() and text.isdigit() else None

    @property
    def source(self) -> str | None:
        """Full name of the subscription in which it failed, or None if not known."""
        name, project = self.attributes.get(_SUBSCRIPTION), self.attributes.get(_PROJECT)
        return f"projects/{project}/subscriptions/{name}" if name and project else None

    @property
    def published_at(self) -> datetime:
        """When it was first published. If that is not known, when it became a dead letter."""
        try:
            first = datetime.fromisoformat(self.attributes.get(_PUBLISHED, ""))
        except ValueError:
            return self.publish_time
        return first if first.tzinfo else self.publish_time

    @property
    def own_attributes(self) -> dict[str, str]:
        """The attributes that it was first published with."""
        return {k: v for k, v in self.attributes.items() if not k.startswith(_ADDED)}


class SubscriptionError(YoloBatchError):
    """Pub/Sub did not return, acknowledge or release messages."""


class Subscription:
    """One pull subscription for dead letters."""

    def __init__(
        self,
        client: pubsub_v1.SubscriberClient,
        name: str,
        *,
        lease_seconds: int = _LEASE_SECONDS,
    ) -> None:
        """Take a client. `connect` builds the client and the subscription.

        Args:
            client: the vendor's client.
            name: the subscription's full name.
            lease_seconds: how long no other subscriber gets a message that was pulled.
        """
        self._client = client
        self.name = name
        self._lease_seconds = lease_seconds
        # By message id. If a message is delivered twice, only its last ack id is valid.
        self._ack_ids: dict[str, str] = {}
        self._lock = threading.Lock()

    def pull(self, limit: int) -> Iterator[DeadLetter]:
        """Pull and lease at most `limit` messages, each once. `leases` extends the leases.

        Raises:
            SubscriptionError: there is no such subscription, or Pub/Sub did not respond.
        """
        seen: set[str] = set()
        empty_pulls = 0
        while len(seen) < limit and empty_pulls < _EMPTY_PULLS:
            pulled = self._pull(min(_PULL_SIZE, limit - len(seen)))
            self._set_deadline((message.ack_id for message in pulled), self._lease_seconds)
            with self._lock:
                self._ack_ids |= {message.message_id: message.ack_id for message in pulled}
            new = [message for message in pulled if message.message_id not in seen]
            empty_pulls = 0 if new else empty_pulls + 1
            seen.update(message.message_id for message in new)
            yield from new

    @contextmanager
    def leases(self) -> Iterator[None]:
        """Extend the leases of pulled messages while the block runs, and release them at its end.

        Raises:
            SubscriptionError: they could not be released. An error of the block has precedence.
        """
        is_over = threading.Event()

        def extend() -> None:
            while not is_over.wait(self._lease_seconds / 3):
                with self._lock:
                    ack_ids = list(self._ack_ids.values())
                with suppress(SubscriptionError):  # retried before the leases end
                    self._set_deadline(ack_ids, self._lease_seconds)

        thread = threading.Thread(target=extend, name="leases", daemon=True)
        thread.start()
        try:
            yield
        except BaseException:
            with suppress(SubscriptionError):  # the first error has the cause
                self._end(is_over, thread)
            raise
        self._end(is_over, thread)

    def _end(self, is_over: threading.Event, thread: threading.Thread) -> None:
        is_over.set()
        thread.join()
        self.release()

    def acknowledge(self, messages: Iterable[DeadLetter]) -> None:
        """Remove messages from the subscription.

        Raises:
            SubscriptionError: Pub/Sub did not respond. The messages may be redelivered.
        """
        for ids in _groups(self._forget(messages)):
            with _translated(self.name):
                self._client.acknowledge(
                    subscription=self.name, ack_ids=ids, retry=_policy(), timeout=_CALL_SECONDS
                )

    def release(self) -> None:
        """End all leases, so that the messages can be pulled again at once.

        Raises:
            SubscriptionError: Pub/Sub did not respond. The leases end later by themselves.
        """
        with self._lock:
            ack_ids = list(self._ack_ids.values())
            self._ack_ids.clear()
        self._set_deadline(ack_ids, 0)

    def _forget(self, messages: Iterable[DeadLetter]) -> list[str]:
        """Stop extending the leases of messages, and return their ack ids."""
        with self._lock:
            return [self._ack_ids.pop(item.message_id, item.ack_id) for item in messages]

    def topic_of(self, subscription: str) -> str:
        """Return the full name of a subscription's topic.

        Raises:
            SubscriptionError: there is no such subscription, or Pub/Sub did not respond.
        """
        with _translated(subscription):
            resource = self._client.get_subscription(
                subscription=subscription, retry=_policy(), timeout=_CALL_SECONDS
            )
            return str(resource.topic)

    def _pull(self, size: int) -> list[DeadLetter]:
        with _translated(self.name):
            try:
                response = self._client.pull(
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
            for received in response.received_messages
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
    """Return a subscription.

    Args:
        subscription: its name or its full name.
        project: its project, needed only with the name.

    Raises:
        CredentialsError: no credentials, or no project for the name.
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
    """Raise the vendor's errors as SubscriptionError."""
    try:
        yield
    except exceptions.NotFound as exc:
        raise SubscriptionError(f"There is no subscription {subscription}") from exc
    except (exceptions.GoogleAPIError, GoogleAuthError) as exc:
        raise SubscriptionError(f"Pub/Sub failed for {subscription}: {exc}") from exc
