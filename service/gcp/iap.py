"""Verifies the assertion that Identity-Aware Proxy (IAP) adds to each request.

IAP sends `X-Goog-IAP-JWT-Assertion`: a JWT, ES256, with the claims `iss`, `aud`, `email`, `sub`,
`iat` and `exp`. Its other headers, for example `X-Goog-Authenticated-User-Email`, are not signed.
So a request that did not pass IAP could have them, too.

Source: https://cloud.google.com/iap/docs/signed-headers-howto
"""

import time
from collections.abc import Callable

from service.errors import UnauthenticatedError
from service.gcp.signed_tokens import InvalidTokenError, SignedTokens

ASSERTION = "X-Goog-IAP-JWT-Assertion"
KEYS_URL = "https://www.gstatic.com/iap/verify/public_key"  # key id → public key, PEM
ISSUER = "https://cloud.google.com/iap"
_KEYS_SECONDS = 300.0  # how late a new key is known at most

_MISSING = "The request did not come through Identity-Aware Proxy. Open the gallery's own address."
_INVALID = (
    "The assertion of Identity-Aware Proxy is malformed, expired, not signed by Google, or for "
    "another service. Check GALLERY_AUDIENCE."
)


class AssertionVerifier:
    """Accepts requests that IAP signed for this audience."""

    def __init__(
        self,
        audience: str,
        *,
        keys_url: str = KEYS_URL,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Set what is allowed. Keys are fetched when the first assertion arrives.

        Args:
            audience: `/projects/NUMBER/locations/REGION/services/NAME`.
            keys_url: URL of IAP's public keys.
            clock: returns seconds, for the age of cached keys.
        """
        self._tokens = SignedTokens(
            audience,
            algorithm="ES256",
            keys_url=keys_url,
            cache_seconds=_KEYS_SECONDS,
            clock=clock,
        )

    def email(self, assertion: str | None) -> str:
        """Return who sent a request.

        Args:
            assertion: the value of the header. None: there is none.

        Raises:
            UnauthenticatedError: there is no assertion, or it is invalid.
            CertificatesUnavailableError: IAP's keys are unavailable.
        """
        if not assertion:
            raise UnauthenticatedError(_MISSING)
        try:
            claims = self._tokens.claims(assertion)
        except InvalidTokenError:
            raise UnauthenticatedError(_INVALID) from None
        email = claims.get("email")
        if claims.get("iss") != ISSUER or not isinstance(email, str) or not email:
            raise UnauthenticatedError(_INVALID)
        return email
