"""A decoder in a process that may fail: for files that can lie about what they cost.

One process waits for files and forks for each: a file that takes more memory or CPU time than
allowed, or crashes the decoder, ends its fork alone. (Forking the service itself would not do: it
has threads, and their locks would stay locked.) The process starts with the first such file and
ends with the one that started it, whose end closes the pipe. It reads and writes:

    request: bytes of memory, seconds of CPU time, most pixels, image size or 0, length of the file
             (8 bytes each), file
    reply:   length of the answer (4 bytes; 0 for none), answer, pixels
             The answer is JSON, {"shape": [H, W, 3], "info": [W, H, format]} or
             {"code": ..., "message": ...} of a `BadImageError`.

It bounds cost and crashes; the fork has its caller's rights.
"""

import atexit
import ctypes
import json
import os
import resource
import signal
import struct
import subprocess
import sys
import threading
import traceback
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

from service.domain import ErrorCode, ImageInfo
from service.errors import BadImageError, DecoderBusyError
from service.images.pixels import Picture
from service.images.read import read as read_here

MAX_CPU_SECONDS = 30  # four times what the largest valid image takes (JPEG 2000 of 31 MB)
_MAX_SECONDS = 100  # by the clock, where it hangs, or has no CPU
_REQUEST, _REPLY = struct.Struct("<QQQQQ"), struct.Struct("<I")
_NO_ANSWER = _REPLY.pack(0)
_ROOT = Path(__file__).parents[2]  # where the package lies
# Signals of a decoder that failed by itself. SIGXCPU: it used too much CPU time.
_CRASHES = (
    signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGXCPU,
)  # fmt: skip
_PR_SET_PDEATHSIG = 1  # prctl(2): end with the parent, or its pipe would stay open
_ENDED = "The decoder's process did not start or was killed, as where memory is short."

COMMAND = (sys.executable, "-P", "-c", "from service.images import sandbox; sandbox.serve()")

_lock = threading.Lock()  # one file at a time: the memory of one, however many callers
_process: "subprocess.Popen[bytes] | None" = None
_of_parents: list[Any] = []  # processes of those that forked us: theirs to end


def read(
    data: bytes,
    *,
    max_pixels: int,
    image_size: int | None = None,
    max_bytes: int,
    max_cpu_seconds: int = MAX_CPU_SECONDS,
) -> Picture | None:
    """Decode as `service.images.read.read` does; None for a crash, or over the limits.

    Args:
        data: the file.
        max_pixels: see there.
        image_size: see there.
        max_bytes: memory that the decoder may take, besides what the process has.
        max_cpu_seconds: CPU time that it may take, whole seconds.

    Raises:
        BadImageError: what the decoder says of the file.
        OSError: the process did not start or was killed, as where memory is short.
    """
    with _lock:
        process = _started()
        try:
            request = _REQUEST.pack(
                max_bytes, max_cpu_seconds, max_pixels, image_size or 0, len(data)
            )
            return _ask(process, request, data)
        except BadImageError:
            raise
        except BaseException:  # with half a reply unread, nothing after it could be understood
            with suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)  # a fork that goes on, too
            _end()
            raise


def close() -> None:
    """End the process, if there is one; the next file starts another."""
    with _lock:
        _end()


def _forget() -> None:
    """After a fork: leave the process, and who waits for it, to the parent."""
    global _lock, _process
    _of_parents.append(_process)
    _lock, _process = threading.Lock(), None


atexit.register(close)
os.register_at_fork(after_in_child=_forget)


def _started() -> "subprocess.Popen[bytes]":
    global _process
    if _process is None:
        _process = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Or each of a codec's threads would reserve 64 MB that count as taken; and only a
            # process without threads, as numpy's, may fork.
            env=os.environ
            | {"MALLOC_ARENA_MAX": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": _python_path()},
            start_new_session=True,  # Ctrl-C is for the caller, who finishes what is in flight
        )
    return _process


