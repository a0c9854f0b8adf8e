"""The page of one image."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

from flask import Blueprint, abort, render_template, request, url_for

from service.domain import ErrorCode
from service.errors import ResultObjectError, StorageUnavailableError
from service.gallery.card import card
from service.gallery.details import as_text, groups, raw
from service.gallery.parts import GalleryOptions, parts
from service.gcp.result_pages import StoredResult, is_document_id
from service.result_filter import ResultFilter
from service.stored_result import listed_alerts

blueprint = Blueprint("image", __name__)

MAX_ALERTS = 10  # that are read
MAX_GENERATIONS = 10
_CONSOLE = "https://console.cloud.google.com/firestore/databases"
_NO_RESULT = "There is no result with this id. Perhaps it was deleted."


@dataclass(frozen=True)
class Link:
    """A link to the page of another image."""

    url: str
    text: str
    generation: str
    is_current: bool = False


@dataclass(frozen=True)
class Row:
    """A detection, as the table shows it. `index` is its place in what the overlay draws."""

    index: int
    label: str
    confidence: float
    is_faint: bool
    size: str
    zones: str
    more: str  # what only some tasks have


@blueprint.get("/image/<document_id>")
def page(document_id: str) -> str:
    """Show one image. Its neighbours in time are those of the same source."""
    ResultFilter.parse(request.args)  # a damaged address must not look like an empty page
    result = stored(document_id)
    full, fault = _with_all_detections(result)
    shown = card(full)
    code = (shown["error"] or {}).get("code")
    newer, older = parts().results.neighbours(result)
    return render_template(
        "image.html",
        card=shown,
        rows=rows(shown),
        groups=groups(result.document),
        notices=[*_notices(result.document), *fault],
        raw=raw(result.document),
        error_code=error_code(code),
        can_try_again=parts().try_again is not None,
        generations=_generations(result),
        alerts=_alerts(result),
        newer=_link(newer),
        older=_link(older),
        back=_with_arguments(url_for("grid.page")),
        console=console_url(document_id, parts().options),
        data={"card": shown, "query": query()},
    )


def stored(document_id: str) -> StoredResult:
    """Return a result, whose id comes from a browser.

    Raises:
        NotFound: there is none.
        FirestoreUnavailableError: Firestore did not respond.
    """
    result = parts().results.result(document_id) if is_document_id(document_id) else None
    if result is None:
        abort(404, _NO_RESULT)
    return result


def error_code(text: Any) -> ErrorCode | None:
    """Return a code of a document, or None if this version of the service does not have it."""
    return ErrorCode(text) if isinstance(text, str) and text in list(ErrorCode) else None


def rows(shown: Mapping[str, Any]) -> list[Row]:
    """Return the rows of the table, in the order in which the overlay draws the detections."""
    items = [(item, False) for item in shown["detections"]]
    items += [(item, True) for item in shown["faint"]]
    return [_row(index, item, is_faint) for index, (item, is_faint) in enumerate(items)]


def _row(index: int, item: Mapping[str, Any], is_faint: bool) -> Row:
    x1, y1, x2, y2 = item["box"]
    more = []
    if "area" in item:
        more.append(f"area {item['area']:,.0f} pixels")
    if "angle" in item:
        more.append(f"angle {item['angle']:.1f}°")
    if keypoints := item.get("keypoints"):
        more.append(f"{len(keypoints)} keypoints")
    return Row(
        index,
        item["label"],
        item["confidence"],
        is_faint,
        f"{abs(x2 - x1):,.0f} × {abs(y2 - y1):,.0f}",
        ", ".join(item.get("zones", ())),
        ", ".join(more),
    )


def console_url(document_id: str, options: GalleryOptions) -> str | None:
    """Return the address of a document in the console of Firestore. None: there is no console."""
    if options.project is None:
        return None
    database = "-default-" if options.database == "(default)" else options.database
    collection, document = quote(options.collection, safe=""), quote(document_id, safe="")
    path = f"{quote(database, safe='')}/data/panel/{collection}/{document}"
    return f"{_CONSOLE}/{path}?{urlencode({'project': options.project})}"


def query() -> str:
    """Return the query of the current address, with its `?`. It is the state of the pages."""
    arguments = urlencode(list(request.args.items(multi=True)))
    return f"?{arguments}" if arguments else ""


def _with_arguments(url: str) -> str:
    return url + query()


def _link(result: StoredResult | None) -> Link | None:
    if result is None:
        return None
    url = _with_arguments(url_for("image.page", document_id=result.id))
    return Link(
        url, as_text(result.document.get("name")), as_text(result.document.get("generation"))
    )


def _generations(result: StoredResult) -> list[Link]:
    """Return the generations of the object, the newest first. One generation is no list."""
    uri = result.document.get("uri")
    if not isinstance(uri, str):
        return []
    found = parts().results.generations(uri, MAX_GENERATIONS)
    links = [
        Link(
            _with_arguments(url_for("image.page", document_id=each.id)),
            f"{as_text(each.document.get('created_at'))}: {as_text(each.document.get('status'))}",
            as_text(each.document.get("generation")),
            each.id == result.id,
        )
        for each in found
    ]
    return links if len(links) > 1 or any(not link.is_current for link in links) else []


def _alerts(result: StoredResult) -> list[dict[str, str]]:
    """Return the alerts that an image fired. Without a reader, only what the result lists."""
    listed = listed_alerts(result.id, result.document)[:MAX_ALERTS]
    reader = parts().alerts
    started = time.perf_counter()
    found = reader.with_ids([alert.id for alert in listed]) if reader else {}
    if reader and listed:
        usage = parts().results.usage()
        usage.queries += 1
        usage.documents += len(listed)
        usage.seconds += time.perf_counter() - started
    return [
        {
            "rule": alert.rule,
            "severity": alert.severity,
            "text": _field(found.get(alert.id), "text"),
            "state": _field(found.get(alert.id), "state"),
        }
        for alert in listed
    ]


def _field(fields: Mapping[str, Any] | None, key: str) -> str:
    return as_text(fields[key]) if fields and fields.get(key) is not None else ""


def _with_all_detections(result: StoredResult) -> tuple[StoredResult, Sequence[str]]:
    """Return the result with the detections of its object, and a sentence if they are missing."""
    uri, reader = result.document.get("detections_uri"), parts().large_results
    if not isinstance(uri, str):
        return result, ()
    if reader is None or f"/{result.id}-" not in uri:  # a person may have edited the name
        return result, ("The masks or keypoints are in an object that cannot be read here.",)
    try:
        detections = reader.read(result.document)
    except (ResultObjectError, StorageUnavailableError) as exc:
        return result, (f"The masks or keypoints could not be read: {exc}",)
    except (ValueError, LookupError, TypeError):
        return result, ("The object with the masks or keypoints is damaged.",)
    return StoredResult(result.id, result.document | {"detections": detections}), ()


def _notices(document: Mapping[str, Any]) -> list[str]:
    """Return sentences about what the document does not have."""
    found = []
    if document.get("left_out") and not document.get("detections_uri"):
        found.append(
            "The result was too large for a document, so it lacks "
            f"{as_text(document['left_out'])}. With RESULTS_BUCKET, new results are complete."
        )
    if (tolerance := document.get("simplified_pixels")) is not None:
        found.append(f"The polygons are simplified, by at most {as_text(tolerance)} pixels.")
    return found
