"""The cost of an idle and of a busy month, from the CPU time per image and a table of prices.

    python -m devtools.bench.monthly_cost --cpu-ms 51.9 --images 1000000
    python -m devtools.bench.monthly_cost --cpu-ms 51.9 --before
    python -m devtools.bench.monthly_cost --cpu-ms 51.9 --options

Each row is quantity x price. Only Cloud Run's quantity needs a formula (request-based billing):

    billed seconds = images x cpu_ms / 1000 / (vcpu x busy)  +  starts x start_seconds
    vCPU-seconds   = billed seconds x vcpu
    GiB-seconds    = billed seconds x memory_gib

`busy` is the share of the billed CPU time that is used. An instance is billed while it has a
request, even while the request waits for Cloud Storage. The default is 0.6 because Cloud Run adds
instances at 60 % CPU. The CPU time is measured, and the sizes of documents and log lines are
counted. All other values are assumptions, and the options change them.
"""

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from tabulate import tabulate

HOURS = 730.0  # in a month
_DIVISORS = ("vcpu", "busy")
DAYS = 30.0  # in a month. Firestore's free tier is daily.
GIB = 2**30
MIB = 2**20
_DISTRIBUTION_BYTES, _COUNTER_BYTES = 80, 8  # of a point of a metric, one a minute


@dataclass(frozen=True)
class Price:
    """USD per unit, and the free units of a month."""

    unit: str
    usd: float
    free: float = 0.0


# us-central1, Tier 1, USD, without discounts, looked up in November 2026. Check them before you
# rely on them: https://cloud.google.com/products/calculator
PRICES = {
    # cloud.google.com/run/pricing: services billed by request
    "Cloud Run vCPU": Price("vCPU-s", 0.000024, 180_000),
    "Cloud Run memory": Price("GiB-s", 0.0000025, 360_000),
    "Cloud Run requests": Price("M", 0.40, 2),
    # Billing API in August 2026: billed by instance, L4 without zonal redundancy
    "Cloud Run job vCPU": Price("vCPU-s", 0.000018, 240_000),
    "Cloud Run job memory": Price("GiB-s", 0.000002, 450_000),
    "Cloud Run with GPU": Price("h", 3600 * (0.0001867 + 4 * 0.000018 + 16 * 0.000002)),
    # cloud.google.com/firestore/pricing has the free tier. The prices of a US region are from
    # secondary sources. A multi-region costs twice as much.
    "Firestore reads": Price("M", 0.30, 0.05 * DAYS),
    "Firestore writes": Price("M", 0.90, 0.02 * DAYS),
    "Firestore storage": Price("GiB", 0.15, 1),
    # cloud.google.com/storage/pricing
    "Cloud Storage": Price("GB", 0.020),
    "Cloud Storage writes, lists": Price("M", 5.00),
    "Cloud Storage reads": Price("M", 0.40),
    # cloud.google.com/pubsub/pricing. The free units are not for BigQuery subscriptions.
    "Pub/Sub": Price("GiB", 40 / 1024, 10),
    "Pub/Sub to BigQuery": Price("GiB", 50 / 1024),
    # cloud.google.com/bigquery/pricing: active logical storage. Rows that a subscription of Pub/Sub
    # writes are not billed by BigQuery. Queries are: 6.25 USD a TiB after 1 TiB a month.
    "BigQuery storage": Price("GiB", 0.02, 10),
    "Artifact Registry": Price("GB", 0.10, 0.5),
    "Cloud Scheduler": Price("job", 0.10, 3),
    "Cloud Logging": Price("GiB", 0.50, 50),
    # cloud.google.com/products/observability/pricing, from secondary sources. The free units are of
    # the billing account. Log-based metrics are billed. Google's own metrics are free.
    "Cloud Monitoring": Price("MiB", 0.258, 150),
    # Not before 1 September 2027. Until then alerts are free, so the default quantities are zero.
    "Alerting, metrics": Price("metric", 0.35),
    "Alerting, points": Price("M", 0.50),
    # cloud.google.com/build/pricing: e2-standard-2. The free minutes are of the billing account.
    "Cloud Build": Price("min", 0.006, 2500),
    # cloud.google.com/artifact-analysis/pricing: each new container image
    "Artifact Analysis": Price("scan", 0.26),
}


