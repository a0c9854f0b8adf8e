"""The process side of `service.images.decoders`: a root process and the decoders that it forks.

The root process has no threads and reads no files. It imports the image libraries once, then

- forks a decoder for each set of file descriptors that it receives on the control socket,
- kills a decoder when the service shuts down its side of that decoder's socket,
- sends a decoder's wait status on its socket after the decoder has exited.

The root exits when the service exits, because the control socket is then closed. The decoders are
killed when the root exits.
"""

import ctypes
import gc
import logging
import logging.config
import os
import resource
import select
import signal
import socket
import sys
import warnings
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from service import logs
from service.domain import ErrorCode
from service.errors import BadImageError
from service.images.crop import center_crop
from service.images.decode import decode_file, open_image, weight_of
from service.images.decoders import (
    BAD_IMAGE,
    EXITED,
    NEEDED_BYTES,
    NEEDS_MEMORY,
    OUTPUT_BYTES,
    OUTPUTS,
    PIXELS,
    PIXELS_HEADER,
    READY,
    WAIT_STATUS,
    Request,
    needed_bytes,
)
from service.images.details import Details
from service.images.letterbox import shrink
from service.images.pixels import DecodedImage

logger = logging.getLogger(__name__)

Decode = Callable[[bytes, Request], DecodedImage]

_PR_SET_PDEATHSIG = 1  # prctl(2): the kernel sends this signal when the parent exits
_MAX_MESSAGE_BYTES = 2000  # longest message of a BadImageError that is sent
_MAX_REQUEST_BYTES = 2**16
_GZIP_SIGNATURE = b"\x1f\x8b"
# zlib's `wbits`: detect a gzip or zlib header, or expect no header.
_DETECT_HEADER, _NO_HEADER = 32 + zlib.MAX_WBITS, -zlib.MAX_WBITS
# Clients send `deflate` with and without the zlib header that RFC 9110 requires.
_WBITS = {
    "gzip": (_DETECT_HEADER,),
    "x-gzip": (_DETECT_HEADER,),
    "deflate": (_DETECT_HEADER, _NO_HEADER),
}


class NeedsMemoryError(Exception):
    """Decoding the file needs more memory than the request allows."""

    def __init__(self, needed_bytes: int) -> None:
        """Take the estimate of the needed memory, in bytes."""
        super().__init__(needed_bytes)
        self.needed_bytes = needed_bytes


def decode(data: bytes, request: Request) -> DecodedImage:
    """Decode a file, turn the image upright, and shrink or crop it to `request.image_size`.

    An image from which others are derived is not shrunk, except that a JPEG may be decoded at a
    reduced scale.

    Raises:
        BadImageError: see `service.images.decode.decode`.
        MemoryError: there is not enough memory to read the header.
        NeedsMemoryError: there is not enough memory to decode the pixels.
    """
    file = open_image(data, max_pixels=request.max_pixels)
    pixels = file.info.width * file.info.height * weight_of(file)
    needed = needed_bytes(pixels, len(data), request)
    may_run_out = needed > request.memory_bytes
    # Try a JPEG at once: most take far less than the estimate, and files that need more memory
    # are decoded one at a time. Do not try other formats: without enough memory their decoders
    # may crash, or report an intact file as damaged.
    if may_run_out and file.info.format not in ("JPEG", "MPO"):
        raise NeedsMemoryError(needed)
    size = request.image_size
    try:
        decoded = decode_file(
            file,
            max_pixels=request.max_pixels,
            image_size=size if request.reduced else None,
        )
        if request.crop:
            return replace(decoded, pixels=center_crop(decoded.pixels, size=size))
        if request.plan_length:
            return decoded
        return replace(decoded, pixels=shrink(decoded.pixels, image_size=size))
    except MemoryError as exc:
        raise NeedsMemoryError(needed) from exc
    except BadImageError as exc:
        if may_run_out and exc.code is ErrorCode.CORRUPT_IMAGE:
            raise NeedsMemoryError(needed) from exc
        raise


