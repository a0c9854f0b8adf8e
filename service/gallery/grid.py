"""The grid of thumbnails, the pages that it loads, and the counts of labels."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Any

from flask import Blueprint, Response, jsonify, render_template, request, url_for

from service.deadline import Deadline
from service.errors import SourcesUnknownError
from service.gallery.card import card
from service.gallery.counts import count
from service.gallery.parts import parts
from service.result_exports.formats import FORMATS
from service.result_filter import FilterError, Order, ResultFilter, Shown
from service.sources.schema import Mode, Sources

blueprint = Blueprint("grid", __name__)

_MAX_COUNTS = 40  # labels of one request
_SOURCES_SECONDS = 10.0
_TEXTS = {
    Shown.FOUND: "found",
    Shown.NOTHING_FOUND: "nothing found",
    Shown.FAILED: "failed",
    Shown.PARKED: "parked",
}
_ORDERS = {
    Order.NEWEST: "newest first",
    Order.CONFIDENT: "most confident first",
    Order.UNCERTAIN: "least certain first",
    Order.NAME: "by name",
    Order.RANDOM: "random",
}
_ANY_TIME = datetime(2000, 1, 1, tzinfo=UTC)
# For each field, what stands for any value of it. A bucket or a prefix brings its order with it.
_ANY_VALUE: dict[str, dict[str, Any]] = {
    "label": {"label": "any"},
    "shown": {"shown": Shown.FOUND},
    "source": {"source": "any"},
    "zone": {"zone": "any"},
    "day": {"day": date(2000, 1, 1)},
    "until": {"until": _ANY_TIME},
    "bucket": {"bucket": "any", "order": Order.NAME},
    "prefix": {"bucket": "any", "prefix": "any", "order": Order.NAME},
}


@blueprint.get("/")
def page() -> str:
    """Show the page. Its script loads the results."""
    data = {
        "page_size": parts().options.page_size,
        "results": url_for("grid.results"),
        "counts": url_for("grid.counts"),
        "image": url_for("image.page", document_id="ID"),
        "sources": _sources(),
        "exports": [
            {"name": name, "description": each.description}
            for name, each in FORMATS.items()
            if each.is_available
        ],
    }
    return render_template("grid.html", data=data, shown=_TEXTS, orders=_ORDERS)


@blueprint.get("/api/results")
def results() -> Response:
    """Return one page of results as JSON."""
    chosen = ResultFilter.parse(request.args)
    found = parts().results.page(
        chosen, parts().options.page_size, request.args.get("cursor") or None
    )
    for result in found.results:
        parts().images.remember(result.id, result.document)
    usage = parts().results.usage()
    return jsonify(
        results=[card(result) for result in found.results],
        following=found.following,
        usage={"queries": usage.queries, "documents": usage.documents},
        impossible=dict(_impossible(chosen)),
        impossible_orders=dict(_impossible_orders(chosen)),
    )


@blueprint.get("/api/counts")
def counts() -> Response:
    """Return how many results the filter has with each of the labels of the arguments `of`.

    Labels whose count is not possible are left out.
    """
    chosen = ResultFilter.parse(request.args)
    if not chosen.bucket:
        chosen = chosen.without("order")  # the count is the same, and more combinations have one
    found: dict[str, int] = {}
    for label in request.args.getlist("of")[:_MAX_COUNTS]:
        try:
            each = replace(chosen, label=label)
        except FilterError:
            continue  # too long for an index
        if label and not each.conflicts():
            found[label] = count(each)
    return jsonify(counts=found, reads=parts().results.usage().documents)


def _impossible(chosen: ResultFilter) -> Iterator[tuple[str, str]]:
    """Yield each field that cannot be added to a filter, with the reason."""
    for name, values in _ANY_VALUE.items():
        conflicts = replace(chosen, **values).conflicts()
        if conflicts and getattr(chosen, name) is None:
            yield name, conflicts.get(name) or next(iter(conflicts.values()))


def _impossible_orders(chosen: ResultFilter) -> Iterator[tuple[str, str]]:
    """Yield each order that a filter cannot have, with the reason."""
    for order in Order:
        conflicts = replace(chosen, order=order).conflicts()
        if conflicts and order is not chosen.order:
            yield order, conflicts.get("order") or next(iter(conflicts.values()))


def _sources() -> list[dict[str, Any]]:
    """Return each source with its zones, for the filters. Broken sources have no filters."""
    try:
        sources = parts().sources.sources(Deadline.after(_SOURCES_SECONDS))
    except SourcesUnknownError:
        sources = Sources(sources=())
    return [
        {
            "id": source.id,
            "zones": [zone.name for zone in source.zones if zone.mode is Mode.INCLUDE],
        }
        for source in sources.sources
    ]