@dataclass(frozen=True)
class Month:
    """The load of a month. A kB is 1,000 bytes."""

    images: int = 0
    cpu_ms: float = 0.0
    vcpu: float = 2.0
    memory_gib: float = 2.0
    busy: float = 0.6
    starts: int = 0
    start_seconds: float = 5.0
    gpu_hours: float = 0.0
    objects: int = 0
    image_kb: float = 200.0
    document_kb: float = 7.8  # with index entries: python -m devtools.bench.index_entries
    message_kb: float = 3.0
    request_log_kb: float = 0.0  # Cloud Run's entry for a 2xx response: 1.136 if it is kept
    log_kb: float = 0.7  # lines of the service, with what Cloud Logging adds
    distributions: int = 9  # log-based metrics
    counters: int = 3
    active_minutes: float = 60 * HOURS  # in which images are processed
    alert_metrics: int = 0  # 14 are in the alerts' conditions
    alert_points: float = 0.0  # that the alerts' queries return. About 1.2 million
    builds: int = 4
    build_minutes: float = 20.0
    scans: int = 0  # one for each build with scan_images
    image_gb: float = 5.0  # 1 GB of container images with shared layers, 4 GB of build cache
    reconciles: int = int(DAYS)
    reconcile_seconds: float = 60.0
    reconcile_days: float = 2.0  # a run reads the documents of uploads in this many days
    # Options, which are off by default
    result_message_kb: float = 0.0  # a message on the results topic. 0: no topic
    bigquery_kb: float = 0.0  # a result message that is written to BigQuery. 0: none is
    derived_objects: float = 0.0  # derived images of one image
    derived_ms: float = 0.0  # CPU time for them
    derived_kb: float = 0.0  # their size
    alerts: int = 0  # alerts of images: their documents
    alert_messages: int = 0  # alerts that are published
    silence_runs: int = 0  # of the silence job
    silent_sources: int = 10  # with silent_minutes
    detect_calls: int = 0  # of the detect service


# What `--before` changes: the deployment of version 0.1.0.
BEFORE: dict[str, Any] = {
    "document_kb": 10.9,
    "request_log_kb": 1.136,
    "counters": 2,
}

# An alert is one more document, and almost no read (docs/evidence/alerts.md). A published one also
# reads its document, the cooldown and the count of suppressed alerts. It writes the decision into
# both documents, and the confirmation.
_MESSAGE_READS, _MESSAGE_WRITES = 3, 3
_ALERT_KB = 1.0  # an alert's document with its index entries, and an alert message
_JOB_GIB = 0.5  # memory of the silence job
_LEAST_JOB_SECONDS = 60  # that Cloud Run bills for an execution
_REQUEST_LOG_KB = 1.136  # Cloud Run's entry for a call of the detect service, which is kept

MESSAGE_KB = 1.7  # of the document of `--document-kb`, with its attributes


def _derived(objects: float, cpu_ms: float, size_kb: float) -> dict[str, Any]:
    return {"derived_objects": objects, "derived_ms": cpu_ms, "derived_kb": size_kb}


# What `--options` adds to a month, one at a time. CPU time and size of derived images are those of
# images of about 0.3 megapixels with 4 detections (docs/evidence/derived-images.md).
OPTIONS: dict[str, dict[str, Any]] = {
    "`results_topic`": {"result_message_kb": MESSAGE_KB},
    "`bigquery`, beside `results_topic`": {"bigquery_kb": MESSAGE_KB},
    "`results_bucket`: a thumbnail": _derived(1, 3.6, 20),
    "an annotated image, too": _derived(1, 4.2, 74),
    "a redacted image, too": _derived(1, 4.8, 38),
    "four crops, too": _derived(4, 4.3, 58),
    "a normalized JPEG with its label file, too": _derived(2, 3.7, 71),
    "alert rules: 1 % of the images match, 1,000 are published": {
        "alerts": 10_000,
        "alert_messages": 1_000,
    },
    "`alerts_topic`: the silence job, every 10 minutes": {"silence_runs": int(6 * HOURS)},
    "`detect_service`: 1,000,000 calls": {"detect_calls": 1_000_000},
}


