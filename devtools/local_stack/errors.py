"""Errors of the local stack; every message is written for the person at the terminal.

LocalStackError
├── MissingRequirementsError   something must be installed first
└── StartError                 a process did not become ready
"""

from service.errors import YoloBatchError


class LocalStackError(YoloBatchError):
    """The local stack cannot do what it was asked; the message says why."""


class MissingRequirementsError(LocalStackError):
    """Something must be installed first; each line of the message says what and how."""


class StartError(LocalStackError):
    """A process of the stack stopped, or was not ready in time."""
