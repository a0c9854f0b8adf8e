"""An export as a stream of bytes: one file, or a zip of several.

Neither needs memory that grows with the number of images. What cannot be sent yet is in temporary
files: all files of a zip but the one that is being sent, and a format's parts.
"""

import sqlite3
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO, BinaryIO

from service.result_exports.records import ExportedImage, Writer

_BLOCK_BYTES = 2**16
_MEMORY_BYTES = 2**20  # what is written at once and is larger goes to a file
_TIME = (1980, 1, 1, 0, 0, 0)  # the same export has the same bytes


class TemporaryKeys:
    """Keys of paths in a temporary database without a name. It is a `Taken`.

    SQLite moves what does not fit into its cache to a file that it removes itself:
    https://www.sqlite.org/inmemorydb.html#temp_db
    """

    def __init__(self) -> None:
        """Create the database."""
        self._database = sqlite3.connect("", check_same_thread=False)
        self._database.execute("CREATE TABLE taken (key TEXT PRIMARY KEY) WITHOUT ROWID")

    def add(self, key: str) -> bool:
        """Note a key. Return False if it was there already."""
        return self._database.execute("INSERT OR IGNORE INTO taken VALUES (?)", (key,)).rowcount > 0

    def has(self, key: str) -> bool:
        """Return whether a key was noted."""
        found = self._database.execute("SELECT 1 FROM taken WHERE key = ?", (key,))
        return found.fetchone() is not None

    def close(self) -> None:
        """Remove the database."""
        self._database.close()


class _Sent:
    """A file that is only written. `take` yields what was written since the last call.

    A large end of a file, which a format writes at once, goes to a temporary file.
    """

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(_MEMORY_BYTES)  # noqa: SIM115  # `close` closes it

    def write(self, data: bytes) -> int:
        return self._file.write(data)

    def flush(self) -> None:
        """Do nothing: `take` reads it."""

    def take(self) -> Iterator[bytes]:
        if not self._file.tell():
            return
        self._file.seek(0)
        while block := self._file.read(_BLOCK_BYTES):
            yield block
        self._file.seek(0)
        self._file.truncate()

    def close(self) -> None:
        self._file.close()


class _Stream:
    """An `Output` whose bytes are taken while it is written."""

    def __init__(self) -> None:
        self._sent = _Sent()
        self._temporary: dict[str, IO[bytes]] = {}

    def take(self) -> Iterator[bytes]:
        """Yield what can be sent now."""
        return self._sent.take()

    def append_part(self, name: str, data: bytes) -> None:
        self._spool(f"part {name}").write(data)

    @contextmanager
    def read_part(self, name: str) -> Iterator[BinaryIO]:
        file = self._spool(f"part {name}")
        file.seek(0)
        yield file  # type: ignore[misc]  # the type of a temporary file is wider

    def close(self) -> None:
        """Remove the temporary files."""
        for file in self._temporary.values():
            file.close()
        self._temporary.clear()
        self._sent.close()

    def _spool(self, key: str) -> IO[bytes]:
        if key not in self._temporary:
            self._temporary[key] = tempfile.TemporaryFile()  # noqa: SIM115  # as above
        return self._temporary[key]


class _OneFile(_Stream):
    """The only file of a format."""

    def append(self, path: str, data: bytes) -> None:
        self._sent.write(data)

    @contextmanager
    def create(self, path: str) -> Iterator[BinaryIO]:
        yield self._sent  # type: ignore[misc]  # only `write` is used

    def finish(self) -> Iterator[bytes]:
        """Yield what remains."""
        yield from self.take()


class _Zip(_Stream):
    """A zip. A format that writes each file at once is sent at once, else files are kept."""

    def __init__(self, *, is_written_at_once: bool) -> None:
        super().__init__()
        self._zip = zipfile.ZipFile(self._sent, "w", zipfile.ZIP_DEFLATED)
        self._is_written_at_once = is_written_at_once
        self._files: list[str] = []

    def append(self, path: str, data: bytes) -> None:
        if self._is_written_at_once:
            self._zip.writestr(_entry(path), data)
            return
        if path not in self._files:
            self._files.append(path)
        self._spool(path).write(data)

    @contextmanager
    def create(self, path: str) -> Iterator[BinaryIO]:
        with self._zip.open(_entry(path), "w", force_zip64=True) as file:
            yield file  # type: ignore[misc]  # zipfile's own type of a file

    def finish(self) -> Iterator[bytes]:
        """Yield the files that were kept, and the end of the zip."""
        for path in self._files:
            file = self._spool(path)
            file.seek(0)
            with self._zip.open(_entry(path), "w", force_zip64=True) as target:
                while block := file.read(_BLOCK_BYTES):
                    target.write(block)
                    yield from self.take()
        self._zip.close()
        yield from self.take()


def _entry(path: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(path, _TIME)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = 0o644 << 16
    return entry


def stream_file(images: Iterable[tuple[ExportedImage, str]], writer: Writer) -> Iterator[bytes]:
    """Yield an export in a format that has one file."""
    return _streamed(images, writer, _OneFile())


def stream_zip(
    images: Iterable[tuple[ExportedImage, str]], writer: Writer, *, is_written_at_once: bool
) -> Iterator[bytes]:
    """Yield an export as a zip.

    Args:
        images: the images, each with the cursor behind it.
        writer: the format.
        is_written_at_once: whether the format writes each file by one call of `append`.
    """
    return _streamed(images, writer, _Zip(is_written_at_once=is_written_at_once))


def _streamed(
    images: Iterable[tuple[ExportedImage, str]], writer: Writer, output: _OneFile | _Zip
) -> Iterator[bytes]:
    try:
        writer.begin(output)
        for image, _ in images:
            writer.add(image, output)
            yield from output.take()
        writer.finish(output)
        yield from output.take()
        yield from output.finish()
    finally:
        output.close()
