"""Stands between the bucket's notifications and their delivery: again, late and out of order.

upload -> Storage's topic -> relay: held until its fate, copied, delayed -> topic -> Eventarc
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
    """Publishes each notification as its upload's plan says; safe to use from many threads."""

    def __init__(self, publish: Callable[[bytes, Mapping[str, str]], "Future[str]"]) -> None:
        """Take what publishes a message, and tells its id later."""
        self._send = publish
        self._lock = threading.RLock()  # a message may be published before we are told so
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
        """Say what is about to be uploaded: a notification is told by its name and checksum."""
        with self._lock:
            self._expected[upload.name, md5] = upload

    def uploaded(self, uploads: int) -> None:
        """Say how many uploads were made; what was to wait for this number is published."""
        with self._lock:
            self._uploads = uploads
            while self._late and self._late[0][0] <= uploads:
                _, _, upload, message = heapq.heappop(self._late)
                self._publish(upload.index, message)

    def publish_job(self, data: bytes, index: int, *, copies: int) -> None:
        """Publish a job that names an upload, so often."""
        with self._lock:
            for _ in range(copies):
                self._publish(index, (data, {}))

    def release(self, upload: Upload) -> None:
        """Say that the fate of an upload has come: its event need not be held any more."""
        with self._lock:
            self._released.add(upload.index)
            if message := self._held.pop(upload.index, None):
                self._schedule(upload, message)

    def flush(self) -> None:
        """Publish what was to come later still."""
        self.uploaded(1 << 62)

    def acknowledged(self, message_id: str) -> None:
        """Say that a message of ours was acknowledged."""
        with self._lock:
            self._acknowledged.add(message_id)

    @property
    def unseen(self) -> list[int]:
        """Uploads whose notification did not come yet."""
        with self._lock:
            expected = {upload.index for upload in self._expected.values()}
        return sorted(expected - self._seen)

    @property
    def outstanding(self) -> int:
        """What is under way: uploads without notification, messages without acknowledgement."""
        with self._lock:
            return len(self._expected) - len(self._seen) + self._sent - len(self._acknowledged)

    @property
    def acknowledgements(self) -> int:
        """How many messages of ours were acknowledged."""
        with self._lock:
            return len(self._acknowledged)

    @property
    def unacknowledged(self) -> list[int]:
        """Uploads of which some message was not acknowledged, or not even published."""
        with self._lock:
            left = self._published.keys() - self._acknowledged
            return sorted(self._refused | {self._published[message_id] for message_id in left})

    def receive(self, data: bytes, attributes: Mapping[str, str]) -> None:
        """Take a notification; the same one again changes nothing."""
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
                if done.cancelled() or done.exception():  # it stays outstanding
                    self._refused.add(index)
                else:
                    self._published[done.result()] = index

        self._send(*message).add_done_callback(keep)


class PubsubRelay(Relay):
    """A relay between a subscription and a topic, as a context manager."""

    def __init__(self, source: str, topic: str) -> None:
        """Take the subscription of the notifications, and the topic of what is delivered."""
        self._source = source
        self._subscriber = pubsub_v1.SubscriberClient()
        publisher = pubsub_v1.PublisherClient()
        self._publisher = publisher
        super().__init__(lambda data, attributes: publisher.publish(topic, data, **attributes))

    def __enter__(self) -> Self:
        """Begin to relay."""

        def relay(message: Any) -> None:
            self.receive(message.data, dict(message.attributes))
            message.ack()

        self._pull = self._subscriber.subscribe(self._source, callback=relay)
        return self

    def __exit__(self, *_: object) -> None:
        """Relay no more."""
        self._pull.cancel()
        self._pull.result(timeout=_CALL_SECONDS)
        self._subscriber.close()
        self._publisher.stop()
