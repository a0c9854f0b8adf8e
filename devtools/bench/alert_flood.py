"""A flood of images that all match one alert rule: messages, requests and CPU time.

    python -m devtools.bench.alert_flood --images 10000
    python -m devtools.bench.alert_flood --images 10000 --seconds 150

The recorder, the stores and the alert step are the service's own, on the official emulators. The
images are not: each result is made up, so nothing is downloaded, decoded or inferred. Two instances
share the flood, each with its own clients and caches, in one process. The same number of images
without a rule is recorded for comparison.

It ends with an error if an image has no alert document, if more alerts were published than the
cooldown allows, or if the messages do not report every suppressed alert.
"""

import argparse
import json
import os
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from google.cloud import firestore, pubsub_v1  # type: ignore[attr-defined]  # published without types
from tabulate import tabulate

from devtools.bench.errors import BenchError
from devtools.local_stack.stack import Stack, StackOptions
from service.alerts.step import AlertStep
from service.deadline import NO_DEADLINE
from service.domain import (
    Box,
    Detection,
    ImageInfo,
    ImageRef,
    ImageResult,
    ModelInfo,
    SourceVersion,
)
from service.gcp.alert_store import AlertStore
from service.gcp.collection import ALERTS
from service.gcp.firestore import ResultStore
from service.gcp.topic_publisher import TopicPublisher, connect_topic
from service.health import Health
from service.publish.after_commit import AfterCommit
from service.recorder import Recorder
from service.sources.rules import AlertRules
from service.sources.schema import AlertRule

_INSTANCES = 2
_IN_FLIGHT = 16  # images of each instance
_SECONDS = 60.0  # for one call of an emulator
_WARM_UP = 200  # images
_END = "end"  # id of the last message
_RULE = AlertRule(name="person", labels=frozenset({"person"}), cooldown_minutes=1)
_MODEL = ModelInfo("m.pt", "0" * 64, 640, "fp32", "none")


class Requests:
    """Counts what a Firestore client reads and writes. It replaces the client's transport."""

    def __init__(self, api: Any, counts: Counter[str]) -> None:
        """Take the transport, and where to count."""
        self._api = api
        self._counts = counts

    def __getattr__(self, name: str) -> Any:
        """Return a method of the transport, which counts its calls."""
        call = getattr(self._api, name)

        def counted(request: Any, *args: Any, **kwargs: Any) -> Any:
            if name == "commit":
                self._counts["documents written"] += len(request["writes"])
            elif name == "batch_get_documents":
                self._counts["documents read"] += len(request["documents"])
            return call(request, *args, **kwargs)

        return counted if callable(call) else call


class Instance:
    """One instance of the service, from a result to its alert."""

    def __init__(self, collection: str, topic: str, counts: Counter[str]) -> None:
        """Connect to the emulators. Count its requests to Firestore."""
        client = firestore.Client()
        client._firestore_api_internal = Requests(client._firestore_api, counts)
        limits: dict[str, Any] = {"collection": collection, "timeout_seconds": _SECONDS}
        health = Health(hang_timeout_seconds=3600)
        self._recorder = Recorder(ResultStore(client, **limits), health)
        self._alerts = AlertStep(
            AlertStore(client, **limits),
            TopicPublisher(connect_topic(), topic),
            lambda document_id: document_id,
            lambda ref, deadline: ref,
        )
        self._after = AfterCommit([], lambda document_id, deadline: None, lambda: self._alerts)

    def record(self, rules: AlertRules | None, result: ImageResult) -> None:
        """Record a result as the pipeline does: rules, commit, alerts."""
        if rules:
            result = replace(result, alerts=self._alerts.fired(rules, result))
        committed = self._recorder.record(result, NO_DEADLINE)
        if committed.created_at:
            self._after.committed(committed.result, committed.created_at, NO_DEADLINE)

    def close(self) -> None:
        """Stop its threads."""
        self._recorder.close(timeout_seconds=_SECONDS)


@dataclass(frozen=True)
class Run:
    """What recording the images took."""

    images: int
    seconds: float
    cpu_ms: float
    counts: Counter[str]


def results(count: int) -> Iterator[ImageResult]:
    """Yield results of new images, each with one person."""
    for number in range(count):
        yield ImageResult(
            ImageRef("uploads", f"flood/{uuid.uuid4().hex}-{number}.jpg", 1),
            image_info=ImageInfo(640, 480, "JPEG"),
            model=_MODEL,
            detections=(Detection("person", 0, 0.9, Box(10.0, 10.0, 90.0, 190.0)),),
            source=SourceVersion("cam1"),
            event_time=datetime.now(UTC),
        )


def record(
    instances: Sequence[Instance], rules: AlertRules | None, count: int, seconds: float = 0
) -> None:
    """Record new images on all instances at the same time, spread over so many seconds."""
    started = time.monotonic()
    with ThreadPoolExecutor(_IN_FLIGHT * len(instances)) as pool:
        futures = []
        for number, result in enumerate(results(count)):
            time.sleep(max(0.0, started + number / count * seconds - time.monotonic()))
            instance = instances[number % len(instances)]
            futures.append(pool.submit(instance.record, rules, result))
        for future in futures:
            future.result()


