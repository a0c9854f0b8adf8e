"""Figures of the benchmark: medians, goals, tables and prices."""

import json
from pathlib import Path

import pytest

from devtools.bench import figures
from devtools.bench.errors import BenchError
from devtools.bench.figures import Goal, Measured, Round, Section, Spread
from devtools.bench.prices import DEFAULT_PRICES, Prices, billed_seconds
from devtools.bench.startup import Level, Start, memory_section, start_section


def measured(name: str, *, speed: float, cpu_ms: float) -> Measured:
    """Return three rounds of 100 images with the given medians."""
    return Measured(
        name,
        [Round(100, 100 / (speed * factor), cpu_ms * factor / 10) for factor in (1.1, 1.0, 0.9)],
    )


ALL = [
    measured(figures.MODEL, speed=30, cpu_ms=30),
    measured(figures.ENGINE, speed=25, cpu_ms=40),
    measured(figures.SERVICE, speed=20, cpu_ms=48),
    measured(figures.NAIVE, speed=10, cpu_ms=96),
    measured(figures.OPENVINO_BATCHES, speed=5, cpu_ms=100),
]


def test_round_has_speed_and_cpu_time_per_image() -> None:
    result = Round(images=20, seconds=4.0, cpu_seconds=1.0)
    assert result.images_per_second == 5
    assert result.cpu_ms == 50


def test_spread_is_median_and_extremes() -> None:
    assert Spread.of([3, 1, 10, 2, 4]) == Spread(3, 1, 10)
    assert str(Spread.of([2.04, 1.0, 30.06])) == "2.04 (1.00-30.1)"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.01234, "0.0123"), (1.0, "1.00"), (99.96, "100.0"), (1234.5, "1234")],
)
def test_digits_shows_three_significant_digits(value: float, text: str) -> None:
    assert figures.digits(value) == text


def test_main_section_compares_with_the_naive_service() -> None:
    section = figures.main_section(ALL)
    assert section.rows[2] == (
        figures.SERVICE, "20.0 (18.0-22.0)", "48.0 (43.2-52.8)", "2.00", "0.50",
    )  # fmt: skip
    assert figures.NAIVE in section.notes[0]


def test_without_alternatives_the_engine_is_the_baseline() -> None:
    section = figures.main_section(ALL[:3])
    assert [row[3] for row in section.rows] == ["1.20", "1.00", "0.80"]


def test_speed_goals_are_computed_from_medians() -> None:
    goals = figures.speed_goals(ALL)
    assert [round(goal.value, 3) for goal in goals] == [1.2, 2.0, 0.5, 4.0]
    assert [goal.is_reached for goal in goals] == [True, False, False, True]


def test_speed_goals_without_alternatives_need_only_the_engine() -> None:
    assert len(figures.speed_goals(ALL[:3])) == 1


def test_goal_at_its_limit_is_reached() -> None:
    assert Goal("a", 4.0, 4.0, at_most=False).is_reached
    assert Goal("b", 4.0, 4.0, at_most=True).is_reached


def test_goals_section_shows_reached_or_missed() -> None:
    section = figures.goals_section(figures.speed_goals(ALL))
    assert [row[3] for row in section.rows] == ["reached", "MISSED", "MISSED", "reached"]
    assert section.rows[1][1:3] == ("at least 4", "2.00")
    assert section.data[1]["is_reached"] is False


@pytest.mark.parametrize(
    ("slowest", "verdict"), [(24.3, "reached"), (24.2, "MISSED")], ids=["within", "beyond"]
)
def test_sweep_reports_batches_slower_than_single_images(slowest: float, verdict: str) -> None:
    sizes = [("1", 25.0), ("2", 26.0), ("4", slowest), ("8", 30.0)]
    rows = [measured(name, speed=s, cpu_ms=1) for name, s in sizes]
    section = figures.sweep_section(rows, cores=2)
    assert section.title.endswith(", 2 cores")
    assert f"single images: {verdict} (slowest: batch size 4, 0.97" in section.notes[0]
    assert section.data["is_never_slower"] is (verdict == "reached")


def test_section_is_a_markdown_table_with_its_notes() -> None:
    text = Section("Title", ("", "x"), [("row", "1.0")], None, ["A note."]).markdown()
    assert text.splitlines()[0] == "### Title"
    assert "| row | 1.0 |" in [" ".join(line.split()) for line in text.splitlines()]
    assert text.endswith("\n\nA note.")


def test_default_prices_are_a_table_with_a_date() -> None:
    prices = Prices.read(DEFAULT_PRICES)
    assert prices.usd_per_vcpu_second == 0.000024
    assert "2026" in prices.name


def test_price_is_time_and_a_fee_per_request() -> None:
    prices = Prices("test", 0.00002, 0.000002, 0.5, vcpus=2, memory_gib=1)
    # A million images of 0.1 s: 100,000 s x (2 x 0.00002 + 0.000002) dollars, and the fee.
    assert prices.usd_per_million(0.1) == pytest.approx(4.2 + 0.5)


@pytest.mark.parametrize(
    "text",
    ["", "name: x", "[1]", "name: [", Path(DEFAULT_PRICES).read_text().replace("0.40", "free"),
     Path(DEFAULT_PRICES).read_text().replace("0.40", "-1")],
    ids=["empty", "incomplete", "list", "no-yaml", "word", "negative"],
)  # fmt: skip
def test_wrong_prices_name_the_file(text: str, tmp_path: Path) -> None:
    file = tmp_path / "prices.yaml"
    file.write_text(text)
    with pytest.raises(BenchError, match=r"prices\.yaml is not a price table"):
        Prices.read(file)


@pytest.mark.parametrize(
    ("spans", "seconds"),
    [([], 0), ([(0, 1), (5, 7)], 3), ([(0, 4), (1, 2), (3, 6)], 6), ([(2, 3), (0, 2)], 3)],
    ids=["none", "separate", "overlapping", "touching"],
)
def test_instance_is_billed_while_any_request_is_in_flight(
    spans: list[tuple[float, float]], seconds: float
) -> None:
    assert billed_seconds(spans) == seconds


def test_start_section_compares_medians_with_goals() -> None:
    ours = [Start(0.5, 1.0, 200), Start(0.6, 1.2, 210), Start(0.4, 9.0, 220)]
    naive = [Start(3.0, 4.0, 800)]
    section, goals = start_section(ours, naive, cores=2)
    assert section.rows[1] == (
        "process start to the first result, s", "1.20 (1.00-9.00)", "4.00 (4.00-4.00)", "0.300",
    )  # fmt: skip
    assert [goal.is_reached for goal in goals] == [True, True, False]
    assert goals[0].text == "process start to the first stored result on 2 cores, s"
    assert "warm page cache, 2 cores." in section.notes[0]


def test_start_section_without_the_alternative_has_one_column() -> None:
    section, goals = start_section([Start(0.5, 2.5, 400)], [], cores=1)
    assert [len(row) for row in section.rows] == [2, 2, 2]
    assert [goal.is_reached for goal in goals] == [False, False]


@pytest.mark.parametrize(("last", "is_flat"), [(104, True), (106, False)])
def test_memory_section_compares_growth_with_its_goal(last: float, is_flat: bool) -> None:
    levels = [Level(100 * i, 100.0) for i in range(50)] + [Level(5000, last)]
    section, (growth, peak) = memory_section(levels, 300, 8)
    assert growth.is_reached is is_flat
    assert peak.is_reached
    assert section.rows[-1] == ("5000", str(last))
    assert len(section.rows) <= 12
    json.dumps(section.data)
