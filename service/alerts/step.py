"""Alerts before and after the commit: which rules fire, and which alerts are published.

Before the commit, each rule that fires becomes an alert. If the rule's cooldown is running, the
alert is suppressed at once. Otherwise it is pending. After the commit, each pending alert is
decided, and each alert that is to be published is published and logged. So a flood of matching
images costs one more document an image, and not more requests.

A crash at any point loses no alert, because the message is then redelivered: a pending alert is
decided, and an alert whose message is not confirmed is published again, with the same id.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Protocol

from service.alerts import matching as alerts
from service.alerts.message import AlertMessage, encode, message_of
from service.deadline import NO_DEADLINE, Deadline
from service.domain import (
    Alert,
    AlertState,
    ImageRef,
    ImageResult,
    LastAlert,
    Severity,
    StoredAlert,
)
from service.errors import BadImageError, ObjectGoneError, StoredResultError, TooLateError
from service.publish.after_commit import RecordedImage
from service.publish.results_step import Topic
from service.sources.rules import AlertRules
from service.stored_result import listed_alerts

logger = logging.getLogger(__name__)

_MAX_RULES = 10_000  # rules whose last alerts are known. Above this number, all are dropped.
_LOCKS = 16
_MAX_LOGGED_LABELS = 20


class AlertStore(Protocol):
    """Where alerts are stored. `service.gcp.alert_store.AlertStore` implements it."""

    def last_alert(self, source_id: str, rule: str, deadline: Deadline) -> LastAlert | None:
        """Return the alert of a rule that was published last."""

    def read(self, alert_id: str, deadline: Deadline) -> StoredAlert | None:
        """Return an alert, or None if it has no document."""

    def decide(
        self,
        alert_id: str,
        source_id: str,
        rule: str,
        cooldown_seconds: float,
        deadline: Deadline,
        *,
        active: LastAlert | None,
    ) -> tuple[StoredAlert | None, LastAlert | None]:
        """Decide whether a pending alert is published."""

    def confirm(self, alert_id: str, deadline: Deadline) -> None:
        """Note that an alert's message was published."""

    def count_suppressed(self, alert_id: str, deadline: Deadline) -> int:
        """Return how many alerts the cooldown of an alert has suppressed."""


@dataclass(frozen=True)
class _Known:
    """The last alert of a rule, and when it was decided, in seconds of the own clock."""

    id: str
    decided_at: float


