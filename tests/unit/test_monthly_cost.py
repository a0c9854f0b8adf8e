"""The arithmetic of the tables of costs in docs/explanation/cost-model.md."""

from dataclasses import replace
from pathlib import Path

import pytest

from devtools.bench.monthly_cost import (
    BEFORE,
    DAYS,
    GIB,
    MIB,
    OPTIONS,
    PRICES,
    Month,
    comparison,
    cost,
    main,
    options_table,
    quantities,
    table,
)

PAGE = Path("docs/explanation/cost-model.md")
BUSY = Month(images=1_000_000, cpu_ms=60, vcpu=2, memory_gib=4, busy=0.5, starts=100)


def test_billed_time_is_cpu_time_over_the_busy_share_and_starts() -> None:
    # 60,000 CPU-s on 2 vCPU half busy: 60,000 s; 100 starts of 5 s: 500 s
    counted = quantities(BUSY)
    assert counted["Cloud Run vCPU"] == pytest.approx(121_000)
    assert counted["Cloud Run memory"] == pytest.approx(242_000)


def test_every_quantity_has_a_price() -> None:
    assert set(quantities(BUSY)) == set(PRICES)


def test_reconcile_reads_the_objects_of_two_days() -> None:
    month = Month(images=1_000_000, objects=2_000_000, reconciles=30)
    counted = quantities(month)
    assert counted["Firestore writes"] == 1
    assert counted["Firestore reads"] == pytest.approx(1 + 30 * 2 / DAYS)
    assert counted["Cloud Storage writes, lists"] == pytest.approx(1.06)


def test_free_units_are_taken_off_and_never_paid_back() -> None:
    month = Month(images=10, cpu_ms=60, reconciles=1, image_gb=0.6)
    paid = {name: usd for name, usd in cost(month, free_tier=True).items() if usd}
    assert paid == pytest.approx(
        {
            "Artifact Registry": 0.01,
            "Cloud Storage writes, lists": 10 / 1e6 * 5,
            "Cloud Storage reads": 10 / 1e6 * 0.4,
        }
    )


def test_gpu_is_paid_by_the_hour_and_not_by_request() -> None:
    counted = quantities(Month(images=1_000_000, cpu_ms=60, gpu_hours=10))
    assert counted["Cloud Run vCPU"] == 0
    assert cost(Month(gpu_hours=10), free_tier=False)["Cloud Run with GPU"] == pytest.approx(
        10.4652
    )


def test_idle_month_pays_for_the_reconcile_job_by_the_minute() -> None:
    usd = cost(Month(reconciles=730, image_gb=0, builds=0), free_tier=False)
    assert sum(usd.values()) == pytest.approx(730 * 60 * 0.00002 + 0.10)


def test_table_ends_with_the_sums_of_its_columns() -> None:
    cells = table(BUSY, Month()).splitlines()[-1].replace("*", "").split("|")
    expected = sum(cost(BUSY, free_tier=False).values())
    assert float(cells[6]) == pytest.approx(expected, abs=0.01)


def test_log_based_metrics_are_billed_by_point() -> None:
    month = Month(images=1, distributions=2, counters=1, active_minutes=1000)
    assert quantities(month)["Cloud Monitoring"] == pytest.approx(1000 * (2 * 80 + 8) / MIB)
    assert quantities(Month())["Cloud Monitoring"] == 0  # no point in a minute without a line


def test_alerts_are_free_unless_their_quantities_are_given() -> None:
    assert cost(BUSY, free_tier=False)["Alerting, metrics"] == 0
    paid = cost(replace(BUSY, alert_metrics=14, alert_points=1.2e6), free_tier=False)
    assert paid["Alerting, metrics"] + paid["Alerting, points"] == pytest.approx(14 * 0.35 + 0.6)


def test_each_scanned_image_is_billed() -> None:
    assert cost(replace(BUSY, scans=3), free_tier=True)["Artifact Analysis"] == pytest.approx(0.78)


def test_before_differs_in_indexes_logs_and_metrics() -> None:
    month = replace(BUSY, objects=1_000_000)
    before = quantities(replace(month, **BEFORE))
    changed = {name for name, quantity in quantities(month).items() if quantity != before[name]}
    assert changed == {"Firestore storage", "Cloud Logging", "Cloud Monitoring"}


