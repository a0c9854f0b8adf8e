"""The relay between notifications and deliveries: it repeats, delays and reorders events.

upload -> Cloud Storage's topic -> relay (holds back, copies, delays) -> topic -> Eventarc
                                                             jobs ---^
"""

import heapq
import itertools
import json
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, Self

from google.cloud import pubsub_v1  # type: ignore[attr-defined]  # published without types

from devtools.chaos.plan import Upload

_CALL_SECONDS = 60
_Message = tuple[bytes, Mapping[str, str]]


class Relay:
    """Publishes each notification as the plan of its upload demands.

    Safe to use from many threads.
    """

    def __init__(self, publish: Callable[[bytes, Mapping[str, str]], "Future[str]"]) -> None:
        """Take the function that publishes a message. Its future has the message id."""
        self._send = publish
        self._lock = threading.RLock()  # the callback of a publish may run in the same thread
        self._expected: dict[tuple[str, str], Upload] = {}
        self._seen: set[int] = set()
        self._released: set[int] = set()
        self._held: dict[int, _Message] = {}
        self._late: list[tuple[int, int, Upload, _Message]] = []
        self._order = itertools.count()
        self._uploads = 0
        self._published: dict[str, int] = {}  # uploads by message
        self._refused: set[int] = set()
        self._sent = 0
        self._acknowledged: set[str] = set()

    def expect(self, upload: Upload, md5: str) -> None:
        """Announce an upload. Its notification is recognised by name and checksum."""
        with self._lock:
            self._expected[upload.name, md5] = upload

    def uploaded(self, uploads: int) -> None:
        """Report the number of uploads so far, and publish the messages that waited for it."""
        with self._lock:
            self._uploads = uploads
            while self._late and self._late[0][0] <= uploads:
                _, _, upload, message = heapq.heappop(self._late)
                self._publish(upload.index, message)

    def publish_job(self, data: bytes, index: int, *, copies: int) -> None:
        """Publish a job for an upload, `copies` times."""
        with self._lock:
            for _ in range(copies):
                self._publish(index, (data, {}))

    def release(self, upload: Upload) -> None:
        """Report that an upload was replaced or deleted: release its event."""
        with self._lock:
            self._released.add(upload.index)
            if message := self._held.pop(upload.index, None):
                self._schedule(upload, message)

    def flush(self) -> None:
        """Publish all messages that still wait."""
        self.uploaded(1 << 62)

    def acknowledged(self, message_id: str) -> None:
        """Report the acknowledgement of a published message."""
        with self._lock:
            self._acknowledged.add(message_id)

    @property
    def unseen(self) -> list[int]:
        """Uploads without a notification so far."""
        with self._lock:
            expected = {upload.index for upload in self._expected.values()}
        return sorted(expected - self._seen)

    @property
    def outstanding(self) -> int:
        """Number of uploads without a notification plus messages without an acknowledgement."""
        with self._lock:
            return len(self._expected) - len(self._seen) + self._sent - len(self._acknowledged)

    @property
    def acknowledgements(self) -> int:
        """Number of acknowledged messages."""
        with self._lock:
            return len(self._acknowledged)

    @property
    def unacknowledged(self) -> list[int]:
        """Uploads with a message that was not acknowledged or not published."""
        with self._lock:
            unacknowledged = self._published.keys() - self._acknowledged
            uploads = {self._published[message_id] for message_id in unacknowledged}
            return sorted(self._refused | uploads)

    def receive(self, data: bytes, attributes: Mapping[str, str]) -> None:
        """Take a notification. A repeated notification changes nothing."""
        notification = json.loads(data)
        with self._lock:
            upload = self._expected.get((notification["name"], notification.get("md5Hash", "")))
            if upload is None or upload.index in self._seen:
                return
            self._seen.add(upload.index)
            message = data, attributes
            if upload.is_held and upload.index not in self._released:
                self._held[upload.index] = message
            else:
                self._schedule(upload, message)

    def _schedule(self, upload: Upload, message: _Message) -> None:
        for lag in upload.deliveries:
            due = upload.index + lag
            if not lag or due <= self._uploads:
                self._publish(upload.index, message)
            else:
                heapq.heappush(self._late, (due, next(self._order), upload, message))

    def _publish(self, index: int, message: _Message) -> None:
        self._sent += 1

        def keep(done: "Future[str]") -> None:
            with self._lock:
                if done.cancelled() or done.exception():  # the message stays outstanding
                    self._refused.add(index)
                else:
                    self._published[done.result()] = index

        self._send(*message).add_done_callback(keep)


class PubsubRelay(Relay):
    """A relay from a subscription to a topic, as a context manager."""

    def __init__(self, source: str, topic: str) -> None:
        """Take the subscription to pull from, and the topic to publish to."""
        self._source = source
        self._subscriber = pubsub_v1.SubscriberClient()
        publisher = pubsub_v1.PublisherClient()
        self._publisher = publisher
        super().__init__(lambda data, attributes: publisher.publish(topic, data, **attributes))

    def __enter__(self) -> Self:
        """Start relaying."""

        def relay(message: Any) -> None:
            self.receive(message.data, dict(message.attributes))
            message.ack()

        self._pull = self._subscriber.subscribe(self._source, callback=relay)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop relaying."""
        self._pull.cancel()
        self._pull.result(timeout=_CALL_SECONDS)
        self._subscriber.close()
        self._publisher.stop()
