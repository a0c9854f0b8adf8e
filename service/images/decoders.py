"""The pool of decoder processes: every file is decoded outside this process, within limits.

    service ── control socket ── root process: imports the libraries once, forks the decoders
       │                            ├── decoder 1
       │                            └── decoder N
       └── for each decoder: a socket, and two files in memory (the image's bytes, its pixels)

A decoder, its socket and its memory are made together and never reused after it has failed, so no
reply can be taken for that of another file. `service.images.decoder_process` is the other side.

    request  JSON of `Request`; the file's bytes are in memory already
    reply    READY     once, before the first request
             PIXELS   `PIXELS_HEADER`, then the format's name; the pixels are in memory
             BAD_IMAGE       code, a blank, sentence of a `BadImageError`
             NEEDS_MEMORY     `NEEDED_BYTES`: it needs so much memory
             ENDED     `WAIT_STATUS`: by the root, once the decoder has ended

Nothing that a decoder sends is trusted: one that was taken over must not get into this process.
"""

import json
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np

from service.concurrency.semaphore import FairSemaphore
from service.deadline import Deadline
from service.domain import ErrorCode, ImageInfo
from service.errors import BadImageError, DecoderUnavailableError, ShuttingDownError
from service.images.pixels import DecodedImage
from service.machine import cores
from service.settings import Settings

logger = logging.getLogger(__name__)

COMMAND = (sys.executable, "-P", "-m", "service.images.decoder_process")
MAX_FILES = 1000  # of one decoder: what a library leaks is bounded
BYTES_PER_PIXEL = 13  # the most seen is 12: a rotated progressive JPEG

READY, PIXELS, BAD_IMAGE, NEEDS_MEMORY, ENDED = b"R", b"P", b"B", b"L", b"E"
PIXELS_HEADER = struct.Struct("<IIII")  # height and width of the pixels, then of the full image
NEEDED_BYTES, WAIT_STATUS = struct.Struct("<Q"), struct.Struct("<i")

_ROOT_FOLDER = Path(__file__).parents[2]  # where the package lies
_MAX_REPLY_BYTES = 4096
_MAX_NAME = 16  # characters of a format's name
_MAX_ENCODING = 1000  # characters of a Content-Encoding; nobody's is so long
_KEPT_BYTES = 8 * 2**20  # of memory that stays with a decoder between two files
_SLICE_SECONDS = 1.0
_START_SECONDS = 60.0  # of a decoder; it takes 0.2 s where the machine is idle
_END_SECONDS = 10.0  # of the root process
_REAP_SECONDS = 2.0  # of a decoder that is killed, while a request waits
_FEW_CPU_SECONDS = 10  # the largest valid image takes 7 or 8
_NO_MEMORY = "There is no memory to decode the image now."
_KILLED = "The decoder process did not start or was killed, for example because memory is short."
_ENVIRONMENT = {
    # One arena: each further one reserves 64 MB, which count as taken.
    "MALLOC_ARENA_MAX": "1",
    # A decoder keeps its buffers: returning them to the system each time is half of the cost of a
    # large image (docs/decisions/0004-decoder-processes.md).
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
    "OPENBLAS_NUM_THREADS": "1",  # only a process without threads may fork
}


@dataclass(frozen=True)
class DecodeLimits:
    """What decoding one file may take."""

    cpu_seconds: int = 30  # four times what the largest valid image takes (JPEG 2000 of 31 MB)
    wall_seconds: float = 100.0  # for one that hangs
    # Enough for 12 megapixels in the worst case. One file at a time may have what it needs besides.
    small_bytes: int = 192 * 2**20

    @classmethod
    def within(cls, seconds: float) -> Self:
        """Return limits that end before a delivery's work time does.

        Args:
            seconds: the delivery's time without what is reserved for the commit.
        """
        return cls(
            cpu_seconds=max(1, int(min(30.0, seconds / 3))),
            wall_seconds=min(100.0, 0.75 * seconds),
        )


