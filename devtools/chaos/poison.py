"""Marks for files that must crash, hang or bloat their decoder.

Imports nothing of the project, because the decoders' root process imports this module too.
"""

from enum import StrEnum

#: Field of a log line: how the decoder is about to fail.
POISONED = "poisoned"
_MARK = b"CHAOS-POISON:"
_END = b";"


class Poison(StrEnum):
    """How a file breaks its decoder, at every attempt."""

    CRASHES = "crashes its decoder"
    EXITS = "ends its decoder"
    HANGS = "hangs its decoder"
    SPINS = "spins its decoder"  # uses CPU time without end
    BLOATS = "bloats its decoder"  # uses memory without end


def mark(poison: Poison) -> bytes:
    """Return bytes that make a file poisonous. They may be at any position in it."""
    return _MARK + poison.encode() + _END


def poison_of(data: bytes) -> Poison | None:
    """Return how a file breaks its decoder, or None if it has no mark."""
    _, marked, tail = data.partition(_MARK)
    return Poison(tail.partition(_END)[0].decode()) if marked else None
