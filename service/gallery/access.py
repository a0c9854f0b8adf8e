"""Who may use the gallery, and from which pages: tokens, hosts, IAP and CSRF."""

import hashlib
import hmac
import secrets
from collections.abc import Collection
from typing import Protocol
from urllib.parse import urlencode, urlsplit

from flask import Response, g, make_response, redirect, request
from werkzeug.exceptions import Forbidden, ServiceUnavailable, Unauthorized

from service.errors import CertificatesUnavailableError, UnauthenticatedError
from service.gcp.iap import ASSERTION, AssertionVerifier

_TOKEN = "token"  # the argument of the first URL
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_OTHER_SITE = "Another site must not change anything here."
_SITES = ("same-origin", "none")  # values of Sec-Fetch-Site of requests from our own pages


class Access(Protocol):
    """Decides whether a request is allowed, and who sent it."""

    def check(self) -> Response | None:
        """Refuse the current request, or let it pass with None, or redirect it.

        Raises:
            HTTPException: the request is refused. The message is for a person.
        """

    def reviewer(self) -> str:
        """Return who sent the current request: an e-mail that IAP verified, or `local`."""

    def csrf_token(self) -> str:
        """Return the token that each write of the current visitor must have."""

    def complete(self, response: Response) -> None:
        """Add the cookies of a visitor who was let in."""


class IapAccess:
    """Everybody whom Identity-Aware Proxy admits. Its signature is verified here.

    The CSRF token is a random cookie, not a secret of this process: the next request may reach
    another instance, or this one after a restart.
    """

    _COOKIE = "__Host-yolo-batch-csrf"  # `__Host-`: no other host name can set it

    def __init__(self, verifier: AssertionVerifier) -> None:
        """Take what verifies IAP's assertions."""
        self._verifier = verifier

    def check(self) -> Response | None:
        """Let the current request pass.

        Raises:
            Unauthorized: IAP has not signed it.
            ServiceUnavailable: IAP's keys cannot be fetched.
        """
        try:
            g.reviewer = self._verifier.email(request.headers.get(ASSERTION))
        except UnauthenticatedError as exc:
            raise Unauthorized(str(exc)) from exc
        except CertificatesUnavailableError as exc:
            raise ServiceUnavailable(str(exc)) from exc
        g.csrf_cookie = request.cookies.get(self._COOKIE) or secrets.token_urlsafe(32)
        return None

    def reviewer(self) -> str:
        """Return the e-mail that IAP has signed."""
        return str(g.reviewer)

    def csrf_token(self) -> str:
        """Return the token that each write of the current browser and reviewer must have."""
        return _derived(str(g.csrf_cookie).encode(), self.reviewer())

    def complete(self, response: Response) -> None:
        """Set the cookie of a new browser."""
        cookie = g.get("csrf_cookie")
        if cookie and cookie != request.cookies.get(self._COOKIE):
            response.set_cookie(
                self._COOKIE, cookie, httponly=True, samesite="Strict", secure=True, path="/"
            )


class LocalAccess:
    """One person on this machine: whoever has the URL that the command prints.

    The URL has a random token, which the first request exchanges for a cookie. A request must name
    a host of this machine, so that another site cannot reach the server by rebinding its name in
    DNS.
    """

    def __init__(
        self, port: int, *, token: str | None = None, command: str = "yolo-batch gallery"
    ) -> None:
        """Take what the server listens on, and how its URL was printed.

        Args:
            port: the port that the server listens on.
            token: the token of the URL. None: a new random token.
            command: the command that has printed the URL.
        """
        self._command = command
        self.token = token or secrets.token_urlsafe(32)
        self.hosts = frozenset(f"{name}:{port}" for name in ("127.0.0.1", "localhost", "[::1]"))
        self._cookie = f"yolo-batch-{port}"
        self._session = _derived(self.token.encode(), "session")

    @property
    def first_path(self) -> str:
        """The path and query of the first URL."""
        return f"/?{_TOKEN}={self.token}"

    def check(self) -> Response | None:
        """Refuse, let pass or redirect the current request.

        Raises:
            Forbidden: another host, no token or a wrong token.
        """
        refuse_hosts_except(self.hosts)
        given = request.args.get(_TOKEN)
        if given is not None and request.method == "GET" and _equal(given, self.token):
            return self._with_cookie()
        if not _equal(request.cookies.get(self._cookie, ""), self._session):
            raise Forbidden(f"Open the address that `{self._command}` printed.")
        return None

    def reviewer(self) -> str:
        """Return `local`."""
        return "local"

    def csrf_token(self) -> str:
        """Return the token that each write must have."""
        return _derived(self.token.encode(), "csrf")

    def complete(self, response: Response) -> None:
        """Do nothing: the first address has set the cookie."""

    def _with_cookie(self) -> Response:
        """Return a redirect to the same address without the token."""
        kept = [pair for pair in request.args.items(multi=True) if pair[0] != _TOKEN]
        target = request.path + (f"?{urlencode(kept)}" if kept else "")
        response = make_response(redirect(target))
        response.set_cookie(self._cookie, self._session, httponly=True, samesite="Strict", path="/")
        return response


def refuse_hosts_except(hosts: Collection[str]) -> None:
    """Refuse the current request if its Host header is none of these.

    Raises:
        Forbidden: another host.
    """
    if request.host not in hosts:
        raise Forbidden(
            "The gallery does not respond under this host name. Open the address that the command "
            "printed."
        )


def refuse_foreign_writes(access: Access) -> None:
    """Refuse the current request if it writes and does not come from a page of the gallery.

    Raises:
        Forbidden: another site, or no CSRF token.
    """
    if request.method in _SAFE_METHODS:
        return
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None and site not in _SITES:
        raise Forbidden(_OTHER_SITE)
    origin = request.headers.get("Origin")
    if origin is not None and not _is_own(origin):
        raise Forbidden(_OTHER_SITE)
    given = request.headers.get("X-CSRF-Token") or request.form.get("csrf_token", "")
    if not _equal(given, access.csrf_token()):
        raise Forbidden("The page is too old. Load it again, and repeat what you did.")


def _is_own(origin: str) -> bool:
    """Return whether an Origin header names the host of the current request."""
    try:
        return urlsplit(origin).netloc == request.host
    except ValueError:  # for example an IPv6 address without its end
        return False


def _derived(secret: bytes, purpose: str) -> str:
    return hmac.new(secret, purpose.encode(), hashlib.sha256).hexdigest()


def _equal(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode(), wanted.encode())
