"""A fake Eventarc: delivers a bucket's events to a service as CloudEvents over HTTP.

    upload -> Storage publishes to a topic -> pull subscription -> POST -> 2xx: acknowledge
                                                    ^                      else: wait, redeliver
                                                    +----------------------------+

The emulator's own push sends two requests at a time. In the cloud, an instance gets as many
requests at a time as its concurrency, and needs that many to fill its batches.
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
DELETED = "google.cloud.storage.object.v1.deleted"

_JSON = "application/json"
# Types of events by the attribute eventType of a notification. The fake Cloud Storage sends
# deletions only if the service wants them.
_TYPES = {"OBJECT_FINALIZE": FINALIZED, "OBJECT_DELETE": DELETED}
# The status codes that acknowledge a push (https://cloud.google.com/pubsub/docs/push).
_ACKNOWLEDGING = frozenset({102, 200, 201, 202, 204})
# The HTTP binding of CloudEvents does not quote these: printable ASCII except space, " and %.
_HEADER_SAFE = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in '"%')
_CONNECT_SECONDS = 5.0
# The emulator ends an empty pull one second before this deadline. So this client never cancels a
# pull. A cancelled pull could lease messages that nobody then processes.
_PULL_SECONDS = 2.0
_CALL_SECONDS = 5.0
_CALL_RETRY = Retry(timeout=10.0)
_MAX_REMEMBERED = 10_000
_PAUSE_SECONDS = 0.5  # between pulls while Pub/Sub is unavailable


@dataclass(frozen=True)
class EventarcOptions:
    """How events are delivered. The defaults are Cloud Run's and Eventarc's, except the delays."""

    concurrency: int = 40  # requests in flight, like Cloud Run's setting of that name
    answer_timeout_seconds: float = 10.0  # Eventarc's ack deadline
    min_delay_seconds: int = 1  # 10 in the cloud, which would only slow down tests
    max_delay_seconds: int = 60
    #: Whether other messages are delivered too, as Pub/Sub pushes them (jobs).
    with_pushes: bool = False
    #: Called after each request with the message's id, the status code (None without a response),
    #: and the seconds that the request took.
    on_answer: Callable[[str, int | None, float], None] = lambda message_id, status, seconds: None

    def delay_seconds(self, failures: int) -> int:
        """Return the seconds until redelivery after a number of failed attempts (1 or more)."""
        # A shift keeps the type int. It is bounded because a message may fail for ever.
        return min(self.min_delay_seconds << min(failures - 1, 20), self.max_delay_seconds)


@dataclass(frozen=True)
class Counters:
    """What has happened since the start."""

    delivered: int = 0  # requests sent
    acked: int = 0  # the response acknowledged the message
    nacked: int = 0  # another, late or missing response: the message is redelivered
    dropped: int = 0  # messages about other events, which the triggers ignore


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
    """Return a bucket's notification as a binary-mode CloudEvent, or None for other event types."""
    bucket, name = attributes.get("bucketId"), attributes.get("objectId")
    event_type = _TYPES.get(attributes.get("eventType", ""))
    if not event_type or not bucket or not name:
        return None
    subject = "objects/" + quote(name, safe=_HEADER_SAFE)
    headers = {
        "content-type": _JSON,
        "ce-specversion": "1.0",
        "ce-id": message_id,
        "ce-type": event_type,
        "ce-source": f"//storage.googleapis.com/projects/_/buckets/{bucket}",
        "ce-subject": subject,
        "ce-time": attributes.get("eventTime") or _rfc3339(publish_time),
        "ce-bucket": bucket,
    }
    return Delivery(message_id, subject, headers, data)


def push_from_message(message: PubsubMessage, subscription: str) -> Delivery:
    """Return a message as Pub/Sub pushes it (https://cloud.google.com/pubsub/docs/push)."""
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
    """Delivers the events of one subscription to one URL, in threads of this process."""

    def __init__(
        self, pubsub_host: str, subscription: str, url: str, options: EventarcOptions | None = None
    ) -> None:
        """Take the subscription's full name. `start` begins to deliver."""
        self._options = options or EventarcOptions()
        self._subscription = subscription
        self._url = url
        # PUBSUB_EMULATOR_HOST would configure the whole process, so the channel is made here. A
        # proxy from the environment cannot reach this machine's loopback.
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
        """The counters since the start."""
        return self._counters

    def start(self) -> Self:
        """Start delivering. Return this object."""
        self._puller.start()
        return self

    def stop(self) -> None:
        """Stop. Waits for the requests in flight, at most for their timeout."""
        self._stopping.set()
        if self._puller.is_alive():
            self._puller.join()
        self._pool.shutdown(cancel_futures=True)
        self._session.close()
        self._channel.close()

    def _pull_until_stopped(self) -> None:
        is_unavailable = False
        while not self._stopping.is_set():
            slots = self._take_slots()
            try:
                messages = self._pull(slots) if slots else []
            except (GoogleAPICallError, RetryError) as exc:
                if not is_unavailable:
                    logger.warning("Pub/Sub is unavailable, retrying: %s", _summary(exc))
                is_unavailable, messages = True, []
                self._stopping.wait(_PAUSE_SECONDS)
            else:
                if is_unavailable and slots:
                    logger.warning("Pub/Sub is available again")
                    is_unavailable = False
            for _ in range(slots - len(messages)):
                self._slots.release()
            for message in messages:
                self._pool.submit(self._handle, message)

    def _take_slots(self) -> int:
        """Take all free slots and return their number. Returns 0 if none is free within 0.5 s."""
        if not self._slots.acquire(timeout=_PAUSE_SECONDS):
            return 0
        taken = 1
        while taken < self._options.concurrency and self._slots.acquire(blocking=False):
            taken += 1
        return taken

    def _pull(self, slots: int) -> list[ReceivedMessage]:
        response = self._subscriber.pull(
            subscription=self._subscription, max_messages=slots, retry=None, timeout=_PULL_SECONDS
        )
        return list(response.received_messages)

    def _handle(self, received: ReceivedMessage) -> None:
        try:
            self._deliver(received)
        except (GoogleAPICallError, RetryError) as exc:
            # The message is redelivered when its lease ends.
            logger.warning("Pub/Sub was unavailable at the end of a delivery: %s", _summary(exc))
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
        """Send one request. Return whether its response acknowledges the message.

        After a timeout the service may still process the event, and gets it again, as in the cloud.
        """
        self._count(delivered=1)
        timeout = (_CONNECT_SECONDS, self._options.answer_timeout_seconds)
        subject, message_id = delivery.subject, delivery.message_id
        began = time.monotonic()
        try:
            response = self._session.post(
                self._url, data=delivery.body, headers=delivery.headers,
                timeout=timeout, allow_redirects=False,
            )  # fmt: skip
        except requests.RequestException as exc:
            logger.warning("%s not delivered: %s", subject, type(exc).__name__)
            self._options.on_answer(message_id, None, time.monotonic() - began)
            return False
        self._options.on_answer(message_id, response.status_code, time.monotonic() - began)
        if response.status_code not in _ACKNOWLEDGING:
            logger.warning("%s got status %d", subject, response.status_code)
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
    # After a restart the emulator counts its ids from 1 again.
    return f"{received.message.message_id} {received.message.publish_time}"


def _session(connections: int) -> requests.Session:
    session = requests.Session()
    session.trust_env = False  # a proxy from the environment cannot reach this machine's loopback
    session.headers["user-agent"] = "yolo-batch-eventarc"
    session.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=connections))
    return session


def _summary(exc: Exception) -> str:
    return f"{type(exc).__name__}: {exc}".splitlines()[0][:200]
