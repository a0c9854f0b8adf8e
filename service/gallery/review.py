"""The pages on which people judge results, and what their verdicts show."""

import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import yaml
from cachetools import TTLCache
from flask import (
    Blueprint,
    Response,
    abort,
    current_app,
    jsonify,
    render_template,
    request,
    url_for,
)

from service.edited import maps_of, text_or_none
from service.errors import FirestoreUnavailableError
from service.gallery.card import card
from service.gallery.counts import count as count_of
from service.gallery.parts import parts
from service.gcp.result_pages import StoredResult, is_document_id
from service.result_filter import FilterError, Order, ResultFilter, Shown
from service.review_statistics import MAX_WIDTH, WANTED, Estimate, Row, by_confidence, row, rows
from service.verdicts import (
    Given,
    Judgement,
    ReviewedImage,
    VerdictChangedError,
    VerdictError,
    reviewed_image,
    verdict_of,
)

if TYPE_CHECKING:
    from service.gcp.verdict_store import VerdictStore

blueprint = Blueprint("review", __name__)

_PAGE_SIZE = 30  # results: each also costs a read of its verdict
_MAX_VERDICTS = 20_000  # that the statistics read
_MAX_ROWS = 200
_MAX_BODY = 2**16  # bytes
_SECONDS = 60.0  # how long statistics and counts are kept
_NO_DATABASE = "This gallery has no database for verdicts. With Terraform, set gallery to true."
_REPLACED = "The result was replaced meanwhile. Load the page again."
_NOT_COUNTED = "Verdicts cannot be counted with a prefix or a time."
_ORDERS = {
    Order.UNCERTAIN: "least certain first",
    Order.RANDOM: "random",
    Order.NEWEST: "newest first",
    Order.CONFIDENT: "most confident first",
    Order.NAME: "by name (needs a bucket)",
}


@dataclass(frozen=True)
class _Known:
    """The verdicts that statistics count, and what it cost to read them."""

    images: tuple[ReviewedImage, ...]
    unreadable: int
    read_at: datetime


class Verdicts:
    """Verdicts and counts that are kept for a minute. Safe to use from many threads."""

    def __init__(self) -> None:
        """Start without verdicts."""
        self._lock = threading.Lock()
        self._known: TTLCache[str, _Known] = TTLCache(1, _SECONDS)

    def newest(self) -> _Known:
        """Return the newest verdicts.

        Raises:
            FirestoreUnavailableError: Firestore did not respond, or there is no database.
        """
        with self._lock:
            known = self._known.get("")
        if known is None:
            read = [reviewed_image(verdict) for verdict in _store().newest(_MAX_VERDICTS)]
            images = tuple(image for image in read if image)
            known = _Known(images, len(read) - len(images), datetime.now(UTC))
            with self._lock:
                self._known[""] = known
        return known


@blueprint.record
def _prepare(state: Any) -> None:
    state.app.extensions["verdicts"] = Verdicts()


@blueprint.get("/review")
def page() -> str:
    """Show the page. Its script loads the results."""
    given = request.args.to_dict()
    chosen = ResultFilter.parse({"order": str(Order.UNCERTAIN)} | given)
    threshold = _share("threshold", None)
    kept = {key: value for key, value in chosen.arguments().items() if key not in _OWN_FIELDS}
    data = {
        "filter": {"order": str(chosen.order)} | chosen.arguments(),
        "order": str(chosen.order),
        "threshold": threshold,
        "results": url_for("review.results"),
        "count": url_for("review.count"),
        "verdict": url_for("review.put", document_id="ID"),
        "image": url_for("image.page", document_id="ID"),
        "reviewer": parts().access.reviewer(),
    }
    return render_template(
        "review.html",
        data=data,
        chosen=chosen,
        kept=kept,
        threshold=threshold,
        orders=_ORDERS,
        conflict=next(iter(chosen.conflicts().values()), None),
    )


_OWN_FIELDS = ("order", "label", "source")  # which the form of the page has


@blueprint.get("/api/review")
def results() -> Response:
    """Return one page of results, each with its verdict or null."""
    store = _store()
    found = parts().results.page(
        ResultFilter.parse(request.args), _PAGE_SIZE, request.args.get("cursor") or None
    )
    for result in found.results:
        parts().images.remember(result.id, result.document)
    judged = [result for result in found.results if _is_judged(result)]
    verdicts = store.read([result.id for result in judged])
    usage = parts().results.usage()
    return jsonify(
        results=[card(each) | {"verdict": _shown(verdicts.get(each.id))} for each in judged],
        following=found.following,
        usage={"queries": usage.queries, "documents": usage.documents},
    )


