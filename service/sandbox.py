"""OpenCV's decoder in a process that may fail: for files that can lie about what they cost.

One process waits for files and forks for each: a file that takes more memory or CPU time than
allowed, or crashes the decoder, ends its fork alone. (Forking the service itself would not do: it
has threads, and their locks would stay locked.) The process starts with the first such file and
ends with the one that started it, whose end closes the pipe. It reads and writes:

    request: bytes of memory, seconds of CPU time, flags, length (8 bytes each), file
    reply:   height, width (4 bytes each; 0 for no picture), BGR pixels

It bounds cost and crashes; the fork has its caller's rights.
"""

import atexit
import ctypes
import os
import resource
import signal
import struct
import subprocess
import sys
import threading
from contextlib import suppress
from typing import IO, Any

import cv2
import numpy as np
from numpy.typing import NDArray

MAX_CPU_SECONDS = 10  # several times what the largest honest picture takes
_MAX_SECONDS = 100  # by the clock, where it hangs, or has no CPU
_REQUEST, _REPLY = struct.Struct("<QQQQ"), struct.Struct("<II")
_NO_PICTURE = _REPLY.pack(0, 0)
_PR_SET_PDEATHSIG = 1  # prctl(2): end with the parent, or its pipe would stay open
_ENDED = "The decoder's process did not start or was killed, as where memory is short."

_lock = threading.Lock()  # one file at a time: the memory of one, however many callers
_process: "subprocess.Popen[bytes] | None" = None
_of_parents: list[Any] = []  # processes of those that forked us: theirs to end


def imdecode(
    data: bytes,
    *,
    flags: int = cv2.IMREAD_COLOR,
    max_bytes: int,
    max_cpu_seconds: int = MAX_CPU_SECONDS,
) -> NDArray[np.uint8] | None:
    """Decode to uint8 HxWx3 BGR as `cv2.imdecode` does; None if that fails within the limits.

    Args:
        data: the file.
        flags: of `cv2.imdecode`, in colour.
        max_bytes: memory that the decoder may take, besides what the process has.
        max_cpu_seconds: CPU time that it may take, whole seconds.

    Raises:
        OSError: the process did not start or was killed, as where memory is short.
    """
    with _lock:
        process = _started()
        try:
            request = _REQUEST.pack(max_bytes, max_cpu_seconds, flags, len(data))
            return _ask(process, request, data)
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
            # By its file, as it needs nothing of the package, of which -P keeps it: names there
            # are names of other libraries.
            [sys.executable, "-P", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Or each of a codec's threads would reserve 64 MB that count as taken; and only a
            # process without threads, as numpy's, may fork.
            env=os.environ | {"MALLOC_ARENA_MAX": "1", "OPENBLAS_NUM_THREADS": "1"},
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


def _ask(
    process: "subprocess.Popen[bytes]", request: bytes, data: bytes
) -> NDArray[np.uint8] | None:
    requests: Any = process.stdin
    replies: Any = process.stdout
    requests.write(request)
    requests.write(data)
    requests.flush()
    height, width = _REPLY.unpack(_read(replies, _REPLY.size))
    if not height:
        return None
    pixels = np.empty((height, width, 3), np.uint8)
    if replies.readinto(pixels.reshape(-1).data) < pixels.nbytes:
        raise ConnectionError(_ENDED)
    return pixels


def _read(stream: IO[bytes], count: int) -> bytes:
    data = stream.read(count)
    if len(data) < count:
        raise ConnectionError(_ENDED)
    return data


def main() -> None:
    """Answer requests until there are no more; a fork that was killed, or hangs, ends it."""
    requests = sys.stdin.buffer
    while len(request := requests.read(_REQUEST.size)) == _REQUEST.size:
        max_bytes, max_cpu_seconds, flags, length = _REQUEST.unpack(request)
        data = _read(requests, length)
        child = os.fork()
        if not child:
            _reply(data, flags, max_bytes, max_cpu_seconds)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGKILL, signal.SIGALRM):
            sys.exit(1)
        if status:
            os.write(1, _NO_PICTURE)


def _reply(data: bytes, flags: int, max_bytes: int, max_cpu_seconds: int) -> None:
    """Decode within limits, reply and exit; a non-zero exit means no reply."""
    code = 1
    try:
        with suppress(AttributeError):  # of Linux alone
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.alarm(_MAX_SECONDS)
        _, most = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (max_cpu_seconds, most))
        resource.setrlimit(resource.RLIMIT_AS, (_address_space() + max_bytes,) * 2)
        with suppress(cv2.error, MemoryError):
            pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
            if pixels is not None and pixels.size:
                resource.setrlimit(resource.RLIMIT_CPU, (most, most))  # no half replies
                with open(1, "wb") as replies:  # noqa: PTH123 - a descriptor
                    replies.write(_REPLY.pack(*pixels.shape[:2]))
                    replies.write(np.ascontiguousarray(pixels).data.cast("B"))
                code = 0
    finally:
        os._exit(code)


def _address_space() -> int:
    """Bytes that this process has mapped; 0 where the system does not tell (macOS)."""
    try:
        with open("/proc/self/statm", encoding="ascii") as statm:  # noqa: PTH123 - as above
            return int(statm.read().split()[0]) * resource.getpagesize()
    except FileNotFoundError:
        return 2**40


if __name__ == "__main__":
    cv2.setNumThreads(1)
    with suppress(ConnectionError):  # whoever asked was killed: nobody waits for a reply
        main()