def test_nightly_full_comparison_reads_each_document_each_night() -> None:
    month = replace(BUSY, objects=1_000_000, reconcile_days=365.0)
    assert quantities(month)["Firestore reads"] == pytest.approx(31)


def test_rows_in_bigquery_have_a_price_of_their_own() -> None:
    month = Month(images=1_000_000, objects=2_000_000, message_kb=0, result_message_kb=2)
    counted = quantities(replace(month, bigquery_kb=2))
    assert counted["Pub/Sub"] == pytest.approx(2e9 / GIB)
    assert counted["Pub/Sub to BigQuery"] == pytest.approx(2e9 / GIB)
    assert counted["BigQuery storage"] == pytest.approx(4e9 / GIB)


def test_derived_images_cost_cpu_time_writes_and_storage() -> None:
    derived = replace(BUSY, objects=1_000_000, derived_objects=2, derived_ms=30, derived_kb=50)
    counted, plain = quantities(derived), quantities(replace(BUSY, objects=1_000_000))
    assert counted["Cloud Run vCPU"] - plain["Cloud Run vCPU"] == pytest.approx(60_000)
    assert counted["Cloud Storage writes, lists"] - plain["Cloud Storage writes, lists"] == (
        pytest.approx(2)
    )
    assert counted["Cloud Storage"] - plain["Cloud Storage"] == pytest.approx(50)


def test_published_alert_costs_more_than_a_suppressed_one() -> None:
    added = [
        sum(cost(Month(alerts=1000, alert_messages=each), free_tier=False).values())
        for each in (0, 1000)
    ]
    assert added[0] < added[1]


def test_silence_job_is_billed_a_minute_for_each_run() -> None:
    month = Month(reconciles=0, silence_runs=100, silent_sources=20)
    counted = quantities(month)
    assert (counted["Cloud Run job vCPU"], counted["Cloud Run job memory"]) == (6000, 3000)
    assert counted["Firestore reads"] == pytest.approx(2000 / 1e6)
    assert counted["Cloud Scheduler"] == 1


def test_call_of_the_detect_service_costs_what_an_image_costs() -> None:
    calls = quantities(Month(cpu_ms=60, detect_calls=1_000_000))
    images = quantities(Month(cpu_ms=60, images=1_000_000))
    for name in ("Cloud Run vCPU", "Cloud Run memory", "Cloud Run requests"):
        assert calls[name] == pytest.approx(images[name])
    assert calls["Firestore writes"] == 0


def test_derived_images_of_the_bill_are_as_measured() -> None:
    page = Path("docs/evidence/derived-images.md").read_text()
    rows = [line.split("|") for line in page.splitlines() if line.startswith("| ")]
    measured = {row[1].strip(): (row[2].strip(), row[4].strip()) for row in rows if len(row) > 4}
    kinds = ("thumbnail", "annotated", "redacted, blur", "crops", "normalized, JPEG")
    derived = [option for option in OPTIONS.values() if "derived_ms" in option]
    assert [(str(option["derived_ms"]), str(option["derived_kb"])) for option in derived] == [
        measured[kind] for kind in kinds
    ]


def test_call_keeps_the_log_entry_of_its_request() -> None:
    added = quantities(replace(BUSY, detect_calls=1_000_000))["Cloud Logging"]
    assert added - quantities(BUSY)["Cloud Logging"] == pytest.approx(1.136e9 / GIB)


def test_each_option_adds_to_the_bill() -> None:
    month = Month(images=1_000_000, objects=1_000_000, cpu_ms=50)
    for changes in OPTIONS.values():
        added = cost(replace(month, **changes), free_tier=False)
        assert sum(added.values()) > sum(cost(month, free_tier=False).values())


def test_page_has_the_tables_of_the_command() -> None:
    page = PAGE.read_text(encoding="utf-8")
    busy = Month(images=1_000_000, cpu_ms=51.9, starts=730, objects=1_000_000)
    idle = replace(busy, images=0, objects=0, starts=0)
    assert table(busy, idle) in page
    assert comparison(replace(busy, **BEFORE), busy) in page
    assert options_table(busy, OPTIONS) in page


@pytest.mark.parametrize("wrong", ["--vcpu=0", "--busy=0", "--images=-5", "--image-kb=nan"])
def test_command_refuses_quantities_without_a_cost(
    wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["monthly_cost", "--cpu-ms=51.9", wrong])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 2
