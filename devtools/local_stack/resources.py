"""Creates the stack's topics, subscriptions and bucket over the emulators' REST APIs."""

from collections.abc import Iterable
from typing import Any

import requests

from devtools.local_stack.errors import LocalStackError

UPLOADS_TOPIC = "uploads"
UPLOADS_SUBSCRIPTION = "uploads-eventarc"
JOBS_TOPIC = "jobs"
JOBS_SUBSCRIPTION = "jobs-push"
DEAD_LETTER_TOPIC = "jobs-dead-letter"
DEAD_LETTER_SUBSCRIPTION = "jobs-dead-letter"

MAX_DELIVERY_ATTEMPTS = 50  # the same as in terraform/modules/yolo-batch/locals.tf

_LONGEST_LEASE_SECONDS = 600
_CALL_SECONDS = 10.0
_ALREADY_EXISTS = 409


def create_topics(
    host: str,
    project: str,
    *,
    push_endpoint: str,
    lease_seconds: int,
    published: Iterable[str] = (),
) -> None:
    """Create all topics and subscriptions that do not exist.

    Args:
        host: the emulator, as `host:port`.
        project: the project of the topics.
        push_endpoint: the URL to which the jobs' subscription pushes.
        lease_seconds: how long the local Eventarc may process a message before it is redelivered.
        published: the topics that the service publishes to. Each gets a subscription of the same
            name, from which messages are pulled.

    Raises:
        LocalStackError: the emulator did not create a topic or a subscription.
    """
    creator = _PubsubCreator(host, project)
    for topic in (UPLOADS_TOPIC, JOBS_TOPIC, DEAD_LETTER_TOPIC):
        creator.topic(topic)
    creator.subscription(UPLOADS_SUBSCRIPTION, UPLOADS_TOPIC, ackDeadlineSeconds=lease_seconds)
    creator.subscription(DEAD_LETTER_SUBSCRIPTION, DEAD_LETTER_TOPIC)
    creator.subscription(
        JOBS_SUBSCRIPTION,
        JOBS_TOPIC,
        pushConfig={"pushEndpoint": push_endpoint},
        ackDeadlineSeconds=_LONGEST_LEASE_SECONDS,
        retryPolicy={"minimumBackoff": "1s", "maximumBackoff": "60s"},
        deadLetterPolicy={
            "deadLetterTopic": creator.topic_path(DEAD_LETTER_TOPIC),
            "maxDeliveryAttempts": MAX_DELIVERY_ATTEMPTS,
        },
    )
    for topic in published:
        creator.topic(topic)
        creator.subscription(topic, topic, ackDeadlineSeconds=_LONGEST_LEASE_SECONDS)


def create_bucket(storage_url: str, bucket: str) -> None:
    """Create a bucket if it does not exist."""
    _create("POST", f"{storage_url}/storage/v1/b", {"name": bucket})


class _PubsubCreator:
    def __init__(self, host: str, project: str) -> None:
        self._project = f"projects/{project}"
        self._url = f"http://{host}/v1/"

    def topic_path(self, topic: str) -> str:
        return f"{self._project}/topics/{topic}"

    def topic(self, topic: str) -> None:
        self._put(self.topic_path(topic), {})

    def subscription(self, subscription: str, topic: str, **settings: Any) -> None:
        # An empty expiration policy means that the subscription never expires.
        body = {"topic": self.topic_path(topic), "expirationPolicy": {}, **settings}
        self._put(f"{self._project}/subscriptions/{subscription}", body)

    def _put(self, path: str, body: dict[str, Any]) -> None:
        _create("PUT", self._url + path, body)


def _create(method: str, url: str, body: dict[str, Any]) -> None:
    with requests.Session() as session:
        session.trust_env = (
            False  # a proxy from the environment cannot reach this machine's loopback
        )
        try:
            response = session.request(method, url, json=body, timeout=_CALL_SECONDS)
        except requests.RequestException as exc:
            raise LocalStackError(f"An emulator did not create {url}: {exc}") from exc
    if not response.ok and response.status_code != _ALREADY_EXISTS:
        raise LocalStackError(f"An emulator did not create {url}: {response.text} {body}")
