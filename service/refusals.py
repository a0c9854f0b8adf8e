"""What a refusal of Cloud Storage means: for one object for good, for everything, or for now. Pure.

Sources: https://cloud.google.com/storage/docs/json_api/v1/status-codes. Errors of metadata come as
JSON with a `reason`; errors of a download (`alt=media`) come as text, so sentences are read too.

A plain 403 does not say what it concerns: no right on the bucket, or none on this object. It is
the object's own if the object was refused twice, and the bucket was readable in between: another
object of it was read, or the account has the right.
"""

import json
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum

_BAD_REQUEST, _UNAUTHORIZED, _FORBIDDEN, _LEGAL_REASONS = 400, 401, 403, 451
_MAX_REMEMBERED = 10_000  # refused objects; the oldest are forgotten
_MAX_TEXT = 300  # letters of Cloud Storage's own sentence in a document

_RETRY = " Then run `yolo-batch reconcile --enqueue failed`."
_CUSTOMER_KEY = (
    "The object is encrypted with a customer-supplied encryption key, which the service does not "
    "have. Upload it again without that key."
)
_KMS_KEY = (
    "Cloud Storage cannot use the Cloud KMS key of the object ({text}). Enable the key, or grant "
    "it to the Cloud Storage service agent." + _RETRY
)
_REQUESTER_PAYS = (
    "The bucket is a Requester Pays bucket, and the service names no project that pays. Turn "
    "Requester Pays off, or copy the object to another bucket." + _RETRY
)
_LEGAL = "Cloud Storage withholds the object for legal reasons ({text})."
_NO_ACCESS = (
    "Cloud Storage refuses access to this object, though not to the bucket ({text}). The service "
    "account needs storage.objects.get on it: check its ACL, its managed folder, and IAM "
    "conditions and deny policies." + _RETRY
)
_OTHER = "Cloud Storage refuses to give this object ({text})."

_NOW = {
    "rateLimitExceeded",
    "userRateLimitExceeded",
    "quotaExceeded",
    "dailyLimitExceeded",
    "RATE_LIMIT_EXCEEDED",
    "RESOURCE_QUOTA_EXCEEDED",
    "conflict",
}
_EVERYTHING = {
    "accessNotConfigured",
    "accountDisabled",
    "authError",
    "billingDisabled",
    "BILLING_DISABLED",
    "countryBlocked",
    "orgPolicyConstraintFailed",
    "SERVICE_DISABLED",
    "sslRequired",
    "turnedDown",
    "UserProjectAccessDenied",
    "UserProjectAccountProblem",
    "userProjectInconsistent",
    "userProjectInvalid",
}


class Scope(Enum):
    """What a refusal concerns."""

    NOW = "now"  # a later delivery can succeed
    EVERYTHING = "everything"  # the bucket, the project, the account: somebody has to act
    OBJECT = "object"  # this object, for good
    UNCLEAR = "unclear"


@dataclass(frozen=True)
class Refusal:
    """One refusal as Cloud Storage wrote it."""

    status: int
    reason: str = ""  # of its JSON; empty where it wrote text
    text: str = ""

    @classmethod
    def read(cls, status: int, body: str) -> "Refusal":
        """Read a response's body, JSON or text."""
        try:
            error = json.loads(body)["error"]
            [first, *_] = error.get("errors") or [{}]
            reason = str(first.get("reason") or error.get("status") or "")
            return cls(status, reason, _clean(str(error.get("message", ""))))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return cls(status, "", _clean(body))

    @property
    def scope(self) -> Scope:
        """What it concerns, as far as it says so itself."""
        text = self.text.lower()
        if self.reason in _NOW or "rate limit" in text or "quota" in text:
            return Scope.NOW
        if self.status == _UNAUTHORIZED or self.reason in _EVERYTHING:
            return Scope.EVERYTHING
        if "billing account" in text:
            return Scope.EVERYTHING
        if self._known() or self.status == _LEGAL_REASONS:
            return Scope.OBJECT
        # All our requests are alike but for the object, so a 400 is about the object. Where it has
        # no reason, it may be some proxy's.
        is_bad_request = self.status == _BAD_REQUEST
        return Scope.OBJECT if is_bad_request and self.reason else Scope.UNCLEAR

    def sentence(self) -> str:
        """Say why the object cannot be read, and what to do, for its document."""
        shown = f"{self.status}{' ' + self.reason if self.reason else ''}"
        text = f"{shown}: {self.text}" if self.text else shown
        template = self._known() or {
            _FORBIDDEN: _NO_ACCESS,
            _LEGAL_REASONS: _LEGAL,
        }.get(self.status, _OTHER)
        return template.replace("{text}", text)

    def _known(self) -> str | None:
        """Return the sentence of a refusal that names its reason."""
        reason, text = self.reason.lower(), self.text.lower()
        if "customerencryptionkey" in reason or "customer-supplied encryption key" in text:
            return _CUSTOMER_KEY
        if "kms" in reason or "cloud kms" in text or "cloudkms" in text:
            return _KMS_KEY
        if reason == "userprojectmissing" or "requester pays" in text:
            return _REQUESTER_PAYS
        return None


class AccessHistory:
    """Which objects were refused, and when their buckets were readable."""

    def __init__(self) -> None:
        """Start without any."""
        self._refused: OrderedDict[tuple[str, str], int] = OrderedDict()
        self._reads: OrderedDict[str, int] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, bucket: str) -> None:
        """Note that a bucket is readable."""
        with self._lock:
            self._reads[bucket] = time.monotonic_ns()
            self._reads.move_to_end(bucket)
            if len(self._reads) > _MAX_REMEMBERED:
                self._reads.popitem(last=False)

    def is_refused_alone(self, bucket: str, name: str) -> bool:
        """Note a refusal; say whether it is the object's own.

        It is if the object was refused before, and the bucket was readable in between.
        """
        with self._lock:
            first = self._refused.setdefault((bucket, name), time.monotonic_ns())
            if len(self._refused) > _MAX_REMEMBERED:
                self._refused.popitem(last=False)
            return first < self._reads.get(bucket, 0)


def _clean(text: str) -> str:
    """Make one line of what Cloud Storage wrote."""
    line = "".join(letter if letter.isprintable() else " " for letter in text)
    return " ".join(line.split())[:_MAX_TEXT]
