"""Which parked images get a job: those whose objects exist, the oldest first."""

from datetime import UTC, datetime, timedelta

import pytest

from service.domain import ImageRef
from service.errors import StorageUnavailableError
from service.operate.parked import LOOKUPS, continuable

START = datetime(2026, 11, 21, tzinfo=UTC)
# Parked in this order, but found in another one.
REFS = [ImageRef("uploads", f"{i * 37 % 101:03}.jpg", 7) for i in range(3 * LOOKUPS)]
PARKED = sorted(
    ((START + timedelta(seconds=i), ref) for i, ref in enumerate(REFS)),
    key=lambda pair: pair[1].name,
)


def names(limit: int | None = None, *, gone: int = 0, prefix: str = "") -> list[str]:
    """Return the names that are continued if the objects of the oldest `gone` images are gone."""
    missing = set(REFS[:gone])
    refs = continuable(
        PARKED, lambda ref: ref not in missing, bucket="uploads", prefix=prefix, limit=limit
    )
    return [ref.name for ref in refs]


def test_all_parked_images_are_continued_oldest_first() -> None:
    assert names() == [ref.name for ref in REFS]


@pytest.mark.parametrize("limit", [0, 1, LOOKUPS, LOOKUPS + 1, 1000])
def test_limit_selects_the_oldest(limit: int) -> None:
    assert names(limit) == [ref.name for ref in REFS[:limit]]


def test_deleted_objects_do_not_use_up_the_limit() -> None:
    assert names(5, gone=2 * LOOKUPS) == [ref.name for ref in REFS[2 * LOOKUPS :][:5]]


def test_other_buckets_and_prefixes_are_left_out() -> None:
    other = (START, ImageRef("other", "000.jpg", 7))
    assert not continuable([other], lambda ref: True, bucket="uploads")
    assert sorted(names(prefix="00")) == sorted(n for n in names() if n.startswith("00"))


def test_only_as_many_objects_are_looked_up_as_needed() -> None:
    asked: list[ImageRef] = []

    def exists(ref: ImageRef) -> bool:
        asked.append(ref)
        return True

    continuable(PARKED, exists, bucket="uploads", limit=3)
    assert len(asked) <= LOOKUPS


def test_unavailable_storage_is_not_a_deleted_object() -> None:
    def exists(ref: ImageRef) -> bool:
        raise StorageUnavailableError("down")

    with pytest.raises(StorageUnavailableError):
        continuable(PARKED, exists, bucket="uploads")
