"""The decoder process of a chaos run, which fails on marked files.

python -P -m devtools.chaos.poisoned_decoder SOCKET
"""

import ctypes
import json
import os
import signal
import sys
from datetime import UTC, datetime

from devtools.chaos.poison import POISONED, Poison, poison_of
from service.images import decoder_process
from service.images.decoders import Request
from service.images.pixels import DecodedImage

COMMAND = (sys.executable, "-P", "-m", "devtools.chaos.poisoned_decoder")
_STEP_BYTES = 16 * 2**20
_EXIT_CODE = 3


def decode(data: bytes, request: Request) -> DecodedImage:
    """Decode a file as the service does, or fail as its mark demands.

    Raises:
        MemoryError: the mark demands more memory than the limit allows.
    """
    if poison := poison_of(data):
        _log(poison)
        _misbehave(poison)
    return decoder_process.decode(data, request)


def _log(poison: Poison) -> None:
    line = {
        "time": datetime.now(UTC).isoformat(),
        "severity": "INFO",
        "message": "A file is about to misbehave",
        POISONED: poison,
    }
    os.write(2, json.dumps(line).encode() + b"\n")  # one write: other processes share the stream


def _misbehave(poison: Poison) -> None:
    match poison:
        case Poison.CRASHES:
            ctypes.string_at(0)  # SIGSEGV
        case Poison.EXITS:
            os._exit(_EXIT_CODE)
        case Poison.HANGS:
            while True:
                signal.pause()
        case Poison.SPINS:
            while True:
                pass
        case Poison.BLOATS:
            taken = []
            while True:
                taken.append(bytearray(_STEP_BYTES))


if __name__ == "__main__":
    decoder_process.main(decode)
