"""Query the results in Firestore: by label, by count, by confidence, or the newest images.

    python query_results.py --label person
    python query_results.py --more-than 3 --label car
    python query_results.py --confidence 0.6 --label person
    python query_results.py --newest
    python query_results.py --failed

Needs `pip install google-cloud-firestore` and the role `roles/datastore.viewer`.
"""

import argparse
from collections.abc import Iterator
from typing import Any

from google.api_core.exceptions import GoogleAPIError
from google.api_core.retry import Retry
from google.cloud.firestore import Client, Query
from google.cloud.firestore_v1.base_query import FieldFilter

COLLECTION = "detections"  # the service's FIRESTORE_COLLECTION
TIMEOUT_SECONDS = 30


def documents(query: Query) -> Iterator[dict[str, Any]]:
    """Yield the documents of a query. Terraform creates the indexes of the queries below."""
    for snapshot in query.stream(timeout=TIMEOUT_SECONDS, retry=Retry(timeout=TIMEOUT_SECONDS)):
        yield snapshot.to_dict() or {}


def with_label(results: Query, label: str) -> Query:
    """Return images with at least one detection of `label`."""
    return results.where(filter=FieldFilter("labels", "array_contains", label))


def with_more_than(results: Query, number: int, label: str) -> Query:
    """Return images with more than `number` detections of `label`.

    `field_path` quotes a label that is not a plain identifier, such as `traffic light`.
    """
    return results.where(filter=FieldFilter(Client.field_path("counts", label), ">", number))


def best_first(results: Query, confidence: float, label: str) -> Query:
    """Return images with a `label` of at least this confidence, from 0 to 1."""
    field = Client.field_path("best", label)
    query = results.where(filter=FieldFilter(field, ">=", confidence))
    return query.order_by(field, direction=Query.DESCENDING)


def newest(results: Query) -> Query:
    """Return all images, the newest first. Each of the ten shards is sorted by time."""
    query = results.where(filter=FieldFilter("shard", "in", list(range(10))))
    return query.order_by("created_at", direction=Query.DESCENDING)


def failed(results: Query) -> Query:
    """Return the images that failed, the newest first."""
    return newest(results).where(filter=FieldFilter("status", "==", "failed"))


def main() -> None:
    """Print one line for each image that matches."""
    parser = argparse.ArgumentParser(description="Query the results in Firestore.")
    parser.add_argument("--label", help="images with this label")
    parser.add_argument("--more-than", type=int, metavar="N", help="... more than N times")
    parser.add_argument("--confidence", type=float, help="... at least this confident, best first")
    parser.add_argument("--newest", action="store_true", help="all images, the newest first")
    parser.add_argument("--failed", action="store_true", help="images that could not be processed")
    parser.add_argument("--limit", type=int, default=100, help="documents at most (default: 100)")
    options = parser.parse_args()

    results = Client().collection(COLLECTION).limit(options.limit)
    if options.failed:
        query = failed(results)
    elif options.newest:
        query = newest(results)
    elif not options.label:
        parser.error("use --label, --newest or --failed")
    elif options.confidence is not None:
        query = best_first(results, options.confidence, options.label)
    elif options.more_than is not None:
        query = with_more_than(results, options.more_than, options.label)
    else:
        query = with_label(results, options.label)

    try:
        for result in documents(query):
            failure = result["error"]
            print(result["uri"], failure["code"] if failure else result["counts"])
    except GoogleAPIError as error:
        raise SystemExit(f"Firestore could not be queried: {error}") from error


if __name__ == "__main__":
    main()
