"""The images that failed, that are parked, and that have no result."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, cast
from urllib.parse import urlencode

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
from flask.blueprints import BlueprintSetupState

from service.document import STATUS_FAILED
from service.domain import ErrorCode, ImageRef
from service.errors import YoloBatchError
from service.gallery.again import Recently
from service.gallery.card import card
from service.gallery.counts import count
from service.gallery.image import error_code, stored
from service.gallery.parts import parts
from service.gcp.result_pages import StoredResult
from service.result_filter import FilterError, Order, ResultFilter, Shown

blueprint = Blueprint("problems", __name__)

PAGE_SIZE = 40  # images of one page
_PARKED = 20  # of the first page
_FIELDS = ("error_code", "source", "day", "until", "shown")  # of a filter, that apply here
_AGAIN = "gallery-again"
_FAILURES = tuple(code for code in ErrorCode if code is not ErrorCode.DAILY_IMAGE_LIMIT)
_NO_ROLE = (
    "The gallery may not publish jobs. Run `yolo-batch reconcile gs://BUCKET/PREFIX --enqueue "
    "failed`."
)
_EDITED = "The document was edited: its id is not that of the image that it names."


@dataclass(frozen=True)
class Group:
    """The images of a page that failed with one code. `code` is None if it is unknown here."""

    name: str
    code: ErrorCode | None
    cards: Sequence[Mapping[str, Any]]
    url: str  # of all images with this code


@blueprint.record_once
def _prepare(state: BlueprintSetupState) -> None:
    """Give each application its own list of what was tried again."""
    state.app.extensions[_AGAIN] = Recently()


@blueprint.get("/problems")
def page() -> str:
    """Show the images that failed, grouped by the reason, and those that are parked."""
    chosen = _chosen()
    cursor = request.args.get("cursor") or None
    is_first = chosen.shown is None and chosen.error_code is None and cursor is None
    failed: tuple[StoredResult, ...] = ()
    parked: tuple[StoredResult, ...] = ()
    following = None
    if chosen.shown is Shown.PARKED:
        found = parts().results.page(chosen, PAGE_SIZE, cursor)
        parked, following = found.results, found.following
    else:
        failures = replace(chosen, shown=Shown.FAILED)
        found = parts().results.page(failures, PAGE_SIZE, cursor)
        failed, following = found.results, found.following
        if is_first:
            waiting = replace(chosen, shown=Shown.PARKED)
            parked = parts().results.page(waiting, _PARKED).results
    return render_template(
        "problems.html",
        chosen=chosen,
        is_first=is_first,
        groups=_groups(failed, chosen),
        parked=[card(result) for result in parked],
        parked_code=ErrorCode.DAILY_IMAGE_LIMIT,
        parked_url=_url(replace(chosen, shown=Shown.PARKED, error_code=None)),
        all_url=_url(chosen.without("shown", "error_code")),
        following=following and _url(chosen, following),
        can_try_again=parts().try_again is not None,
        data={"counts": _counts_url(chosen) if is_first else None},
        reasons=[(code, _url(replace(chosen, error_code=code))) for code in _FAILURES],
    )


@blueprint.get("/api/problems/counts")
def counts() -> Response:
    """Return how many images failed with each code, and how many are parked."""
    chosen = _chosen().without("shown", "error_code")
    filters = {str(code): _failed_with(chosen, code) for code in _FAILURES}
    filters["parked"] = replace(chosen, shown=Shown.PARKED)
    found = {name: count(each) for name, each in filters.items()}
    return jsonify(counts=found, documents=parts().results.usage().documents)


@blueprint.post("/api/again/<document_id>")
def again(document_id: str) -> tuple[Response, int]:
    """Publish a job that replaces the document of a failed image."""
    publish = parts().try_again
    if publish is None:
        abort(403, _NO_ROLE)
    result = stored(document_id)
    if result.document.get("status") != STATUS_FAILED:
        abort(409, "This image did not fail, or was processed again. Load the page again.")
    image = _image(result)
    recently = cast(Recently, current_app.extensions[_AGAIN])
    if not recently.add(document_id):
        return _accepted("The job was published less than a minute ago.")
    try:
        publish(image, _created_at(result))
    except BaseException as exc:
        recently.remove(document_id)
        if isinstance(exc, YoloBatchError):
            abort(503, str(exc))
        raise
    return _accepted("The job is published. Load the page again in a minute to see the new result.")


def _accepted(text: str) -> tuple[Response, int]:
    return jsonify(text=text), 202


def _image(result: StoredResult) -> ImageRef:
    """Return the image of a result. The id proves that a person has not edited its name."""
    fields = tuple(result.document.get(key) for key in ("bucket", "name", "generation"))
    match fields:
        case (str(bucket), str(name), int(generation)):
            ref = ImageRef(bucket, name, generation)
        case _:
            abort(409, _EDITED)
    if ref.document_id != result.id:
        abort(409, _EDITED)
    return ref


def _created_at(result: StoredResult) -> datetime:
    created_at = result.document.get("created_at")
    return created_at if isinstance(created_at, datetime) else datetime.now(UTC)


def _chosen() -> ResultFilter:
    """Return the filter of the page: failed or parked images, the newest first.

    Raises:
        FilterError: the address is damaged.
    """
    chosen = ResultFilter.parse({key: request.args.get(key, "") for key in _FIELDS})
    if chosen.shown not in (None, Shown.FAILED, Shown.PARKED):
        raise FilterError("This page shows images that failed or that are parked.")
    return replace(chosen, order=Order.NEWEST)


def _failed_with(chosen: ResultFilter, code: ErrorCode) -> ResultFilter:
    return replace(chosen, shown=Shown.FAILED, error_code=str(code))


def _groups(results: Sequence[StoredResult], chosen: ResultFilter) -> list[Group]:
    by_name: dict[str, list[Mapping[str, Any]]] = {}
    for result in results:
        shown = card(result)
        by_name.setdefault((shown["error"] or {}).get("code") or "", []).append(shown)
    return [
        Group(name, error_code(name), cards, _url(replace(chosen, error_code=name or None)))
        for name, cards in by_name.items()
    ]


def _url(chosen: ResultFilter, cursor: str | None = None) -> str:
    arguments = chosen.arguments() | ({"cursor": cursor} if cursor else {})
    path = url_for("problems.page")
    return f"{path}?{urlencode(arguments)}" if arguments else path


def _counts_url(chosen: ResultFilter) -> str:
    return f"{url_for('problems.counts')}?{urlencode(chosen.arguments())}"
