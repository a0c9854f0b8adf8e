"""The summary of a run, from libFuzzer's log."""

import pytest

from devtools.fuzz.__main__ import summary
from devtools.fuzz.corpus import PAGE, end_of_page

STATS = """
Done 1300000 runs in 200 second(s)
stat::number_of_executed_units: 1300000
stat::average_exec_per_sec:     6500
stat::new_units_added:          68
stat::slowest_unit_time_sec:    0
stat::peak_rss_mb:              103
"""


def test_page_matches_its_generator() -> None:
    assert PAGE.read_text(encoding="utf-8").endswith(end_of_page())


def test_summary_has_executions_and_memory_of_a_run() -> None:
    result = summary("envelope", STATS, 0)
    assert str(result) == "envelope: 1,300,000 executions, no promise broken, peak 103 MB"
    assert result.is_good


@pytest.mark.parametrize(("log", "code"), [(STATS, 77), ("", 1), ("", 0)])
def test_failed_or_empty_run_is_not_good(log: str, code: int) -> None:
    result = summary("envelope", log, code)
    assert not result.is_good
    assert "a promise broken" in str(result)
