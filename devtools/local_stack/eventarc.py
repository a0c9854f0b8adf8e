"""Eventarc's part: finalize events of a bucket, delivered to a service as CloudEvents over HTTP.

    upload -> Storage publishes to a topic -> pull subscription -> POST -> 2xx: acknowledge
                                                    ^                   else: not before a delay
                                                    +------------------------------+

The emulator's own push sends two requests at a time; Cloud Run gets as many as its concurrency, and
only then is there anything to batch.
"""

import base64
import json
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Self
from urllib.parse import quote

import grpc
import requests
from google.api_core.exceptions import GoogleAPICallError, RetryError
from google.api_core.retry import Retry
from google.pubsub_v1 import SubscriberClient
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport
from google.pubsub_v1.types import PubsubMessage, ReceivedMessage

logger = logging.getLogger(__name__)

FINALIZED = "google.cloud.storage.object.v1.finalized"

_JSON = "application/json"
_OBJECT_FINALIZE = "OBJECT_FINALIZE"  # attribute eventType of a notification
# The answers that acknowledge a push (https://cloud.google.com/pubsub/docs/push).
_ACKNOWLEDGING = frozenset({102, 200, 201, 202, 204})
# What the HTTP binding of CloudEvents leaves as it is: printable ASCII but space, " and %.
_HEADER_SAFE = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in '"%')
_CONNECT_SECONDS = 5.0
# The emulator answers an empty pull one second before the deadline, so none is cut off on our side,
# which could leave messages leased to nobody.
_PULL_SECONDS = 2.0
_CALL_SECONDS = 5.0
_CALL_RETRY = Retry(timeout=10.0)
_MAX_REMEMBERED = 10_000
_PAUSE_SECONDS = 0.5  # between pulls while Pub/Sub is away


@dataclass(frozen=True)
class EventarcOptions:
    """How events are delivered; the defaults are Cloud Run's and Eventarc's, the delays are not."""

    concurrency: int = 40  # requests at once, as Cloud Run's setting of that name
    answer_timeout_seconds: float = 10.0  # Eventarc's ack deadline
    min_delay_seconds: int = 1  # the cloud's 10 would only make a test slow
    max_delay_seconds: int = 60
    #: Whether what is no notification is delivered too, as Pub/Sub pushes a message (a job).
    with_pushes: bool = False
    #: Told of each request: its event's id (the message's), the answer's status, None without, and
    #: the seconds until then.
    on_answer: Callable[[str, int | None, float], None] = lambda message_id, status, seconds: None

    def delay_seconds(self, failures: int) -> int:
        """How long a message rests after so many failed attempts (1 or more)."""
        # A shift, as `**` of integers may be a float; bounded, as a message may fail for ever.
        return min(self.min_delay_seconds << min(failures - 1, 20), self.max_delay_seconds)


@dataclass(frozen=True)
class Counters:
    """What has happened so far."""

    delivered: int = 0  # requests sent
    acked: int = 0  # answered with an acknowledging status
    nacked: int = 0  # answered otherwise, late or not at all: to be sent again
    dropped: int = 0  # no finalize event, so nothing for the trigger


@dataclass(frozen=True)
class Delivery:
    """A request to send."""

    message_id: str
    subject: str  # for the log
    headers: Mapping[str, str]
    body: bytes


def event_from_notification(
    attributes: Mapping[str, str], data: bytes, *, message_id: str, publish_time: datetime
) -> Delivery | None:
    """Turn a bucket's notification into a binary-mode CloudEvent; None for other event types."""
    bucket, name = attributes.get("bucketId"), attributes.get("objectId")
    if attributes.get("eventType") != _OBJECT_FINALIZE or not bucket or not name:
        return None
    subject = "objects/" + quote(name, safe=_HEADER_SAFE)
    headers = {
        "content-type": _JSON,
        "ce-specversion": "1.0",
        "ce-id": message_id,
        "ce-type": FINALIZED,
        "ce-source": f"//storage.googleapis.com/projects/_/buckets/{bucket}",
        "ce-subject": subject,
        "ce-time": attributes.get("eventTime") or _rfc3339(publish_time),
        "ce-bucket": bucket,
    }
    return Delivery(message_id, subject, headers, data)


