"""Detect objects in an image, and print them.

    python detect.py https://SERVICE street.jpg
    python detect.py https://SERVICE gs://uploads/cam1/07.jpg --store

SERVICE is a service with ENDPOINTS=detect. The identity token is that of a service account: the one
of the machine on Google Cloud, or a key file in GOOGLE_APPLICATION_CREDENTIALS. With your own
account, set ID_TOKEN=$(gcloud auth print-identity-token).

Needs `pip install google-auth requests`, and the role `roles/run.invoker` on the service.
"""

import argparse
import os
import sys
from pathlib import Path

import requests
from google.auth.transport.requests import Request
from google.oauth2.id_token import fetch_id_token
from requests.adapters import HTTPAdapter
from urllib3 import Retry

TIMEOUT_SECONDS = 60  # more than the service's DETECT_TIMEOUT_SECONDS


def session(url: str) -> requests.Session:
    """Return a session with a token. It repeats a call that the service rejects as too busy."""
    calls = requests.Session()
    busy = Retry(
        total=5,
        backoff_factor=1,
        status_forcelist=(429, 503),
        allowed_methods=None,
        raise_on_status=False,  # after the last try, return the response
    )
    calls.mount(url, HTTPAdapter(max_retries=busy))
    if url.startswith("https:"):  # the local stack needs no token
        token = os.environ.get("ID_TOKEN") or fetch_id_token(Request(), url)  # type: ignore[no-untyped-call]
        calls.headers["Authorization"] = f"Bearer {token}"
    return calls


def main() -> None:
    """Print one line for each detection."""
    parser = argparse.ArgumentParser(description="Detect objects in an image.")
    parser.add_argument("url", help="the service, for example https://detect-abc.a.run.app")
    parser.add_argument("image", help="a file, or gs://BUCKET/OBJECT")
    parser.add_argument("--store", action="store_true", help="store the result (of an object)")
    options = parser.parse_args()

    url, query = f"{options.url.rstrip('/')}/v1/detect", {"store": str(options.store).lower()}
    calls = session(options.url)
    if options.image.startswith("gs://"):
        body = {"uri": options.image}
        response = calls.post(url, params=query, json=body, timeout=TIMEOUT_SECONDS)
    else:
        image = Path(options.image).read_bytes()
        response = calls.post(url, params=query, data=image, timeout=TIMEOUT_SECONDS)
    if not response.ok:
        sys.exit(f"{response.status_code}: {response.text.strip()}")
    for found in response.json()["detections"]:
        print(found["label"], found["confidence"], found["box"])


if __name__ == "__main__":
    main()
