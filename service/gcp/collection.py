"""The Firestore collection of the results, and the time limit of a call.

`service.gcp.firestore` writes its documents, `service.gcp.result_reader` reads them.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from google.api_core import exceptions, retry
from google.auth.exceptions import GoogleAuthError
from google.cloud import firestore

from service.deadline import Deadline
from service.domain import GeoPoint, StoredDocument
from service.errors import FirestoreRefusedError, FirestoreUnavailableError
from service.gcp.outages import Outages
from service.gcp.refusals import NO_CREDENTIALS
from service.stored_result import listed_alerts

# Ending of the collection of the tombstones: the ids of documents that were removed.
TOMBSTONES = "-deleted"
# Endings of the collections of the alerts, and of the last published alert of each rule.
ALERTS = "-alerts"
COOLDOWNS = "-cooldowns"
# How many writes one commit has at most. Each document that is created, changed or removed is one.
MAX_COMMIT_WRITES = 500
REFUSES_DOCUMENTS = "Firestore refuses every document. Check FIRESTORE_COLLECTION."

_TRANSIENT = retry.if_exception_type(
    exceptions.Aborted,
    exceptions.DeadlineExceeded,
    exceptions.InternalServerError,
    exceptions.ResourceExhausted,
    exceptions.ServiceUnavailable,
)
_STORED_FIELDS = [
    "status",
    "model.sha256",
    "created_at",
    "timings",
    "schema",
    "detections_uri",
    "derived",
    "alerts",
]
_NO_ACCESS = (
    "Firestore denies access. Grant the service account roles/datastore.user, and check that the "
    "project has billing and the Firestore API enabled."
)
_NO_DATABASE = "The Firestore database does not exist. Create it, or set FIRESTORE_DATABASE."
_NO_NATIVE = "Firestore refuses the call. The database must be in Native mode. See the log."


class RetryBudget:
    """One time limit for all requests of a call, and for all their attempts.

    By default an attempt gets a third of it. So a server that does not respond at first is asked
    again.
    """

    def __init__(self, seconds: float, *, attempts: int = 3) -> None:
        """Start the clock. An attempt gets `seconds / attempts`."""
        self._deadline = Deadline.after(seconds)
        self._attempt_seconds = seconds / attempts

    @property
    def limits(self) -> dict[str, Any]:
        """Keyword arguments of a client's method: its retries and its timeout."""
        seconds = max(self._deadline.seconds_left(), 0.0)
        policy = retry.Retry(predicate=_TRANSIENT, initial=0.1, maximum=2.0, timeout=seconds)
        return {"retry": policy, "timeout": self._limited}

    def _limited(self, attempt: Callable[..., Any]) -> Callable[..., Any]:
        """Return the call with a timeout for each attempt.

        api_core accepts any decorator as a timeout. Its own decorator, TimeToDeadlineTimeout, gives
        an attempt the full time again when less than a second is left (google-api-core 2.44).
        """

        def limited(*args: Any, **kwargs: Any) -> Any:
            seconds = min(self._deadline.seconds_left(), self._attempt_seconds)
            return attempt(*args, **kwargs | {"timeout": max(seconds, 0.0)})

        return limited


