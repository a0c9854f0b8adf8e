"""Verifies the OIDC token of a push, for a service that nothing else protects.

On Cloud Run, IAM does this. Elsewhere (a VM, Kubernetes), anybody who reaches the port could push
messages. Google signs a token for the subscription's service account: `Authorization: Bearer JWT`,
RS256, claims `iss`, `aud`, `email`, `email_verified`, `iat`, `exp`.

Source: https://cloud.google.com/pubsub/docs/authenticate-push-subscriptions
"""

import time
from collections.abc import Callable, Sequence

from service.errors import ForbiddenError, UnauthenticatedError
from service.gcp.signed_tokens import InvalidTokenError, SignedTokens

CERTS_URL = "https://www.googleapis.com/oauth2/v1/certs"  # key id → X.509 certificate, PEM
ISSUER = "https://accounts.google.com"

_INVALID = "The push's token is malformed, expired, not signed by Google, or not for this service."


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
        self._service_accounts = tuple(service_accounts)
        self._tokens = SignedTokens(audience, algorithm="RS256", keys_url=certs_url, clock=clock)

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
        try:
            claims = self._tokens.claims(token.strip())
        except InvalidTokenError:
            raise UnauthenticatedError(_INVALID) from None
        if claims.get("iss") != ISSUER:
            raise UnauthenticatedError(_INVALID)
        if claims.get("email_verified") is not True or (
            claims.get("email") not in self._service_accounts
        ):
            raise ForbiddenError("The push's service account is not allowed.")