def quantities(month: Month) -> dict[str, float]:
    """Return the units of a month, by the names of PRICES."""
    million = month.images / 1e6
    cpu_ms = month.images * (month.cpu_ms + month.derived_ms) + month.detect_calls * month.cpu_ms
    billed = cpu_ms / 1000 / (month.vcpu * month.busy)
    billed += month.starts * month.start_seconds
    if month.gpu_hours:
        billed = 0.0
    job_seconds = month.reconciles * month.reconcile_seconds
    silence_seconds = month.silence_runs * _LEAST_JOB_SECONDS
    published_kb = month.images * month.result_message_kb + month.alert_messages * _ALERT_KB
    listed = month.reconciles * month.objects
    compared = month.reconciles * min(month.objects, month.images * month.reconcile_days / DAYS)
    return {
        "Cloud Run vCPU": billed * month.vcpu,
        "Cloud Run memory": billed * month.memory_gib,
        "Cloud Run requests": 0.0 if month.gpu_hours else million + month.detect_calls / 1e6,
        "Cloud Run with GPU": month.gpu_hours,
        "Cloud Run job vCPU": job_seconds + silence_seconds,  # one vCPU
        "Cloud Run job memory": job_seconds + silence_seconds * _JOB_GIB,  # reconcile: one GiB
        # An image: one read before its inference
        "Firestore reads": million
        + compared / 1e6
        + month.alert_messages * _MESSAGE_READS / 1e6
        + month.silence_runs * month.silent_sources / 1e6,
        "Firestore writes": million + (month.alerts + month.alert_messages * _MESSAGE_WRITES) / 1e6,
        "Firestore storage": (month.objects * month.document_kb + month.alerts * _ALERT_KB)
        * 1000
        / GIB,
        "Cloud Storage": month.objects * (month.image_kb + month.derived_kb) * 1000 / 1e9,
        # 1,000 names per list
        "Cloud Storage writes, lists": million * (1 + month.derived_objects) + listed / 1000 / 1e6,
        "Cloud Storage reads": million,
        # Published and delivered. What is delivered to BigQuery has its own price.
        "Pub/Sub": (2 * month.images * month.message_kb + published_kb) * 1000 / GIB,
        "Pub/Sub to BigQuery": month.images * month.bigquery_kb * 1000 / GIB,
        "BigQuery storage": month.objects * month.bigquery_kb * 1000 / GIB,
        "Artifact Registry": month.image_gb,
        "Cloud Scheduler": float(bool(month.reconciles) + bool(month.silence_runs)),
        "Cloud Logging": (
            month.images * (month.request_log_kb + month.log_kb)
            + month.detect_calls * _REQUEST_LOG_KB
        )
        * 1000
        / GIB,
        "Cloud Monitoring": (month.active_minutes if month.images else 0.0)
        * (month.distributions * _DISTRIBUTION_BYTES + month.counters * _COUNTER_BYTES)
        / MIB,
        "Alerting, metrics": month.alert_metrics,
        "Alerting, points": month.alert_points / 1e6,
        "Cloud Build": month.builds * month.build_minutes,
        "Artifact Analysis": month.scans,
    }


def cost(month: Month, *, free_tier: bool) -> dict[str, float]:
    """Return the USD of a month, by the names of PRICES."""
    return {
        name: max(0.0, quantity - (PRICES[name].free if free_tier else 0.0)) * PRICES[name].usd
        for name, quantity in quantities(month).items()
    }


