"""The official emulators of Pub/Sub and Firestore: downloaded once, verified, kept in a cache.

Google publishes these files for the Firebase CLI. Versions, sizes and checksums are those of the
npm package firebase-tools 15.34.2 (`lib/emulator/downloadableEmulatorInfo.json`).
"""

import hashlib
import os
import re
import shutil
import sys
import time
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click
import platformdirs
import requests
from filelock import FileLock, Timeout

from devtools.local_stack.errors import MissingRequirementsError

#: The base URL of a mirror that has the same files under the same names.
MIRROR_VARIABLE = "YOLO_BATCH_EMULATORS_URL"

_GOOGLE_URL = "https://storage.googleapis.com/firebase-preview-drop/emulator"
_PUBSUB_JAR_IN_ZIP = re.compile(r"(?:^|/)lib/cloud-pubsub-emulator-[^/]*\.jar$")
_CONNECT_SECONDS, _READ_SECONDS = 10.0, 60.0
_BLOCK_BYTES = 256 * 1024
_MB = 1_000_000
# When lines of progress are printed, if stderr is a log.
_FIRST_LINE_SECONDS, _LINE_PERIOD_SECONDS = 2.0, 10.0
_CUT = "the connection closed before the end"
# The first match counts: ProxyError and SSLError are ConnectionErrors too.
_REASONS: dict[type[requests.RequestException], str] = {
    requests.exceptions.ProxyError: "the proxy that HTTPS_PROXY names does not respond",
    requests.exceptions.SSLError: "its certificate is not trusted (REQUESTS_CA_BUNDLE sets the CA)",
    requests.Timeout: "the server does not respond",
    requests.exceptions.ChunkedEncodingError: _CUT,
    requests.ConnectionError: "no connection",
}


@dataclass(frozen=True)
class PublishedFile:
    """A file with an emulator in it: a jar, or a zip that has the jar in its `lib/`."""

    title: str
    name: str
    size_bytes: int
    sha256: str


FIRESTORE = PublishedFile(
    "Firestore emulator 1.22.0",
    "cloud-firestore-emulator-v1.22.0.jar",
    136_707_194,
    "9b6498b7f62714d67f48f59b3818883cd682dbcd46b9f59511de81c97bb5166c",
)
PUBSUB = PublishedFile(
    "Pub/Sub emulator 0.8.37",
    "pubsub-emulator-0.8.37.zip",
    53_029_797,
    "c83383e0c71633e58abad6fdc9c0312c7d0f6a5a34236c42e3f92eb24ded1c26",
)


def cached_jar(published: PublishedFile) -> Path:
    """Return the path of an emulator's jar in the cache. Downloads it if it is not there.

    Every call verifies the size and the SHA-256. If two processes need a file, the first downloads
    it, and the second waits. An interrupted download continues where it stopped.

    Raises:
        MissingRequirementsError: the download failed, or the cache is not writable. The message
            has the command to run.
    """
    directory = platformdirs.user_cache_path("yolo-batch")
    file = directory / published.name
    jar = file.with_suffix(".jar")
    try:
        if not (_is_intact(file, published) and jar.is_file()):
            directory.mkdir(parents=True, exist_ok=True)
            with _locked(file, published):
                if not _is_intact(file, published):  # another process may have downloaded it
                    _download(published, file)
                if not jar.is_file():
                    _extract_jar(file, jar)
    except requests.RequestException as exc:
        raise _download_error(published, _reason(exc)) from exc
    except OSError as exc:
        raise MissingRequirementsError(
            f"The {published.title} cannot be stored in {directory}: {exc.strerror}.\n"
            "Make room there, or choose another directory: export XDG_CACHE_HOME=DIRECTORY"
        ) from exc
    return jar


def _is_intact(file: Path, published: PublishedFile) -> bool:
    if not file.is_file() or file.stat().st_size != published.size_bytes:
        return False
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest() == published.sha256


