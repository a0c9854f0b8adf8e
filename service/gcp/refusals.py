"""Classify refusals by Cloud Storage: of one object, of everything, or only for now. Pure.

Sources: https://cloud.google.com/storage/docs/json_api/v1/status-codes. Errors of metadata come as
JSON with a `reason`; errors of a download (`alt=media`) come as text, so sentences are read too.

Most refusals do not say what they concern, or may pass: permissions take minutes to spread, and a
key that is away comes back. See docs/decisions/0003-refused-objects.md.
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

# A refusal that does not say what it concerns counts as the object's own after this time. Google
# states 7 minutes or more for permission changes:
# https://cloud.google.com/iam/docs/access-change-propagation
MIN_REFUSED_SECONDS = 600.0

_BAD_REQUEST, _UNAUTHORIZED, _FORBIDDEN, _LEGAL_REASONS = 400, 401, 403, 451
_DENIED_SECONDS = 30.0  # how long a denied right is not asked for again
_MAX_REMEMBERED = 10_000  # objects or buckets; the oldest are forgotten
_MAX_TEXT = 300  # characters of Cloud Storage's message that a document quotes
_MAX_READ = 2000  # characters of a response that are read

_RETRY = " Then run `yolo-batch reconcile --enqueue failed`."
# The advice for a job without a generation: `reconcile` does not see its document.
_SUBMIT = " Then submit the object again."
_CUSTOMER_KEY = (
    "The object is encrypted with a customer-supplied encryption key, which the service does not "
    "have. Upload it again without that key."
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
    "Cloud Storage refuses access to this object, though not to the bucket ({text}). The service "
    "account needs storage.objects.get on it: check its ACL, its managed folder, and IAM "
    "conditions and deny policies." + _RETRY
)
_OTHER = "Cloud Storage refuses to serve this object ({text})."

# Refusals that concern everything.
_NO_RIGHT = (
    "Cloud Storage refused access: the service account needs roles/storage.objectViewer on the "
    "bucket."
)
NO_CREDENTIALS = "Google rejected the service account's credentials, or issued no token for it."
_POLICY = (
    "An organization policy or a VPC Service Controls perimeter refuses access. Allow the service "
    "account and its project there. IAM roles do not help."
)
_BILLING = "Cloud Storage refuses the bucket: its project's billing or account is disabled."
_REFUSED = "Cloud Storage refuses every request to the bucket; `cause` says why."

_NOW = {
    "rateLimitExceeded",
    "userRateLimitExceeded",
    "quotaExceeded",
    "dailyLimitExceeded",
    "RATE_LIMIT_EXCEEDED",
    "RESOURCE_QUOTA_EXCEEDED",
    "conflict",
}
_OF_POLICY = {"orgPolicyConstraintFailed", "SECURITY_POLICY_VIOLATED", "vpcServiceControls"}
_OF_BILLING = {"accountDisabled", "billingDisabled", "BILLING_DISABLED"}
_EVERYTHING = {
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
    *_OF_POLICY,
    *_OF_BILLING,
}

# Phrases, matched after names have been removed.
_SAYS_NOW = re.compile(r"\b(exceed(s|ed)? (\w+ ){0,4}(rate limit|quota)|quota exceeded"
                       r"|rate limit (was )?exceeded)\b")  # fmt: skip
_SAYS_POLICY = re.compile(r"\borgani[sz]ation.s policy\b|\bvpcservicecontrolsuniqueidentifier\b")
_SAYS_BILLING = re.compile(r"\bbilling account\b.*\bdisabled\b")
_SAYS_CUSTOMER_KEY = re.compile(r"\bcustomer-supplied encryption key\b")
_SAYS_KMS = re.compile(r"\bcloud kms (\w+ )?(crypto)?key\b")
_SAYS_DISABLED = re.compile(r"\b(disabled|destroyed)\b")
_SAYS_REQUESTER_PAYS = re.compile(r"\brequester pays bucket\b")
_QUOTED = re.compile(r"""(?<!\w)(['"`]).*?\1(?!\w)""")
_MARKUP = re.compile(r"<[!?/a-z]", re.IGNORECASE)


_Times = LRUCache[object, float]  # seconds at which each key was noted


class Scope(Enum):
    """What a refusal concerns."""

    NOW = "now"  # a later delivery can succeed
    EVERYTHING = "everything"  # the bucket, the project, the account: somebody has to act
    OBJECT = "object"  # this object, permanently
    UNCLEAR = "unclear"  # any of these: time tells


@dataclass(frozen=True)
class Refusal:
    """One refusal as Cloud Storage wrote it."""

    status: int
    reason: str = ""  # of its JSON; empty where it wrote text
    text: str = ""
    name: str = ""  # of the object, which may hold any words

    @classmethod
    def read(cls, status: int, body: str, name: str = "") -> "Refusal":
        """Read a response's body, JSON or text."""
        try:
            error = json.loads(body)["error"]
            [first, *_] = error.get("errors") or [{}]
            reason = str(first.get("reason") or error.get("status") or "")
            return cls(status, _clean(reason), _clean(str(error.get("message", ""))), name)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return cls(status, "", _clean(body), name)

    @property
    def scope(self) -> Scope:
        """What it concerns, as far as it says so itself."""
        if self.reason in _NOW or self._says(_SAYS_NOW):
            return Scope.NOW
        if self.status == _UNAUTHORIZED or self.reason in _EVERYTHING:
            return Scope.EVERYTHING
        if self._says(_SAYS_BILLING) or self._says(_SAYS_POLICY):
            return Scope.EVERYTHING
        if self.status == _LEGAL_REASONS:
            return Scope.OBJECT
        # Only these say that they will not pass.
        is_lasting = self._known() in (_CUSTOMER_KEY, _REQUESTER_PAYS) or self._is_disabled_key()
        return Scope.OBJECT if self.status == _BAD_REQUEST and is_lasting else Scope.UNCLEAR

    def sentence(self, *, has_generation: bool = True) -> str:
        """Say why the object cannot be read, and what to do, for its document."""
        template = self._known() or {
            _FORBIDDEN: _NO_ACCESS,
            _LEGAL_REASONS: _LEGAL,
        }.get(self.status, _OTHER)
        if not has_generation:
            template = template.replace(_RETRY, _SUBMIT)
        text = f"{self.code}: {self.text[:_MAX_TEXT]}" if self.text else self.code
        return template.replace("{text}", text)

    def advice(self) -> str:
        """Say why everything is refused, and what to do, for the log and the caller."""
        if self.reason in _OF_POLICY or self._says(_SAYS_POLICY):
            return _POLICY
        if self.reason in _OF_BILLING or self._says(_SAYS_BILLING):
            return _BILLING
        if self.status == _UNAUTHORIZED:
            return NO_CREDENTIALS
        return _NO_RIGHT if self.is_plain else _REFUSED

    @property
    def is_plain(self) -> bool:
        """Whether it is a 403 without a reason, as where a role is missing."""
        return self.status == _FORBIDDEN and self.scope is Scope.UNCLEAR and not self._known()

    @property
    def code(self) -> str:
        """Its status and its reason, if it has one."""
        return f"{self.status} {self.reason}".rstrip()

    def _known(self) -> str | None:
        """Return the sentence of a refusal that names its reason."""
        reason = self.reason.lower()
        if "customerencryptionkey" in reason or self._says(_SAYS_CUSTOMER_KEY):
            return _CUSTOMER_KEY
        if reason.startswith("cloudkms") or self._says(_SAYS_KMS):
            return _KMS_KEY
        if reason == "userprojectmissing" or self._says(_SAYS_REQUESTER_PAYS):
            return _REQUESTER_PAYS
        return None

    def _is_disabled_key(self) -> bool:
        if self._known() != _KMS_KEY:
            return False
        return self.reason == "cloudKmsDisabledKey" or self._says(_SAYS_DISABLED)

    def _says(self, phrase: re.Pattern[str]) -> bool:
        """Whether the text has a phrase, ignoring names of accounts, resources and the object."""
        text = self.text
        if not self.name.isalpha():  # else it may be a word of the sentence
            text = text.replace(_clean(self.name) or "\0", "/")
        words = _QUOTED.sub(" / ", text).lower().split()
        return bool(phrase.search(" ".join(map(_without_name, words))))


class AccessHistory:
    """When objects were refused, and when their buckets were readable; safe in many threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Start without any, by a clock in seconds."""
        self._clock = clock
        self._refused: _Times = LRUCache(_MAX_REMEMBERED)  # requests, at their first refusal
        self._reads: _Times = LRUCache(_MAX_REMEMBERED)  # buckets, at their last successful read
        self._denied: _Times = LRUCache(_MAX_REMEMBERED)  # buckets, at the last denial of a right
        self._lock = threading.Lock()

    def read(self, bucket: str, *request: object) -> None:
        """Note that a request for an object succeeded: its refusals are forgotten."""
        with self._lock:
            self._refused.pop((bucket, *request), None)
            self._reads[bucket] = self._clock()

    def is_lasting(self, bucket: str, *request: object) -> bool:
        """Note a refusal; say whether the same request has been refused for long enough."""
        with self._lock:
            now = self._clock()
            return now - self._refused.setdefault((bucket, *request), now) >= MIN_REFUSED_SECONDS

    def was_read_lately(self, bucket: str) -> bool:
        """Whether an object of the bucket was read within MIN_REFUSED_SECONDS."""
        return self._age(self._reads, bucket) < MIN_REFUSED_SECONDS

    def deny(self, bucket: str) -> None:
        """Note that the account has not the rights to read and list a bucket."""
        with self._lock:
            self._denied[bucket] = self._clock()

    def was_denied_lately(self, bucket: str) -> bool:
        """Whether the rights were denied within 30 seconds: they need not be asked for again."""
        return self._age(self._denied, bucket) < _DENIED_SECONDS

    def _age(self, times: _Times, key: object) -> float:
        """Return the seconds since a key was noted; infinite for an unknown one."""
        with self._lock:
            return self._clock() - times.get(key, -math.inf)


def _without_name(word: str) -> str:
    """Return a word, or "/" for an e-mail address, a path or a domain."""
    return "/" if re.search(r"[@/]|\.\w", word) else word


def _clean(text: str) -> str:
    """Return one line of Cloud Storage's message; nothing for HTML or XML from a proxy."""
    if _MARKUP.search(text):
        return ""
    return one_line(text, _MAX_READ)
