"""Classifies what a refusal by Cloud Storage concerns: see `Scope`. Does no I/O.

Metadata errors are JSON with a `reason`. Download errors (`alt=media`) are text, so the text is
matched too. Source: https://cloud.google.com/storage/docs/json_api/v1/status-codes

Most refusals do not say what they concern, and many are temporary: a permission takes minutes to
take effect, and an unavailable key becomes available again. See
docs/decisions/0003-refused-objects.md.
"""

import json
import math
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from cachetools import LRUCache

from service.gcp.one_line import one_line

# After this time, a refusal that does not say what it concerns is taken to concern the object.
# Permission changes can take 7 minutes or longer:
# https://cloud.google.com/iam/docs/access-change-propagation
MIN_REFUSED_SECONDS = 600.0

_BAD_REQUEST, _UNAUTHORIZED, _FORBIDDEN, _LEGAL_REASONS = 400, 401, 403, 451
_DENIED_SECONDS = 30.0  # how long a denied permission is cached
_MAX_REMEMBERED = 10_000  # objects or buckets. Above, the least recently used is dropped.
_MAX_TEXT = 300  # how many characters of Cloud Storage's message a document quotes
_MAX_READ = 2000  # how many characters of a response are parsed

_RETRY = " Then run `yolo-batch reconcile --enqueue failed`."
# For a job without a generation: `reconcile` does not find its document.
_SUBMIT = " Then submit the object again."
_CUSTOMER_KEY = (
    "The object is encrypted with a customer-supplied encryption key, which the service does not "
    "have. Upload the object again without that key."
)
_KMS_KEY = (
    "Cloud Storage cannot use the Cloud KMS key of the object ({text}). Enable the key, or grant "
    "the Cloud Storage service agent access to it." + _RETRY
)
_REQUESTER_PAYS = (
    "The bucket is a Requester Pays bucket, and the service sets no project to bill. Turn "
    "Requester Pays off, or copy the object to another bucket." + _RETRY
)
_LEGAL = "Cloud Storage withholds the object for legal reasons ({text})."
_NO_ACCESS = (
    "Cloud Storage refuses access to this object, but not to the bucket ({text}). The service "
    "account needs storage.objects.get on it: check its ACL, its managed folder, and IAM "
    "conditions and deny policies." + _RETRY
)
_OTHER = "Cloud Storage refuses to serve this object ({text})."

# Advice for refusals that concern everything.
_NO_ROLE = (
    "Cloud Storage refuses access. Grant the service account roles/storage.objectViewer on the "
    "bucket."
)
NO_CREDENTIALS = "Google rejected the service account's credentials, or issued no token for it."
_POLICY = (
    "An organization policy or a VPC Service Controls perimeter refuses access. Allow the service "
    "account and its project there. An IAM role does not help."
)
_BILLING = "Cloud Storage refuses the bucket. Its project's billing or account is disabled."
_REFUSED = "Cloud Storage refuses every request to the bucket. Its message is in the log (`cause`)."

_TEMPORARY_REASONS = {
    "rateLimitExceeded",
    "userRateLimitExceeded",
    "quotaExceeded",
    "dailyLimitExceeded",
    "RATE_LIMIT_EXCEEDED",
    "RESOURCE_QUOTA_EXCEEDED",
    "conflict",
}
_POLICY_REASONS = {"orgPolicyConstraintFailed", "SECURITY_POLICY_VIOLATED", "vpcServiceControls"}
_BILLING_REASONS = {"accountDisabled", "billingDisabled", "BILLING_DISABLED"}
_EVERYTHING_REASONS = {
    "accessNotConfigured",
    "authError",
    "countryBlocked",
    "SERVICE_DISABLED",
    "sslRequired",
    "turnedDown",
    "UserProjectAccessDenied",
    "UserProjectAccountProblem",
    "userProjectInconsistent",
    "userProjectInvalid",
    *_POLICY_REASONS,
    *_BILLING_REASONS,
}

