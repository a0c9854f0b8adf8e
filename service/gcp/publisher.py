"""Publishes jobs as Pub/Sub messages, one per image."""

import json
from collections import deque
from collections.abc import Iterable, Mapping
from concurrent.futures import Future

from google.api_core import exceptions, retry
from google.auth.exceptions import GoogleAuthError
from google.cloud import pubsub_v1  # type: ignore[attr-defined]  # published without types

from service.domain import Replace
from service.errors import CredentialsError, YoloBatchError

# Attributes cannot have these names: the client's `publish` takes attributes as keyword arguments,
# and these are its other parameters.
_RESERVED_ATTRIBUTES = {"self", "topic", "data", "ordering_key", "retry", "timeout"}
_BATCHING = pubsub_v1.types.BatchSettings(
    max_messages=1000,  # Pub/Sub's limit for one call
    max_latency=0.05,  # seconds that a message waits for other messages
)
_MAX_OUTSTANDING = 2000  # messages not confirmed yet: two full calls


class PublishError(YoloBatchError):
    """Pub/Sub did not accept the jobs."""


class MessageError(PublishError):
    """A message cannot be published as it is."""


def job_message(uri: str, permission: Replace | None = None) -> bytes:
    """Return the data of a job's message, which `service.events` parses.

    Args:
        uri: `gs://bucket/object`, with an optional `#generation`.
        permission: the permission to replace the image's document. None: no permission.
    """
    job: dict[str, object] = {"uri": uri}
    if permission:
        job["replace"] = {
            "if_created_before": permission.if_created_before.isoformat(),
            "unless_model": permission.unless_model,
        }
    return json.dumps(job, ensure_ascii=False).encode()


def topic_path(topic: str, project: str | None) -> str:
    """Return a topic's full name, `projects/PROJECT/topics/NAME`.

    Args:
        topic: the topic's short name or full name.
        project: the topic's project. Only a short name needs it.

    Raises:
        PublishError: `topic` is a short name, and there is no project.
    """
    if "/" in topic:
        return topic
    if not project:
        raise PublishError("Set GOOGLE_CLOUD_PROJECT, or pass the topic's full name")
    return f"projects/{project}/topics/{topic}"


def connect() -> pubsub_v1.PublisherClient:
    """Return a client that sends up to 1,000 messages in one call.

    Raises:
        CredentialsError: no credentials.
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
    """Publish messages, and wait until Pub/Sub has confirmed all. At most 2,000 are in memory.

    Args:
        client: the vendor's client. See `connect`.
        topic: the topic's full name.
        messages: the data of each message.
        attributes: the attributes of every message. A job has none.
        timeout_seconds: how long one call may take with all its attempts.

    Returns:
        How many messages were published.

    Raises:
        MessageError: Pub/Sub or its client cannot accept a message as it is.
        PublishError: a message was not published. Publishing all of them again is safe.
    """
    if reserved := _RESERVED_ATTRIBUTES.intersection(attributes or {}):
        raise MessageError(f"Attributes with these names cannot be published: {sorted(reserved)}")
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
        raise MessageError(f"Pub/Sub cannot accept the message: {exc}") from exc
    except (exceptions.GoogleAPIError, GoogleAuthError, TimeoutError) as exc:
        raise PublishError(f"Pub/Sub did not accept the jobs: {exc}") from exc
    return published