@dataclass(frozen=True)
class Request:
    """What a decoder is to do with the bytes in its memory."""

    length: int  # bytes
    content_encoding: str
    image_size: int  # longer side that the model sees, in pixels
    reduced: bool  # whether a JPEG may be decoded at a reduced scale
    max_pixels: int
    max_decompressed_bytes: int
    memory_bytes: int  # what it may map, besides what it had at its start
    cpu_seconds: int

    def to_bytes(self) -> bytes:
        """Return the message."""
        return json.dumps(vars(self)).encode()

    @classmethod
    def from_bytes(cls, message: bytes) -> Self:
        """Read the message."""
        return cls(**json.loads(message))


class Decoders:
    """Decodes files in processes; safe to use from many threads, but not after a fork."""

    def __init__(
        self,
        count: int,
        *,
        max_pixels: int,
        max_decompressed_bytes: int,
        reduced: bool = True,
        limits: DecodeLimits = DecodeLimits(),  # noqa: B008 - it cannot be changed
        command: Sequence[str] = COMMAND,
    ) -> None:
        """Start the root process, and do not wait for it.

        Args:
            count: decoder processes, one for each core.
            max_pixels: images of more pixels are refused.
            max_decompressed_bytes: files that are larger without their Content-Encoding are
                refused.
            reduced: let a JPEG at least twice as large as the model sees be decoded at a reduced
                scale.
            limits: what decoding one file may take.
            command: the root process.

        Raises:
            OSError: it does not start.
        """
        self._max_pixels = max_pixels
        self._max_decompressed_bytes = max_decompressed_bytes
        self._reduced = reduced
        self._limits = limits
        self._command = command
        self._slots = FairSemaphore(count)
        self._large_slot = FairSemaphore(1)
        self._lock = threading.Lock()  # of what follows
        self._is_closed = False
        self._root, self._control = self._started()
        self._idle = [self._fork() for _ in range(count)]

    def decode(
        self,
        data: bytes,
        *,
        image_size: int,
        content_encoding: str | None = None,
        max_pixels: int | None = None,
        deadline: Deadline,
    ) -> DecodedImage:
        """Decode an image, turned upright by its EXIF orientation, 8 bits a channel, no alpha.

        Args:
            data: the file, as it is stored.
            image_size: longer side that the model sees, in pixels: a larger image is shrunk to it.
                `DecodedImage.info` has the full size either way.
            content_encoding: the object's; `gzip` and `deflate` are decompressed.
            max_pixels: images of more pixels are refused; None: as the pool was made.
            deadline: ends every wait, and what is being decoded.

        Raises:
            BadImageError: not an image, a damaged one, one of a kind that is not supported, or of
                more than `max_pixels` pixels; it crashed its decoder or exceeded its limits.
            DecoderUnavailableError: no memory now, or the decoder was killed from outside.
            ShuttingDownError: the pool is closed.
            TooLateError: the deadline came first.
        """
        limits = self._limits
        request = Request(
            length=len(data),
            content_encoding=(content_encoding or "")[:_MAX_ENCODING],
            image_size=image_size,
            reduced=self._reduced,
            max_pixels=max_pixels or self._max_pixels,
            max_decompressed_bytes=self._max_decompressed_bytes,
            memory_bytes=limits.small_bytes,
            cpu_seconds=limits.cpu_seconds,
        )
        try:
            answer = self._ask(request, data, deadline)
            if isinstance(answer, DecodedImage):
                return answer
            with self._large_slot.acquire(1, deadline):
                while isinstance(answer, int):  # what it needs, known from the header
                    if limits.small_bytes + answer <= request.memory_bytes:
                        raise BadImageError.corrupt(
                            "Decoding the file takes more memory than an image of its size may."
                        )
                    request = replace(request, memory_bytes=limits.small_bytes + answer)
                    answer = self._ask(request, data, deadline)
            return answer
        except (MemoryError, OSError) as exc:
            raise DecoderUnavailableError(_NO_MEMORY) from exc

    def close(self) -> None:
        """End all processes. What is being decoded raises `DecoderUnavailableError`."""
        with self._lock:
            self._is_closed = True
            self._control.close()
            try:
                self._root.wait(_END_SECONDS)  # it ends the decoders first
            except subprocess.TimeoutExpired:
                self._root.kill()
                self._root.wait()
            for decoder in self._idle:
                decoder.close()
            self._idle.clear()

    def _ask(self, request: Request, data: bytes, deadline: Deadline) -> DecodedImage | int:
        """Let the next free decoder decode; return its pixels, or the bytes that it needs.

        An earlier file may have damaged a decoder that crashes. So the file is decoded once more,
        in a decoder that has seen no other.
        """
        with self._slots.acquire(1, deadline):
            fresh = False
            while True:
                decoder = self._take(deadline, fresh=fresh)
                try:
                    answer = decoder.ask(request, data, deadline, self._limits.wall_seconds)
                    if isinstance(answer, int):
                        return min(answer, self._most_bytes(len(data)))
                    return answer
                except _CrashError:
                    if decoder.files == 1:
                        raise
                    fresh = True
                finally:
                    # The memory of a large file returns to the system with its decoder.
                    is_small = request.memory_bytes <= self._limits.small_bytes
                    self._put_back(decoder, keep=is_small)

    def _take(self, deadline: Deadline, *, fresh: bool) -> "_Decoder":
        """Return a decoder that has started and runs; a fresh one has decoded no file.

        Raises:
            DecoderUnavailableError: two in a row did not start.
            OSError: no memory, or no file descriptors.
            ShuttingDownError: the pool is closed.
            TooLateError: the deadline came first.
        """
        with self._lock:
            decoder = self._idle.pop() if self._idle else None
        for _ in range(2):
            decoder = decoder or self._fork()
            try:
                if decoder.is_alive(deadline) and not (fresh and decoder.files):
                    return decoder
            except BaseException:
                self._put_back(decoder, keep=True)
                raise
            decoder.end()
            decoder = None
        raise DecoderUnavailableError(_KILLED)

    def _put_back(self, decoder: "_Decoder", *, keep: bool) -> None:
        """Keep a decoder; or end it, and have another one forked without waiting for its start."""
        with self._lock:
            if keep and decoder.is_reusable and decoder.files < MAX_FILES and not self._is_closed:
                self._idle.append(decoder)
                return
        decoder.end()
        with suppress(OSError, ShuttingDownError):
            fresh = self._fork()
            with self._lock:
                self._idle.append(fresh)

    def _most_bytes(self, length: int) -> int:
        """Return the most memory that a decoder may ask for."""
        data = 2 * max(length, self._max_decompressed_bytes)
        return BYTES_PER_PIXEL * self._max_pixels + data

    def _fork(self) -> "_Decoder":
        """Have a decoder forked, and do not wait for it.

        Raises:
            OSError: no memory, or no file descriptors.
            ShuttingDownError: the pool is closed.
        """
        with self._lock:
            if self._is_closed:
                raise ShuttingDownError("The service is shutting down.")
            decoder, theirs = _Decoder.create()
            with theirs:
                fds = [theirs.fileno(), *decoder.memory]
                try:
                    try:
                        socket.send_fds(self._control, [b"fork"], fds)
                    except ConnectionError:
                        logger.warning("The decoders' root process ended: another one is started")
                        started = self._started()  # if this fails, the next call tries it again
                        self._control.close()
                        self._root.kill()
                        self._root.wait()
                        self._root, self._control = started
                        socket.send_fds(self._control, [b"fork"], fds)
                except BaseException:
                    decoder.close()
                    raise
            return decoder

    def _started(self) -> tuple["subprocess.Popen[bytes]", socket.socket]:
        control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        path = [str(_ROOT_FOLDER), *filter(None, [os.environ.get("PYTHONPATH")])]
        with theirs:
            try:
                process = subprocess.Popen(
                    (*self._command, str(theirs.fileno())),
                    stdin=subprocess.DEVNULL,
                    stdout=2,  # what a library prints
                    env=os.environ | _ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(path)},
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,  # Ctrl-C is for the caller, who finishes first
                )
            except BaseException:
                control.close()
                raise
        return process, control


