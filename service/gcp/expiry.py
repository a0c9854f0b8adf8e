"""Reads whether results expire: whether their collection has a TTL policy."""

import os

from google.api_core import exceptions
from google.auth.exceptions import GoogleAuthError
from google.cloud import firestore_admin_v1 as admin

_CALL_SECONDS = 20.0


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


def results_expire(
    client: admin.FirestoreAdminClient, project: str, database: str, collection: str
) -> bool | None:
    """Return whether a TTL policy deletes documents of a collection. None: not known.

    The caller needs the permission `datastore.indexes.list`, which `roles/datastore.viewer` has.
    """
    parent = f"projects/{project}/databases/{database}/collectionGroups/{collection}"
    request = {"parent": parent, "filter": "ttlConfig:*"}
    try:
        return any(client.list_fields(request=request, timeout=_CALL_SECONDS))
    except (exceptions.GoogleAPIError, GoogleAuthError):
        return None