class Collection:
    """The collection of the results. Safe to use from many threads."""

    def __init__(
        self,
        client: firestore.Client,
        *,
        collection: str,
        timeout_seconds: float,
        outages: Outages | None = None,
    ) -> None:
        """Take the client and the limits.

        Args:
            client: the vendor's client.
            collection: name of the collection.
            timeout_seconds: time of one call, with all its attempts.
            outages: logs outages. None: a new object.
        """
        self._client = client
        self._outages = outages or Outages()
        self._collection = client.collection(collection)
        # Separate subjects: an account may have read access only.
        self._reads = f"Firestore database {client._database}, reading"
        self._writes = f"Firestore database {client._database}, writing"
        self._timeout_seconds = timeout_seconds

    @property
    def project(self) -> str:
        """The database's project."""
        return str(self._client.project)

    def _read(self, document_ids: Sequence[str], budget: RetryBudget) -> dict[str, StoredDocument]:
        return documents_by_id(self._snapshots(document_ids, budget))

    def _snapshots(self, document_ids: Sequence[str], budget: RetryBudget) -> list[Any]:
        refs = [self._collection.document(document_id) for document_id in document_ids]
        return list(self._client.get_all(refs, field_paths=_STORED_FIELDS, **budget.limits))

    def _budget(self, deadline: Deadline) -> RetryBudget:
        return RetryBudget(deadline.wait_seconds(self._timeout_seconds))

    @contextmanager
    def _reading(self) -> Iterator[None]:
        with self._report_outage(self._reads):
            yield
        self._outages.clear(self._reads)

    @contextmanager
    def _report_outage(self, subject: str) -> Iterator[None]:
        """Translate the vendor's errors. If an error affects every message, log it only once."""
        try:
            with translate_errors():
                yield
        except FirestoreRefusedError as exc:
            self._outages.report(subject, str(exc), str(exc.__cause__ or ""))
            raise


def fields_of(snapshot: Any) -> dict[str, Any]:
    """Return a document's fields. A place is the service's `GeoPoint`, not Firestore's."""
    fields: dict[str, Any] = snapshot.to_dict() or {}
    place = fields.get("location")
    if isinstance(place, firestore.GeoPoint):
        fields["location"] = GeoPoint(place.latitude, place.longitude)
    return fields


def server_time(write: Any) -> datetime:
    """Return the time that a write got from Firestore's clock: the value of SERVER_TIMESTAMP."""
    [value] = write.transform_results
    time: datetime = value.timestamp_value
    return time


def documents_by_id(snapshots: Iterable[Any]) -> dict[str, StoredDocument]:
    """Return the documents that exist, by id. The snapshots have `_STORED_FIELDS`."""
    documents = {}
    for snapshot in snapshots:
        if snapshot.exists:
            data = snapshot.to_dict()
            created_at = data.get("created_at")
            is_time = isinstance(created_at, datetime)  # a person may have edited the document
            documents[snapshot.id] = StoredDocument(
                status=data.get("status", ""),
                model=(data.get("model") or {}).get("sha256"),
                created_at=created_at if is_time else snapshot.create_time,
                update_time=snapshot.update_time,
                timings=data.get("timings"),
                schema=data.get("schema"),
                object_uris=object_uris(data),
                alerts=listed_alerts(snapshot.id, data),
            )
    return documents


def object_uris(data: Mapping[str, Any]) -> frozenset[str]:
    """Return the objects in RESULTS_BUCKET that a document, which may be edited, refers to."""
    uris = {str(data["detections_uri"])} if data.get("detections_uri") else set()
    return frozenset(uris | _texts(data.get("derived"), "uri"))


def _texts(items: Any, key: str) -> set[str]:
    """Return the texts under a key of maps in a list, and ignore everything else."""
    maps = (item for item in (items if isinstance(items, list) else ()) if isinstance(item, dict))
    return {value for item in maps if isinstance(value := item.get(key), str)}


@contextmanager
def translate_errors() -> Iterator[None]:
    """Raise the vendor's errors as FirestoreUnavailableError or FirestoreRefusedError."""
    try:
        yield
    except exceptions.PermissionDenied as exc:
        raise FirestoreRefusedError(_NO_ACCESS) from exc
    except exceptions.NotFound as exc:
        raise FirestoreRefusedError(_NO_DATABASE) from exc
    except (exceptions.Unauthenticated, GoogleAuthError) as exc:
        raise FirestoreRefusedError(NO_CREDENTIALS) from exc
    except exceptions.FailedPrecondition as exc:
        raise FirestoreRefusedError(_NO_NATIVE) from exc
    except (exceptions.InvalidArgument, exceptions.OutOfRange) as exc:
        raise FirestoreRefusedError(REFUSES_DOCUMENTS) from exc
    except (exceptions.GoogleAPIError, TimeoutError) as exc:
        raise FirestoreUnavailableError("Firestore is unavailable.") from exc