class AlertStep:
    """The alerts of the images of this instance. Safe to use from many threads."""

    def __init__(
        self,
        store: AlertStore,
        topic: Topic | None,
        console_url: Callable[[str], str],
        resolve: Callable[[ImageRef, Deadline], ImageRef],
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the parts.

        Args:
            store: where alerts are stored.
            topic: where they are published. None: they are only logged.
            console_url: returns the page of the document with an id.
            resolve: returns an image with the metadata that Cloud Storage has of it.
            now: returns the time at which the age of an image is judged.
            clock: returns seconds.
        """
        self._store = store
        self._topic = topic
        self._console_url = console_url
        self._resolve = resolve
        self._now = now
        self._clock = clock
        self._known: dict[tuple[str, str], _Known] = {}  # by source and rule
        self._locks = [threading.Lock() for _ in range(_LOCKS)]

    def fired(
        self, rules: AlertRules, result: ImageResult, deadline: Deadline = NO_DEADLINE
    ) -> tuple[Alert, ...]:
        """Return the alerts that are created with a result: pending or suppressed.

        Nothing is read if no rule fires, or if the cooldowns are known to run. Only of a job's
        image, the time of its creation is looked up, because a job has no event time.

        Raises:
            FirestoreUnavailableError: Firestore did not respond.
            StorageUnavailableError: Cloud Storage did not respond.
            TooLateError: the deadline has passed.
        """
        if not alerts.matches(rules, result):
            return ()
        if result.event_time is None and result.ref.metadata.created_at is None:
            result = self._dated(result, deadline)
        return tuple(
            self._with_state(rules.source_id, alert, deadline)
            for alert in alerts.fired(rules, result, self._now())
        )

    def publish(self, image: RecordedImage, deadline: Deadline) -> None:
        """Decide the pending alerts of an image, and publish what is to be published.

        Raises:
            TransientError: it may not be published. The next delivery repeats it.
        """
        if image.alerts is None:
            for listed in listed_alerts(image.document_id, image.document):
                with _logged_edits(image):
                    self._publish_stored(image, listed.id, deadline)
            return
        for alert in image.alerts:
            if alert.state is AlertState.PENDING:
                source_id = image.document["source"]["id"]
                with _logged_edits(image):
                    self._decide(
                        image, alert.id, source_id, alert.rule, alert.cooldown_seconds, deadline
                    )

    def _dated(self, result: ImageResult, deadline: Deadline) -> ImageResult:
        """Return the result with the time at which its object was created, if that is known."""
        try:
            return replace(result, ref=self._resolve(result.ref, deadline))
        except (BadImageError, ObjectGoneError) as exc:  # for example, it was overwritten meanwhile
            logger.info(
                "An image of unknown age cannot alert",
                extra={"uri": result.ref.uri, "reason": str(exc)},
            )
            return result

    def _publish_stored(self, image: RecordedImage, alert_id: str, deadline: Deadline) -> None:
        alert = self._store.read(alert_id, deadline)
        if alert and alert.state is AlertState.PENDING:
            self._decide(
                image, alert.id, alert.source_id, alert.rule, alert.cooldown_seconds, deadline
            )
        elif alert and alert.state is AlertState.PUBLISHED and alert.published_at is None:
            self._publish(image, alert, deadline)

    def _with_state(self, source_id: str, alert: Alert, deadline: Deadline) -> Alert:
        active = self._active(source_id, alert.rule, alert.cooldown_seconds)
        if not active:
            started = self._clock()
            last = self._store.last_alert(source_id, alert.rule, deadline)
            self._learn(source_id, alert.rule, last, started)
            active = self._active(source_id, alert.rule, alert.cooldown_seconds)
        if not active:
            return alert
        return replace(alert, state=AlertState.SUPPRESSED, suppressed_by=active.id)

    def _decide(
        self,
        image: RecordedImage,
        alert_id: str,
        source_id: str,
        rule: str,
        cooldown_seconds: int,
        deadline: Deadline,
    ) -> None:
        # One decision of a rule at a time: the others then know that its cooldown is running.
        with self._locked(source_id, rule, deadline):
            active = self._active(source_id, rule, cooldown_seconds)
            started = self._clock()
            alert, last = self._store.decide(
                alert_id, source_id, rule, cooldown_seconds, deadline, active=active
            )
            if not active:
                self._learn(source_id, rule, last, started)
        if alert and alert.state is AlertState.PUBLISHED and alert.published_at is None:
            self._publish(image, alert, deadline)

    def _publish(self, image: RecordedImage, alert: StoredAlert, deadline: Deadline) -> None:
        previous = alert.previous_alert
        message = message_of(
            alert,
            image.document,
            suppressed=self._store.count_suppressed(previous, deadline) if previous else 0,
            console_url=self._console_url(image.document_id),
        )
        if self._topic:
            encoded = encode(message)
            self._topic.publish(encoded.data, encoded.attributes, deadline)
        log_alert(message)
        self._store.confirm(alert.id, deadline)

    def _active(self, source_id: str, rule: str, cooldown_seconds: float) -> LastAlert | None:
        """Return the last alert of a rule, if its cooldown is known to run."""
        known = self._known.get((source_id, rule))
        if not known:
            return None
        age_seconds = self._clock() - known.decided_at
        return LastAlert(known.id, age_seconds) if age_seconds < cooldown_seconds else None

    def _learn(self, source_id: str, rule: str, last: LastAlert | None, started: float) -> None:
        """Remember the last alert of a rule.

        Args:
            source_id: the rule's source.
            rule: the rule.
            last: its last alert, as Firestore's clock has its age.
            started: when the request for it began, by the own clock. The cooldown is thus believed
                to end a little too early, and is read again then.
        """
        if not last:
            return
        if len(self._known) >= _MAX_RULES:
            self._known.clear()
        self._known[source_id, rule] = _Known(last.id, started - last.age_seconds)

    @contextmanager
    def _locked(self, source_id: str, rule: str, deadline: Deadline) -> Iterator[None]:
        lock = self._locks[hash((source_id, rule)) % _LOCKS]
        if not lock.acquire(timeout=min(deadline.wait_seconds(), threading.TIMEOUT_MAX)):
            raise TooLateError
        try:
            yield
        finally:
            lock.release()


@contextmanager
def _logged_edits(image: RecordedImage) -> Iterator[None]:
    """Log an alert document that a person has edited. The image's other alerts are published."""
    try:
        yield
    except StoredResultError as exc:
        # Each redelivery would fail in the same way.
        logger.error(
            "An alert cannot be published: a document has another form than the service writes",
            extra={"document_id": image.document_id, "reason": str(exc)},
        )


def log_alert(message: AlertMessage) -> None:
    """Log an alert that was published. The log-match alert policy finds this line.

    It is never an ERROR, because that reports a fault of the service.
    """
    level = logging.INFO if message.severity == Severity.INFO else logging.WARNING
    labels = dict(list(message.labels.items())[:_MAX_LOGGED_LABELS])
    logger.log(
        level,
        "Alert",
        extra={
            "alert_id": message.id,
            "rule": message.rule,
            "source": message.source,
            "alert_severity": message.severity,
            "text": message.text,
            "labels": labels,
            "num": message.num,
            "suppressed": message.suppressed,
            "document_id": message.document_id or None,
            "uri": message.uri or None,
            "console_url": message.console_url or None,
        },
    )