def _end() -> None:
    global _process
    if _process is not None:
        with suppress(BrokenPipeError):  # of a request that it did not read
            _process.communicate()
        _process.wait()
        _process = None


def _python_path() -> str:
    """Let the process find this very package, wherever its caller found it."""
    return os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


def _ask(process: "subprocess.Popen[bytes]", request: bytes, data: bytes) -> Picture | None:
    requests: Any = process.stdin
    replies: Any = process.stdout
    requests.write(request)
    requests.write(data)
    requests.flush()
    [length] = _REPLY.unpack(_read(replies, _REPLY.size))
    if not length:
        return None
    answer = json.loads(_read(replies, length))
    if "code" in answer:
        raise BadImageError(ErrorCode(answer["code"]), answer["message"])
    pixels = np.empty(answer["shape"], np.uint8)
    if replies.readinto(pixels.reshape(-1).data) < pixels.nbytes:
        raise ConnectionError(_ENDED)
    return Picture(pixels, ImageInfo(*answer["info"]))


def _read(stream: IO[bytes], count: int) -> bytes:
    data = stream.read(count)
    if len(data) < count:
        raise ConnectionError(_ENDED)
    return data


def serve() -> None:
    """Answer requests, in a process of its own."""
    with suppress(ConnectionError):  # whoever asked was killed: nobody waits for a reply
        _serve()


def _serve() -> None:
    """Answer requests until there are no more; a fork that was killed, or hangs, ends it."""
    requests = sys.stdin.buffer
    while len(request := requests.read(_REQUEST.size)) == _REQUEST.size:
        max_bytes, max_cpu_seconds, max_pixels, image_size, length = _REQUEST.unpack(request)
        data = _read(requests, length)
        child = os.fork()
        if not child:
            _reply(data, max_pixels, image_size or None, max_bytes, max_cpu_seconds)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) not in _CRASHES:
            sys.exit(1)  # killed from outside, perhaps in the middle of its reply
        if status:
            os.write(1, _NO_ANSWER)


def _reply(
    data: bytes, max_pixels: int, image_size: int | None, max_bytes: int, max_cpu_seconds: int
) -> None:
    """Decode within limits, reply and exit; a non-zero exit means no reply."""
    code = 1
    try:
        with suppress(AttributeError):  # Linux has it, other systems do not
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        replies = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)  # what a library prints must not get into the reply
        signal.alarm(_MAX_SECONDS)
        _, most = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (max_cpu_seconds, most))
        resource.setrlimit(resource.RLIMIT_AS, (_address_space() + max_bytes,) * 2)
        answer, pixels = _answer(data, max_pixels, image_size)
        resource.setrlimit(resource.RLIMIT_CPU, (most, most))  # no half replies
        for part in (_REPLY.pack(len(answer)), answer, pixels):
            replies.write(part)
        replies.close()
        code = 0
    except (MemoryError, DecoderBusyError):
        pass  # it needs more than it is allowed
    except ConnectionError:
        pass  # whoever asked was killed
    except Exception:  # noqa: BLE001 - damage that nobody foresaw: its trace is for us
        traceback.print_exc()
    finally:
        os._exit(code)


def _answer(data: bytes, max_pixels: int, image_size: int | None) -> tuple[bytes, Any]:
    try:
        picture = read_here(data, max_pixels=max_pixels, image_size=image_size)
    except BadImageError as exc:
        return json.dumps({"code": exc.code, "message": exc.message}).encode(), b""
    info = picture.info
    answer = {"shape": picture.pixels.shape, "info": [info.width, info.height, info.format]}
    return json.dumps(answer).encode(), picture.pixels.data.cast("B")


def _address_space() -> int:
    """Bytes that this process has mapped; 0 where the system does not tell (macOS)."""
    try:
        with open("/proc/self/statm", encoding="ascii") as statm:  # noqa: PTH123 - as above
            return int(statm.read().split()[0]) * resource.getpagesize()
    except FileNotFoundError:
        return 2**40