# Phrases to find in the text of a refusal, after names of accounts and resources are removed.
_PHRASE_TEMPORARY = re.compile(r"\b(exceed(s|ed)? (\w+ ){0,4}(rate limit|quota)|quota exceeded"
                       r"|rate limit (was )?exceeded)\b")  # fmt: skip
_PHRASE_POLICY = re.compile(r"\borgani[sz]ation.s policy\b|\bvpcservicecontrolsuniqueidentifier\b")
_PHRASE_BILLING = re.compile(r"\bbilling account\b.*\bdisabled\b")
_PHRASE_CUSTOMER_KEY = re.compile(r"\bcustomer-supplied encryption key\b")
_PHRASE_KMS = re.compile(r"\bcloud kms (\w+ )?(crypto)?key\b")
_PHRASE_DISABLED = re.compile(r"\b(disabled|destroyed)\b")
_PHRASE_REQUESTER_PAYS = re.compile(r"\brequester pays bucket\b")
_QUOTED = re.compile(r"""(?<!\w)(['"`]).*?\1(?!\w)""")
_MARKUP = re.compile(r"<[!?/a-z]", re.IGNORECASE)


_Times = LRUCache[object, float]  # by key: when it was noted, in seconds of the clock


class Scope(Enum):
    """What a refusal concerns."""

    TEMPORARY = "temporary"  # a later delivery can succeed
    EVERYTHING = "everything"  # the bucket, the project or the account: an operator must act
    OBJECT = "object"  # this object, permanently
    UNCLEAR = "unclear"  # any of these. Later attempts decide.


@dataclass(frozen=True)
class Refusal:
    """One error response of Cloud Storage."""

    status: int
    reason: str = ""  # the JSON's `reason`. Empty if the response is text.
    text: str = ""
    name: str = ""  # the object's name. Its words must not count as phrases of the text.

    @classmethod
    def read(cls, status: int, body: str, name: str = "") -> "Refusal":
        """Parse a response's body, JSON or text."""
        try:
            error = json.loads(body)["error"]
            [first, *_] = error.get("errors") or [{}]
            reason = str(first.get("reason") or error.get("status") or "")
            return cls(status, _clean(reason), _clean(str(error.get("message", ""))), name)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return cls(status, "", _clean(body), name)

    @property
    def scope(self) -> Scope:
        """What the refusal concerns, as far as the response says."""
        if self.reason in _TEMPORARY_REASONS or self._has_phrase(_PHRASE_TEMPORARY):
            return Scope.TEMPORARY
        if self.status == _UNAUTHORIZED or self.reason in _EVERYTHING_REASONS:
            return Scope.EVERYTHING
        if self._has_phrase(_PHRASE_BILLING) or self._has_phrase(_PHRASE_POLICY):
            return Scope.EVERYTHING
        if self.status == _LEGAL_REASONS:
            return Scope.OBJECT
        # Only these are known to be permanent.
        is_permanent = self._known() in (_CUSTOMER_KEY, _REQUESTER_PAYS) or self._is_disabled_key()
        return Scope.OBJECT if self.status == _BAD_REQUEST and is_permanent else Scope.UNCLEAR

    def sentence(self, *, has_generation: bool = True) -> str:
        """Return why the object cannot be read and what to do, for its document.

        Args:
            has_generation: whether the reference has one. If not, the advice differs.
        """
        template = self._known() or {
            _FORBIDDEN: _NO_ACCESS,
            _LEGAL_REASONS: _LEGAL,
        }.get(self.status, _OTHER)
        if not has_generation:
            template = template.replace(_RETRY, _SUBMIT)
        text = f"{self.code}: {self.text[:_MAX_TEXT]}" if self.text else self.code
        return template.replace("{text}", text)

    def advice(self) -> str:
        """Return why everything is refused and what to do, for the log and the caller."""
        if self.reason in _POLICY_REASONS or self._has_phrase(_PHRASE_POLICY):
            return _POLICY
        if self.reason in _BILLING_REASONS or self._has_phrase(_PHRASE_BILLING):
            return _BILLING
        if self.status == _UNAUTHORIZED:
            return NO_CREDENTIALS
        return _NO_ROLE if self.is_plain else _REFUSED

    @property
    def is_plain(self) -> bool:
        """Whether it is a 403 without a known reason. A missing role looks like this."""
        return self.status == _FORBIDDEN and self.scope is Scope.UNCLEAR and not self._known()

    @property
    def code(self) -> str:
        """Its status, and its reason if it has one."""
        return f"{self.status} {self.reason}".rstrip()

    def _known(self) -> str | None:
        """Return the sentence for a reason that we know, or None for others."""
        reason = self.reason.lower()
        if "customerencryptionkey" in reason or self._has_phrase(_PHRASE_CUSTOMER_KEY):
            return _CUSTOMER_KEY
        if reason.startswith("cloudkms") or self._has_phrase(_PHRASE_KMS):
            return _KMS_KEY
        if reason == "userprojectmissing" or self._has_phrase(_PHRASE_REQUESTER_PAYS):
            return _REQUESTER_PAYS
        return None

    def _is_disabled_key(self) -> bool:
        if self._known() != _KMS_KEY:
            return False
        return self.reason == "cloudKmsDisabledKey" or self._has_phrase(_PHRASE_DISABLED)

    def _has_phrase(self, phrase: re.Pattern[str]) -> bool:
        """Return whether the text has a phrase outside names of accounts and resources."""
        text = self.text
        if not self.name.isalpha():  # else the name may be an ordinary word of the text
            text = text.replace(_clean(self.name) or "\0", "/")
        words = _QUOTED.sub(" / ", text).lower().split()
        return bool(phrase.search(" ".join(map(_without_name, words))))