@blueprint.get("/api/review/count")
def count() -> Response:
    """Return how many results of a filter have no verdict: an estimate."""
    chosen = ResultFilter.parse(request.args)
    conditions = _conditions(chosen)
    if conditions is None:
        return jsonify(count=None, reason=_NOT_COUNTED)
    reviewed = _store().count(conditions)
    count = max(sum(map(count_of, _judged_filters(chosen))) - reviewed, 0)
    reads = parts().results.usage().documents
    return jsonify(count=count, reviewed=reviewed, reads=reads)


@blueprint.put("/api/verdicts/<document_id>")
def put(document_id: str) -> Response:
    """Store the verdict of a result."""
    store, body = _store(), _body()
    result = _result(document_id)
    shown = card(result)
    if shown["generation"] != body.get("generation") or (
        shown["created_at"] != body.get("created_at")
    ):
        abort(409, _REPLACED)
    items = _items(shown)
    try:
        given = Given.parse(body, len(items))
    except VerdictError as exc:
        abort(400, str(exc))
    reviewer = parts().access.reviewer()
    verdict = store.write(document_id, verdict_of(given, result.document, items, reviewer))
    return jsonify(verdict=_shown(verdict))


@blueprint.delete("/api/verdicts/<document_id>")
def undo(document_id: str) -> Response:
    """Restore the verdict that a result had before, or remove its verdict."""
    if not is_document_id(document_id):
        abort(404)
    try:
        revision, reviewer = request.args.get("revision", ""), parts().access.reviewer()
        verdict = _store().undo(document_id, revision, reviewer)
    except VerdictChangedError as exc:
        abort(409, str(exc))
    return jsonify(verdict=_shown(verdict))


@blueprint.get("/api/review/statistics")
def statistics_json() -> Response:
    """Return the statistics as JSON."""
    shown = _statistics()
    return jsonify(
        wanted=shown["wanted"],
        images=shown["images"],
        missed=_estimate(shown["missed"]),
        rows=[
            {
                "label": each.label,
                "source": each.source,
                "precision": _estimate(each.precision),
                "threshold": each.threshold
                and {
                    "value": each.threshold.value,
                    "precision": _estimate(each.threshold.precision),
                    "kept": each.threshold.kept,
                    "of": each.threshold.of,
                },
            }
            for each in shown["rows"]
        ],
        bins=[
            {"low": each.low, "high": each.high, "precision": _estimate(each.precision)}
            for each in shown["bins"]
        ],
        reads=parts().results.usage().documents,
    )


@blueprint.get("/review/statistics")
def statistics() -> str:
    """Show what the verdicts say."""
    try:
        shown, error = _statistics(), None
    except FirestoreUnavailableError as exc:
        shown, error = {}, str(exc)
    return render_template("review_statistics.html", error=error, **shown)


def _statistics() -> dict[str, Any]:
    """Return what the page of the statistics shows.

    Raises:
        FirestoreUnavailableError: Firestore did not respond, or there is no database.
        FilterError: an argument has another form.
    """
    wanted = _share("wanted", WANTED) or WANTED
    is_random = request.args.get("order") == Order.RANDOM
    known: Verdicts = current_app.extensions["verdicts"]
    read = known.newest()
    models = Counter(image.model for image in read.images)
    names = {image.model: image.model_name for image in reversed(read.images)}
    model = request.args.get("model") or (read.images[0].model if read.images else None)
    images = [
        image
        for image in read.images
        if image.model == model and (image.order == Order.RANDOM or not is_random)
    ]
    detections = [item for image in images for item in image.detections]
    found = rows(detections, wanted)
    return {
        "wanted": wanted,
        "is_random": is_random,
        "model": model,
        "models": [(sha, names[sha] or "unknown", count) for sha, count in models.most_common()],
        "images": len(images),
        "missed": Estimate(sum(image.is_missed for image in images), len(images)),
        "rows": found[:_MAX_ROWS],
        "left_out": max(len(found) - _MAX_ROWS, 0),
        "all": row("", None, detections, wanted),
        "bins": by_confidence(detections),
        "yaml": {(each.label, each.source): _yaml(each) for each in found[:_MAX_ROWS]},
        "max_width": MAX_WIDTH,
        "max_verdicts": _MAX_VERDICTS,
        "unreadable": read.unreadable,
        "read_at": read.read_at,
        "reads": parts().results.usage().documents,
    }


