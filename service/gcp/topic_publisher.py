"""Publishes the service's own messages: those of the results topic and of the alerts topic."""

from collections.abc import Iterator, Mapping
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager

from google.api_core import exceptions
from google.auth.exceptions import GoogleAuthError
from google.cloud import pubsub_v1  # type: ignore[attr-defined]  # published without types

from service.deadline import Deadline
from service.errors import CredentialsError, PubSubRefusedError, PubSubUnavailableError
from service.gcp.collection import RetryBudget
from service.gcp.outages import Outages
from service.gcp.refusals import NO_CREDENTIALS

# Messages of several images share a call. A message waits at most this long for others.
_BATCHING = pubsub_v1.types.BatchSettings(max_messages=100, max_latency=0.01)
_SECONDS = 6.0  # for one message, with all attempts
_NO_ROLE = "Pub/Sub denies access. Grant the service account roles/pubsub.publisher on the topic."
_NO_TOPIC = "The Pub/Sub topic does not exist. Create it, or correct the setting that names it."
_REFUSES_MESSAGES = (
    "Pub/Sub refuses the topic's messages. Remove the topic's schema and its message transforms. "
    "If it has a Cloud KMS key, check that the key is enabled."
)


def connect_topic() -> pubsub_v1.PublisherClient:
    """Return a client for `TopicPublisher`. Several topics can share it.

    Raises:
        CredentialsError: no credentials.
    """
    try:
        return pubsub_v1.PublisherClient(_BATCHING)
    except GoogleAuthError as exc:
        raise CredentialsError from exc


class TopicPublisher:
    """Publishes messages to one topic. Safe to use from many threads."""

    def __init__(
        self, client: pubsub_v1.PublisherClient, topic: str, *, outages: Outages | None = None
    ) -> None:
        """Take the client and the topic.

        Args:
            client: the vendor's client. See `connect_topic`.
            topic: the topic's full name, `projects/PROJECT/topics/NAME`.
            outages: logs outages. None: a new object.
        """
        self._client = client
        self._topic = topic
        self._outages = outages or Outages()

    def publish(self, data: bytes, attributes: Mapping[str, str], deadline: Deadline) -> None:
        """Publish one message. Return when Pub/Sub has confirmed it.

        After an error, the message may still be published later.

        Args:
            data: at most 10 MB, Pub/Sub's limit.
            attributes: at most 100. A value has at most 1,024 bytes.
            deadline: ends the wait.

        Raises:
            PubSubUnavailableError: Pub/Sub did not confirm the message in time.
            PubSubRefusedError: Pub/Sub refuses every message of the topic, so an operator must act.
            TooLateError: the deadline has passed.
        """
        seconds = deadline.wait_seconds(_SECONDS)
        with self._report_outage():
            future = self._client.publish(
                self._topic, data, **RetryBudget(seconds).limits, **attributes
            )
            future.result(timeout=seconds)
        self._outages.clear(self._topic)

    @contextmanager
    def _report_outage(self) -> Iterator[None]:
        """Translate the vendor's errors. If an error affects every message, log it only once."""
        try:
            with _translate_errors():
                yield
        except PubSubRefusedError as exc:
            self._outages.report(self._topic, str(exc), str(exc.__cause__ or ""))
            raise


@contextmanager
def _translate_errors() -> Iterator[None]:
    try:
        yield
    except exceptions.PermissionDenied as exc:
        raise PubSubRefusedError(_NO_ROLE) from exc
    except exceptions.NotFound as exc:
        raise PubSubRefusedError(_NO_TOPIC) from exc
    except (exceptions.Unauthenticated, GoogleAuthError) as exc:
        raise PubSubRefusedError(NO_CREDENTIALS) from exc
    except (exceptions.InvalidArgument, exceptions.FailedPrecondition) as exc:
        # The messages are within Pub/Sub's limits, so the cause is the topic's configuration.
        raise PubSubRefusedError(_REFUSES_MESSAGES) from exc
    except (exceptions.GoogleAPIError, FutureTimeoutError) as exc:
        raise PubSubUnavailableError("Pub/Sub is unavailable.") from exc
