"""Which objects the uris of a submission mean: each must exist, and patterns are expanded.

A name may hold `*` and `?` itself, so an object of exactly this name comes first. Otherwise they
are wildcards, as gcloud's: `*` and `?` stay within one folder, `**` does not.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from service.domain import ImageRef
from service.errors import EnvelopeError, StorageRefusedError, YoloBatchError
from service.events import parse_uri

LOOKUPS = 32  # objects asked for at once

_WILDCARD = re.compile(r"\*\*/|\*\*|\*|\?")
_EXPRESSIONS = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
_SHOWN = 10  # uris in one sentence


class SubmissionError(YoloBatchError):
    """Some uri names no image."""


class Objects(Protocol):
    """What a bucket holds; see `service.gcp.listing.ObjectLister`."""

    def exists(self, ref: ImageRef) -> bool:
        """Say whether an object is there."""

    def pages(self, bucket: str, prefix: str) -> Iterator[Sequence[ImageRef]]:
        """List the live objects with a prefix."""


@dataclass
class Submission:
    """The uris to publish, and how many each pattern added."""

    uris: list[str] = field(default_factory=list)
    matches: dict[str, int] = field(default_factory=dict)


def read(uris: Iterable[str]) -> dict[str, ImageRef]:
    """Read uris, each once.

    Raises:
        SubmissionError: one cannot be read, or names what the service ignores.
    """
    refs: dict[str, ImageRef] = {}
    for uri in uris:
        try:
            ref = refs[uri] = parse_uri(uri)
        except EnvelopeError as exc:
            raise SubmissionError(f"{uri!r} is wrong: {exc}") from exc
        if ref.is_ignorable:
            advice = f": for its images give {uri}**" if uri.endswith("/") else ""
            raise SubmissionError(
                f"{uri!r} is a folder marker or a part of a composite upload, "
                f"which the service ignores{advice}"
            )
    if not refs:
        raise SubmissionError("There are no uris to submit")
    return refs


def is_pattern(ref: ImageRef) -> bool:
    """Say whether a name has wildcards; with a generation, it means one object."""
    return ref.generation is None and bool(_WILDCARD.search(ref.name))


def look_up(refs: dict[str, ImageRef], objects: Objects) -> Submission:
    """Find the objects of uris.

    Raises:
        SubmissionError: some uri names no object.
        YoloBatchError: Cloud Storage did not answer.
    """
    submission = Submission()
    missing = []

    def exists(ref: ImageRef) -> bool:
        try:
            return objects.exists(ref)
        except StorageRefusedError:
            if is_pattern(ref):
                return False  # an account that may only list: the listing decides
            raise

    with ThreadPoolExecutor(LOOKUPS) as threads:
        exist = list(threads.map(exists, refs.values()))
    for (uri, ref), is_there in zip(refs.items(), exist, strict=True):
        if is_there:
            submission.uris.append(uri)
        elif found := list(_matching(ref, objects)):
            # If the lookup was refused, the object with exactly this name may be in the list.
            found = [one for one in found if one.name == ref.name] or found
            submission.uris += [f"{one.uri}#{one.generation}" for one in found]
            submission.matches[uri] = len(found)
        else:
            missing.append(uri)
    if missing:
        shown = "".join(f"\n  {uri}{_hint(refs[uri], objects)}" for uri in missing[:_SHOWN])
        more = f"\n  and {len(missing) - _SHOWN:,} more" if len(missing) > _SHOWN else ""
        raise SubmissionError(
            f"{len(missing):,} of {len(refs):,} uris name no object, so nothing is published "
            f"(--no-check publishes uris as they are):{shown}{more}"
        )
    submission.uris = list(dict.fromkeys(submission.uris))
    return submission


def _matching(ref: ImageRef, objects: Objects) -> Iterator[ImageRef]:
    """Find the objects that a pattern means, each with its generation."""
    first = _WILDCARD.search(ref.name)
    if not first or not is_pattern(ref):
        return
    expression = re.compile(_expression(ref.name), re.DOTALL)
    for page in objects.pages(ref.bucket, ref.name[: first.start()]):
        for found in page:
            if expression.fullmatch(found.name) and not found.is_ignorable:
                yield found


def _hint(ref: ImageRef, objects: Objects) -> str:
    """Name an object whose own name ends in what was read as the generation, if there is one."""
    if ref.generation is None:
        return ""
    name = f"{ref.name}#{ref.generation}"
    with suppress(YoloBatchError):
        for found in next(iter(objects.pages(ref.bucket, name)), ()):
            if found.name == name:
                return f" (for the object of this name give {found.uri}#{found.generation})"
    return ""


def _expression(pattern: str) -> str:
    parts = re.split(f"({_WILDCARD.pattern})", pattern)
    return "".join(_EXPRESSIONS.get(part) or re.escape(part) for part in parts)
