"""Verifies tokens (JWT) that Google signed.

The public keys are fetched from Google, and cached.
"""

import json
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from cachetools import TLRUCache, cached
from google.auth import jwt
from google.auth.exceptions import GoogleAuthError
from google.auth.transport.requests import Request

from service.errors import CertificatesUnavailableError

_CLOCK_SKEW_SECONDS = 10
_FETCH_TIMEOUT_SECONDS = 3.0
# Google publishes a key long before it signs with it, and lets clients cache keys for hours. So a
# token with an unknown key id is invalid, and does not cause another fetch.
_CACHE_SECONDS = 3600.0
_FAILURE_CACHE_SECONDS = 5.0  # in an outage, not every request may wait for a fetch of its own

_Keys = Mapping[str, str] | Exception  # by key id, or why they could not be fetched


class InvalidTokenError(ValueError):
    """The token is malformed, expired, not signed by Google, or for another audience."""


class SignedTokens:
    """Verifies tokens for one audience. Safe to use from many threads."""

    def __init__(
        self,
        audience: str,
        *,
        algorithm: str,
        keys_url: str,
        cache_seconds: float = _CACHE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Set what is valid. Keys are fetched when the first token arrives.

        Args:
            audience: the claim `aud` of the tokens.
            algorithm: how they are signed: `RS256` or `ES256`.
            keys_url: URL of a JSON object with each key (PEM) by its id.
            cache_seconds: how long the keys are kept.
            clock: returns seconds, for the age of cached keys.
        """
        self._audience = audience
        self._algorithm = algorithm
        # google-auth itself would fetch keys for each token. Here one thread fetches while others
        # wait.
        cache = TLRUCache[Any, _Keys](
            maxsize=1, ttu=partial(_cached_until, cache_seconds), timer=clock
        )
        self._keys: Callable[[], _Keys] = cached(cache, condition=threading.Condition())(
            partial(_fetch, keys_url)
        )

    def claims(self, token: str) -> Mapping[str, Any]:
        """Return the claims of a token, whose signature, times and audience are verified.

        Raises:
            InvalidTokenError: the token is not valid.
            CertificatesUnavailableError: Google's keys are unavailable.
        """
        try:
            header = jwt.decode_header(token)
            if header.get("alg") != self._algorithm or not isinstance(header.get("kid"), str):
                raise ValueError
            keys = self._keys()
            if isinstance(keys, Exception):
                raise CertificatesUnavailableError(
                    "Google's certificates are unavailable."
                ) from keys
            claims: Mapping[str, Any] = jwt.decode(
                token,
                certs=keys,
                audience=self._audience,
                clock_skew_in_seconds=_CLOCK_SKEW_SECONDS,
            )
        # Not chained: google-auth's messages repeat the token. RecursionError: JSON too deep.
        except (ValueError, TypeError, GoogleAuthError, RecursionError):
            raise InvalidTokenError from None
        return claims


def _cached_until(seconds: float, _: object, keys: _Keys, now: float) -> float:
    return now + (_FAILURE_CACHE_SECONDS if isinstance(keys, Exception) else seconds)


def _fetch(url: str) -> _Keys:
    try:
        response = Request()(url, timeout=_FETCH_TIMEOUT_SECONDS)
        if response.status != 200:
            raise ValueError(f"the response has status {response.status}")
        keys = json.loads(response.data)
        if not isinstance(keys, dict) or not keys:
            raise ValueError("the response has no keys")
    except (GoogleAuthError, ValueError) as exc:
        return exc
    return keys
