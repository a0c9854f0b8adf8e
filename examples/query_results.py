"""Query the results in Firestore: by label, by count, by confidence, or the failed images.

    python query_results.py --label person
    python query_results.py --more-than 3 --label car
    python query_results.py --confidence 0.9
    python query_results.py --failed

Needs `pip install google-cloud-firestore` and the role `roles/datastore.viewer`.
"""

import argparse
from collections.abc import Iterator
from typing import Any

from google.api_core.exceptions import GoogleAPIError
from google.api_core.retry import Retry
from google.cloud.firestore import Client
from google.cloud.firestore_v1.base_query import FieldFilter

COLLECTION = "detections"  # the service's FIRESTORE_COLLECTION
TIMEOUT_SECONDS = 30


def results(client: Client, condition: FieldFilter, limit: int) -> Iterator[dict[str, Any]]:
    """Yield the documents that meet a condition. Terraform creates the index that it needs."""
    query = client.collection(COLLECTION).where(filter=condition).limit(limit)
    for snapshot in query.stream(timeout=TIMEOUT_SECONDS, retry=Retry(timeout=TIMEOUT_SECONDS)):
        yield snapshot.to_dict() or {}


def with_label(label: str) -> FieldFilter:
    """Match images with at least one detection of `label`."""
    return FieldFilter("labels", "array_contains", label)


def with_more_than(number: int, label: str) -> FieldFilter:
    """Match images with more than `number` detections of `label`.

    `field_path` quotes a label that is not a plain identifier, such as `traffic light`.
    """
    return FieldFilter(Client.field_path("counts", label), ">", number)


def more_confident_than(confidence: float) -> FieldFilter:
    """Match images whose best detection has a higher confidence than this, from 0 to 1."""
    return FieldFilter("max_confidence", ">", confidence)


FAILED = FieldFilter("status", "==", "failed")


def main() -> None:
    """Print one line for each image that matches."""
    parser = argparse.ArgumentParser(description="Query the results in Firestore.")
    parser.add_argument("--label", help="images with this label")
    parser.add_argument("--more-than", type=int, metavar="N", help="... more than N times")
    parser.add_argument("--confidence", type=float, help="images with a more confident detection")
    parser.add_argument("--failed", action="store_true", help="images that could not be processed")
    parser.add_argument("--limit", type=int, default=100, help="documents at most (default: 100)")
    options = parser.parse_args()

    if options.failed:
        condition = FAILED
    elif options.confidence is not None:
        condition = more_confident_than(options.confidence)
    elif options.label and options.more_than is not None:
        condition = with_more_than(options.more_than, options.label)
    elif options.label:
        condition = with_label(options.label)
    else:
        parser.error("use --label, --confidence or --failed")

    try:
        for result in results(Client(), condition, options.limit):
            failure = result["error"]
            print(result["uri"], failure["code"] if failure else result["counts"])
    except GoogleAPIError as error:
        raise SystemExit(f"Firestore could not be queried: {error}") from error


if __name__ == "__main__":
    main()