class AccessHistory:
    """When objects were refused, and when buckets were readable. Safe to use from many threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Start without history. `clock` returns seconds."""
        self._clock = clock
        self._refused: _Times = LRUCache(_MAX_REMEMBERED)  # by request: its first refusal
        self._reads: _Times = LRUCache(_MAX_REMEMBERED)  # by bucket: its last successful read
        self._denied: _Times = LRUCache(_MAX_REMEMBERED)  # by bucket: its last denied permission
        self._lock = threading.Lock()

    def note_read(self, bucket: str, *request: object) -> None:
        """Note that a request for an object succeeded. This clears its refusals."""
        with self._lock:
            self._refused.pop((bucket, *request), None)
            self._reads[bucket] = self._clock()

    def note_refusal(self, bucket: str, *request: object) -> bool:
        """Note a refusal. Return whether this request has been refused for MIN_REFUSED_SECONDS."""
        with self._lock:
            now = self._clock()
            return now - self._refused.setdefault((bucket, *request), now) >= MIN_REFUSED_SECONDS

    def was_read_lately(self, bucket: str) -> bool:
        """Return whether an object of the bucket was read within MIN_REFUSED_SECONDS."""
        return self._age(self._reads, bucket) < MIN_REFUSED_SECONDS

    def note_denial(self, bucket: str) -> None:
        """Note that the account lacks the permissions to read and list a bucket."""
        with self._lock:
            self._denied[bucket] = self._clock()

    def was_denied_lately(self, bucket: str) -> bool:
        """Return whether the permissions were denied so recently that the denial still counts."""
        return self._age(self._denied, bucket) < _DENIED_SECONDS

    def _age(self, times: _Times, key: object) -> float:
        """Return the seconds since a key was noted, or infinity if it never was."""
        with self._lock:
            return self._clock() - times.get(key, -math.inf)


def _without_name(word: str) -> str:
    """Return the word, or "/" if it is an email address, a path or a domain."""
    return "/" if re.search(r"[@/]|\.\w", word) else word


def _clean(text: str) -> str:
    """Return Cloud Storage's message as one line, or an empty text for a proxy's HTML or XML."""
    if _MARKUP.search(text):
        return ""
    return one_line(text, _MAX_READ)