def build_decoders(settings: Settings) -> Decoders:
    """Start the decoder processes, one a core."""
    limits = DecodeLimits.within(settings.work_seconds)
    if limits.cpu_seconds < _FEW_CPU_SECONDS:
        logger.warning(
            "ACK_DEADLINE_SECONDS or HANG_TIMEOUT_SECONDS leaves little time to decode: a large "
            "image may be recorded as corrupt_image",
            extra={"cpu_seconds": limits.cpu_seconds, "wall_seconds": limits.wall_seconds},
        )
    return Decoders(
        cores(),
        max_pixels=settings.max_image_pixels,
        max_decompressed_bytes=settings.max_image_bytes,
        reduced=settings.reduced_decode,
        limits=limits,
    )


class _CrashError(BadImageError):
    """The decoder crashed, or exited, while it decoded the file."""


class _Decoder:
    """This side of one decoder process."""

    def __init__(self, sock: socket.socket, file: int, pixels: int) -> None:
        self._socket = sock
        self.memory: tuple[int, ...] = (file, pixels)  # descriptors; none once it is closed
        self.files = 0  # that it was asked to decode
        self.is_reusable = True  # False: in the middle of a file, or it failed
        self._is_ready = False

    @classmethod
    def create(cls) -> tuple["_Decoder", socket.socket]:
        """Return a decoder and the socket of the process that is to be forked.

        Raises:
            OSError: no memory, or no file descriptors.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        descriptors: list[int] = []
        try:
            descriptors += [os.memfd_create("file")]
            descriptors += [os.memfd_create("pixels")]
        except BaseException:
            for descriptor in descriptors:
                os.close(descriptor)
            ours.close()
            theirs.close()
            raise
        return cls(ours, *descriptors), theirs

    def is_alive(self, deadline: Deadline) -> bool:
        """Wait until the process has started; say whether it runs, and sent nothing unasked.

        Raises:
            DecoderUnavailableError: it does not start.
            TooLateError: the deadline came first.
        """
        if not self._is_ready:
            try:
                self._is_ready = self._received(deadline, _START_SECONDS) == READY
            except TimeoutError as exc:  # the root process hangs
                self.is_reusable = False
                raise DecoderUnavailableError(_KILLED) from exc
            if not self._is_ready:
                self.is_reusable = False
                return False
        self._socket.settimeout(0)
        try:
            self._socket.recv(1)
        except BlockingIOError:
            return True
        except OSError:
            pass
        self.is_reusable = False
        return False

    def ask(
        self, request: Request, data: bytes, deadline: Deadline, wall_seconds: float
    ) -> DecodedImage | int:
        """Let it decode a file; return its pixels, or the bytes of memory that it needs.

        Raises:
            BadImageError: what the decoder says of the file, or how the file ended it.
            DecoderUnavailableError: the decoder was killed from outside.
            MemoryError: no memory.
            OSError: no memory.
            TooLateError: the deadline came first.
        """
        self.is_reusable = False
        self.files += 1
        file, pixels = self.memory
        if os.pwrite(file, data, 0) != len(data):
            raise MemoryError
        try:
            self._socket.sendall(request.to_bytes())
        except ConnectionError as exc:
            raise DecoderUnavailableError(_KILLED) from exc
        try:
            reply = self._received(deadline, wall_seconds)
        except TimeoutError as exc:
            raise BadImageError.corrupt(
                f"Decoding the file took more than {wall_seconds:g} s."
            ) from exc
        kind, body = reply[:1], reply[1:]
        try:
            if kind == PIXELS:
                answer = self._picture(body, request)
                self.is_reusable = True
            elif kind == BAD_IMAGE:
                code, _, sentence = body.decode(errors="replace").partition(" ")
                error = BadImageError(ErrorCode(code), sentence)
                if not error.code.is_of_the_bytes:
                    raise ValueError(code)
                self.is_reusable = True
                self._shrink(len(data), 0)
                raise error
            elif kind == NEEDS_MEMORY:  # not idle: it ends, and another one gets the memory
                [needed] = NEEDED_BYTES.unpack(body)
                return int(needed)
            elif kind == ENDED:
                [status] = WAIT_STATUS.unpack(body)
                raise _error_of(status, request.cpu_seconds)
            elif not kind:  # it ended together with the root process
                raise DecoderUnavailableError(_KILLED)
            else:
                raise ValueError(kind)
        except (ValueError, struct.error) as exc:
            logger.exception("A decoder sent a reply that it should not")
            raise BadImageError.corrupt("The file made its decoder fail.") from exc
        self._shrink(len(data), answer.pixels.nbytes)
        return answer

    def end(self) -> None:
        """Have the process killed, and wait until it has ended, but not for long."""
        until = time.monotonic() + _REAP_SECONDS
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)  # tells the root to kill it
            while (left := until - time.monotonic()) > 0:
                self._socket.settimeout(left)
                if not self._socket.recv(_MAX_REPLY_BYTES):
                    break
        self.close()

    def close(self) -> None:
        """Free the descriptors. Safe to call twice."""
        self._socket.close()
        memory, self.memory = self.memory, ()  # their numbers may be another file's from now on
        for descriptor in memory:
            os.close(descriptor)

    def _shrink(self, *counts: int) -> None:
        """Free the memory after a large file or large pixels, of so many bytes each."""
        for descriptor, count in zip(self.memory, counts, strict=True):
            if count > _KEPT_BYTES:
                os.ftruncate(descriptor, 0)

    def _received(self, deadline: Deadline, wall_seconds: float) -> bytes:
        """Wait for a message; empty where the other side is closed.

        The wait is counted in slices of a second. So time in which this process was frozen, too,
        does not count against the file.

        Raises:
            TimeoutError: none came within the limit.
            TooLateError: the deadline came first.
        """
        waited = 0.0
        while waited < wall_seconds:
            began = time.monotonic()
            self._socket.settimeout(deadline.wait_seconds(_SLICE_SECONDS))
            try:
                return self._socket.recv(_MAX_REPLY_BYTES)
            except TimeoutError:
                waited += min(time.monotonic() - began, _SLICE_SECONDS)
            except ConnectionError:
                return b""
        raise TimeoutError

    def _picture(self, body: bytes, request: Request) -> DecodedImage:
        """Take the pixels out of the shared memory.

        Raises:
            OSError: no memory.
            ValueError: the reply is of an image that the request cannot have.
        """
        height, width, *full = PIXELS_HEADER.unpack_from(body)
        info = ImageInfo(full[1], full[0], body[PIXELS_HEADER.size :].decode("ascii"))
        if (
            max(height, width) > request.image_size
            or info.width * info.height > request.max_pixels
            or not (height <= info.height and width <= info.width)
            or not info.format.isalnum()
            or len(info.format) > _MAX_NAME
        ):
            raise ValueError(f"{width}x{height} pixels of {info}")
        pixels = np.empty((height, width, 3), np.uint8)
        # A copy, and no mapping: a decoder that shortens the memory cannot make this process crash.
        if os.preadv(self.memory[1], [pixels.data], 0) != pixels.nbytes:
            raise ValueError("Fewer pixels than the reply says")
        return DecodedImage(pixels, info)


def _error_of(status: int, cpu_seconds: int) -> Exception:
    """Return what a decoder's wait status says of its file."""
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
    match number:
        case signal.SIGXCPU:
            return BadImageError.corrupt(
                f"Decoding the file took more than {cpu_seconds} s of CPU time."
            )
        case signal.SIGSEGV | signal.SIGABRT | signal.SIGBUS | signal.SIGFPE | signal.SIGILL:
            return _CrashError.corrupt(
                f"The file crashed its decoder ({signal.Signals(number).name})."
            )
        case None if os.WEXITSTATUS(status) != os.EX_TEMPFAIL:
            return _CrashError.corrupt("The file made its decoder exit.")
        case _:
            return DecoderUnavailableError(_KILLED)
