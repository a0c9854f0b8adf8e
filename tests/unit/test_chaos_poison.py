"""Poisonous files in the decoders of a chaos run: each file fails alone, as a corrupt image."""

from collections.abc import Iterator

import pytest

from devtools.chaos.images import Images
from devtools.chaos.plan import Kind, Plan, Upload
from devtools.chaos.poison import Poison, mark, poison_of
from devtools.chaos.poisoned_decoder import COMMAND
from service.deadline import Deadline
from service.domain import ErrorCode
from service.errors import BadImageError
from service.images.decoders import DecodeLimits, Decoders

PATIENCE_SECONDS = 300


@pytest.fixture(scope="module")
def decoders() -> Iterator[Decoders]:
    pool = Decoders(
        1,
        max_pixels=10**6,
        max_decompressed_bytes=10**6,
        limits=DecodeLimits(cpu_seconds=1, wall_seconds=3),
        command=COMMAND,
    )
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def images() -> Images:
    return Images(Plan(1, 1, (Upload(0, "0.jpg", Kind.GOOD, 0),), ()))


@pytest.mark.parametrize("poison", Poison)
def test_mark_is_found_at_any_position(poison: Poison) -> None:
    assert poison_of(b"\xff\xd8" + mark(poison) + b"more") is poison
    assert poison_of(b"\xff\xd8more") is None


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind.poison])
def test_poisonous_file_ends_its_decoder_and_nothing_else(
    kind: Kind, decoders: Decoders, images: Images
) -> None:
    deadline = Deadline.after(PATIENCE_SECONDS)
    with pytest.raises(BadImageError) as error:
        decoders.decode(
            images.content(Upload(0, "0.jpg", kind, 0)), image_size=320, deadline=deadline
        )
    assert error.value.code is ErrorCode.CORRUPT_IMAGE
    good = images.content(Upload(1, "1.jpg", Kind.GOOD, 0))
    assert decoders.decode(good, image_size=320, deadline=deadline).pixels.any()
