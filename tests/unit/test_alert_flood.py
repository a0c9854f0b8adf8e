"""The check of a flood of alerts."""

from collections import Counter

import pytest

from devtools.bench.alert_flood import Run, check
from devtools.bench.errors import BenchError

FLOOD = Run(images=10, seconds=130.0, cpu_ms=1.0, counts=Counter())  # and one image after it


def messages(*suppressed: int) -> list[dict[str, int]]:
    return [{"suppressed": count} for count in suppressed]


def test_flood_may_send_one_message_a_cooldown() -> None:
    check(FLOOD, messages(0, 3, 3, 1), Counter(published=4, suppressed=7))


@pytest.mark.parametrize(
    ("reported", "found"),
    [
        ((0, 3, 3), {"published": 4, "suppressed": 7}),  # a message is missing
        ((0, 3, 3, 0), {"published": 4, "suppressed": 7}),  # a suppressed alert is not reported
        ((0, 3, 3, 0), {"published": 4, "suppressed": 6}),  # an image has no alert
        ((0, 3, 3, 0), {"published": 4, "suppressed": 6, "pending": 1}),
        ((0, 3, 3, 0, 0), {"published": 5, "suppressed": 6}),  # one message too many
    ],
)
def test_wrong_flood_fails(reported: tuple[int, ...], found: dict[str, int]) -> None:
    with pytest.raises(BenchError):
        check(FLOOD, messages(*reported), Counter(found))
