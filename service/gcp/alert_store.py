"""The documents of alerts, and the decision which alerts are published.

`service.gcp.firestore` creates an alert's document together with the result of its image. Then one
instance decides whether the alert is published or suppressed. A second document for each rule of a
source, its cooldown, has the alert that was published last. Both documents are changed in one
atomic commit, which fails if another process has changed one of them meanwhile. So of many images
that match at the same time, on any number of instances, one alert is published.

The time of a decision is Firestore's: the time at which it read the documents.
"""

import hashlib
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, cast

import msgspec
from google.api_core import exceptions
from google.cloud import firestore
from google.cloud.firestore_v1.base_query import FieldFilter

from service.deadline import NO_DEADLINE, Deadline
from service.domain import AlertState, LastAlert, StoredAlert
from service.errors import FirestoreUnavailableError, StoredResultError
from service.gcp.collection import ALERTS, COOLDOWNS, Collection, RetryBudget

# Another process can be first once, because its decision starts the cooldown.
_MAX_ATTEMPTS = 5
# Firestore removes a cooldown that is older (the TTL policy of `expires_at`). No rule has a longer
# one.
_LIFETIME = timedelta(days=31)


class AlertStore(Collection):
    """Reads, decides and counts alerts. Safe to use from many threads."""

    def __init__(
        self, client: firestore.Client, *, collection: str, timeout_seconds: float
    ) -> None:
        """Take the client, the name of the results' collection, and the time of one call."""
        super().__init__(client, collection=collection + ALERTS, timeout_seconds=timeout_seconds)
        self._cooldowns = client.collection(collection + COOLDOWNS)

    def last_alert(
        self, source_id: str, rule: str, deadline: Deadline = NO_DEADLINE
    ) -> LastAlert | None:
        """Return the alert of a rule that was published last, or None if none is known.

        Raises:
            FirestoreUnavailableError: Firestore did not respond.
            TooLateError: the deadline has passed.
        """
        reference = self._cooldowns.document(_cooldown_id(source_id, rule))
        with self._reading():
            return _last_alert(reference.get(**self._budget(deadline).limits))

    def read(self, alert_id: str, deadline: Deadline = NO_DEADLINE) -> StoredAlert | None:
        """Return an alert, or None if it has no document.

        Raises:
            StoredResultError: a person has edited the document.
            FirestoreUnavailableError: Firestore did not respond.
            TooLateError: the deadline has passed.
        """
        reference = self._collection.document(alert_id)
        with self._reading():
            snapshot = reference.get(**self._budget(deadline).limits)
        return _stored_alert(snapshot) if snapshot.exists else None

    def decide(
        self,
        alert_id: str,
        source_id: str,
        rule: str,
        cooldown_seconds: float,
        deadline: Deadline = NO_DEADLINE,
        *,
        active: LastAlert | None = None,
    ) -> tuple[StoredAlert | None, LastAlert | None]:
        """Decide whether a pending alert is published. A decision is never changed.

        Args:
            alert_id: the alert.
            source_id: its source.
            rule: its rule.
            cooldown_seconds: for how long the rule's last alert suppresses others.
            deadline: ends the requests.
            active: the rule's last alert, if its cooldown is known not to be over. The cooldown is
                not read then.

        Returns:
            The decided alert, or None if it was removed, and the rule's last published alert.

        Raises:
            StoredResultError: a person has edited the alert's document.
            FirestoreUnavailableError: Firestore did not confirm in time.
            TooLateError: the deadline has passed.
        """
        budget = self._budget(deadline)
        cooldown = self._cooldowns.document(_cooldown_id(source_id, rule))
        for _ in range(_MAX_ATTEMPTS):
            with self._report_outage(self._writes):
                try:
                    return self._decide(alert_id, cooldown, cooldown_seconds, active, budget)
                except (
                    exceptions.AlreadyExists,
                    exceptions.FailedPrecondition,
                    exceptions.NotFound,
                ):
                    continue  # another process was first, or our own commit's response was lost
        raise FirestoreUnavailableError("Other processes changed the alert meanwhile.")

    def confirm(self, alert_id: str, deadline: Deadline = NO_DEADLINE) -> None:
        """Note that an alert's message was published, so that no redelivery publishes it again.

        Raises:
            FirestoreUnavailableError: Firestore did not confirm in time.
            TooLateError: the deadline has passed.
        """
        with self._report_outage(self._writes):
            try:
                self._collection.document(alert_id).update(
                    {"published_at": firestore.SERVER_TIMESTAMP}, **self._budget(deadline).limits
                )
            except exceptions.NotFound:
                return  # the alert was removed with its image

    def count_suppressed(self, alert_id: str, deadline: Deadline = NO_DEADLINE) -> int:
        """Return how many alerts the cooldown of a published alert has suppressed.

        It costs one read for each 1,000 of them:
        https://firebase.google.com/docs/firestore/query-data/aggregation-queries#pricing

        Raises:
            FirestoreUnavailableError: Firestore did not respond.
            TooLateError: the deadline has passed.
        """
        suppressed = self._collection.where(filter=FieldFilter("suppressed_by", "==", alert_id))
        with self._reading():
            # The stubs of `count` have other types than its results.
            [[count]] = cast(Any, suppressed).count().get(**self._budget(deadline).limits)
        return int(count.value)

    def _decide(
        self,
        alert_id: str,
        cooldown: firestore.DocumentReference,
        cooldown_seconds: float,
        active: LastAlert | None,
        budget: RetryBudget,
    ) -> tuple[StoredAlert | None, LastAlert | None]:
        alert = self._collection.document(alert_id)
        references = [alert] if active else [alert, cooldown]
        read = {s.reference: s for s in self._client.get_all(references, **budget.limits)}
        if not read[alert].exists:
            return None, active
        stored = _stored_alert(read[alert])
        last = active or _last_alert(read[cooldown])
        if stored.state is not AlertState.PENDING:
            return stored, last
        batch = self._client.batch()
        changes: dict[str, str | None]
        if last and last.age_seconds < cooldown_seconds:
            changes = {"state": str(AlertState.SUPPRESSED), "suppressed_by": last.id}
        else:
            changes = {
                "state": str(AlertState.PUBLISHED),
                "previous_alert": last.id if last else None,
            }
            last = LastAlert(alert_id, 0.0)
            fields = {
                "source_id": stored.source_id,
                "rule": stored.rule,
                "last_alert": alert_id,
                "decided_at": read[cooldown].read_time,
                "expires_at": read[cooldown].read_time + _LIFETIME,
            }
            if read[cooldown].exists:
                batch.update(cooldown, fields, option=self._unchanged(read[cooldown]))
            else:
                batch.create(cooldown, fields)
        batch.update(alert, changes, option=self._unchanged(read[alert]))
        batch.commit(**budget.limits)
        return _stored_alert(read[alert], changes), last

    def _unchanged(self, snapshot: Any) -> Any:
        return self._client.write_option(last_update_time=snapshot.update_time)


