"""Jobs as Pub/Sub messages, one an image."""

import json
from collections import deque
from collections.abc import Iterable, Mapping
from concurrent.futures import Future

from google.api_core import exceptions, retry
from google.auth.exceptions import GoogleAuthError
from google.cloud import pubsub_v1  # type: ignore[attr-defined]  # published without types

from service.domain import Replace
from service.errors import CredentialsError, YoloBatchError

# Parameters of the client's own, which takes attributes as keywords beside them.
_NO_ATTRIBUTES = {"self", "topic", "data", "ordering_key", "retry", "timeout"}
_BATCHING = pubsub_v1.types.BatchSettings(
    max_messages=1000,  # Pub/Sub's own limit of one call
    max_latency=0.05,  # seconds that a message waits for others
)
_MAX_OUTSTANDING = 2000  # messages that are not confirmed yet: two calls' worth


class PublishError(YoloBatchError):
    """Pub/Sub did not take the jobs."""


class MessageError(PublishError):
    """A message cannot be published as it is."""


def job_message(uri: str, wanted: Replace | None = None) -> bytes:
    """Write the data of a job's message, as `service.events` reads it.

    Args:
        uri: `gs://bucket/object`, with an optional `#generation`.
        wanted: permission to replace what is recorded of it.
    """
    job: dict[str, object] = {"uri": uri}
    if wanted:
        job["replace"] = {
            "if_created_before": wanted.if_created_before.isoformat(),
            "unless_model": wanted.unless_model,
        }
    return json.dumps(job, ensure_ascii=False).encode()


def topic_path(topic: str, project: str | None) -> str:
    """Complete a topic's name to `projects/PROJECT/topics/NAME`.

    Raises:
        PublishError: the project is not known.
    """
    if "/" in topic:
        return topic
    if not project:
        raise PublishError("Set GOOGLE_CLOUD_PROJECT, or give the topic's full name")
    return f"projects/{project}/topics/{topic}"


def connect() -> pubsub_v1.PublisherClient:
    """Connect to Pub/Sub, with a client that sends up to 1,000 messages in one call.

    Raises:
        CredentialsError: there are none.
    """
    try:
        return pubsub_v1.PublisherClient(_BATCHING)
    except GoogleAuthError as exc:
        raise CredentialsError from exc


def publish_jobs(
    client: pubsub_v1.PublisherClient,
    topic: str,
    messages: Iterable[bytes],
    *,
    attributes: Mapping[str, str] | None = None,
    timeout_seconds: float = 30.0,
) -> int:
    """Publish, and wait until Pub/Sub has them all. Few of them are in memory at once.

    Args:
        client: the vendor's client; see `connect`.
        topic: the topic's full name.
        messages: their data.
        attributes: of each of them; a job has none.
        timeout_seconds: how long one call is retried.

    Returns:
        How many there were.

    Raises:
        MessageError: Pub/Sub or its client cannot take some message as it is.
        PublishError: some message was not taken; publishing again is safe.
    """
    if taken := _NO_ATTRIBUTES.intersection(attributes or {}):
        raise MessageError(f"Attributes of these names cannot be published: {sorted(taken)}")
    policy = retry.Retry(
        predicate=retry.if_exception_type(
            exceptions.ServiceUnavailable, exceptions.InternalServerError, exceptions.Aborted
        ),
        timeout=timeout_seconds,
    )
    outstanding: deque[Future[str]] = deque()
    published = 0
    try:
        for message in messages:
            outstanding.append(
                client.publish(
                    topic, message, retry=policy, timeout=timeout_seconds, **(attributes or {})
                )
            )
            published += 1
            while outstanding and (len(outstanding) > _MAX_OUTSTANDING or outstanding[0].done()):
                outstanding.popleft().result(timeout=timeout_seconds)
        for future in outstanding:
            future.result(timeout=timeout_seconds)
    except exceptions.NotFound as exc:
        raise PublishError(f"There is no topic {topic}") from exc
    except (exceptions.InvalidArgument, ValueError, TypeError) as exc:
        raise MessageError(f"Pub/Sub cannot take the message: {exc}") from exc
    except (exceptions.GoogleAPIError, GoogleAuthError, TimeoutError) as exc:
        raise PublishError(f"Pub/Sub did not take the jobs: {exc}") from exc
    return published