def _yaml(each: Row) -> str | None:
    """Return the lines of the file of the sources that set a row's threshold."""
    if each.threshold is None or each.source is None:
        return None
    by_label = {each.label: max(each.threshold.value, 0.001)}
    source = {"id": each.source, "min_confidence_by_label": by_label}
    text: str = yaml.safe_dump({"sources": [source]}, sort_keys=False, allow_unicode=True)
    return text


def _estimate(estimate: Estimate) -> dict[str, Any]:
    interval = estimate.interval
    return {
        "correct": estimate.correct,
        "judged": estimate.judged,
        "share": estimate.share if estimate.is_enough else None,
        "low": interval.low,
        "high": interval.high,
    }


def _store() -> "VerdictStore":
    store = parts().verdicts
    if store is None:
        raise FirestoreUnavailableError(_NO_DATABASE)
    return store


def _result(document_id: str) -> StoredResult:
    result = parts().results.result(document_id) if is_document_id(document_id) else None
    if result is None or not _is_judged(result):
        abort(404, "There is no result to judge.")
    return result


def _is_judged(result: StoredResult) -> bool:
    """Return whether there is an image to judge: not if it failed, or is parked."""
    return card(result)["shown"] in (Shown.FOUND, Shown.NOTHING_FOUND)


def _items(shown: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what can be judged: the detections, and without any the most probable class."""
    detections = [*shown["detections"], *shown["faint"]]
    return detections or shown["classes"][:1]


def _body() -> Mapping[str, Any]:
    if (request.content_length or 0) > _MAX_BODY:
        abort(413)
    try:
        body = request.get_json(silent=True)
    except RecursionError:  # thousands of brackets
        body = None
    if not isinstance(body, dict):
        abort(400, "The request has no verdict.")
    return body


def _shown(verdict: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return what the page shows of a verdict. A person may have edited it."""
    if verdict is None:
        return None
    positions: dict[str, list[int]] = {str(judgement): [] for judgement in Judgement}
    for item in maps_of(verdict.get("detections")):
        judgement, index = item.get("verdict"), item.get("index")
        if isinstance(judgement, str) and judgement in positions and type(index) is int:
            positions[judgement].append(index)
    at, created_at = verdict.get("reviewed_at"), verdict.get("result_created_at")
    model = verdict.get("model")
    return positions | {
        "image": text_or_none(verdict.get("image")),
        "missed": verdict.get("missed") is True,
        "missed_label": text_or_none(verdict.get("missed_label")),
        "reviewer": text_or_none(verdict.get("reviewer")) or "unknown",
        "revision": text_or_none(verdict.get("revision")),
        "reviewed_at": at.isoformat() if isinstance(at, datetime) else None,
        "result_created_at": created_at.isoformat() if isinstance(created_at, datetime) else None,
        "model": text_or_none(model.get("name")) if isinstance(model, dict) else None,
    }


def _judged_filters(chosen: ResultFilter) -> Iterable[ResultFilter]:
    """Return the filters whose counts add up to the results with an image to judge."""
    if chosen.order in (Order.CONFIDENT, Order.UNCERTAIN) or chosen.shown:
        return [chosen]
    order = chosen.order if chosen.order is Order.NAME else Order.NEWEST
    return [
        replace(chosen, order=order, shown=shown) for shown in (Shown.FOUND, Shown.NOTHING_FOUND)
    ]


def _conditions(chosen: ResultFilter) -> dict[str, Any] | None:
    """Return the values that verdicts of a filter's results have, or None if there are none."""
    if chosen.prefix or chosen.until:
        return None
    key = f"{chosen.zone}/{chosen.label}" if chosen.label else chosen.zone
    is_by_confidence = chosen.order in (Order.CONFIDENT, Order.UNCERTAIN)
    found = {Shown.FOUND: True, Shown.NOTHING_FOUND: False}.get(chosen.shown or Shown.PARKED)
    values = {
        "zone_labels": key if chosen.zone else None,
        "labels": None if chosen.zone else chosen.label,
        "source": chosen.source,
        "bucket": chosen.bucket,
        "day": chosen.day and chosen.day.isoformat(),
        "found": True if is_by_confidence else found,
    }
    return {path: value for path, value in values.items() if value is not None}


def _share(name: str, default: float | None) -> float | None:
    """Return a number from 0 to 1 of the URL.

    Raises:
        FilterError: the text has another form.
    """
    text = request.args.get(name)
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise FilterError(f"{name}={text[:80]!r} is not a number from 0 to 1.")
    return value