def main(decode: Decode = decode) -> None:
    """Fork decoders until the service exits. `sys.argv[1]` is the control socket's descriptor.

    Args:
        decode: decodes one file in a decoder process.
    """
    logging.config.dictConfig(logs.config("WARNING", stream="stderr"))
    logs.log_uncaught_exceptions()
    warnings.simplefilter("ignore")  # Pillow warns of each damaged tag of a file
    control = socket.socket(fileno=int(sys.argv[1]))
    # A signal's number is written to `wakeup_writer`, so that poll() also returns on SIGCHLD.
    wakeup_reader, wakeup_writer = socket.socketpair()
    for sock in (wakeup_reader, wakeup_writer):
        sock.setblocking(False)
    signal.set_wakeup_fd(wakeup_writer.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)  # Python writes only signals that it handles
    poller = select.poll()
    poller.register(control, select.POLLIN)
    poller.register(wakeup_reader, select.POLLIN)
    decoders: dict[int, socket.socket] = {}  # by process id
    gc.freeze()  # a collection would write to memory pages that all processes share
    while True:
        ready = dict(poller.poll())
        for process, sock in decoders.items():
            if sock.fileno() in ready:  # the service shut it down, to have this decoder killed
                poller.unregister(sock)
                os.kill(process, signal.SIGKILL)
        if ready.pop(wakeup_reader.fileno(), None):
            wakeup_reader.recv(4096)
            _reap(decoders, poller)
        if ready.pop(control.fileno(), None):
            message, descriptors, _, _ = socket.recv_fds(control, 16, 3)
            if not message:
                break
            sock = socket.socket(fileno=descriptors[0])
            root = os.getpid()
            try:
                process = os.fork()
            except OSError:  # not enough memory. The service notices the closed socket.
                sock.close()
            else:
                if not process:
                    for other in (control, wakeup_reader, wakeup_writer, *decoders.values()):
                        other.close()
                    _run(sock, descriptors[1], descriptors[2], decode, root)
                decoders[process] = sock
                poller.register(sock, select.POLLRDHUP)
            for descriptor in descriptors[1:]:
                os.close(descriptor)
    for process in decoders:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)


def _reap(decoders: dict[int, socket.socket], poller: select.poll) -> None:
    """For each decoder that has exited, send its wait status on its socket, and remove it."""
    while decoders:
        process, status = os.waitpid(-1, os.WNOHANG)
        if not process:
            return
        sock = decoders.pop(process)
        with suppress(KeyError):
            poller.unregister(sock)
        with suppress(OSError):  # the service has closed the socket, or its buffer is full
            sock.send(EXITED + WAIT_STATUS.pack(status), socket.MSG_DONTWAIT)
        sock.close()


def _run(sock: socket.socket, file: int, pixels: int, decode: Decode, root: int) -> NoReturn:
    """Serve requests in a forked decoder until the service closes the socket.

    Args:
        sock: receives requests and sends replies.
        file: descriptor of the memory that holds a request's file.
        pixels: descriptor of the memory for the pixels or the derived images.
        decode: decodes one file.
        root: process id of the root process.
    """
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == root:  # otherwise the root exited before prctl took effect
            _serve(sock, file, pixels, decode)
        code = 0
    except ConnectionError:
        code = 0  # the service has exited
    except (MemoryError, OSError):
        code = os.EX_TEMPFAIL  # not the file's fault
    except BaseException:  # noqa: BLE001 - a forked process must not return into the root's code
        logger.exception("A decoder failed")
    finally:
        os._exit(code)


def _serve(sock: socket.socket, file: int, pixels: int, decode: Decode) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):  # the kernel's OOM killer then chooses a decoder, not the service
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    mapped_pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    base_bytes = mapped_pages * resource.getpagesize()
    sock.send(READY)
    while message := sock.recv(_MAX_REQUEST_BYTES):
        request = Request.from_bytes(message)
        used = resource.getrusage(resource.RUSAGE_SELF)
        cpu_seconds = int(used.ru_utime + used.ru_stime) + 1 + request.cpu_seconds
        _limit(resource.RLIMIT_CPU, cpu_seconds)  # above it, the kernel sends SIGXCPU
        # Relative to the process's start, so memory that malloc keeps between files counts too.
        _limit(resource.RLIMIT_AS, base_bytes + request.memory_bytes)
        sock.send(_reply(request, file, pixels, decode))


