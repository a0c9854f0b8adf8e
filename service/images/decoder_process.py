"""The decoders' side of `service.images.decoders`: a root process, and the decoders that it forks.

The root has no threads and reads no file. It imports the libraries once, forks a decoder for each
set of descriptors that arrives, kills a decoder whose socket was shut down, and reports a decoder's
end on its socket. It ends with the service, whose end closes the control socket; the decoders end
with the root.
"""

import ctypes
import gc
import os
import resource
import select
import signal
import socket
import sys
import traceback
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from service.domain import ErrorCode
from service.errors import BadImageError
from service.images.decode import WEIGHTS, decode_file, open_image
from service.images.decoders import (
    BAD_IMAGE,
    BYTES_PER_PIXEL,
    ENDED,
    NEEDED_BYTES,
    NEEDS_MEMORY,
    PIXELS,
    PIXELS_HEADER,
    READY,
    WAIT_STATUS,
    Request,
)
from service.images.letterbox import shrink
from service.images.pixels import DecodedImage

Decode = Callable[[bytes, Request], DecodedImage]

_PR_SET_PDEATHSIG = 1  # prctl(2): a signal when the parent ends
_MAX_SENTENCE_BYTES = 2000
_MAX_REQUEST_BYTES = 2**16
_GZIP = b"\x1f\x8b"
_AUTOMATIC, _RAW = 32 + zlib.MAX_WBITS, -zlib.MAX_WBITS  # a header of gzip or zlib; none
_WINDOWS = {"gzip": (_AUTOMATIC,), "x-gzip": (_AUTOMATIC,), "deflate": (_AUTOMATIC, _RAW)}


class NeedsMemoryError(Exception):
    """The file needs more memory than it may take."""

    def __init__(self, needed_bytes: int) -> None:
        """Keep what it needs."""
        super().__init__(needed_bytes)
        self.needed_bytes = needed_bytes


def decode(data: bytes, request: Request) -> DecodedImage:
    """Decode a file's bytes within the request's memory, turn the image upright and shrink it.

    Raises:
        BadImageError: see `service.images.decode.decode`.
        MemoryError: no memory to read the header.
        NeedsMemoryError: it needs more memory.
    """
    file = open_image(data, max_pixels=request.max_pixels)
    pixels = file.info.width * file.info.height * WEIGHTS.get(file.info.format, 1)
    needed_bytes = pixels * BYTES_PER_PIXEL + 2 * len(data)
    is_short = needed_bytes > request.memory_bytes
    # Most JPEGs take far less than they might: tried first, so that large photos do not wait for
    # each other. Other decoders may crash, or call a file damaged, where memory is short.
    if is_short and file.info.format not in ("JPEG", "MPO"):
        raise NeedsMemoryError(needed_bytes)
    size = request.image_size
    try:
        picture = decode_file(
            file,
            max_pixels=request.max_pixels,
            image_size=size if request.reduced else None,
        )
        return replace(picture, pixels=shrink(picture.pixels, image_size=size))
    except MemoryError as exc:
        raise NeedsMemoryError(needed_bytes) from exc
    except BadImageError as exc:
        if is_short and exc.code is ErrorCode.CORRUPT_IMAGE:
            raise NeedsMemoryError(needed_bytes) from exc
        raise


def main(decode: Decode = decode) -> None:
    """Fork decoders until the service ends.

    Args:
        decode: what a decoder does with a file.
    """
    control = socket.socket(fileno=int(sys.argv[1]))
    woken, wake = socket.socketpair()
    for end in (woken, wake):
        end.setblocking(False)
    signal.set_wakeup_fd(wake.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)  # or nothing would be written to it
    poller = select.poll()
    poller.register(control, select.POLLIN)
    poller.register(woken, select.POLLIN)
    decoders: dict[int, socket.socket] = {}  # by process id
    gc.freeze()  # the collector would copy pages that all processes share
    while True:
        ready = dict(poller.poll())
        for process, sock in decoders.items():
            if sock.fileno() in ready:  # shut down: nobody waits for it any more
                poller.unregister(sock)
                os.kill(process, signal.SIGKILL)
        if ready.pop(woken.fileno(), None):
            woken.recv(4096)
            _reap(decoders, poller)
        if ready.pop(control.fileno(), None):
            message, descriptors, _, _ = socket.recv_fds(control, 16, 3)
            if not message:
                break
            sock = socket.socket(fileno=descriptors[0])
            root = os.getpid()
            try:
                process = os.fork()
            except OSError:  # no memory: the service sees a closed socket
                sock.close()
            else:
                if not process:
                    for other in (control, woken, wake, *decoders.values()):
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
    """Report the decoders that have ended."""
    while decoders:
        process, status = os.waitpid(-1, os.WNOHANG)
        if not process:
            return
        sock = decoders.pop(process)
        with suppress(KeyError):
            poller.unregister(sock)
        with suppress(OSError):  # nobody reads it, or the decoder has filled it
            sock.send(ENDED + WAIT_STATUS.pack(status), socket.MSG_DONTWAIT)
        sock.close()


