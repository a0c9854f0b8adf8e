"""Jobs as Pub/Sub messages."""

import json
from collections.abc import Iterable, Iterator, Mapping

from google.api_core import exceptions, retry
from google.auth.exceptions import GoogleAuthError
from google.cloud import pubsub_v1  # type: ignore[attr-defined]  # published without types

from service.domain import Replace
from service.errors import CredentialsError, YoloBatchError
from service.events import MAX_URIS

# Parameters of the client's own, which takes attributes as keywords beside them.
_NO_ATTRIBUTES = {"self", "topic", "data", "ordering_key", "retry", "timeout"}
# Of a message's data. As the base64 of a push it stays below the service's MAX_REQUEST_BYTES.
_MAX_DATA_BYTES = 2 * 2**20


class PublishError(YoloBatchError):
    """Pub/Sub did not take the jobs."""


class MessageError(PublishError):
    """A message cannot be published as it is."""


def job_messages(
    uris: Iterable[str], *, uris_per_message: int = MAX_URIS, rerun: Replace | None = None
) -> Iterator[bytes]:
    """Write uris as the data of as few messages as allowed.

    Args:
        uris: `gs://bucket/object`, each with an optional `#generation`.
        uris_per_message: at most so many, and fewer where their names are very long.
        rerun: leave to replace what is recorded of them.
    """
    group: list[str] = []
    size = 0
    for uri in uris:
        length = len(json.dumps(uri, ensure_ascii=False).encode()) + len(", ")
        if group and (len(group) == uris_per_message or size + length > _MAX_DATA_BYTES):
            yield _job(group, rerun)
            group, size = [], 0
        group.append(uri)
        size += length
    if group:
        yield _job(group, rerun)


def _job(uris: list[str], rerun: Replace | None) -> bytes:
    job: dict[str, object] = {"uris": uris}
    if rerun:
        job["rerun"] = {"seen_at": rerun.seen_at.isoformat(), "model": rerun.model}
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
    """Connect to Pub/Sub.

    Raises:
        CredentialsError: there are none.
    """
    try:
        return pubsub_v1.PublisherClient()
    except GoogleAuthError as exc:
        raise CredentialsError from exc


def publish_jobs(
    client: pubsub_v1.PublisherClient,
    topic: str,
    messages: Iterable[bytes],
    *,
    attributes: Mapping[str, str] | None = None,
    timeout_seconds: float = 30.0,
) -> list[str]:
    """Publish, and wait until Pub/Sub has them all.

    Args:
        client: the vendor's client, which sends many messages in one call.
        topic: the topic's full name.
        messages: their data.
        attributes: of each of them; a job has none.
        timeout_seconds: how long one call is retried.

    Returns:
        The ids of the messages, in order.

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
    try:
        futures = [
            client.publish(
                topic, message, retry=policy, timeout=timeout_seconds, **(attributes or {})
            )
            for message in messages
        ]
        return [future.result(timeout=timeout_seconds) for future in futures]
    except exceptions.NotFound as exc:
        raise PublishError(f"There is no topic {topic}") from exc
    except (exceptions.InvalidArgument, ValueError, TypeError) as exc:
        raise MessageError(f"Pub/Sub cannot take the message: {exc}") from exc
    except (exceptions.GoogleAPIError, GoogleAuthError, TimeoutError) as exc:
        raise PublishError(f"Pub/Sub did not take the jobs: {exc}") from exc
