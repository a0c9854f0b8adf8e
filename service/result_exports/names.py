"""Safe, unique file names for objects. An object's name is untrusted: it can be any text."""

import re
import unicodedata
from pathlib import PurePosixPath

_MAX_PART_BYTES = 200  # of 255, for what is added
_MAX_PATH_BYTES = 1000
_SHORT = 10  # hexadecimal digits of the document's id that make a changed name unique
# Characters that Windows does not allow, separators, and what does not show or turns the text.
_FORBIDDEN = re.compile(
    r'[<>:"|?*\\\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]'
)
_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.IGNORECASE)


class FileNames:
    """Gives each image of an export a path of its own.

    A path depends on the object's name, on the document's id, and on which names were given before.
    A name that had to be changed, or that another image has already, gets a part of the document's
    id. Names count as equal if they differ only in case, in the form of Unicode, or in the suffix:
    not every file system and not every tool keeps such names apart.
    """

    def __init__(self, given: frozenset[str] = frozenset()) -> None:
        """Start with the keys of the paths that were given before."""
        self._files: set[str] = set(given)
        self._folders: set[str] = set()

    def path(self, name: str, document_id: str) -> str:
        """Return the relative path of an image's file, with `/`."""
        raise NotImplementedError


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
