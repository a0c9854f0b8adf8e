"""The arithmetic of a back-fill, worked by hand."""

import pytest

from service.operate.pace import Pace


@pytest.mark.parametrize(
    ("pace", "uris"),
    [
        (Pace(), 234),  # 25 a second, 300 of 600 s, 32 such messages at once
        (Pace(pictures_per_second=0.05), 1),
        (Pace(pictures_per_second=0.0001), 1),
        (Pace(pictures_per_second=200), 1000),  # no message holds more
        (Pace(vcpu=4, cpu_ms=160, concurrency=100), 75),
    ],
    ids=["default", "slow", "slowest", "gpu", "other"],
)
def test_uris_per_message_finish_in_half_of_the_deadline(pace: Pace, uris: int) -> None:
    assert pace.uris_per_message == uris


def test_estimate_of_a_million() -> None:
    estimate = Pace().estimate(1_000_000)
    # 40,000 s of an instance: 0.1908 USD an hour; 1.60 USD for Firestore and Cloud Storage.
    assert estimate.messages == 4274
    assert estimate.minutes == pytest.approx(66.67, abs=0.01)
    assert estimate.dollars == pytest.approx(2.12 + 1.60, abs=0.001)


def test_estimate_takes_the_prices_given() -> None:
    pace = Pace(pictures_per_second=1, instances=1, instance_price=3600, picture_price=0.5)
    estimate = pace.estimate(60)
    assert (estimate.minutes, estimate.dollars) == (1, 90)


def test_estimate_of_nothing_is_nothing() -> None:
    estimate = Pace().estimate(0)
    assert (estimate.messages, estimate.minutes, estimate.dollars) == (0, 0, 0)