def _cooldown_id(source_id: str, rule: str) -> str:
    """Return the id of a cooldown: a hash, so that the ids of a source cause no hot spot."""
    return hashlib.sha256(f"{source_id}\n{rule}".encode()).hexdigest()[:40]


def _last_alert(cooldown: Any) -> LastAlert | None:
    """Return the last alert of a rule, or None if it cannot be true.

    A person may have edited the document. A time in the future would suppress alerts until then.
    """
    fields = cooldown.to_dict() or {}
    alert_id, decided_at = fields.get("last_alert"), fields.get("decided_at")
    is_possible = isinstance(decided_at, datetime) and decided_at <= cooldown.update_time
    if not isinstance(alert_id, str) or not is_possible:
        return None
    return LastAlert(alert_id, (cooldown.read_time - decided_at).total_seconds())


def _stored_alert(snapshot: Any, changes: Mapping[str, Any] | None = None) -> StoredAlert:
    """Return the alert of a document, perhaps with changed fields.

    Raises:
        StoredResultError: a field has another type. A person may have edited it.
    """
    fields: dict[str, Any] = {**snapshot.to_dict(), **(changes or {})}
    published_at = fields.get("published_at")
    if isinstance(published_at, datetime):  # Firestore's own class, which msgspec does not know
        published_at = datetime.combine(published_at.date(), published_at.timetz())
    own = {"id": snapshot.id, "fields": fields, "published_at": published_at}
    try:
        return msgspec.convert(fields | own, StoredAlert)
    except msgspec.ValidationError as exc:
        raise StoredResultError(
            f"The document of the alert {snapshot.id} has another form than the service writes: "
            f"{exc}"
        ) from exc
