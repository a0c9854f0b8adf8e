"""Every error of a vendor's client becomes one of ours, in the module that imports the vendor."""

import inspect
from types import ModuleType
from typing import Any

import google.api_core.exceptions
import google.auth.exceptions
import google.cloud.storage.exceptions
import pytest
import requests.exceptions
from google.api_core.exceptions import BadRequest, GoogleAPICallError

from service.errors import (
    BadImageError,
    FirestoreUnavailableError,
    ObjectGoneError,
    StorageUnavailableError,
    TransientError,
)
from service.gcp import collection, storage

_NEVER_RAISED = {
    "AsyncRestUnsupportedParameterError",  # only in asynchronous clients
    "InvalidPathError",  # only in downloads to files
    "InvalidResponse",  # the client itself turns it into a GoogleAPICallError
}


def classes(module: ModuleType) -> list[type[Exception]]:
    """Return the exceptions that a module defines, without warnings."""
    return [
        found
        for _, found in inspect.getmembers(module, inspect.isclass)
        if issubclass(found, Exception)
        and not issubclass(found, Warning)
        and found.__module__ == module.__name__
        and found.__name__ not in _NEVER_RAISED
    ]


def make(kind: type[Exception]) -> Exception:
    """Return an instance without calling its constructor, which differs between classes."""
    error: Any = kind.__new__(kind)
    Exception.__init__(error, "secret")
    if issubclass(kind, GoogleAPICallError):
        error.message, error._errors, error._details, error._response = "secret", [], [], None
        error._error_info = None
    return error  # type: ignore[no-any-return]


GOOGLE = classes(google.api_core.exceptions) + classes(google.auth.exceptions)
STORAGE = GOOGLE + classes(google.cloud.storage.exceptions) + classes(requests.exceptions)
STORAGE = [kind for kind in STORAGE if not issubclass(kind, BadRequest)]
STORAGE += [OSError, ConnectionError, TimeoutError]
GONE = {"NotFound", "PreconditionFailed"}


@pytest.mark.parametrize("kind", STORAGE, ids=[kind.__name__ for kind in STORAGE])
def test_error_of_cloud_storage_becomes_ours(kind: type[Exception]) -> None:
    ours = (ObjectGoneError, StorageUnavailableError, BadImageError)
    with pytest.raises(ours) as raised, storage.translate_errors():
        raise make(kind)
    assert isinstance(raised.value, ObjectGoneError) == (kind.__name__ in GONE)
    assert "secret" not in str(raised.value)
    assert type(raised.value.__cause__) is kind


def test_requester_pays_bucket_is_not_gone() -> None:
    """If it counted as gone, every image of such a bucket would be lost."""
    with pytest.raises(StorageUnavailableError), storage.translate_errors():
        raise make(BadRequest)  # requester pays bucket but no user project provided


@pytest.mark.parametrize("kind", GOOGLE, ids=[kind.__name__ for kind in GOOGLE])
def test_error_of_firestore_becomes_ours(kind: type[Exception]) -> None:
    with pytest.raises(FirestoreUnavailableError) as raised, collection.translate_errors():
        raise make(kind)
    assert isinstance(raised.value, TransientError)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    "translate_errors", [storage.translate_errors, collection.translate_errors]
)
def test_error_of_our_own_is_not_hidden(translate_errors: Any) -> None:
    with pytest.raises(KeyError), translate_errors():
        raise KeyError("a bug")
