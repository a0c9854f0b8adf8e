"""Who pushed: checks the OIDC token of a push, where nothing in front of the service does.

Cloud Run's IAM check makes this superfluous; elsewhere (a VM, Kubernetes) anybody who reaches the
port could otherwise name images. Pub/Sub signs a token for the subscription's service account:
`Authorization: Bearer JWT`, RS256, claims `iss`, `aud`, `email`, `email_verified`, `iat`, `exp`.

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
# Google publishes a key long before it signs with it, and lets certificates be kept for hours. So
# an unknown key id is not one that we lack, and becomes no request to Google.
_KEPT_SECONDS = 3600.0
_FAILURE_KEPT_SECONDS = 5.0  # an outage must not become a queue of waiting threads

_INVALID = "The push's token is malformed, expired, not signed by Google, or not for this service."

_Certificates = Mapping[str, str] | Exception  # by key id, or why they cannot be had


class TokenVerifier:
    """Lets through pushes that Google signed for us, in the name of an allowed service account."""

    def __init__(
        self,
        audience: str,
        service_accounts: Sequence[str],
        *,
        certs_url: str = CERTS_URL,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is fetched before the first token.

        Args:
            audience: the subscription's audience; its endpoint url unless set otherwise.
            service_accounts: emails that may push.
            certs_url: where Google's certificates are.
            clock: seconds, by which certificates grow old.
        """
        self._audience = audience
        self._service_accounts = tuple(service_accounts)
        # One thread fetches while others wait. google-auth alone would fetch for each token.
        cache = TLRUCache[Any, _Certificates](maxsize=1, ttu=_keep_until, timer=clock)
        self._certificates: Callable[[], _Certificates] = cached(
            cache, condition=threading.Condition()
        )(partial(_fetch, certs_url))

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
        # Not chained: google-auth's texts repeat the token. RecursionError: JSON nested too deep.
        except (ValueError, TypeError, GoogleAuthError, RecursionError):
            raise UnauthenticatedError(_INVALID) from None
        return claims


def _keep_until(_: object, found: _Certificates, now: float) -> float:
    return now + (_FAILURE_KEPT_SECONDS if isinstance(found, Exception) else _KEPT_SECONDS)


def _fetch(url: str) -> _Certificates:
    try:
        response = Request()(url, timeout=_FETCH_TIMEOUT_SECONDS)
        if response.status != 200:
            raise ValueError(f"the response is {response.status}")
        certificates = json.loads(response.data)
        if not isinstance(certificates, dict) or not certificates:
            raise ValueError("the response has no certificates")
    except (GoogleAuthError, ValueError) as exc:
        return exc
    return certificates