def _run(sock: socket.socket, file: int, pixels: int, decode: Decode, root: int) -> NoReturn:
    """Be a decoder: answer requests until the socket is shut down."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == root:  # else it has ended already
            _serve(sock, file, pixels, decode)
        code = 0
    except ConnectionError:
        code = 0  # the service has ended
    except (MemoryError, OSError):
        code = os.EX_TEMPFAIL  # says nothing against the file
    except BaseException:  # noqa: BLE001 - its trace is for us; a fork must end here
        traceback.print_exc()
    finally:
        os._exit(code)


def _serve(sock: socket.socket, file: int, pixels: int, decode: Decode) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):  # where memory is short, a decoder is ended first, not the service
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    mapped = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    base_bytes = mapped * resource.getpagesize()
    sock.send(READY)
    while message := sock.recv(_MAX_REQUEST_BYTES):
        request = Request.from_bytes(message)
        used = resource.getrusage(resource.RUSAGE_SELF)
        cpu_seconds = int(used.ru_utime + used.ru_stime) + 1 + request.cpu_seconds
        _limit(resource.RLIMIT_CPU, cpu_seconds)  # over it: SIGXCPU
        # Counted from the start: what malloc has kept since then counts too.
        _limit(resource.RLIMIT_AS, base_bytes + request.memory_bytes)
        sock.send(_reply(request, file, pixels, decode))


def _limit(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _reply(request: Request, file: int, pixels: int, decode: Decode) -> bytes:
    """Decode a file, and write its pixels.

    Raises:
        MemoryError: no memory for the pixels.
        OSError: the same.
    """
    try:
        stored = os.pread(file, request.length, 0)
        if len(stored) != request.length:
            raise MemoryError
        data = _decompressed(stored, request)
        picture = decode(data, request)
    except BadImageError as exc:
        text = f"{exc.code} {exc.message}"
        return BAD_IMAGE + text.encode(errors="replace")[:_MAX_SENTENCE_BYTES]
    except NeedsMemoryError as exc:
        return NEEDS_MEMORY + NEEDED_BYTES.pack(exc.needed_bytes)
    except MemoryError:  # before the header was read
        return NEEDS_MEMORY + NEEDED_BYTES.pack(
            3 * max(request.length, request.max_decompressed_bytes)
        )
    if os.pwrite(pixels, picture.pixels.data, 0) != picture.pixels.nbytes:
        raise MemoryError  # or the rest would be of the image before
    info = picture.info
    header = PIXELS_HEADER.pack(*picture.pixels.shape[:2], info.height, info.width)
    return PIXELS + header + info.format.encode()


def _decompressed(data: bytes, request: Request) -> bytes:
    """Undo an object's Content-Encoding (RFC 9110, 8.4), the last one first.

    Raises:
        BadImageError: the bytes are not in this encoding, or too many without it.
        MemoryError: no memory.
    """
    names = (name.strip().lower() for name in request.content_encoding.split(","))
    encodings = [name for name in names if name not in ("", "identity")]
    if not data or not {*encodings} <= {*_WINDOWS}:
        return data
    for encoding in reversed(encodings):
        data = _unpacked(data, _WINDOWS[encoding], request.max_decompressed_bytes)
    return data


def _unpacked(data: bytes, windows: tuple[int, ...], max_bytes: int) -> bytes:
    for window in windows:
        with suppress(zlib.error):
            return _inflated(data, window, max_bytes)
    raise BadImageError.corrupt("The object's bytes are not in its Content-Encoding.")


def _inflated(data: bytes, window: int, max_bytes: int) -> bytes:
    """Decompress; of gzip, all members (RFC 1952, 2.2). What follows them is ignored."""
    parts: list[bytes] = []
    left = max_bytes
    while not parts or data.startswith(_GZIP):
        inflater = zlib.decompressobj(window)
        parts.append(inflater.decompress(data, left + 1))
        left -= len(parts[-1])
        if left < 0:
            raise BadImageError.too_many_bytes("object", max_bytes)
        if not inflater.eof:
            raise zlib.error("cut short")
        data = inflater.unused_data
    return b"".join(parts)


if __name__ == "__main__":
    main()
