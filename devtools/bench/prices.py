"""The cost of an image, from a table of prices that you can change."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

import yaml

from devtools.bench.errors import BenchError

DEFAULT_PRICES = Path(__file__).with_name("prices.yaml")


@dataclass(frozen=True)
class Prices:
    """Prices of a serverless container, and the size of the instance."""

    name: str
    usd_per_vcpu_second: float
    usd_per_gib_second: float
    usd_per_million_requests: float
    vcpus: float
    memory_gib: float

    @classmethod
    def read(cls, path: Path) -> "Prices":
        """Read a price table in the form of `prices.yaml`.

        Raises:
            BenchError: the file is not a price table.
        """
        names = [spec.name for spec in fields(cls)]
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
            if set(values) != set(names):
                raise ValueError("it must have these keys and no others: " + ", ".join(names))
            numbers = {name: float(values[name]) for name in names[1:]}
            if min(numbers.values()) < 0:
                raise ValueError("a price cannot be negative")
            return cls(name=str(values["name"]), **numbers)
        except (OSError, yaml.YAMLError, TypeError, ValueError) as exc:
            raise BenchError(f"{path} is not a price table: {exc}") from exc

    def usd_per_million(self, billed_seconds_per_image: float) -> float:
        """Return USD for a million images, one request each, without Storage and Firestore."""
        per_second = (
            self.vcpus * self.usd_per_vcpu_second + self.memory_gib * self.usd_per_gib_second
        )
        return billed_seconds_per_image * 1e6 * per_second + self.usd_per_million_requests


def billed_seconds(spans: Iterable[tuple[float, float]]) -> float:
    """Return the seconds with at least one request in flight. Cloud Run bills these.

    Args:
        spans: begin and end of each request, in seconds.
    """
    total, end = 0.0, float("-inf")
    for begin, finish in sorted(spans):
        total += max(0.0, finish - max(begin, end))
        end = max(end, finish)
    return total