def push_from_message(message: PubsubMessage, subscription: str) -> Delivery:
    """Wrap a message as Pub/Sub pushes it (https://cloud.google.com/pubsub/docs/push)."""
    wrapped = {
        "attributes": dict(message.attributes),
        "data": base64.b64encode(message.data).decode(),
        "messageId": message.message_id,
        "publishTime": _rfc3339(message.publish_time),
    }
    body = json.dumps({"message": wrapped, "subscription": subscription}).encode()
    subject = f"message {message.message_id}"
    return Delivery(message.message_id, subject, {"content-type": _JSON}, body)


def _rfc3339(time: datetime) -> str:
    return time.isoformat().replace("+00:00", "Z")


class Eventarc:
    """Delivers one subscription's events to one url, in threads of this process."""

    def __init__(
        self, pubsub_host: str, subscription: str, url: str, options: EventarcOptions | None = None
    ) -> None:
        """Take the subscription's full name; connect to nothing yet."""
        self._options = options or EventarcOptions()
        self._subscription = subscription
        self._url = url
        # The channel is made here rather than by PUBSUB_EMULATOR_HOST, which would be the
        # environment of the whole process; nor may a proxy from it catch our loopback.
        channel = grpc.insecure_channel(pubsub_host, options=[("grpc.enable_http_proxy", 0)])
        self._channel = channel
        self._subscriber = SubscriberClient(transport=SubscriberGrpcTransport(channel=channel))
        self._session = _session(self._options.concurrency)
        self._slots = threading.Semaphore(self._options.concurrency)
        self._pool = ThreadPoolExecutor(self._options.concurrency, thread_name_prefix="eventarc")
        self._puller = threading.Thread(target=self._pull_until_stopped, name="eventarc-pull")
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._counters = Counters()
        self._attempts: OrderedDict[str, int] = OrderedDict()

    @property
    def counters(self) -> Counters:
        """What has happened so far."""
        return self._counters

    def start(self) -> Self:
        """Begin to deliver."""
        self._puller.start()
        return self

    def stop(self) -> None:
        """Deliver no more; waits for the requests under way, at most their answer time-out."""
        self._stopping.set()
        if self._puller.is_alive():
            self._puller.join()
        self._pool.shutdown(cancel_futures=True)
        self._session.close()
        self._channel.close()

    def _pull_until_stopped(self) -> None:
        is_away = False
        while not self._stopping.is_set():
            slots = self._take_slots()
            try:
                messages = self._pull(slots) if slots else []
            except (GoogleAPICallError, RetryError) as exc:
                if not is_away:
                    logger.warning("Pub/Sub does not deliver, trying on: %s", _in_short(exc))
                is_away, messages = True, []
                self._stopping.wait(_PAUSE_SECONDS)
            else:
                if is_away and slots:
                    logger.warning("Pub/Sub delivers again")
                    is_away = False
            for _ in range(slots - len(messages)):
                self._slots.release()
            for message in messages:
                self._pool.submit(self._handle, message)

    def _take_slots(self) -> int:
        """Take all free slots, waiting a little for the first; 0 if all stay busy."""
        if not self._slots.acquire(timeout=_PAUSE_SECONDS):
            return 0
        taken = 1
        while taken < self._options.concurrency and self._slots.acquire(blocking=False):
            taken += 1
        return taken

    def _pull(self, slots: int) -> list[ReceivedMessage]:
        answer = self._subscriber.pull(
            subscription=self._subscription, max_messages=slots, retry=None, timeout=_PULL_SECONDS
        )
        return list(answer.received_messages)

    def _handle(self, received: ReceivedMessage) -> None:
        try:
            self._deliver(received)
        except (GoogleAPICallError, RetryError) as exc:
            # Its lease runs out by itself, and the message comes again.
            logger.warning("Pub/Sub took no answer for a message: %s", _in_short(exc))
        finally:
            self._slots.release()

    def _deliver(self, received: ReceivedMessage) -> None:
        delivery = self._delivery(received.message)
        if delivery is None:
            self._count(dropped=1)
            self._acknowledge(received)
        elif self._post(delivery):
            self._forget(received)
            self._count(acked=1)
            self._acknowledge(received)
        else:
            self._count(nacked=1)
            self._postpone(received)

    def _delivery(self, message: PubsubMessage) -> Delivery | None:
        event = event_from_notification(
            message.attributes, message.data,
            message_id=message.message_id, publish_time=message.publish_time,
        )  # fmt: skip
        if event or not self._options.with_pushes:
            return event
        return push_from_message(message, self._subscription)

    def _post(self, delivery: Delivery) -> bool:
        """Send one request; whether its answer acknowledges.

        After a time-out the service may be at work still, and gets it again: as in the cloud.
        """
        self._count(delivered=1)
        timeout = (_CONNECT_SECONDS, self._options.answer_timeout_seconds)
        subject, message_id = delivery.subject, delivery.message_id
        began = time.monotonic()
        try:
            answer = self._session.post(
                self._url, data=delivery.body, headers=delivery.headers,
                timeout=timeout, allow_redirects=False,
            )  # fmt: skip
        except requests.RequestException as exc:
            logger.warning("%s not delivered: %s", subject, type(exc).__name__)
            self._options.on_answer(message_id, None, time.monotonic() - began)
            return False
        self._options.on_answer(message_id, answer.status_code, time.monotonic() - began)
        if answer.status_code not in _ACKNOWLEDGING:
            logger.warning("%s answered with %d", subject, answer.status_code)
            return False
        return True

    def _acknowledge(self, received: ReceivedMessage) -> None:
        self._subscriber.acknowledge(
            subscription=self._subscription, ack_ids=[received.ack_id],
            retry=_CALL_RETRY, timeout=_CALL_SECONDS,
        )  # fmt: skip

    def _postpone(self, received: ReceivedMessage) -> None:
        """Let Pub/Sub deliver the message again after a delay that doubles with each attempt."""
        self._subscriber.modify_ack_deadline(
            subscription=self._subscription, ack_ids=[received.ack_id],
            ack_deadline_seconds=self._next_delay(received),
            retry=_CALL_RETRY, timeout=_CALL_SECONDS,
        )  # fmt: skip

    def _next_delay(self, received: ReceivedMessage) -> int:
        key = _identity(received)
        with self._lock:
            failures = self._attempts.pop(key, 0) + 1
            self._attempts[key] = failures
            if len(self._attempts) > _MAX_REMEMBERED:
                self._attempts.popitem(last=False)
        return self._options.delay_seconds(failures)

    def _forget(self, received: ReceivedMessage) -> None:
        with self._lock:
            self._attempts.pop(_identity(received), None)

    def _count(self, **more: int) -> None:
        with self._lock:
            now = self._counters
            sums = {name: getattr(now, name) + number for name, number in more.items()}
            self._counters = replace(now, **sums)


def _identity(received: ReceivedMessage) -> str:
    # The emulator counts ids from 1 again after a restart.
    return f"{received.message.message_id} {received.message.publish_time}"


def _session(connections: int) -> requests.Session:
    session = requests.Session()
    session.trust_env = False  # a proxy from the environment knows nothing of our loopback
    session.headers["user-agent"] = "yolo-batch-eventarc"
    session.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=connections))
    return session


def _in_short(exc: Exception) -> str:
    return f"{type(exc).__name__}: {exc}".splitlines()[0][:200]
