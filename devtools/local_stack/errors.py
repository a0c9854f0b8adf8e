"""Errors of the local stack. Every message is written for the person at the terminal.

LocalStackError
├── MissingRequirementsError   an emulator is not on this machine
└── StartError                 a process did not become ready
"""

from service.errors import YoloBatchError


class LocalStackError(YoloBatchError):
    """The local stack cannot do what was requested. The message says why."""


class MissingRequirementsError(LocalStackError):
    """An emulator is missing and could not be downloaded. The message says what to run."""


class StartError(LocalStackError):
    """A process of the stack ended, or was not ready in time."""
