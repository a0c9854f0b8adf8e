"""Finds the result of each labelled image by its name, although tools change names.

A label file is made by an export of this project, or by a tool to which the images were copied.
The tools change the names:

- Label Studio writes `images/1f2e3d4c-NAME` for an uploaded file, `images/1f2e3d4c__NAME` for a
  file that it downloaded, `/data/local-files/?d=FOLDER/NAME` for a file of its server, or
  `gs://BUCKET/NAME`. In an uploaded file's name, it replaces blanks and removes other characters.
- CVAT writes the path below the task's folder, and may add a folder for the subset.

So a name is tried in several spellings, the most exact one first. A name that fits several results
is ambiguous: it is never guessed.
"""

import base64
import binascii
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import unquote

from service.domain import ImageRef
from service.result_exports.names import safe_path, with_id
from service.truth import LabelledImage

_QUERY = re.compile(r"[?&](?:d|filepath|fileuri)=([^&]*)")
_BUCKET = re.compile(r"gs://[^/]+/")
_HASH = re.compile(r"[0-9a-f]{8}(?:-|__)(?=.)")
_MAX_HASHES = 2  # of the upload, and of a download


@dataclass(frozen=True)
class ResultName:
    """The name of a result's image.

    Attributes:
        name: the object's name, or the file's path below the folder.
        short: the name below the prefix that was asked for.
        uri: `gs://bucket/name`, or None for a file.
        exported: paths that an export of this project may give the image.
    """

    name: str
    short: str
    uri: str | None = None
    exported: tuple[str, ...] = ()


@dataclass(frozen=True)
class ImageMatches:
    """Which result each labelled image has.

    Attributes:
        result_of: index of the result by index of the labelled image.
        ambiguous: indexes of labelled images that fit several results, or the result of another
            labelled image.
    """

    result_of: dict[int, int]
    ambiguous: tuple[int, ...]


def stored_name(bucket: str, name: str, generation: int, prefix: str) -> ResultName:
    """Return the names of a stored result's image.

    Args:
        bucket: the bucket.
        name: the object's name.
        generation: the object's generation.
        prefix: the prefix that was asked for.
    """
    ref = ImageRef(bucket, name, generation)
    path = safe_path(name)
    exported = path, with_id(path, ref.document_id)
    return ResultName(name, short_name(name, prefix), ref.uri, exported)


def short_name(name: str, prefix: str) -> str:
    """Return an object's name below a prefix, or below the prefix's folder."""
    folder = prefix.rstrip("/")
    if not name.startswith(f"{folder}/"):
        folder = prefix.rpartition("/")[0]
    return name.removeprefix(folder).lstrip("/") or name


def result_keys(result: ResultName) -> set[str]:
    """Return the `basename_key` of each of a result's names."""
    return {basename_key(path) for path in (result.name, *result.exported)}


def basename_key(name: str) -> str:
    """Return what two spellings of a file's name have in common, without its folders.

    It is the name to which Label Studio changes it.
    """
    base = re.split(r"[/\\]", _composed(name))[-1].strip().replace(" ", "_")
    return re.sub(r"[^-\w.]", "", base)


def keys(image: LabelledImage) -> set[str]:
    """Return the `basename_key` of each spelling of an image's name."""
    return {basename_key(text) for text in (image.uri or "", *_spellings(image.name)) if text}


def match_images(images: Sequence[LabelledImage], results: Sequence[ResultName]) -> ImageMatches:
    """Find the result of each labelled image."""
    by_key: dict[str, list[int]] = defaultdict(list)
    for index, result in enumerate(results):
        for key in result_keys(result):
            by_key[key].append(index)
    found = {index: _find(image, results, by_key) for index, image in enumerate(images)}
    claims = Counter(hits[0] for hits in found.values() if len(hits) == 1)
    result_of = {
        index: hits[0] for index, hits in found.items() if len(hits) == 1 and claims[hits[0]] == 1
    }
    ambiguous = [index for index, hits in found.items() if hits and index not in result_of]
    return ImageMatches(result_of, tuple(ambiguous))


def _find(
    image: LabelledImage, results: Sequence[ResultName], by_key: dict[str, list[int]]
) -> list[int]:
    """Return the results that the most exact spelling fits."""
    if image.uri:
        candidates = by_key.get(basename_key(image.uri), [])
        if hits := [index for index in candidates if results[index].uri == image.uri]:
            return hits
    for spelling in _spellings(image.name):
        candidates = by_key.get(basename_key(spelling), [])
        for fits in _RULES:
            if hits := [index for index in candidates if fits(spelling, results[index])]:
                return hits
    return []


def _is_exact(spelling: str, result: ResultName) -> bool:
    names = (result.short, result.name, *result.exported)
    return spelling == result.uri or spelling in map(_composed, names)


def _lacks_folders(spelling: str, result: ResultName) -> bool:
    """Whether the label file has the end of the result's path."""
    paths = (result.name, *result.exported)
    return any(_ends_with(_composed(path), spelling) for path in paths)


def _has_folders(spelling: str, result: ResultName) -> bool:
    """Whether the label file has the result's path behind further folders."""
    paths = (result.short, *result.exported)
    return any(_ends_with(spelling, _composed(path)) for path in paths)


def _is_renamed(spelling: str, result: ResultName) -> bool:
    """Whether Label Studio would make the label file's name from the result's name."""
    return "/" not in spelling and spelling in result_keys(result)


_RULES: tuple[Callable[[str, ResultName], bool], ...] = (
    _is_exact,
    _lacks_folders,
    _has_folders,
    _is_renamed,
)


def _ends_with(path: str, end: str) -> bool:
    return path == end or path.endswith(f"/{end}")


def _spellings(name: str) -> Iterable[str]:
    """Return the spellings of a labelled image's name, the most exact one first."""
    return dict.fromkeys(filter(None, _all_spellings(_composed(name).replace("\\", "/"))))


def _all_spellings(name: str) -> Iterator[str]:
    yield name
    plain = name
    if query := _QUERY.search(name):
        plain = _decoded(unquote(query[1]))
        yield plain
    yield (plain := _BUCKET.sub("", plain, count=1).lstrip("/").removeprefix("./"))
    base = plain.rpartition("/")[2]
    for _ in range(_MAX_HASHES):  # the folder of such a name is the tool's own
        if not _HASH.match(base):
            break
        yield (base := _HASH.sub("", base, count=1))


def _decoded(text: str) -> str:
    """Return the address that Label Studio has encoded as base64, or the text itself."""
    try:
        address = base64.b64decode(text, validate=True).decode()
    except (binascii.Error, ValueError):
        return text
    return address if _BUCKET.match(address) else text


def _composed(text: str) -> str:
    """Return the text with composed characters. Some systems write `e` and its accent as two."""
    return unicodedata.normalize("NFC", text)
