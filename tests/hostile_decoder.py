"""A decoder process that misbehaves for marked files: `python -P -m tests.hostile_decoder`.

The bytes after `MARK` in a file name what the decoder does. Other files are decoded normally.
Derived images are made from what `decode` returns, so every misbehaviour is also one of that visit.
"""

import ctypes
import errno
import os
import resource
import signal
import sys
import time
from pathlib import Path

from service.images import decoder_process
from service.images.decoder_process import Decode
from service.images.decoders import OUTPUT_BYTES, OUTPUTS, Request
from service.images.pixels import DecodedImage

COMMAND = (sys.executable, "-P", "-m", "tests.hostile_decoder")
MARK = b"HOSTILE:"
MIB = 2**20

_honest_reply = decoder_process._reply
_corrupted: list[bool] = []


def marked(data: bytes, what: str | bytes) -> bytes:
    """Return a file that makes the decoder misbehave as named, or reply with the given bytes."""
    return data + MARK + (b"raw:" + what if isinstance(what, bytes) else what.encode())


def decode(data: bytes, request: Request) -> DecodedImage:
    if _corrupted:
        ctypes.string_at(0)
    match data.partition(MARK)[2].decode():
        case "corrupt memory":  # the next file will crash
            _corrupted.append(True)
        case "segfault":
            ctypes.string_at(0)
        case "abort":
            os.abort()
        case "exit":
            os._exit(3)
        case "hang":
            Path("/proc/self/comm").write_text("hanging")  # tests look for it
            signal.pause()
        case "spin":
            while True:
                pass
        case "bloat":
            allocated = []
            while True:
                allocated.append(bytearray(16 * MIB))
        case "large":
            bytearray(220 * MIB)
        case "nap":
            time.sleep(2)
        case "file size limit":
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        case "read error":
            raise OSError(errno.EIO, "Input/output error")
        case "slow":
            time.sleep(0.05)
        case "print":
            print("P" * 100, flush=True)
    return decoder_process.decode(data, request)


def reply(request: Request, file: int, pixels: int, decode: Decode) -> bytes:
    what = os.pread(file, request.length, 0).partition(MARK)[2]
    if what.startswith(b"raw:"):
        os.ftruncate(pixels, 0)
        return what.removeprefix(b"raw:")
    if what.startswith(b"derived:"):  # one derived image of these bytes
        made = what.removeprefix(b"derived:")
        os.pwrite(pixels, made, 0)
        return OUTPUTS + OUTPUT_BYTES.pack(len(made))
    return _honest_reply(request, file, pixels, decode)


if __name__ == "__main__":
    decoder_process._reply = reply
    decoder_process.main(decode)