def _limit(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _reply(request: Request, file: int, pixels: int, decode: Decode) -> bytes:
    """Decode the file, write the result to the shared memory, and return the reply.

    Raises:
        MemoryError: there is not enough memory for the result.
        OSError: the shared memory cannot be read or written.
    """
    try:
        stored = os.pread(file, request.length, 0)
        if len(stored) != request.length:
            raise MemoryError
        data = _decompress(stored, request)
        decoded = decode(data, request)
        derived = None
        if request.plan_length:
            packed = os.pread(file, request.plan_length, request.length)
            derived = _derive(decoded, packed, len(data), request)
    except BadImageError as exc:
        text = f"{exc.code} {exc.message}"
        return BAD_IMAGE + text.encode(errors="replace")[:_MAX_MESSAGE_BYTES]
    except NeedsMemoryError as exc:
        return NEEDS_MEMORY + NEEDED_BYTES.pack(exc.needed_bytes)
    except MemoryError:  # before the header was read, so the size is unknown
        return NEEDS_MEMORY + NEEDED_BYTES.pack(
            3 * max(request.length, request.max_decompressed_bytes)
        )
    if derived is not None:
        _write(pixels, derived)
        return OUTPUTS + b"".join(OUTPUT_BYTES.pack(len(image)) for image in derived)
    _write(pixels, [decoded.pixels.data])
    info = decoded.info
    header = PIXELS_HEADER.pack(*decoded.pixels.shape[:2], info.height, info.width)
    return PIXELS + header + Details.of(decoded).to_bytes()


def _derive(decoded: DecodedImage, packed: bytes, length: int, request: Request) -> list[bytes]:
    """Return the images of a packed plan.

    Raises:
        BadImageError: the image has another size than in the plan.
        NeedsMemoryError: there is not enough memory.
    """
    # Imported here, because many services derive no images.
    from service.images.derive import DerivePlan
    from service.images.render import render

    plan, info = DerivePlan.from_bytes(packed), decoded.info
    if (info.width, info.height) != (plan.image.width, plan.image.height):
        raise BadImageError.corrupt("The file has another size when it is decoded again.")
    try:
        return render(decoded.pixels, plan)
    except MemoryError as exc:
        needed = needed_bytes(info.width * info.height, length, request)
        raise NeedsMemoryError(needed) from exc


def _write(descriptor: int, parts: Sequence[bytes | memoryview]) -> None:
    """Write the parts to the start of the shared memory.

    Raises:
        MemoryError: they do not fit. The memory may still hold bytes of the previous image.
        OSError: the shared memory cannot be written.
    """
    offset = 0
    for part in parts:
        length = len(part) if isinstance(part, bytes) else part.nbytes
        if os.pwrite(descriptor, part, offset) != length:
            raise MemoryError
        offset += length


def _decompress(data: bytes, request: Request) -> bytes:
    """Undo an object's Content-Encoding (RFC 9110, 8.4). The last encoding is undone first.

    Bytes in an encoding that is not in `_WBITS` are returned unchanged.

    Raises:
        BadImageError: the bytes are not in this encoding, or exceed `max_decompressed_bytes`.
        MemoryError: there is not enough memory now.
    """
    names = (name.strip().lower() for name in request.content_encoding.split(","))
    encodings = [name for name in names if name not in ("", "identity")]
    if not data or not {*encodings} <= {*_WBITS}:
        return data
    for encoding in reversed(encodings):
        data = _inflate_any(data, _WBITS[encoding], request.max_decompressed_bytes)
    return data


def _inflate_any(data: bytes, all_wbits: tuple[int, ...], max_bytes: int) -> bytes:
    for wbits in all_wbits:
        with suppress(zlib.error):
            return _inflate(data, wbits, max_bytes)
    raise BadImageError.corrupt("The object's bytes do not match its Content-Encoding.")


def _inflate(data: bytes, wbits: int, max_bytes: int) -> bytes:
    """Decompress all gzip members (RFC 1952, 2.2) or one zlib stream. Ignore trailing bytes."""
    parts: list[bytes] = []
    bytes_left = max_bytes
    while not parts or data.startswith(_GZIP_SIGNATURE):
        inflater = zlib.decompressobj(wbits)
        parts.append(inflater.decompress(data, bytes_left + 1))
        bytes_left -= len(parts[-1])
        if bytes_left < 0:
            raise BadImageError.too_many_bytes("object", max_bytes)
        if not inflater.eof:
            raise zlib.error("truncated")
        data = inflater.unused_data
    return b"".join(parts)


if __name__ == "__main__":
    main()
