"""Reads when results expire: the TTL policy of their collection."""

import os
from datetime import timedelta

from google.api_core import exceptions
from google.auth.exceptions import GoogleAuthError
from google.cloud import firestore_admin_v1 as admin

from service.errors import YoloBatchError

_CALL_SECONDS = 20.0
_FIELD = "created_at"


class UnknownExpiryError(YoloBatchError):
    """It is not known when results expire."""


def connect() -> admin.FirestoreAdminClient | None:
    """Return a client of Firestore's admin API, or None without credentials or on the emulator.

    The emulator has neither TTL nor the admin API.
    """
    if os.environ.get("FIRESTORE_EMULATOR_HOST"):
        return None
    try:
        return admin.FirestoreAdminClient()
    except GoogleAuthError:
        return None


def results_ttl(
    client: admin.FirestoreAdminClient, project: str, database: str, collection: str
) -> timedelta | None:
    """Return how long after their creation the documents of a collection expire. None: never.

    The caller needs the permission `datastore.indexes.list`, which `roles/datastore.viewer` has.

    Raises:
        UnknownExpiryError: Firestore did not report it, or documents do not expire by their
            creation time.
    """
    parent = f"projects/{project}/databases/{database}/collectionGroups/{collection}"
    request = {"parent": parent, "filter": "ttlConfig:*"}
    try:
        expiring = list(client.list_fields(request=request, timeout=_CALL_SECONDS))
    except (exceptions.GoogleAPIError, GoogleAuthError) as exc:
        raise UnknownExpiryError("Firestore did not report it") from exc
    if not expiring:
        return None
    offsets = [
        field.ttl_config.expiration_offset
        for field in expiring
        if field.name.rpartition("/")[2] == _FIELD
    ]
    # proto-plus returns a Duration as a timedelta. Zero: the field itself has the expiry time.
    if len(offsets) != len(expiring) or not offsets[0]:
        raise UnknownExpiryError(f"its TTL policy is not an offset to {_FIELD}")
    return timedelta(seconds=offsets[0].total_seconds())