def table(busy: Month, idle: Month) -> str:
    """Return both months as a Markdown table."""
    columns = [cost(month, free_tier=free) for month in (idle, busy) for free in (False, True)]
    headers = ["busy month", "USD per unit"]
    headers += ["idle", "idle, after free tier", "busy", "busy, after free tier"]
    counted = quantities(busy)
    cells = {
        name: [f"{_shown(counted[name])} {price.unit}", _shown(price.usd)]
        for name, price in PRICES.items()
    }
    return _table(columns, headers, cells)


def comparison(before: Month, after: Month) -> str:
    """Return two months as a Markdown table: quantities and USD of each."""
    months = (before, after)
    columns = [cost(month, free_tier=free) for free in (False, True) for month in months]
    headers = ["before", "after", "before, USD", "after, USD"]
    headers += ["before, after free tier", "after, after free tier"]
    counted = [quantities(month) for month in months]
    cells = {
        name: [f"{_shown(each[name])} {price.unit}" for each in counted]
        for name, price in PRICES.items()
    }
    return _table(columns, headers, cells)


def options_table(month: Month, options: Mapping[str, Mapping[str, Any]]) -> str:
    """Return what each option adds to a month, in USD without the free tier, as Markdown."""
    base = cost(month, free_tier=False)
    rows = []
    for name, changes in options.items():
        added = cost(replace(month, **changes), free_tier=False)
        parts = {key: usd - base[key] for key, usd in added.items() if usd - base[key] >= 0.005}
        largest = sorted(parts.items(), key=lambda part: -part[1])
        rows.append(
            [name, f"{sum(added.values()) - sum(base.values()):,.2f}"]
            + [", ".join(f"{key} {usd:,.2f}" for key, usd in largest)]
        )
    headers = ["option", "USD a month", "of which"]
    align = ["left", "right", "left"]
    return tabulate(rows, headers, tablefmt="pipe", colalign=align, disable_numparse=True)


def _table(
    columns: Sequence[dict[str, float]], headers: Sequence[str], cells: dict[str, list[str]]
) -> str:
    """Return rows of two cells and a sum of USD for each column."""
    rows = [
        [name, *cells[name]] + [f"{column[name]:,.2f}" for column in columns]
        for name in PRICES
        if any(column[name] for column in columns)
    ]
    rows.append(["**sum, USD**", "", ""] + [f"**{sum(c.values()):,.2f}**" for c in columns])
    align = ["left"] + ["right"] * len(headers)
    return tabulate(rows, ["", *headers], tablefmt="pipe", colalign=align, disable_numparse=True)


def _shown(number: float) -> str:
    if number >= 100:
        return f"{number:,.0f}"
    return f"{float(f'{number:.3g}'):.7f}".rstrip("0").rstrip(".")


def main(command_line: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cpu-ms", type=float, required=True, help="measured CPU time per image")
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--starts", type=int, default=int(HOURS), help="instance starts in a month")
    parser.add_argument("--objects", type=int, help="objects in the bucket (default: --images)")
    given = {"cpu_ms", "images", "starts", "objects"}
    for field in fields(Month):
        if field.name not in given:
            option = "--" + field.name.replace("_", "-")
            parser.add_argument(option, type=type(field.default), default=field.default)
    parser.add_argument("--before", action="store_true", help="compare with version 0.1.0")
    parser.add_argument("--options", action="store_true", help="what each option adds to the month")
    arguments = parser.parse_args(command_line)
    values = vars(arguments)
    is_comparison, is_options = values.pop("before"), values.pop("options")
    for name, value in values.items():
        # Also true for NaN. None: the option was not given.
        if value is not None and not 0 <= value < math.inf or (name in _DIVISORS and not value):
            least = "above 0" if name in _DIVISORS else "of at least 0"
            parser.error(f"--{name.replace('_', '-')} must be a number {least}")
    values["objects"] = arguments.images if arguments.objects is None else arguments.objects
    busy = Month(**values)
    if is_options:
        print(options_table(busy, OPTIONS))
        return
    idle = replace(busy, images=0, objects=0, starts=0, gpu_hours=0.0)
    print(comparison(replace(busy, **BEFORE), busy) if is_comparison else table(busy, idle))


if __name__ == "__main__":
    main()
