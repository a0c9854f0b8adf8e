"""Every combination of an order and conditions that a filter of results can have."""

import itertools
from collections.abc import Iterator
from datetime import UTC, date, datetime
from typing import Any

from service.result_filter import Order, ResultFilter, Shown

CONDITIONS: dict[str, Any] = {
    "label": "traffic light",
    "shown": Shown.FOUND,
    "error_code": "corrupt_image",
    "source": "gate",
    "zone": "door",
    "day": date(2026, 11, 30),
    "until": datetime(2026, 11, 30, tzinfo=UTC),
    "bucket": "uploads",
    "prefix": "cam1/",
}


def possible_filters() -> Iterator[ResultFilter]:
    """Yield each combination that has no conflict."""
    choices = itertools.product((False, True), repeat=len(CONDITIONS))
    for order, chosen in itertools.product(Order, choices):
        values = dict(itertools.compress(CONDITIONS.items(), chosen))
        for shown in Shown if "shown" in values else (None,):
            each = ResultFilter(order=order, **values | {"shown": shown})
            if not each.conflicts():
                yield each
