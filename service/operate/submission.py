"""Finds the objects that the URIs of a submission name. Each must exist. Patterns are expanded.

`*` and `?` match within one folder, `**` across folders, as in gcloud. But if an object has exactly
the name of the pattern, the URI means that object.
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
from service.object_metadata import is_marked

LOOKUPS = 32  # objects looked up at once

_WILDCARD = re.compile(r"\*\*/|\*\*|\*|\?")
_EXPRESSIONS = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
_SHOWN = 10  # URIs in one error message


class SubmissionError(YoloBatchError):
    """A URI is wrong, or names no image."""


class Objects(Protocol):
    """Looks up and lists a bucket's objects. `service.gcp.listing.ObjectLister` implements it."""

    def exists(self, ref: ImageRef) -> bool:
        """Return whether an object exists."""

    def pages(self, bucket: str, prefix: str) -> Iterator[Sequence[ImageRef]]:
        """List the live objects with a prefix."""


@dataclass
class Submission:
    """The URIs to publish, and how many objects each pattern matched."""

    uris: list[str] = field(default_factory=list)
    matches: dict[str, int] = field(default_factory=dict)


def read(uris: Iterable[str]) -> dict[str, ImageRef]:
    """Parse URIs. Return the references by URI, without duplicates.

    Raises:
        SubmissionError: there are no URIs, or a URI is wrong or names what the service ignores.
    """
    refs: dict[str, ImageRef] = {}
    for uri in uris:
        try:
            ref = refs[uri] = parse_uri(uri)
        except EnvelopeError as exc:
            raise SubmissionError(f"{uri!r} is wrong: {exc}") from exc
        if ref.is_ignorable:
            advice = f". For the images in the folder, use {uri}**" if uri.endswith("/") else ""
            raise SubmissionError(
                f"{uri!r} is a folder marker or a part of a composite upload, "
                f"which the service ignores{advice}"
            )
    if not refs:
        raise SubmissionError("There are no URIs to submit")
    return refs


def is_pattern(ref: ImageRef) -> bool:
    """Return whether a reference is a pattern: without a generation, and with wildcards."""
    return ref.generation is None and bool(_WILDCARD.search(ref.name))


def look_up(refs: dict[str, ImageRef], objects: Objects) -> Submission:
    """Find the objects that the URIs name.

    Raises:
        SubmissionError: a URI names no object.
        YoloBatchError: Cloud Storage did not respond.
    """
    submission = Submission()
    missing = []

    def exists(ref: ImageRef) -> bool:
        try:
            return objects.exists(ref)
        except StorageRefusedError:
            if is_pattern(ref):
                return False  # the account may have permission only to list: the listing decides
            raise

    with ThreadPoolExecutor(LOOKUPS) as threads:
        existing = list(threads.map(exists, refs.values()))
    for (uri, ref), is_existing in zip(refs.items(), existing, strict=True):
        if is_existing:
            submission.uris.append(uri)
        elif matches := list(_matching(ref, objects)):
            # If the lookup was refused, the list may contain the object with exactly this name.
            matches = [match for match in matches if match.name == ref.name] or matches
            submission.uris += [f"{match.uri}#{match.generation}" for match in matches]
            submission.matches[uri] = len(matches)
        else:
            missing.append(uri)
    if missing:
        shown = "".join(f"\n  {uri}{_hint(refs[uri], objects)}" for uri in missing[:_SHOWN])
        more = f"\n  and {len(missing) - _SHOWN:,} more" if len(missing) > _SHOWN else ""
        raise SubmissionError(
            f"{len(missing):,} of {len(refs):,} URIs name no object, so nothing is published "
            f"(--no-check publishes URIs without a check):{shown}{more}"
        )
    submission.uris = list(dict.fromkeys(submission.uris))
    return submission


def _matching(ref: ImageRef, objects: Objects) -> Iterator[ImageRef]:
    """Yield the objects that match a pattern, each with its generation."""
    first = _WILDCARD.search(ref.name)
    if not first or not is_pattern(ref):
        return
    expression = re.compile(_expression(ref.name), re.DOTALL)
    for page in objects.pages(ref.bucket, ref.name[: first.start()]):
        for candidate in page:
            is_image = not (candidate.is_ignorable or is_marked(candidate.metadata.custom))
            if is_image and expression.fullmatch(candidate.name):
                yield candidate


def _hint(ref: ImageRef, objects: Objects) -> str:
    """Return a hint if the parsed generation is in fact the end of an object's name."""
    if ref.generation is None:
        return ""
    name = f"{ref.name}#{ref.generation}"
    with suppress(YoloBatchError):
        for candidate in next(iter(objects.pages(ref.bucket, name)), ()):
            if candidate.name == name:
                return (
                    f" (for the object with this name, use {candidate.uri}#{candidate.generation})"
                )
    return ""


def _expression(pattern: str) -> str:
    """Return a pattern as a regular expression."""
    parts = re.split(f"({_WILDCARD.pattern})", pattern)
    return "".join(_EXPRESSIONS.get(part) or re.escape(part) for part in parts)
