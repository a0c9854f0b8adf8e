"""Who pushed: checks the OIDC token of a push, where nothing in front of the service does.

Cloud Run's IAM check makes this superfluous; elsewhere (a VM, Kubernetes) anybody who reaches the
port could otherwise name pictures. Pub/Sub signs a token for the subscription's service account:
`Authorization: Bearer JWT`, RS256, claims `iss`, `aud`, `email`, `email_verified`, `iat`, `exp`.

Source: https://cloud.google.com/pubsub/docs/authenticate-push-subscriptions
"""

import json
import re
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from google.auth import jwt
from google.auth.exceptions import GoogleAuthError
from google.auth.transport.requests import Request

from service.errors import CertificatesUnavailableError, ForbiddenError, UnauthenticatedError

CERTS_URL = "https://www.googleapis.com/oauth2/v1/certs"  # key id → X.509 certificate, PEM
ISSUER = "https://accounts.google.com"

_ALGORITHM = "RS256"
_CLOCK_SKEW_SECONDS = 10
_FETCH_TIMEOUT_SECONDS = 3.0
# Unknown key ids must not become requests to Google, nor an outage a queue of waiting threads.
_FETCH_GAP_SECONDS = 60.0
_FAILED_FETCH_GAP_SECONDS = 5.0
_DEFAULT_MAX_AGE_SECONDS = 3600
_LONGEST_MAX_AGE_SECONDS = 86400
_MAX_AGE = re.compile(r"max-age=([0-9]{1,9})")

_INVALID = "The push's token is malformed, expired, not signed by Google, or not for this service."


class TokenVerifier:
    """Lets through pushes that Google signed for us, in the name of an allowed service account."""

    def __init__(
        self, audience: str, service_accounts: Sequence[str], *, certs_url: str = CERTS_URL
    ) -> None:
        """Nothing is fetched before the first token.

        Args:
            audience: the subscription's audience; its endpoint url unless set otherwise.
            service_accounts: emails that may push.
            certs_url: where Google's certificates are.
        """
        self._audience = audience
        self._service_accounts = tuple(service_accounts)
        self._certificates = _Certificates(certs_url)

    def verify(self, authorization: str | None) -> None:
        """Check the request's `Authorization` header.

        Raises:
            UnauthenticatedError: no token, or not a valid one.
            ForbiddenError: the token is valid, its account is not allowed.
            CertificatesUnavailableError: Google's certificates cannot be had now.
        """
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer":
            raise UnauthenticatedError("The push has no bearer token.")
        claims = self._claims(token.strip())
        if claims.get("iss") != ISSUER:
            raise UnauthenticatedError(_INVALID)
        if claims.get("email_verified") is not True or (
            claims.get("email") not in self._service_accounts
        ):
            raise ForbiddenError("The push's service account is not allowed.")

    def _claims(self, token: str) -> Mapping[str, Any]:
        try:
            header = jwt.decode_header(token)  # type: ignore[no-untyped-call]
            key_id = header.get("kid")
            if header.get("alg") != _ALGORITHM or not isinstance(key_id, str):
                raise ValueError
            claims: Mapping[str, Any] = jwt.decode(  # type: ignore[no-untyped-call]
                token,
                certs=self._certificates.holding(key_id),
                audience=self._audience,
                clock_skew_in_seconds=_CLOCK_SKEW_SECONDS,
            )
        # Not chained: google-auth's texts repeat the token. RecursionError: JSON nested too deep.
        except (ValueError, TypeError, GoogleAuthError, RecursionError):
            raise UnauthenticatedError(_INVALID) from None
        return claims


class _Certificates:
    """Google's certificates, kept for as long as they may be; google-auth fetches at each call."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._request = Request()
        self._lock = threading.Lock()
        self._held: tuple[Mapping[str, str], float] = ({}, 0.0)  # and until when, monotonic
        self._next_fetch = 0.0

    def holding(self, key_id: str) -> Mapping[str, str]:
        """Return certificates by key id; without this one, if Google does not have it."""
        if certs := self._fresh(key_id):
            return certs
        with self._lock:
            if certs := self._fresh(key_id):  # another thread fetched them
                return certs
            if time.monotonic() >= self._next_fetch:
                self._fetch()
            certs, until = self._held
            if time.monotonic() >= until:
                raise CertificatesUnavailableError("Google's certificates are unavailable.")
            return certs

    def _fresh(self, key_id: str) -> Mapping[str, str] | None:
        certs, until = self._held
        return certs if key_id in certs and time.monotonic() < until else None

    def _fetch(self) -> None:
        self._next_fetch = time.monotonic() + _FAILED_FETCH_GAP_SECONDS
        try:
            response = self._request(self._url, timeout=_FETCH_TIMEOUT_SECONDS)
            if response.status != 200:
                raise ValueError(f"the answer is {response.status}")
            certs = json.loads(response.data)
            if not isinstance(certs, dict) or not certs:
                raise ValueError("the answer has no certificates")
        except (GoogleAuthError, ValueError) as exc:
            raise CertificatesUnavailableError("Google's certificates are unavailable.") from exc
        now = time.monotonic()
        found = _MAX_AGE.search(response.headers.get("Cache-Control", ""))
        max_age = (
            min(int(found[1]), _LONGEST_MAX_AGE_SECONDS) if found else _DEFAULT_MAX_AGE_SECONDS
        )
        self._held = (certs, now + max(max_age, _FETCH_GAP_SECONDS))
        self._next_fetch = now + _FETCH_GAP_SECONDS
