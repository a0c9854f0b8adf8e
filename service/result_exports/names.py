"""Safe, unique file names for objects. An object's name is untrusted: it can be any text."""

import re
import unicodedata
from collections.abc import Iterator
from itertools import count
from pathlib import PurePosixPath
from typing import Protocol

_MAX_PART_BYTES = 200  # of 255, for what is added
_MAX_PATH_BYTES = 1000
_SHORT = 10  # hexadecimal digits of the document's id that make a path unique
# Characters that Windows does not allow, separators, and what does not show or turns the text.
_FORBIDDEN = re.compile(
    r'[<>:"|?*\\\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]'
)
_DEVICE = re.compile(
    r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]|conin\$|conout\$) *(\..*)?", re.IGNORECASE
)


class Taken(Protocol):
    """The keys of the paths that an export has given."""

    def add(self, key: str) -> bool:
        """Note a key. Return False if it was there already."""

    def has(self, key: str) -> bool:
        """Return whether a key was noted."""


class FileNames:
    """Gives each image of an export a path of its own.

    The path is the object's name, if that is safe. A name that had to be changed, or that another
    image has already, gets a part of the document's id. Names count as equal if they differ only in
    case, in the form of Unicode, or in the suffix: not every file system, and not every tool, tells
    such names from each other. A file never has the name of another image's folder.
    """

    def __init__(self, taken: Taken) -> None:
        """Take where the given paths are noted."""
        self._taken = taken

    def path(self, name: str, document_id: str) -> str:
        """Return the relative path of an image's file, with `/`."""
        path = next(path for path in _candidates(name, document_id) if self._is_free(path))
        self._note(path)
        return path

    def _is_free(self, path: str) -> bool:
        key = _key(path)
        folders = [_key(str(folder)) for folder in _folders(path)]
        is_other = self._taken.has(f"file {key}") or self._taken.has(f"folder {key}")
        return not is_other and not any(self._taken.has(f"file {folder}") for folder in folders)

    def _note(self, path: str) -> None:
        self._taken.add(f"file {_key(path)}")
        for folder in _folders(path):
            self._taken.add(f"folder {_key(str(folder))}")


def _folders(path: str) -> list[PurePosixPath]:
    return [folder for folder in PurePosixPath(path).parents if folder.name]


def _key(path: str) -> str:
    """Return the same text for paths that count as equal."""
    pure = PurePosixPath(path)
    text = str(pure.with_suffix("")) if pure.suffix else path
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFC", text).casefold())


def _candidates(name: str, document_id: str) -> Iterator[str]:
    """Yield paths for an object, the best first. Other names cannot use up all of them."""
    path = safe_path(name)
    if path == name:
        yield path
    yield with_id(path, document_id)
    # Now a folder has the name of an earlier file, or an object's name looks like such a path.
    flat = PurePosixPath(path).name
    yield _with(f"{document_id[:_SHORT]}/{flat}", document_id[:_SHORT])
    for number in count(2):
        yield _with(f"{document_id}-{number}/{flat}", document_id)


def with_id(path: str, document_id: str) -> str:
    """Return the path with a part of the document's id before its suffix."""
    return _with(path, document_id[:_SHORT])


def _with(path: str, text: str) -> str:
    pure = PurePosixPath(path)
    return str(pure.with_name(f"{pure.stem}-{text}{pure.suffix}"))


def safe_path(name: str) -> str:
    """Return a relative path that is safe on every file system, with `/`.

    It has neither `..` nor empty parts, no control characters, no device of Windows, and no part
    that is too long.
    """
    parts = [safe for part in name.split("/") if (safe := _safe_part(part))]
    path = "/".join(parts) or "image"
    if len(path.encode()) > _MAX_PATH_BYTES:
        path = _safe_part(PurePosixPath(path).name) or "image"
    return path


def _safe_part(part: str) -> str:
    text = unicodedata.normalize("NFC", part.encode("utf-8", "replace").decode())
    text = _FORBIDDEN.sub("_", text).rstrip(". ").lstrip(" ")
    if text in ("", ".", ".."):
        return ""
    if _DEVICE.fullmatch(text):
        text = f"_{text}"
    return _cut(text)


def _cut(text: str) -> str:
    """Return a part without its middle, if it is too long. The suffix stays."""
    if len(text.encode()) <= _MAX_PART_BYTES:
        return text
    suffix = PurePosixPath(text).suffix
    suffix = suffix if len(suffix.encode()) <= 20 else ""
    room = _MAX_PART_BYTES - len(suffix.encode())
    stem = text.removesuffix(suffix).encode()[:room].decode(errors="ignore").rstrip(". ")
    return stem + suffix