def measure(
    collection: str, topic: str, rules: AlertRules | None, count: int, seconds: float
) -> Run:
    """Record images in new instances, and measure all of them together."""
    counts: Counter[str] = Counter()
    with _instances(collection, topic, counts) as instances:
        record(instances, None, _WARM_UP)
        counts.clear()
        cpu, started = time.process_time(), time.monotonic()
        record(instances, rules, count, seconds)
        cpu_ms = (time.process_time() - cpu) * 1000
        return Run(count, time.monotonic() - started, cpu_ms, counts.copy())


@contextmanager
def _instances(collection: str, topic: str, counts: Counter[str]) -> Iterator[list[Instance]]:
    instances = [Instance(collection, topic, counts) for _ in range(_INSTANCES)]
    try:
        yield instances
    finally:
        for instance in instances:
            instance.close()


def after_cooldown(collection: str, topic: str, rules: AlertRules) -> None:
    """Record one more image when the cooldown is over. Its message reports the suppressed ones."""
    time.sleep(timedelta(minutes=_RULE.cooldown_minutes).total_seconds() + 1)
    with _instances(collection, topic, Counter()) as instances:
        record(instances[:1], rules, 1)


def messages(topic: str, subscription: str) -> list[dict[str, Any]]:
    """Return the alerts that were published, each once, in their order."""
    found: dict[str, dict[str, Any]] = {}
    with pubsub_v1.PublisherClient() as publisher:  # the emulator keeps the order
        publisher.publish(topic, json.dumps({"id": _END}).encode()).result(timeout=_SECONDS)
    with pubsub_v1.SubscriberClient() as subscriber:
        while _END not in found:
            for each in subscriber.pull(
                subscription=subscription, max_messages=1, timeout=_SECONDS
            ).received_messages:
                message = json.loads(each.message.data)
                found[message["id"]] = message
                subscriber.acknowledge(subscription=subscription, ack_ids=[each.ack_id])
    del found[_END]
    return list(found.values())


def states(collection: str) -> Counter[str]:
    """Return how many alert documents are in each state."""
    alerts = firestore.Client().collection(collection + ALERTS)
    return Counter(snapshot.get("state") for snapshot in alerts.select(["state"]).stream())


def main() -> None:
    """Measure a flood, check it, and print the figures."""
    parser = argparse.ArgumentParser(description="Measure a flood of matching images.")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=0, help="0: as fast as possible")
    arguments = parser.parse_args()
    options = StackOptions(
        with_service=False, with_eventarc=False, service_url="http://127.0.0.1:9"
    )
    with Stack(options) as stack:
        os.environ.update(stack.environment)
        topic, subscription = _topic(stack.project)
        rules = AlertRules("cam1", (_RULE,))
        without = measure("calm", topic, None, arguments.images, arguments.seconds)
        flood = measure("flood", topic, rules, arguments.images, arguments.seconds)
        after_cooldown("flood", topic, rules)
        published = messages(topic, subscription)
        check(flood, published, states("flood"))
        _print(without, flood, published)


def check(flood: Run, published: Sequence[Mapping[str, Any]], found: Counter[str]) -> None:
    """Check that nothing was lost, and that nothing was published within the cooldown."""
    suppressed = sum(message["suppressed"] for message in published)
    expected = {"published": len(published), "suppressed": suppressed}
    total = flood.images + 1  # and the image after the cooldown
    if found != expected or found.total() != total:
        raise BenchError(f"{total:,} images, but {dict(found)} alerts, and messages: {expected}")
    allowed = 2 + int(flood.seconds // (_RULE.cooldown_minutes * 60))
    if len(published) > allowed:
        raise BenchError(f"The cooldown allows {allowed} messages, but there are {len(published)}")


def _topic(project: str) -> tuple[str, str]:
    """Create the topic of the alerts, with a subscription. Return both names."""
    topic = f"projects/{project}/topics/flood"
    subscription = f"projects/{project}/subscriptions/flood"
    with pubsub_v1.PublisherClient() as publisher, pubsub_v1.SubscriberClient() as subscriber:
        publisher.create_topic(name=topic)
        subscriber.create_subscription(name=subscription, topic=topic)
    return topic, subscription


def _print(without: Run, flood: Run, published: Sequence[Mapping[str, Any]]) -> None:
    rows = [
        [name, *(run.counts[name] / run.images for run in (without, flood))]
        for name in ("documents written", "documents read")
    ]
    rows.append(["CPU-ms", *(run.cpu_ms / run.images for run in (without, flood))])
    headers = ["an image", "no rule", "each image matches"]
    print(tabulate(rows, headers, tablefmt="github", floatfmt=".3f"))
    reported = [f"{message['suppressed']:,}" for message in published]
    print(
        f"\n{flood.images:,} matching images in {flood.seconds:.0f} s, and one after the cooldown "
        f"of {_RULE.cooldown_minutes} min: {len(published):,} messages, which report "
        f"{' + '.join(reported)} suppressed alerts."
    )


if __name__ == "__main__":
    main()
