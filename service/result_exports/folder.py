"""An export in a folder: its files, and the state from which it continues after a crash.

The state is a SQLite file beside the export's files, so that it needs no memory: which paths were
given, how long each file was, and the cursor of the last image. One transaction records all of it,
after the files were written. To continue, each file is cut to the recorded length.
"""

import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from service.errors import YoloBatchError

STATE = ".export-state.sqlite"
IMAGES = "images"  # the folder of the images' files
_OPEN_FILES = 64
_LOCK_SECONDS = 1.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS taken (key TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, bytes INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS state (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
"""


class ExportFolderError(YoloBatchError):
    """The folder cannot take the export. The message says what to do."""


class ExportFolder:
    """The folder of one export, as a context manager. It is an `Output` and a `Taken`."""

    def __init__(self, folder: Path) -> None:
        """Take the folder. Call `begin` or `resume` before anything else."""
        self._folder = folder
        self._files: dict[str, BinaryIO] = {}
        self._database: sqlite3.Connection | None = None

    def begin(self, request: dict[str, Any]) -> None:
        """Begin a new export.

        Args:
            request: what identifies the export, as JSON: filter, format and options.

        Raises:
            ExportFolderError: the folder is not empty.
        """
        if self._folder.exists() and any(self._folder.iterdir()):
            is_begun = (self._folder / STATE).exists()
            advice = "Continue it with --resume, or choose" if is_begun else "Choose"
            raise ExportFolderError(f"{self._folder} is not empty. {advice} another folder.")
        self._folder.mkdir(parents=True, exist_ok=True)
        self._connect()
        self._put("request", request)
        self._connection.commit()

    def resume(self, request: dict[str, Any]) -> tuple[str | None, dict[str, Any]]:
        """Continue an export. Return the cursor of its last image, and the state behind it.

        Raises:
            ExportFolderError: there is no such export, another process writes it, or it lacks a
                file.
        """
        if not (self._folder / STATE).exists():
            raise ExportFolderError(f"{self._folder} has no export that is not finished.")
        self._connect()
        if self._get("request") is None:  # it ended before the first record
            self._put("request", request)
            self._connection.commit()
        if self._get("request") != request:
            self.close()
            raise ExportFolderError(
                f"{self._folder} has an export with other options. Repeat the command that began "
                "it."
            )
        for name, size in self._connection.execute("SELECT path, bytes FROM files"):
            path = self._folder / name
            if path.is_symlink() or not path.is_file() or path.stat().st_size < size:
                raise ExportFolderError(f"{path} is incomplete. Begin again in another folder.")
        for path in self._folder.rglob("*"):
            name = path.relative_to(self._folder).as_posix()
            if path.is_symlink():  # not by the export: it could lead out of the folder
                path.unlink()
            elif path.is_file() and not name.startswith(STATE):
                size = self._recorded_bytes(name)
                if size is None:
                    path.unlink()
                else:
                    os.truncate(path, size)
        return self._get("cursor"), self._get("state") or {}

    def record(self, cursor: str, state: dict[str, Any]) -> None:
        """Record that everything up to a cursor was written."""
        self._note_lengths()
        self._put("cursor", cursor)
        self._put("state", state)
        self._connection.commit()

    def finish(self) -> None:
        """Remove the state: the export is complete."""
        self._note_lengths()  # the files are on the disk before the state is removed
        self._close_files()
        self.close()
        # The state goes first: an export without its parts could not be continued.
        for path in (*self._folder.glob(f"{STATE}*"), *self._folder.glob(".part-*")):
            path.unlink()

    def close(self) -> None:
        """Close all files."""
        self._close_files()
        if self._database:
            self._database.close()
            self._database = None

    def append(self, path: str, data: bytes) -> None:
        """Append bytes to a file of the export."""
        self._file(path).write(data)

    def append_part(self, name: str, data: bytes) -> None:
        """Append bytes to a temporary file."""
        self._file(f".part-{name}").write(data)

    @contextmanager
    def read_part(self, name: str) -> Iterator[BinaryIO]:
        """Open a temporary file."""
        path = f".part-{name}"
        self._file(path).flush()
        with (self._folder / path).open("rb") as file:
            yield file

    @contextmanager
    def create(self, path: str) -> Iterator[BinaryIO]:
        """Open a file of the export for writing."""
        target = self._target(path)
        with target.open("wb") as file:
            yield file

    def add(self, key: str) -> bool:
        """Note the key of a path. Return False if it was there already."""
        found = self._connection.execute("INSERT OR IGNORE INTO taken VALUES (?)", (key,))
        return found.rowcount == 1

    def has(self, key: str) -> bool:
        """Return whether a key was noted."""
        found = self._connection.execute("SELECT 1 FROM taken WHERE key = ?", (key,))
        return found.fetchone() is not None

    def image_target(self, path: str) -> Path:
        """Return where the file of an image is written, inside of the folder.

        Raises:
            ExportFolderError: the path would leave the folder.
        """
        return self._target(path)

    def note_image(self, path: str) -> None:
        """Note that the file of an image was written."""
        self._connection.execute(
            "INSERT OR REPLACE INTO files VALUES (?, ?)", (path, self._target(path).stat().st_size)
        )

    @property
    def _connection(self) -> sqlite3.Connection:
        if self._database is None:
            raise ExportFolderError("The export has not begun.")
        return self._database

    def _connect(self) -> None:
        """Open the state. No other process can open it until it is closed.

        Raises:
            ExportFolderError: another process has it open, or it is damaged.
        """
        self._database = sqlite3.connect(self._folder / STATE, timeout=_LOCK_SECONDS)
        try:
            self._database.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._database.executescript(f"BEGIN EXCLUSIVE; {_SCHEMA} COMMIT;")
        except sqlite3.OperationalError as exc:
            self.close()
            raise ExportFolderError(f"Another process writes to {self._folder}.") from exc
        except sqlite3.DatabaseError as exc:
            self.close()
            raise ExportFolderError(f"{self._folder / STATE} is damaged: {exc}.") from exc

    def _recorded_bytes(self, path: str) -> int | None:
        found = self._connection.execute("SELECT bytes FROM files WHERE path = ?", (path,))
        row = found.fetchone()
        return int(row[0]) if row else None

    def _put(self, name: str, value: Any) -> None:
        self._connection.execute(
            "INSERT OR REPLACE INTO state VALUES (?, ?)", (name, json.dumps(value))
        )

    def _get(self, name: str) -> Any:
        found = self._connection.execute("SELECT value FROM state WHERE name = ?", (name,))
        row = found.fetchone()
        return json.loads(row[0]) if row else None

    def _file(self, path: str) -> BinaryIO:
        file = self._files.get(path)
        if file is None:
            if len(self._files) >= _OPEN_FILES:  # label files: each is written once
                self._note_lengths()
                self._close_files()
            file = self._files[path] = self._target(path).open("ab")
        return file

    def _note_lengths(self) -> None:
        for path, file in self._files.items():
            file.flush()
            os.fsync(file.fileno())
            self._connection.execute(
                "INSERT OR REPLACE INTO files VALUES (?, ?)", (path, file.tell())
            )

    def _target(self, path: str) -> Path:
        target = self._folder / path
        root = self._folder.resolve()
        if not target.resolve().is_relative_to(root):
            raise ExportFolderError(f"{path} is not inside of {self._folder}")
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def _close_files(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()
