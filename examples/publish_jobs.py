"""Publish jobs for objects that already exist, and wait for their documents.

    python publish_jobs.py gs://uploads/cam1/07.jpg gs://uploads/cam1/08.jpg

The service itself consumes the jobs. Your program does the rest, as shown here. It publishes jobs,
for example for images that are older than the service, and it reads the documents. For whole
buckets use `yolo-batch reconcile`, which limits its rate. A job that fails at every delivery
becomes a dead letter: see `yolo-batch dead-letters`.

Needs `pip install google-cloud-firestore google-cloud-pubsub google-cloud-storage`, and the roles
`roles/storage.objectViewer`, `roles/pubsub.publisher` and `roles/datastore.viewer`.
"""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Iterator
from typing import Any

from google.api_core.exceptions import NotFound
from google.cloud import firestore
from google.cloud.pubsub import PublisherClient
from google.cloud.storage import Blob, Client

COLLECTION = "detections"  # the service's FIRESTORE_COLLECTION
POLL_SECONDS = 2.0


def publish(publisher: PublisherClient, topic: str, uris: list[str]) -> None:
    """Publish one message for each image, and return when Pub/Sub has stored them all."""
    for future in [publisher.publish(topic, json.dumps({"uri": uri}).encode()) for uri in uris]:
        future.result(timeout=60)


def document_id(uri: str) -> str:
    """Return the name of an image's document. `uri` is `gs://bucket/object#generation`."""
    return hashlib.sha256(uri.encode()).hexdigest()[:40]


def documents(client: Any, uris: list[str], timeout_seconds: float) -> Iterator[dict[str, Any]]:
    """Yield each image's document as soon as it exists. Raise TimeoutError after the timeout."""
    collection = client.collection(COLLECTION)
    pending = {document_id(uri): uri for uri in uris}
    deadline = time.monotonic() + timeout_seconds
    while pending:
        for snapshot in client.get_all([collection.document(name) for name in pending]):
            if snapshot.exists:
                del pending[snapshot.id]
                yield snapshot.to_dict()
        if pending and time.monotonic() > deadline:
            raise TimeoutError(f"No document after {timeout_seconds:g} s: {[*pending.values()]}")
        time.sleep(POLL_SECONDS if pending else 0)


def main() -> None:
    """Publish a job for each object, and print each result."""
    parser = argparse.ArgumentParser(description="Publish jobs and wait for their documents.")
    parser.add_argument("uris", nargs="+", metavar="gs://BUCKET/OBJECT")
    parser.add_argument("--topic", default="yolo-batch-jobs", help="`jobs` on the local stack")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds (default: 600)")
    options = parser.parse_args()

    storage, database, publisher = Client(), firestore.Client(), PublisherClient()
    images = []
    for uri in options.uris:
        try:
            blob = Blob.from_uri(uri, client=storage)
            blob.reload()
        except (ValueError, NotFound) as error:  # not a URI, or no such object
            sys.exit(f"{uri}: {error}")
        images.append(f"{uri}#{blob.generation}")  # only this version, not a later one
    topic = publisher.topic_path(database.project, options.topic)
    try:
        publish(publisher, topic, images)
        for result in documents(database, images, options.timeout):
            print(result["uri"], result["error"] or result["counts"], flush=True)
    except NotFound:
        sys.exit(f"There is no topic {topic}. See --topic.")
    except TimeoutError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
