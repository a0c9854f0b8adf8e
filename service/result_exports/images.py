"""The files of an export's images, in its folder `images`. Several are fetched at once.

If a document has a redacted copy, or its source asks for redaction now, only that copy is fetched.
After `derived_error`, an image may lack the redacted copy, so nothing is fetched.
"""

import zlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from service.deadline import Deadline
from service.derived import NOTHING
from service.errors import (
    BadImageError,
    ObjectGoneError,
    YoloBatchError,
)
from service.result_exports.exported import redacted_copies
from service.result_exports.folder import IMAGES
from service.result_exports.records import ExportedImage, Output
from service.stored_json import json_line

if TYPE_CHECKING:
    from service.gcp.result_objects import ResultObjects
    from service.gcp.storage import ImageStorage
    from service.sources.current import CurrentSources

MISSING = "missing-images.jsonl"
AT_ONCE = 4  # each may have MAX_IMAGE_BYTES bytes
_SECONDS = 120.0  # for one file
_MAX_BYTES = 2**28  # of a file that Cloud Storage has compressed: 256 MiB
_GZIP = 31  # zlib's number for gzip


class NotFetchedError(YoloBatchError):
    """The file of an image cannot be in the export. The message says why."""


class Targets(Protocol):
    """Knows where files are written."""

    def image_target(self, path: str) -> Path:
        """Return where a file is written, inside of the folder.

        Raises:
            ExportFolderError: the path would leave the folder.
        """

    def note_image(self, path: str) -> None:
        """Note that a file was written."""


class Fetch(Protocol):
    """Returns the bytes of an image's file.

    Raises:
        YoloBatchError: there are none. The message says why.
    """

    def __call__(self, image: ExportedImage) -> bytes:
        """Return the bytes."""


class ImageFiles:
    """Fetches files. A file that cannot be fetched is noted in `missing-images.jsonl`."""

    def __init__(self, targets: Targets, fetch: Fetch) -> None:
        """Take where the files go, and what fetches them."""
        self._targets = targets
        self._fetch = fetch
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="images")
        self._waiting: deque[tuple[ExportedImage, Future[str | None]]] = deque()

    def add(self, image: ExportedImage, output: Output) -> int:
        """Begin to fetch a file. Return how many earlier ones turned out to be missing."""
        missing = 0
        if len(self._waiting) >= 2 * AT_ONCE:
            missing = self._take(output)
        if image.result:  # labels are not written for other images
            self._waiting.append((image, self._pool.submit(self._save, image)))
        return missing

    def wait(self, output: Output) -> int:
        """Wait for all files. Return how many of them are missing."""
        missing = 0
        while self._waiting:
            missing += self._take(output)
        return missing

    def close(self) -> None:
        """Stop. Files that were not begun are left out."""
        self._pool.shutdown(cancel_futures=True)

    def _take(self, output: Output) -> int:
        image, future = self._waiting.popleft()
        reason = future.result()
        if reason is None:
            self._targets.note_image(f"{IMAGES}/{image.path}")
            return 0
        entry = {"file": image.path, "uri": image.document.get("uri"), "reason": reason}
        output.append(MISSING, f"{json_line(entry)}\n".encode())
        return 1

    def _save(self, image: ExportedImage) -> str | None:
        """Fetch one file. Return why it is missing."""
        try:
            target = self._targets.image_target(f"{IMAGES}/{image.path}")
            data = self._fetch(image)
            _write(target, target.with_name(f".part-{image.document_id[:20]}"), data)
        except BadImageError as exc:
            return exc.message
        except (YoloBatchError, OSError) as exc:
            return str(exc)
        return None


class StoredFiles:
    """Fetches the exact generation of an upload, or its redacted copy. It is a `Fetch`."""

    def __init__(
        self, uploads: "ImageStorage", objects: "ResultObjects", sources: "CurrentSources"
    ) -> None:
        """Take what the files are read from, and the sources, which may ask for redaction."""
        self._uploads = uploads
        self._objects = objects
        self._sources = sources

    def __call__(self, image: ExportedImage) -> bytes:
        """Return the bytes.

        Raises:
            NotFetchedError: nothing may be shown of this image, or it is compressed in another way.
            BadImageError: the object is too large, or Cloud Storage refuses it.
            ObjectGoneError: this generation no longer exists.
            ResultObjectError: the redacted copy does not exist.
            StorageUnavailableError: Cloud Storage did not respond, or refuses the bucket.
            TooLateError: it took too long.
            SourcesUnknownError: nobody knows what must be redacted.
            FirestoreUnavailableError: Firestore did not respond.
        """
        error = image.document.get("derived_error")
        if error:
            raise NotFetchedError(f"{error} So it may lack a redacted copy.")
        copies = redacted_copies(image.document)
        if not copies:
            return self._upload(image)
        uri = str(copies[0].get("uri"))
        if f"/{image.document_id}-" not in uri:
            raise NotFetchedError("Its redacted copy is not an object of its document.")
        return self._objects.read(uri)

    def _upload(self, image: ExportedImage) -> bytes:
        assert image.result
        ref = image.result.ref
        # The id is a hash of the object's name. An edited document must not name another object:
        # its source may ask for redaction.
        if ref.document_id != image.document_id:
            raise NotFetchedError("The document was edited, and names another object.")
        settings = self._sources.settings_of(ref, Deadline.after(_SECONDS))
        if settings.version.id is None and settings.derive == NOTHING:
            raise NotFetchedError("The sources are broken: nobody knows what must be redacted.")
        if settings.derive.redaction is not None:
            raise NotFetchedError("Its source asks for redaction, and it has no redacted copy.")
        try:
            with self._uploads.download(ref, Deadline.after(_SECONDS)) as found:
                return _plain(found.data, found.content_encoding)
        except ObjectGoneError as exc:
            raise NotFetchedError("This generation of the object no longer exists.") from exc


def _write(target: Path, part: Path, data: bytes) -> None:
    """Write a file, all of it or nothing."""
    part.unlink(missing_ok=True)
    try:
        with part.open("xb") as file:
            file.write(data)
        part.replace(target)
    except OSError:  # for example, the disk is full
        part.unlink(missing_ok=True)
        raise


def _plain(data: bytes, encoding: str | None) -> bytes:
    """Return a file's bytes without Cloud Storage's compression.

    Raises:
        NotFetchedError: it is not gzip, is damaged, or is too large.
    """
    if not encoding:
        return data
    if encoding != "gzip":
        raise NotFetchedError(f"Its Content-Encoding is {encoding!r}.")
    inflater = zlib.decompressobj(_GZIP)
    try:
        plain = inflater.decompress(data, _MAX_BYTES)
    except zlib.error as exc:
        raise NotFetchedError("Its bytes do not match its Content-Encoding.") from exc
    if not inflater.eof:
        raise NotFetchedError("It is incomplete, or too large when it is decompressed.")
    return plain
