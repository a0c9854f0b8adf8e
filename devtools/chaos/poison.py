"""Files that crash, hang or bloat their decoder: what is written into them.

Without imports of the project: the decoders' root process reads this too.
"""

from enum import StrEnum

#: Field of a log line: what a decoder is about to do.
POISONED = "poisoned"
_MARK = b"CHAOS-POISON:"
_END = b";"


class Poison(StrEnum):
    """What a file does to its decoder, every time."""

    CRASHES = "crashes its decoder"
    EXITS = "ends its decoder"
    HANGS = "hangs its decoder"
    SPINS = "spins its decoder"  # takes CPU time without end
    BLOATS = "bloats its decoder"  # takes memory without end


def mark(poison: Poison) -> bytes:
    """Return the bytes that make a file poisonous, wherever they are in it."""
    return _MARK + poison.encode() + _END


def poison_of(data: bytes) -> Poison | None:
    """Return what a file does to its decoder; None for one without a mark."""
    _, found, rest = data.partition(_MARK)
    return Poison(rest.partition(_END)[0].decode()) if found else None
