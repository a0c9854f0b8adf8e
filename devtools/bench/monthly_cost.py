"""The cost of an idle and of a busy month, from the CPU time per image and a table of prices.

    python -m devtools.bench.monthly_cost --cpu-ms 78 --images 1000000

Each row is quantity x price. Only Cloud Run's quantity needs a formula (request-based billing):

    billed seconds = images x cpu_ms / 1000 / (vcpu x busy)  +  starts x start_seconds
    vCPU-seconds   = billed seconds x vcpu
    GiB-seconds    = billed seconds x memory_gib

`busy` is the share of the billed CPU time that is used. An instance is billed while it has a
request, even while the request waits for Cloud Storage. The default is 0.6 because Cloud Run adds
instances at 60 % CPU. Only the CPU time is measured. All other values are assumptions, and the
options change them.
"""

import argparse
from dataclasses import dataclass, fields

from tabulate import tabulate

HOURS = 730.0  # in a month
DAYS = 30.0  # in a month. Firestore's free tier is daily.
GIB = 2**30


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
    "Pub/Sub": Price("GiB", 40 / 1024, 10),
    "Artifact Registry": Price("GB", 0.10, 0.5),
    "Cloud Scheduler": Price("job", 0.10, 3),
    "Cloud Logging": Price("GiB", 0.50, 50),
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
    document_kb: float = 6.0
    message_kb: float = 3.0
    log_kb: float = 2.0
    image_gb: float = 5.0  # 1 GB of container images with shared layers, 4 GB of build cache
    reconciles: int = int(DAYS)
    reconcile_seconds: float = 60.0
    reconcile_days: float = 2.0  # a run reads the documents of uploads in this many days


def quantities(month: Month) -> dict[str, float]:
    """Return the units of a month, by the names of PRICES."""
    million = month.images / 1e6
    billed = month.images * month.cpu_ms / 1000 / (month.vcpu * month.busy)
    billed += month.starts * month.start_seconds
    if month.gpu_hours:
        billed = 0.0
    job_seconds = month.reconciles * month.reconcile_seconds
    listed = month.reconciles * month.objects
    compared = month.reconciles * min(month.objects, month.images * month.reconcile_days / DAYS)
    return {
        "Cloud Run vCPU": billed * month.vcpu,
        "Cloud Run memory": billed * month.memory_gib,
        "Cloud Run requests": 0.0 if month.gpu_hours else million,
        "Cloud Run with GPU": month.gpu_hours,
        "Cloud Run job vCPU": job_seconds,  # one vCPU and one GiB
        "Cloud Run job memory": job_seconds,
        "Firestore reads": million + compared / 1e6,  # an image: one read before its inference
        "Firestore writes": million,
        "Firestore storage": month.objects * month.document_kb * 1000 / GIB,
        "Cloud Storage": month.objects * month.image_kb * 1000 / 1e9,
        "Cloud Storage writes, lists": million + listed / 1000 / 1e6,  # 1,000 names per list
        "Cloud Storage reads": million,
        "Pub/Sub": 2 * month.images * month.message_kb * 1000 / GIB,  # published and delivered
        "Artifact Registry": month.image_gb,
        "Cloud Scheduler": 1.0 if month.reconciles else 0.0,
        "Cloud Logging": month.images * month.log_kb * 1000 / GIB,
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
    counted = quantities(busy)
    rows = [
        [name, f"{_shown(counted[name])} {price.unit}", _shown(price.usd)]
        + [f"{column[name]:,.2f}" for column in columns]
        for name, price in PRICES.items()
        if any(column[name] for column in columns)
    ]
    rows.append(["**sum, USD**", "", ""] + [f"**{sum(c.values()):,.2f}**" for c in columns])
    headers = ["", "busy month", "USD per unit"]
    headers += ["idle", "idle, after free tier", "busy", "busy, after free tier"]
    align = ["left"] + ["right"] * (len(headers) - 1)
    return tabulate(rows, headers, tablefmt="pipe", colalign=align, disable_numparse=True)


def _shown(number: float) -> str:
    if number >= 100:
        return f"{number:,.0f}"
    return f"{float(f'{number:.3g}'):.7f}".rstrip("0").rstrip(".")


def main() -> None:
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
    arguments = parser.parse_args()
    values = vars(arguments)
    values["objects"] = arguments.images if arguments.objects is None else arguments.objects
    busy = Month(**values)
    idle = Month(image_gb=busy.image_gb, reconciles=busy.reconciles)
    print(table(busy, idle))


if __name__ == "__main__":
    main()
