"""The results' collection in Firestore, and the time limit of a call.

`service.gcp.firestore` writes documents, `service.gcp.result_reader` reads them back.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from google.api_core import exceptions, retry
from google.auth.exceptions import GoogleAuthError
from google.cloud import firestore

from service.deadline import Deadline
from service.domain import StoredDocument
from service.errors import FirestoreRefusedError, FirestoreUnavailableError
from service.gcp.outages import Outages
from service.gcp.refusals import NO_CREDENTIALS

REFUSES_DOCUMENTS = "Firestore refuses every document: check FIRESTORE_COLLECTION."

_TRANSIENT = retry.if_exception_type(
    exceptions.Aborted,
    exceptions.DeadlineExceeded,
    exceptions.InternalServerError,
    exceptions.ResourceExhausted,
    exceptions.ServiceUnavailable,
)
_RECORD_FIELDS = ["status", "model.sha256", "created_at", "timings"]
_NO_ACCESS = (
    "Firestore refused access: grant the service account roles/datastore.user, and check that the "
    "project has billing and the Firestore API enabled."
)
_NO_DATABASE = "Firestore has no such database: create it, or set FIRESTORE_DATABASE."
_NO_NATIVE = "Firestore refuses the call: the database must be in Native mode. The log says more."


class RetryBudget:
    """One time limit for all requests of a call, with all their attempts.

    An attempt gets a third of it, so that a server which is silent at first is asked again.
    """

    def __init__(self, seconds: float, *, attempts: int = 3) -> None:
        """Start the time."""
        self._until = Deadline.after(seconds)
        self._attempt_seconds = seconds / attempts

    @property
    def limits(self) -> dict[str, Any]:
        """The arguments of a client's method that say how long it tries."""
        left = max(self._until.seconds_left(), 0.0)
        again = retry.Retry(predicate=_TRANSIENT, initial=0.1, maximum=2.0, timeout=left)
        return {"retry": again, "timeout": self._limited}

    def _limited(self, attempt: Callable[..., Any]) -> Callable[..., Any]:
        """Give each attempt its own timeout.

        api_core takes any decorator for this. Its own gives an attempt the full time again
        when less than a second is left (TimeToDeadlineTimeout of google-api-core 2.44).
        """

        def limited(*args: Any, **kwargs: Any) -> Any:
            seconds = min(self._until.seconds_left(), self._attempt_seconds)
            return attempt(*args, **kwargs | {"timeout": max(seconds, 0.0)})

        return limited


class Collection:
    """The results' collection; safe to use from many threads."""

    def __init__(
        self,
        client: firestore.Client,
        *,
        collection: str,
        timeout_seconds: float,
        outages: Outages | None = None,
    ) -> None:
        """Take a client, the seconds of one call with all its attempts, and the log of outages."""
        self._client = client
        self._outages = outages or Outages()
        self._collection = client.collection(collection)
        # Separate subjects: an account may have read access only.
        self._reads = f"Firestore database {client._database}, reading"
        self._writes = f"Firestore database {client._database}, writing"
        self._timeout_seconds = timeout_seconds

    @property
    def project(self) -> str:
        """The project that the database is in."""
        return str(self._client.project)

    def _read(self, document_ids: Sequence[str], budget: RetryBudget) -> dict[str, StoredDocument]:
        return records_of(self._snapshots(document_ids, budget))

    def _snapshots(self, document_ids: Sequence[str], budget: RetryBudget) -> list[Any]:
        refs = [self._collection.document(document_id) for document_id in document_ids]
        return list(self._client.get_all(refs, field_paths=_RECORD_FIELDS, **budget.limits))

    def _budget(self, deadline: Deadline) -> RetryBudget:
        return RetryBudget(deadline.wait_seconds(self._timeout_seconds))

    @contextmanager
    def _reading(self) -> Iterator[None]:
        with self._report_outage(self._reads):
            yield
        self._outages.clear(self._reads)

    @contextmanager
    def _report_outage(self, subject: str) -> Iterator[None]:
        """Turn the vendor's errors into ours, and log once what concerns every message."""
        try:
            with translate_errors():
                yield
        except FirestoreRefusedError as exc:
            self._outages.report(subject, str(exc), str(exc.__cause__ or ""))
            raise


def records_of(snapshots: Iterable[Any]) -> dict[str, StoredDocument]:
    """Read what exists among snapshots of `_RECORD_FIELDS`."""
    records = {}
    for snapshot in snapshots:
        if snapshot.exists:
            document = snapshot.to_dict()
            records[snapshot.id] = StoredDocument(
                status=document.get("status", ""),
                model=(document.get("model") or {}).get("sha256"),
                created_at=document.get("created_at") or snapshot.create_time,
                update_time=snapshot.update_time,
                timings=document.get("timings"),
            )
    return records


@contextmanager
def translate_errors() -> Iterator[None]:
    """Turn the vendor's errors into ours."""
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
