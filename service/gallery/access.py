"""Who may use the gallery, and from which pages: tokens, hosts, IAP and CSRF."""

from typing import Protocol


class Access(Protocol):
    """Decides whether a request is allowed, and who sent it."""

    def reviewer(self) -> str:
        """Return who sent the current request: an e-mail that IAP verified, or `local`."""
