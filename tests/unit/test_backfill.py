"""The estimate of a back-fill, compared with hand calculations, and its pacing."""

import pytest

from service.operate.backfill import (
    Deployment,
    Redelivery,
    TokenBucket,
    backfill_estimate,
    token_bucket,
)


def test_fifty_deliveries_last_seven_hours() -> None:
    # 10 + 20 + ... + 320, then 43 times 600 s.
    assert Redelivery().seconds == 630 + 43 * 600


def test_burst_is_done_in_a_quarter_of_the_redeliveries() -> None:
    redelivery = Redelivery()
    for deployment in (Deployment(), Deployment(instances=1, images_per_second=0.5)):
        burst = deployment.burst(redelivery)
        assert burst / deployment.rate == pytest.approx(redelivery.seconds / 4, rel=0.001)


def test_slowest_deployment_gets_one_job_at_a_time() -> None:
    assert Deployment(images_per_second=1e-9).burst(Redelivery()) == 1


def test_estimate_of_a_million() -> None:
    estimate = backfill_estimate(1_000_000, Deployment())
    # 40,000 s of an instance: 0.1908 USD an hour; 1.60 USD for Firestore and Cloud Storage.
    assert estimate.at_once == 1_000_000
    assert estimate.minutes == pytest.approx(66.67, abs=0.01)
    assert estimate.dollars == pytest.approx(2.12 + 1.60, abs=0.001)


def test_estimate_includes_the_burst() -> None:
    estimate = backfill_estimate(1000, Deployment(images_per_second=1, instances=2), SHORT)
    assert estimate.at_once == 35  # 2 a second, a quarter of 70 s


def test_estimate_takes_the_prices_given() -> None:
    deployment = Deployment(images_per_second=1, instances=1, instance_price=3600, image_price=0.5)
    estimate = backfill_estimate(60, deployment)
    assert (estimate.minutes, estimate.dollars) == (1, 90)


def test_estimate_of_nothing_is_nothing() -> None:
    estimate = backfill_estimate(0, Deployment())
    assert (estimate.at_once, estimate.minutes, estimate.dollars) == (0, 0, 0)


# Pacing

SHORT = Redelivery(deliveries=4, minimum_backoff_seconds=10, maximum_backoff_seconds=600)  # 70 s


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds


def times(bucket: TokenBucket, clock: Clock, count: int) -> list[float]:
    """Return the seconds after which each of this many jobs passed."""
    began, passed = clock.now, []
    for _ in range(count):
        bucket.take()
        passed.append(clock.now - began)
    return passed


def test_burst_passes_at_once_then_the_rate() -> None:
    clock = Clock()
    bucket = TokenBucket(4, 3, clock=clock, sleep=clock.sleep)
    assert times(bucket, clock, 6) == pytest.approx([0, 0, 0, 0.25, 0.5, 0.75])


def test_idle_time_fills_the_bucket_to_the_burst_and_no_further() -> None:
    clock = Clock()
    bucket = TokenBucket(4, 3, clock=clock, sleep=clock.sleep)
    times(bucket, clock, 5)
    clock.now += 0.5  # adds two tokens
    assert times(bucket, clock, 3) == pytest.approx([0, 0, 0.25])
    clock.now += 3600
    assert times(bucket, clock, 4) == pytest.approx([0, 0, 0, 0.25])


def test_overlong_sleep_is_compensated() -> None:
    clock = Clock()
    bucket = TokenBucket(1, 1, clock=clock, sleep=lambda seconds: clock.sleep(seconds + 0.5))
    assert times(bucket, clock, 4) == pytest.approx([0, 1.5, 2.5, 3.5])


def test_backlog_stays_below_the_burst_at_the_expected_rate() -> None:
    clock = Clock()
    deployment = Deployment(images_per_second=2, instances=5)
    burst = deployment.burst(SHORT)
    bucket = TokenBucket(deployment.rate, burst, clock=clock, sleep=clock.sleep)
    for number, at in enumerate(times(bucket, clock, 2000), 1):
        assert number - at * deployment.rate <= burst + 1e-6


def test_token_bucket_of_a_deployment_passes_its_burst() -> None:
    bucket = token_bucket(Deployment(images_per_second=10, instances=1), SHORT)
    for _ in range(175):  # 10 a second, a quarter of 70 s
        bucket.take()
