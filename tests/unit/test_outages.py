"""What concerns every message is logged once."""

import pytest

from service.outages import Outages

BEGUN = "Messages are rejected until this is repaired"
OVER = "Messages are accepted again"


def test_outage_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    outages = Outages()
    for number in range(100):
        outages.report("gs://a", "no right", f"message {number}")
    assert caplog.messages == [BEGUN]
    assert (caplog.records[0].__dict__["subject"], caplog.records[0].levelname) == (
        "gs://a",
        "ERROR",
    )


def test_outage_whose_reason_changes_is_logged_again(caplog: pytest.LogCaptureFixture) -> None:
    outages = Outages()
    for reason in ("no right", "no right", "account disabled"):
        outages.report("gs://a", reason)
    assert caplog.messages == [BEGUN, BEGUN]


def test_outage_that_is_over_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("WARNING")
    outages = Outages(quiet_seconds=0)
    outages.clear("gs://a")
    for _ in range(2):
        outages.report("gs://a", "no right")
        outages.clear("gs://a")
        outages.clear("gs://a")
    assert caplog.messages == [BEGUN, OVER, BEGUN, OVER]


def test_outage_that_comes_and_goes_is_logged_now_and_then(
    caplog: pytest.LogCaptureFixture,
) -> None:
    outages = Outages(quiet_seconds=3600)
    for _ in range(100):
        outages.report("gs://a", "no right")
        outages.clear("gs://a")
    assert caplog.messages == [BEGUN, OVER]


def test_outages_of_endless_buckets_are_forgotten() -> None:
    outages = Outages()
    for number in range(5000):
        outages.report(f"gs://{number}", "no right")
    assert len(outages._outages) == 1000
