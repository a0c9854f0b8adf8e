"""Jobs as Pub/Sub messages."""

import json
from collections.abc import Iterable, Iterator
from itertools import islice

from google.api_core import exceptions, retry
from google.auth.exceptions import GoogleAuthError
from google.cloud import pubsub_v1  # type: ignore[attr-defined]  # published without types

from service.errors import CredentialsError, YoloBatchError
from service.events import MAX_URIS


class PublishError(YoloBatchError):
    """Pub/Sub did not take the jobs."""


def job_messages(uris: Iterable[str], *, uris_per_message: int = MAX_URIS) -> Iterator[bytes]:
    """Write uris as the data of as few messages as allowed."""
    remaining = iter(uris)
    while group := list(islice(remaining, uris_per_message)):
        yield json.dumps({"uris": group}, ensure_ascii=False).encode()


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
    timeout_seconds: float = 30.0,
) -> list[str]:
    """Publish, and wait until Pub/Sub has them all.

    Returns:
        The ids of the messages, in order.

    Raises:
        PublishError: some message was not taken; publishing again is safe.
    """
    policy = retry.Retry(
        predicate=retry.if_exception_type(
            exceptions.ServiceUnavailable, exceptions.InternalServerError, exceptions.Aborted
        ),
        timeout=timeout_seconds,
    )
    try:
        futures = [
            client.publish(topic, message, retry=policy, timeout=timeout_seconds)
            for message in messages
        ]
        return [future.result(timeout=timeout_seconds) for future in futures]
    except exceptions.NotFound as exc:
        raise PublishError(f"There is no topic {topic}") from exc
    except (exceptions.GoogleAPIError, GoogleAuthError, TimeoutError) as exc:
        raise PublishError(f"Pub/Sub did not take the jobs: {exc}") from exc
