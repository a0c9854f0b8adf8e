"""When and how often the relay publishes the event of each upload."""

import json
from collections.abc import Mapping
from concurrent.futures import Future

import pytest

from devtools.chaos.plan import Fate, Kind, Upload
from devtools.chaos.relay import Relay


class Topic:
    """A topic that records the published messages, and returns their ids."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def publish(self, data: bytes, attributes: Mapping[str, str]) -> "Future[str]":
        message = json.loads(data)
        is_job = "uri" in message
        assert attributes == ({} if is_job else {"eventType": "OBJECT_FINALIZE"})
        self.names.append("job" if is_job else message["name"])
        done: Future[str] = Future()
        done.set_result(str(len(self.names)))
        return done


@pytest.fixture
def topic() -> Topic:
    return Topic()


@pytest.fixture
def relay(topic: Topic) -> Relay:
    return Relay(topic.publish)


def make(index: int, *deliveries: int, fate: Fate = Fate.KEPT, name: str = "") -> Upload:
    return Upload(index, name or f"{index}.jpg", Kind.GOOD, 0, fate, deliveries or (0,))


def lose_event(index: int) -> Upload:
    return Upload(index, f"{index}.jpg", Kind.GOOD, 0, deliveries=())


def notify(relay: Relay, name: str, md5: str = "x") -> None:
    data = json.dumps({"name": name, "md5Hash": md5}).encode()
    relay.receive(data, {"eventType": "OBJECT_FINALIZE"})


def test_copies_are_published_at_once(relay: Relay, topic: Topic) -> None:
    relay.expect(make(0, 0, 0, 0), "x")
    notify(relay, "0.jpg")
    notify(relay, "0.jpg")  # Pub/Sub may deliver the notification twice
    assert topic.names == ["0.jpg"] * 3


def test_late_copy_waits_for_other_uploads(relay: Relay, topic: Topic) -> None:
    relay.expect(make(0, 0, 2), "x")
    relay.expect(make(1), "x")
    notify(relay, "0.jpg")
    relay.uploaded(1)
    notify(relay, "1.jpg")
    assert topic.names == ["0.jpg", "1.jpg"]
    relay.uploaded(2)
    assert topic.names == ["0.jpg", "1.jpg", "0.jpg"]


def test_flush_publishes_late_copies(relay: Relay, topic: Topic) -> None:
    relay.expect(make(0, 9), "x")
    notify(relay, "0.jpg")
    assert topic.names == []
    relay.flush()
    assert topic.names == ["0.jpg"]


@pytest.mark.parametrize("is_early", [True, False], ids=["before-its-fate", "after-its-fate"])
def test_event_is_held_back_until_its_object_is_replaced(
    relay: Relay, topic: Topic, is_early: bool
) -> None:
    deleted = make(0, fate=Fate.DELETED)
    relay.expect(deleted, "x")
    if is_early:
        notify(relay, "0.jpg")
        assert topic.names == []
    relay.release(deleted)
    if not is_early:
        notify(relay, "0.jpg")
    assert topic.names == ["0.jpg"]


def test_generations_of_one_name_are_distinguished(relay: Relay, topic: Topic) -> None:
    relay.expect(make(0, fate=Fate.REPLACED, name="a.jpg"), "old")
    relay.expect(make(1, name="a.jpg"), "new")
    notify(relay, "a.jpg", "old")
    assert topic.names == []
    notify(relay, "a.jpg", "new")
    assert topic.names == ["a.jpg"]


def test_message_is_outstanding_until_it_is_acknowledged(relay: Relay) -> None:
    relay.expect(make(0, 0, 0), "x")
    relay.expect(make(1), "x")
    assert (relay.unseen, relay.outstanding) == ([0, 1], 2)
    notify(relay, "0.jpg")
    assert (relay.unseen, relay.unacknowledged, relay.outstanding) == ([1], [0], 3)
    relay.acknowledged("1")
    relay.acknowledged("1")
    assert (relay.unacknowledged, relay.outstanding) == ([0], 2)
    relay.acknowledged("2")
    assert (relay.unacknowledged, relay.outstanding) == ([], 1)
    assert relay.acknowledgements == 2


def test_message_that_is_not_published_stays_outstanding() -> None:
    def fail(data: bytes, attributes: Mapping[str, str]) -> "Future[str]":
        done: Future[str] = Future()
        done.set_exception(TimeoutError("Pub/Sub is unavailable"))
        return done

    relay = Relay(fail)
    relay.expect(make(4), "x")
    notify(relay, "4.jpg")
    relay.publish_job(b'{"uri": "gs://uploads/a"}', 5, copies=1)
    assert (relay.unseen, relay.unacknowledged, relay.outstanding) == ([], [4, 5], 2)


def test_lost_event_is_seen_but_not_published(relay: Relay, topic: Topic) -> None:
    relay.expect(lose_event(0), "x")
    notify(relay, "0.jpg")
    relay.flush()
    assert (topic.names, relay.unseen, relay.outstanding) == ([], [], 0)


def test_job_is_outstanding_until_each_copy_is_acknowledged(relay: Relay, topic: Topic) -> None:
    relay.publish_job(b'{"uri": "gs://uploads/a"}', 3, copies=2)
    assert topic.names == ["job", "job"]
    relay.acknowledged("1")
    assert (relay.unacknowledged, relay.outstanding) == ([3], 1)
    relay.acknowledged("2")
    assert (relay.unacknowledged, relay.outstanding) == ([], 0)