@contextmanager
def _locked(file: Path, published: PublishedFile) -> Iterator[None]:
    """Hold a file's lock. The kernel releases the lock of a process that is killed."""
    lock = FileLock(f"{file}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        click.echo(f"Waiting for another process to download {published.title} ...", err=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _download(published: PublishedFile, file: Path) -> None:
    """Download to `NAME.part`, verify, then rename: a file under its own name is complete."""
    partial = file.with_name(f"{file.name}.part")
    received_bytes = partial.stat().st_size if partial.is_file() else 0
    if received_bytes < published.size_bytes:
        _receive(published, partial, received_bytes)
    if partial.stat().st_size < published.size_bytes:
        raise _download_error(published, _CUT)
    if not _is_intact(partial, published):
        partial.unlink()
        raise _download_error(published, "its size or SHA-256 is not the one that Google published")
    partial.replace(file)


def _receive(published: PublishedFile, partial: Path, received_bytes: int) -> None:
    """Append the missing bytes, or write all of them if the server does not support ranges."""
    headers = {"Range": f"bytes={received_bytes}-"} if received_bytes else {}
    timeouts = (_CONNECT_SECONDS, _READ_SECONDS)
    size_mb = published.size_bytes // _MB
    click.echo(f"Downloading {published.title} ({size_mb} MB), once ...", err=True)
    with requests.get(_url(published), headers=headers, stream=True, timeout=timeouts) as response:
        response.raise_for_status()
        is_remainder = response.status_code == requests.codes.partial_content
        with partial.open("ab" if is_remainder else "wb") as file:
            blocks = response.iter_content(_BLOCK_BYTES)
            for block in _with_progress(blocks, file.tell(), published.size_bytes):
                file.write(block)
                if file.tell() > published.size_bytes:
                    return


def _with_progress(
    blocks: Iterable[bytes], received_bytes: int, total_bytes: int
) -> Iterator[bytes]:
    """Yield the blocks, and show on stderr how many bytes have arrived."""
    if sys.stderr.isatty():
        with click.progressbar(length=total_bytes, file=sys.stderr) as bar:
            bar.update(received_bytes)
            for block in blocks:
                yield block
                bar.update(len(block))
        return
    next_line_at = time.monotonic() + _FIRST_LINE_SECONDS
    for block in blocks:
        yield block
        received_bytes += len(block)
        if time.monotonic() >= next_line_at:
            click.echo(f"  {received_bytes // _MB} of {total_bytes // _MB} MB", err=True)
            next_line_at = time.monotonic() + _LINE_PERIOD_SECONDS


def _extract_jar(archive: Path, jar: Path) -> None:
    partial = jar.with_name(f"{jar.name}.part")
    with zipfile.ZipFile(archive) as opened:
        name = next(filter(_PUBSUB_JAR_IN_ZIP.search, opened.namelist()), None)
        if name is None:
            raise MissingRequirementsError(
                f"{archive} has no file lib/cloud-pubsub-emulator-*.jar. Please report it as a bug."
            )
        with opened.open(name) as member, partial.open("wb") as file:
            shutil.copyfileobj(member, file)
    partial.replace(jar)


def _url(published: PublishedFile) -> str:
    base_url = os.environ.get(MIRROR_VARIABLE) or _GOOGLE_URL
    return f"{base_url.rstrip('/')}/{published.name}"


def _reason(error: requests.RequestException) -> str:
    if isinstance(error, requests.HTTPError):
        return f"the server responded with status {error.response.status_code}"
    return next((text for kind, text in _REASONS.items() if isinstance(error, kind)), str(error))


def _download_error(published: PublishedFile, reason: str) -> MissingRequirementsError:
    return MissingRequirementsError(
        f"{published.title} could not be downloaded: {reason}.\n"
        f"  {_url(published)}\n"
        "With a network connection, run: make emulators\n"
        f"If your company has a mirror of these files, set {MIRROR_VARIABLE} to its address."
    )
