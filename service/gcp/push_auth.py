"""Verifies the OIDC token of a push, for a service that nothing else protects.

On Cloud Run, IAM does this. Elsewhere (a VM, Kubernetes), anybody who reaches the port could push
messages. Google signs a token for the subscription's service account: `Authorization: Bearer JWT`,
RS256, claims `iss`, `aud`, `email`, `email_verified`, `iat`, `exp`.

Source: https://cloud.google.com/pubsub/docs/authenticate-push-subscriptions
"""

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from cachetools import TLRUCache, cached
from google.auth import jwt
from google.auth.exceptions import GoogleAuthError
from google.auth.transport.requests import Request

from service.errors import CertificatesUnavailableError, ForbiddenError, UnauthenticatedError

CERTS_URL = "https://www.googleapis.com/oauth2/v1/certs"  # key id → X.509 certificate, PEM
ISSUER = "https://accounts.google.com"

_ALGORITHM = "RS256"
_CLOCK_SKEW_SECONDS = 10
_FETCH_TIMEOUT_SECONDS = 3.0
# Google publishes a key long before it signs with it, and lets clients cache certificates for
# hours. So a token with an unknown key id is invalid, and does not cause another fetch.
_CACHE_SECONDS = 3600.0
_FAILURE_CACHE_SECONDS = 5.0  # in an outage, not every request may wait for a fetch of its own

_INVALID = "The push's token is malformed, expired, not signed by Google, or not for this service."

_Certificates = Mapping[str, str] | Exception  # by key id, or why they could not be fetched


class TokenVerifier:
    """Accepts pushes that Google signed for this audience and an allowed service account."""

    def __init__(
        self,
        audience: str,
        service_accounts: Sequence[str],
        *,
        certs_url: str = CERTS_URL,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Set what is allowed. Certificates are fetched when the first token arrives.

        Args:
            audience: the subscription's audience. By default that is its endpoint's URL.
            service_accounts: emails of the accounts that may push.
            certs_url: URL of Google's certificates.
            clock: returns seconds, for the age of cached certificates.
        """
        self._audience = audience
        self._service_accounts = tuple(service_accounts)
        # google-auth itself would fetch certificates for each token. Here one thread fetches
        # while others wait.
        cache = TLRUCache[Any, _Certificates](maxsize=1, ttu=_cached_until, timer=clock)
        self._certificates: Callable[[], _Certificates] = cached(
            cache, condition=threading.Condition()
        )(partial(_fetch, certs_url))

    def verify(self, authorization: str | None) -> None:
        """Verify the request's `Authorization` header.

        Raises:
            UnauthenticatedError: there is no token, or it is invalid.
            ForbiddenError: the token is valid, but its account is not allowed.
            CertificatesUnavailableError: Google's certificates are unavailable.
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
            header = jwt.decode_header(token)
            if header.get("alg") != _ALGORITHM or not isinstance(header.get("kid"), str):
                raise ValueError
            certificates = self._certificates()
            if isinstance(certificates, Exception):
                raise CertificatesUnavailableError(
                    "Google's certificates are unavailable."
                ) from certificates
            claims: Mapping[str, Any] = jwt.decode(
                token,
                certs=certificates,
                audience=self._audience,
                clock_skew_in_seconds=_CLOCK_SKEW_SECONDS,
            )
        # Not chained: google-auth's messages repeat the token. RecursionError: JSON too deep.
        except (ValueError, TypeError, GoogleAuthError, RecursionError):
            raise UnauthenticatedError(_INVALID) from None
        return claims


def _cached_until(_: object, certificates: _Certificates, now: float) -> float:
    is_failure = isinstance(certificates, Exception)
    return now + (_FAILURE_CACHE_SECONDS if is_failure else _CACHE_SECONDS)


def _fetch(url: str) -> _Certificates:
    try:
        response = Request()(url, timeout=_FETCH_TIMEOUT_SECONDS)
        if response.status != 200:
            raise ValueError(f"the response has status {response.status}")
        certificates = json.loads(response.data)
        if not isinstance(certificates, dict) or not certificates:
            raise ValueError("the response has no certificates")
    except (GoogleAuthError, ValueError) as exc:
        return exc
    return certificates
