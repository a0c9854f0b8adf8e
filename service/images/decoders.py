"""The pool of decoder processes. Each file is decoded outside the service's process, with limits.

    service ── control socket ── root process: imports the libraries once, forks the decoders
       │                            ├── decoder 1
       │                            └── decoder N
       └── for each decoder: a socket, and two memory files (what goes in, what comes out)

A decoder, its socket and its memory files are created together and closed together when the decoder
fails. So a reply can never belong to another file. `service.images.decoder_process` is the other
side of this protocol:

    request  JSON of `Request`. The file is in shared memory already, and after it a `DerivePlan`
             if images are to be derived.
    reply    READY         sent once, before the first request
             PIXELS        `PIXELS_HEADER`, then JSON of `Details`. The pixels are in shared memory.
             OUTPUTS       to a plan: `OUTPUT_BYTES` of each image. All are in shared memory.
             BAD_IMAGE     a `BadImageError`: its code, a space, its message
             NEEDS_MEMORY  `NEEDED_BYTES`: the memory that decoding this file needs
             EXITED        `WAIT_STATUS`, sent by the root after the decoder has exited

Replies are untrusted: a malicious file may control its decoder, but must not reach the service.
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
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar

import numpy as np

from service.concurrency.semaphore import FairSemaphore
from service.deadline import Deadline
from service.domain import DerivedImage, ErrorCode, ImageInfo
from service.errors import BadImageError, DecoderUnavailableError, ShuttingDownError
from service.images.details import Details
from service.images.pixels import DecodedImage
from service.machine import cores
from service.settings import Settings

if TYPE_CHECKING:
    from service.images.derive import DerivePlan

logger = logging.getLogger(__name__)

COMMAND = (sys.executable, "-P", "-m", "service.images.decoder_process")
MAX_FILES = 1000  # then a decoder is replaced, which bounds what a library can leak
BYTES_PER_PIXEL = 13  # the highest measured need is 12: a rotated progressive JPEG
DECODED_BYTES_PER_PIXEL = 3  # of an image that is decoded

READY, PIXELS, OUTPUTS = b"R", b"P", b"O"
BAD_IMAGE, NEEDS_MEMORY, EXITED = b"B", b"L", b"E"
PIXELS_HEADER = struct.Struct("<IIII")  # height and width of the pixels, then of the full image
OUTPUT_BYTES = struct.Struct("<I")
NEEDED_BYTES, WAIT_STATUS = struct.Struct("<Q"), struct.Struct("<i")

Result = TypeVar("Result")

_IMPORT_FOLDER = Path(__file__).parents[2]  # contains the `service` package
_MAX_REPLY_BYTES = 4096
_MAX_ENCODING_CHARACTERS = 1000  # longest Content-Encoding. Valid values are far shorter.
_KEPT_BYTES = 8 * 2**20  # a larger memory file is emptied after its image
_SLICE_SECONDS = 1.0  # see `_Decoder._receive`
_START_SECONDS = 60.0  # for a decoder, which starts in 0.2 s on an idle machine
_EXIT_SECONDS = 10.0  # for the root process
_KILL_SECONDS = 2.0  # for a killed decoder, while a request waits
_FEW_CPU_SECONDS = 10  # the largest valid image takes 7 or 8 s
_NO_MEMORY = "There is not enough memory to decode the image now."
_KILLED = "The decoder process did not start or was killed, for example because memory is short."
_ENVIRONMENT = {
    # One arena, because each arena reserves 64 MB of address space, which counts towards RLIMIT_AS.
    "MALLOC_ARENA_MAX": "1",
    # Decoders keep their buffers. Returning them to the system after each image would be half of
    # the cost of a large image (docs/decisions/0004-decoder-processes.md).
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
    "OPENBLAS_NUM_THREADS": "1",  # forking is only safe in a process without other threads
}


@dataclass(frozen=True)
class DecodeLimits:
    """Limits on decoding one file."""

    cpu_seconds: int = 30  # the largest valid image takes a quarter (JPEG 2000 of 31 MB)
    wall_seconds: float = 100.0  # ends a file that hangs its decoder without using CPU time
    # Memory that every decoder may allocate: enough for 12 megapixels in the worst case. A file
    # that needs more memory gets it, but only one such file at a time.
    small_bytes: int = 192 * 2**20

    @classmethod
    def within(cls, seconds: float) -> Self:
        """Return limits that stop the decoding of a file before its delivery's time is over.

        Args:
            seconds: a delivery's time, without the part that is reserved for the commit.
        """
        return cls(
            cpu_seconds=max(1, int(min(30.0, seconds / 3))),
            wall_seconds=min(100.0, 0.75 * seconds),
        )


@dataclass(frozen=True)
class Request:
    """How a decoder decodes the file in its shared memory, and within which limits."""

    length: int  # the file's length in bytes
    content_encoding: str
    image_size: int  # longer side of the image as the model gets it, in pixels
    reduced: bool  # whether a JPEG may be decoded at a reduced scale
    crop: bool  # whether the model takes the middle square: see `service.images.crop`
    max_pixels: int
    max_decompressed_bytes: int
    memory_bytes: int  # address space that the decoder may use in addition to its start
    cpu_seconds: int
    plan_length: int = 0  # length in bytes of the `DerivePlan`. 0: the reply is pixels.
    render_bytes: int = 0  # memory that the plan needs besides the decoded image

    def to_bytes(self) -> bytes:
        """Encode as JSON."""
        return json.dumps(vars(self)).encode()

    @classmethod
    def from_bytes(cls, message: bytes) -> Self:
        """Decode what `to_bytes` encoded."""
        return cls(**json.loads(message))


class Decoders:
    """A pool of decoder processes. Safe to use from many threads, but not after a fork."""

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
        """Start the root process without waiting until the decoders are ready.

        Args:
            count: number of decoder processes.
            max_pixels: the most pixels that an image may have.
            max_decompressed_bytes: the largest file without its Content-Encoding.
            reduced: whether a JPEG at least twice as large as the model's input is decoded at a
                reduced scale.
            limits: limits on decoding one file.
            command: starts the root process.

        Raises:
            OSError: the root process cannot be started.
        """
        self._max_pixels = max_pixels
        self._max_decompressed_bytes = max_decompressed_bytes
        self._reduced = reduced
        self._limits = limits
        self._command = command
        self._slots = FairSemaphore(count)
        self._large_slot = FairSemaphore(1)
        self._lock = threading.Lock()  # guards the attributes below
        self._is_closed = False
        self._root, self._control = self._start_root()
        self._idle = [self._fork() for _ in range(count)]

    def decode(
        self,
        data: bytes,
        *,
        image_size: int,
        crop: bool = False,
        content_encoding: str | None = None,
        max_pixels: int | None = None,
        deadline: Deadline,
    ) -> DecodedImage:
        """Decode an image to uint8 BGR pixels, upright by its EXIF orientation, without alpha.

        Args:
            data: the stored object's bytes.
            image_size: longer side of the image as the model gets it, in pixels. A larger image is
                shrunk to this size. `DecodedImage.info` has the full size in both cases.
            crop: return the middle square, resized to `image_size` (see `service.images.crop`).
            content_encoding: the object's Content-Encoding. `gzip` and `deflate` are undone.
            max_pixels: the most pixels that this image may have. None: the pool's own limit.
            deadline: ends every wait, and the decoding itself.

        Raises:
            BadImageError: the file is not an image, is damaged, is of an unsupported kind, has
                too many pixels, crashed its decoder, or exceeded a limit.
            DecoderUnavailableError: there is not enough memory now, or something other than the
                file killed the decoder.
            ShuttingDownError: the pool is closed.
            TooLateError: the deadline passed first.
        """
        request = self._request(
            data,
            content_encoding,
            image_size=image_size,
            reduced=self._reduced and not crop,  # the crop needs exact pixels
            crop=crop,
            max_pixels=max_pixels or self._max_pixels,
        )
        return self._call(request, (data,), partial(_read_pixels, request), deadline)

    def derive(
        self,
        data: bytes,
        plan: "DerivePlan",
        *,
        content_encoding: str | None = None,
        deadline: Deadline,
    ) -> tuple[DerivedImage, ...]:
        """Make derived images from a file that was decoded before.

        Equal arguments give equal bytes. Nothing of the file but its pixels is in them.

        Args:
            data: the stored object's bytes.
            plan: what is made.
            content_encoding: the object's Content-Encoding. `gzip` and `deflate` are undone.
            deadline: ends every wait, and the work itself.

        Returns:
            The images, without a `uri`. Together they have at most
            `plan.options.max_output_bytes` bytes.

        Raises:
            BadImageError: as `decode`, for example if making the images exceeds a limit.
            DecoderUnavailableError: there is not enough memory now, or something other than the
                file killed the decoder.
            ShuttingDownError: the pool is closed.
            TooLateError: the deadline passed first.
        """
        packed = plan.to_bytes()
        request = replace(
            self._request(
                data,
                content_encoding,
                image_size=max(plan.working_size),
                reduced=True,
                crop=False,
                max_pixels=self._max_pixels,
            ),
            plan_length=len(packed),
            render_bytes=plan.render_bytes,
        )
        images = self._call(request, (data, packed), partial(_read_outputs, plan), deadline)
        labels = plan.label_file()
        return (*images, labels) if labels else images

    def close(self) -> None:
        """Stop all processes. Files in flight raise `DecoderUnavailableError`."""
        with self._lock:
            self._is_closed = True
            self._control.close()
            try:
                self._root.wait(_EXIT_SECONDS)  # it kills the decoders first
            except subprocess.TimeoutExpired:
                self._root.kill()
                self._root.wait()
            for decoder in self._idle:
                decoder.close()
            self._idle.clear()

    def _request(
        self,
        data: bytes,
        content_encoding: str | None,
        *,
        image_size: int,
        reduced: bool,
        crop: bool,
        max_pixels: int,
    ) -> Request:
        return Request(
            length=len(data),
            content_encoding=(content_encoding or "")[:_MAX_ENCODING_CHARACTERS],
            image_size=image_size,
            reduced=reduced,
            crop=crop,
            max_pixels=max_pixels,
            max_decompressed_bytes=self._max_decompressed_bytes,
            memory_bytes=self._limits.small_bytes,
            cpu_seconds=self._limits.cpu_seconds,
        )

    def _call(
        self,
        request: Request,
        parts: Sequence[bytes],
        read: "_Read[Result]",
        deadline: Deadline,
    ) -> Result:
        """Let a decoder do what the request says, with more memory if it needs that.

        Args:
            request: what is done.
            parts: the file, and the plan.
            read: reads the reply to such a request.
            deadline: ends every wait.
        """
        small_bytes = self._limits.small_bytes
        try:
            reply = self._call_once(request, parts, read, deadline)
            if not isinstance(reply, _NeededBytes):
                return reply
            with self._large_slot.acquire(1, deadline):
                while isinstance(reply, _NeededBytes):
                    memory_bytes = small_bytes + reply.count
                    if memory_bytes <= request.memory_bytes:
                        raise BadImageError.corrupt(
                            "Decoding the file needs more memory than its number of pixels allows."
                        )
                    request = replace(request, memory_bytes=memory_bytes)
                    reply = self._call_once(request, parts, read, deadline)
            return reply
        except (MemoryError, OSError) as exc:
            raise DecoderUnavailableError(_NO_MEMORY) from exc

    def _call_once(
        self,
        request: Request,
        parts: Sequence[bytes],
        read: "_Read[Result]",
        deadline: Deadline,
    ) -> "Result | _NeededBytes":
        """Call the next free decoder. Return its result, or the memory that it needs.

        A decoder may crash because an earlier file corrupted its memory. So if a used decoder
        crashes, the file is tried again in a new decoder, and only that result counts.
        """
        with self._slots.acquire(1, deadline):
            must_be_new = False
            while True:
                decoder = self._take(deadline, must_be_new=must_be_new)
                try:
                    reply = decoder.call(request, parts, read, deadline, self._limits.wall_seconds)
                    if isinstance(reply, _NeededBytes):
                        return _NeededBytes(min(reply.count, self._max_needed_bytes(request)))
                    return reply
                except _CrashError:
                    if decoder.files == 1:
                        raise
                    must_be_new = True
                finally:
                    # After a large file the decoder is replaced, which frees its memory.
                    is_small = request.memory_bytes <= self._limits.small_bytes
                    self._release(decoder, keep=is_small)

    def _take(self, deadline: Deadline, *, must_be_new: bool) -> "_Decoder":
        """Return a running decoder. If it must be new, it has decoded no file yet.

        Raises:
            DecoderUnavailableError: two decoders in a row did not start.
            OSError: there is not enough memory, or there are no free file descriptors.
            ShuttingDownError: the pool is closed.
            TooLateError: the deadline passed first.
        """
        with self._lock:
            decoder = self._idle.pop() if self._idle else None
        for _ in range(2):
            decoder = decoder or self._fork()
            try:
                if decoder.is_running(deadline) and not (must_be_new and decoder.files):
                    return decoder
            except BaseException:
                self._release(decoder, keep=True)
                raise
            decoder.kill()
            decoder = None
        raise DecoderUnavailableError(_KILLED)

    def _release(self, decoder: "_Decoder", *, keep: bool) -> None:
        """Make a decoder available again, or start to replace it."""
        with self._lock:
            if keep and decoder.is_reusable and decoder.files < MAX_FILES and not self._is_closed:
                self._idle.append(decoder)
                return
        decoder.kill()
        with suppress(OSError, ShuttingDownError):
            replacement = self._fork()
            with self._lock:
                self._idle.append(replacement)

    def _max_needed_bytes(self, request: Request) -> int:
        """Return the most memory, in bytes, that a valid file of this length can need.

        A decoder's own figure is untrusted and must not exceed it.
        """
        length = max(request.length, self._max_decompressed_bytes)
        return needed_bytes(self._max_pixels, length, request)

    def _fork(self) -> "_Decoder":
        """Let the root process fork a decoder, without waiting until it is ready.

        Raises:
            OSError: there is not enough memory, or there are no free file descriptors.
            ShuttingDownError: the pool is closed.
        """
        with self._lock:
            if self._is_closed:
                raise ShuttingDownError("The service is shutting down.")
            decoder, child_socket = _Decoder.create()
            with child_socket:
                fds = [child_socket.fileno(), *decoder.memory_fds]
                try:
                    try:
                        socket.send_fds(self._control, [b"fork"], fds)
                    except ConnectionError:
                        logger.warning("The decoders' root process exited: starting a new one")
                        # Start it before the old root is removed, so that the next call tries again
                        # if this fails.
                        root, control = self._start_root()
                        self._control.close()
                        self._root.kill()
                        self._root.wait()
                        self._root, self._control = root, control
                        socket.send_fds(self._control, [b"fork"], fds)
                except BaseException:
                    decoder.close()
                    raise
            return decoder

    def _start_root(self) -> tuple["subprocess.Popen[bytes]", socket.socket]:
        """Start a root process. Return it and this side of its control socket."""
        control, child_socket = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        path = [str(_IMPORT_FOLDER), *filter(None, [os.environ.get("PYTHONPATH")])]
        with child_socket:
            try:
                process = subprocess.Popen(
                    (*self._command, str(child_socket.fileno())),
                    stdin=subprocess.DEVNULL,
                    stdout=2,  # what libraries print must not reach the service's stdout
                    env=os.environ | _ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(path)},
                    pass_fds=[child_socket.fileno()],
                    # Ctrl-C then reaches only the service, which first finishes its images.
                    start_new_session=True,
                )
            except BaseException:
                control.close()
                raise
        return process, control


def needed_bytes(pixels: int, length: int, request: Request) -> int:
    """Return the memory in bytes that a file needs at most.

    Decoding needs more memory than the decoded image, which alone is left when images are derived
    from it.

    Args:
        pixels: number of the image's pixels. Those of some formats count twice.
        length: the file's length in bytes, without its Content-Encoding.
        request: what is done.
    """
    decoding_bytes = BYTES_PER_PIXEL * pixels
    rendering_bytes = DECODED_BYTES_PER_PIXEL * pixels + request.render_bytes
    has_plan = request.plan_length > 0
    pixels_bytes = max(decoding_bytes, rendering_bytes) if has_plan else decoding_bytes
    return pixels_bytes + 2 * length + 3 * request.plan_length


def build_decoders(settings: Settings) -> Decoders:
    """Start the decoder processes, with the limits of the settings.

    Raises:
        OSError: the root process cannot be started.
    """
    limits = DecodeLimits.within(settings.work_seconds)
    if limits.cpu_seconds < _FEW_CPU_SECONDS:
        logger.warning(
            "ACK_DEADLINE_SECONDS or HANG_TIMEOUT_SECONDS leaves little time to decode: large "
            "images may be recorded as corrupt_image. Raise them",
            extra={"cpu_seconds": limits.cpu_seconds, "wall_seconds": limits.wall_seconds},
        )
    return Decoders(
        settings.decoders or cores(),
        max_pixels=settings.max_image_pixels,
        max_decompressed_bytes=settings.max_image_bytes,
        reduced=settings.reduced_decode,
        limits=limits,
    )


class _CrashError(BadImageError):
    """The decoder crashed or exited while it decoded the file."""


@dataclass(frozen=True)
class _NeededBytes:
    """The memory that a decoder needs for a file."""

    count: int


class _Decoder:
    """The service's side of one decoder process."""

    def __init__(self, sock: socket.socket, file: int, pixels: int) -> None:
        self._socket = sock
        self.memory_fds: tuple[int, ...] = (file, pixels)  # empty after `close`
        self.files = 0  # requests so far
        self.is_reusable = True  # False while it decodes, and after a failure
        self._is_ready = False

    @classmethod
    def create(cls) -> tuple["_Decoder", socket.socket]:
        """Return a decoder and the socket for its process, which is not forked yet.

        Raises:
            OSError: there is not enough memory, or there are no free file descriptors.
        """
        own_socket, child_socket = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        descriptors: list[int] = []
        try:
            descriptors += [os.memfd_create("file")]
            descriptors += [os.memfd_create("pixels")]
        except BaseException:
            for descriptor in descriptors:
                os.close(descriptor)
            own_socket.close()
            child_socket.close()
            raise
        return cls(own_socket, *descriptors), child_socket

    def is_running(self, deadline: Deadline) -> bool:
        """Wait until the process has started. Return whether it runs and has sent nothing else.

        Raises:
            DecoderUnavailableError: it does not start.
            TooLateError: the deadline passed first.
        """
        if not self._is_ready:
            try:
                self._is_ready = self._receive(deadline, _START_SECONDS) == READY
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

    def call(
        self,
        request: Request,
        parts: Sequence[bytes],
        read: "_Read[Result]",
        deadline: Deadline,
        wall_seconds: float,
    ) -> Result | _NeededBytes:
        """Send a request. Return its result, or the memory that it needs.

        Raises:
            BadImageError: the decoder reported it, or the file crashed the decoder or exceeded a
                limit.
            DecoderUnavailableError: something other than the file killed the decoder.
            MemoryError: there is not enough memory now.
            OSError: there is not enough memory now.
            TooLateError: the deadline passed first.
        """
        self.is_reusable = False
        self.files += 1
        file, _ = self.memory_fds
        input_bytes = sum(map(len, parts))
        if os.pwritev(file, parts, 0) != input_bytes:
            raise MemoryError
        try:
            self._socket.sendall(request.to_bytes())
        except ConnectionError as exc:
            raise DecoderUnavailableError(_KILLED) from exc
        try:
            reply = self._receive(deadline, wall_seconds)
        except TimeoutError as exc:
            raise BadImageError.corrupt(
                f"Decoding the file took more than {wall_seconds:g} s."
            ) from exc
        kind, body = reply[:1], reply[1:]
        try:
            if kind == (OUTPUTS if request.plan_length else PIXELS):
                result, result_bytes = read(body, self.memory_fds[1])
                self.is_reusable = True
            elif kind == BAD_IMAGE:
                code, _, message = body.decode(errors="replace").partition(" ")
                error = BadImageError(ErrorCode(code), message)
                if not error.code.is_caused_by_bytes:
                    raise ValueError(code)
                self.is_reusable = True
                self._free_large(input_bytes, 0)
                raise error
            elif kind == NEEDS_MEMORY:  # not reusable: a replacement gets the larger limit
                return _NeededBytes(*NEEDED_BYTES.unpack(body))
            elif kind == EXITED:
                [status] = WAIT_STATUS.unpack(body)
                raise _error_for(status, request.cpu_seconds)
            elif not kind:  # killed together with the root process
                raise DecoderUnavailableError(_KILLED)
            else:
                raise ValueError(kind)
        except (ValueError, struct.error) as exc:
            logger.exception("A decoder sent an invalid reply")
            raise BadImageError.corrupt("The file made its decoder fail.") from exc
        self._free_large(input_bytes, result_bytes)
        return result

    def kill(self) -> None:
        """Let the root kill the process, and wait up to `_KILL_SECONDS` until it has exited."""
        give_up_at = time.monotonic() + _KILL_SECONDS
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)  # the root notices and kills the process
            while (left := give_up_at - time.monotonic()) > 0:
                self._socket.settimeout(left)
                if not self._socket.recv(_MAX_REPLY_BYTES):
                    break
        self.close()

    def close(self) -> None:
        """Close the descriptors. Safe to call twice."""
        self._socket.close()
        memory_fds, self.memory_fds = self.memory_fds, ()  # the system may reuse these numbers
        for descriptor in memory_fds:
            os.close(descriptor)

    def _free_large(self, input_bytes: int, result_bytes: int) -> None:
        """Empty each memory file that holds more than `_KEPT_BYTES`."""
        for descriptor, size in zip(self.memory_fds, (input_bytes, result_bytes), strict=True):
            if size > _KEPT_BYTES:
                os.ftruncate(descriptor, 0)

    def _receive(self, deadline: Deadline, wall_seconds: float) -> bytes:
        """Wait for a message. Return no bytes if the other side is closed.

        The wait is counted in slices of one second. While this process is frozen, at most one
        slice passes. So a frozen container does not make a file exceed its limit.

        Raises:
            TimeoutError: no message arrived within `wall_seconds`.
            TooLateError: the deadline passed first.
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


# Reads a reply's body and the memory file with the result. Returns the result and its bytes there.
_Read = Callable[[bytes, int], tuple[Result, int]]


def _read_pixels(request: Request, body: bytes, memory_fd: int) -> tuple[DecodedImage, int]:
    """Copy the pixels from the shared memory.

    Raises:
        OSError: there is not enough memory now.
        ValueError: the reply describes an image that the request does not allow.
    """
    height, width, *full = PIXELS_HEADER.unpack_from(body)
    details = Details.from_bytes(body[PIXELS_HEADER.size :])
    info = ImageInfo(full[1], full[0], details.format)
    is_shrunk = height <= info.height and width <= info.width
    is_square = height == width == request.image_size
    if (
        max(height, width) > request.image_size
        or info.width * info.height > request.max_pixels
        or not (is_square if request.crop else is_shrunk)
    ):
        raise ValueError(f"{width}x{height} pixels of {info}")
    pixels = np.empty((height, width, 3), np.uint8)
    # Copied, not mapped: reading a mapping that the decoder truncates would raise SIGBUS here.
    if os.preadv(memory_fd, [pixels.data], 0) != pixels.nbytes:
        raise ValueError("The memory holds fewer pixels than the reply states")
    return DecodedImage(pixels, info, details.capture), pixels.nbytes


def _read_outputs(
    plan: "DerivePlan", body: bytes, memory_fd: int
) -> tuple[tuple[DerivedImage, ...], int]:
    """Copy the derived images from the shared memory.

    Only the lengths and the bytes come from the decoder. All other fields come from the plan.

    Raises:
        OSError: there is not enough memory now.
        ValueError: the reply has other images than the plan allows.
    """
    outputs = plan.outputs()
    lengths = [length for (length,) in OUTPUT_BYTES.iter_unpack(body)]
    required = sum(output.crop is None for output in outputs)
    total = sum(lengths)
    if not required <= len(lengths) <= len(outputs) or total > plan.options.max_output_bytes:
        raise ValueError(f"{len(lengths)} images of {total} bytes instead of {len(outputs)}")
    images, offset = [], 0
    for output, length in zip(outputs, lengths, strict=False):
        data = os.pread(memory_fd, length, offset)
        if len(data) != length or not data.startswith(output.signature):
            raise ValueError(f"The {output.kind} image is incomplete or of another format")
        images.append(output.with_data(data))
        offset += length
    return tuple(images), total


def _error_for(status: int, cpu_seconds: int) -> Exception:
    """Return the error for a decoder that exited with this wait status while it decoded."""
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
