"""The page of the objects that have no result."""

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

from flask import Blueprint, render_template, request, url_for

from service.deadline import Deadline
from service.domain import ImageRef
from service.errors import SourcesUnknownError
from service.gallery.details import as_time
from service.gallery.parts import parts
from service.gcp.listing import NoBucketError
from service.object_metadata import is_marked
from service.result_filter import FilterError, ResultFilter
from service.sources.schema import Sources

blueprint = Blueprint("not_run", __name__)

_LISTED = 60  # objects of one page. Each costs one read of Firestore.
_SOURCES_SECONDS = 10.0
_MAX_NAME_BYTES = 1024  # of an object
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")


@dataclass(frozen=True)
class WithoutResult:
    """An object without a result. `disabled` is its source if that is disabled."""

    name: str
    size: str
    created: str
    disabled: str | None


@dataclass(frozen=True)
class _Looked:
    """What one page has looked at: names from `first` to `last`."""

    missing: Sequence[WithoutResult] = ()
    count: int = 0  # images
    ignored: int = 0
    first: str | None = None
    last: str | None = None
    is_last_page: bool = True


@blueprint.get("/not-run")
def page() -> str:
    """Look at some objects of a bucket, in the order of their names."""
    bucket = request.args.get("bucket") or _default_bucket()
    prefix, after = request.args.get("prefix", ""), request.args.get("cursor", "")
    fault, looked = None, None
    sources, sources_fault = _sources()
    if parts().objects is not None and bucket is not None:
        _check(bucket, prefix, after)
        try:
            looked = _look(bucket, prefix, after, sources)
        except NoBucketError as exc:
            fault = str(exc)
    following = None
    if bucket and looked and not looked.is_last_page and looked.last:
        arguments = {"bucket": bucket, "prefix": prefix, "cursor": looked.last}
        following = f"{url_for('not_run.page')}?{urlencode(arguments)}"
    return render_template(
        "not_run.html",
        is_available=parts().objects is not None,
        bucket=bucket,
        prefix=prefix,
        buckets=parts().options.allowed_buckets,
        looked=looked,
        faults=[each for each in (fault, sources_fault) if each],
        following=following,
        uri=shlex.quote(f"gs://{bucket}/{prefix}"),  # for a shell: names have any characters
    )


def _default_bucket() -> str | None:
    """Return the first allowed bucket, else that of the newest result, else None."""
    if allowed := parts().options.allowed_buckets:
        return allowed[0]
    for result in parts().results.page(ResultFilter(), 1).results:
        bucket = result.document.get("bucket")
        return bucket if isinstance(bucket, str) and _BUCKET.fullmatch(bucket) else None
    return None


def _sources() -> tuple[Sources, str | None]:
    """Return the current sources, or a sentence if nobody knows them."""
    try:
        return parts().sources.sources(Deadline.after(_SOURCES_SECONDS)), None
    except SourcesUnknownError:
        fault = "The sources could not be read, so this page does not know which are disabled."
        return Sources(sources=()), fault


def _check(bucket: str, prefix: str, after: str) -> None:
    """Check what a browser sent.

    Raises:
        FilterError: this bucket must not be listed, or a name is impossible.
    """
    allowed = parts().options.allowed_buckets
    if not _BUCKET.fullmatch(bucket) or (allowed and bucket not in allowed):
        raise FilterError(
            "This bucket cannot be listed here. ALLOWED_BUCKETS has those that can be listed."
            if allowed
            else "This is not the name of a bucket."
        )
    for name in (prefix, after):
        if len(name.encode(errors="replace")) > _MAX_NAME_BYTES or "\0" in name:
            raise FilterError("This is not the name of an object.")


def _look(bucket: str, prefix: str, after: str, sources: Sources) -> _Looked:
    """Read one page of a bucket, and which of its objects have a result.

    Raises:
        NoBucketError: there is no such bucket.
        StorageUnavailableError: Cloud Storage did not respond, or refuses access.
        FirestoreUnavailableError: Firestore did not respond.
    """
    lister = parts().objects
    assert lister is not None
    # One more than shown: the listing begins with the name after which the page begins.
    pages = lister.pages(bucket, prefix, after=after, page_size=_LISTED + 1)
    listed = next(pages, ())
    page = listed[:_LISTED]
    images = [ref for ref in page if not (ref.is_ignorable or is_marked(ref.metadata.custom))]
    recorded = parts().results.recorded([ref.document_id for ref in images])
    missing = [ref for ref in images if ref.document_id not in recorded]
    return _Looked(
        missing=list(_described(missing, sources)),
        count=len(images),
        ignored=len(page) - len(images),
        first=page[0].name if page else None,
        last=page[-1].name if page else None,
        is_last_page=len(listed) < _LISTED,
    )


def _described(refs: Iterable[ImageRef], sources: Sources) -> Iterable[WithoutResult]:
    for ref in refs:
        source = sources.find(ref.bucket, ref.name)
        size, created = ref.metadata.size, ref.metadata.created_at
        yield WithoutResult(
            ref.name,
            "" if size is None else f"{size:,} bytes",
            "" if created is None else as_time(created),
            source.id if source and not source.enabled else None,
        )
