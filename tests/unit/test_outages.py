"""An outage that affects every message is logged once."""

import logging

import pytest

from service.gcp.outages import Outages
from tests.loglines import logged_by

BEGUN = "Messages are rejected until this is repaired"
OVER = "Messages are accepted again"


def lines(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return logged_by(caplog, "service.gcp.outages")


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [line.getMessage() for line in lines(caplog)]


def test_outage_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    outages = Outages()
    for number in range(100):
        outages.report("gs://a", "no right", f"message {number}")
    assert messages(caplog) == [BEGUN]
    assert (lines(caplog)[0].__dict__["subject"], lines(caplog)[0].levelname) == (
        "gs://a",
        "ERROR",
    )


def test_outage_whose_reason_changes_is_logged_again(caplog: pytest.LogCaptureFixture) -> None:
    outages = Outages()
    for reason in ("no right", "no right", "account disabled"):
        outages.report("gs://a", reason)
    assert messages(caplog) == [BEGUN, BEGUN]


def test_reasons_that_alternate_are_logged_once_each(caplog: pytest.LogCaptureFixture) -> None:
    outages = Outages()
    for number in range(100):
        outages.report("gs://a", "no right" if number % 2 else "account disabled")
    assert messages(caplog) == [BEGUN, BEGUN]


def test_outage_that_lasts_is_repeated_with_a_count(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    outages = Outages(clock=lambda: now[0])
    for minute in range(61):
        now[0] = minute * 60.0
        outages.report("gs://a", "no right")
    assert messages(caplog) == [BEGUN] * 3
    assert [line.__dict__["rejected"] for line in lines(caplog)] == [1, 30, 30]


def test_outage_that_is_over_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("WARNING")
    now = [0.0]
    outages = Outages(clock=lambda: now[0])
    outages.clear("gs://a")
    for _ in range(2):
        now[0] += 61
        outages.report("gs://a", "no right")
        outages.clear("gs://a")
        outages.clear("gs://a")
    assert messages(caplog) == [BEGUN, OVER, BEGUN, OVER]


def test_recurring_outage_is_logged_rarely(
    caplog: pytest.LogCaptureFixture,
) -> None:
    outages = Outages(clock=lambda: 0.0)
    for _ in range(100):
        outages.report("gs://a", "no right")
        outages.clear("gs://a")
    assert messages(caplog) == [BEGUN, OVER]


def test_outages_of_endless_buckets_are_forgotten() -> None:
    outages = Outages()
    for number in range(5000):
        outages.report(f"gs://{number}", "no right")
        outages.report("gs://4999", f"reason {number}")
    assert len(outages._outages) == 1000
    assert len(outages._outages["gs://4999"]) == 20
