"""How often the rules of sources would have fired for stored results.

The model does not run, and nothing is written. A rule sees what the new sources make of a stored
document (`service.operate.preview`). `max_age_minutes` does not apply: every result is old.

The cooldown is simulated as if each image was processed when it was uploaded: in the order of
`event_time`, or of `created_at` for a job. In the service, the cooldown counts from the time at
which an alert is published. So images that are processed late can cause more or fewer messages.
"""

import math
from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from service.alerts.matching import fired
from service.domain import ImageResult
from service.operate.preview import SettingsOf, Verdict, on_stored
from service.sources.current import SourceSettings
from service.sources.schema import AlertRule, Sources


@dataclass(frozen=True)
class Example:
    """An image for which a rule would have fired."""

    time: datetime  # of its upload. If a job processed it: when its document was created.
    uri: str
    generation: int | None
    text: str  # of the alert


@dataclass
class RuleTally:
    """What one rule would have done."""

    source: str
    rule: AlertRule
    examples: list[Example] = field(default_factory=list)
    times: "array[float]" = field(default_factory=lambda: array("d"))  # seconds since 1970

    @property
    def alerts(self) -> int:
        """For how many images the rule would have fired."""
        return len(self.times)

    @property
    def messages(self) -> int:
        """How many of the alerts the cooldown would not have suppressed."""
        count, until = 0, -math.inf
        for time in sorted(self.times):
            if time >= until:
                count += 1
                until = time + self.rule.cooldown_minutes * 60
        return count


class AlertPreview:
    """What the rules of sources would have done for the documents that were added."""

    def __init__(
        self,
        sources: Sources,
        settings_of: SettingsOf,
        *,
        store_confidence: float,
        max_examples: int | None,
    ) -> None:
        """Start without documents.

        Args:
            sources: the sources whose rules are tried.
            settings_of: returns the settings that these sources give an image.
            store_confidence: the lowest confidence that is recorded.
            max_examples: how many images are named for each rule. None: all.
        """
        self._sources = sources
        self._settings_of = settings_of
        self._store_confidence = store_confidence
        self._max_examples = max_examples
        self._rules = {
            (source.id, rule.name): RuleTally(source.id, rule)
            for source in sources.sources
            for rule in source.alerts
        }
        self.evaluated = 0  # documents to which rules were applied
        self.undated = 0  # of these, how many have no time to which `between` could apply
        self.without_rules = 0  # documents whose source has no rules
        self.unanswered: Counter[Verdict] = Counter()  # documents that do not say what is needed

    @property
    def documents(self) -> int:
        """How many documents were added."""
        return self.evaluated + self.without_rules + self.unanswered.total()

    @property
    def rules(self) -> list[RuleTally]:
        """What each rule would have done, in the order of the sources."""
        return list(self._rules.values())

    def add(self, document: Mapping[str, Any]) -> None:
        """Apply the rules of its source to a stored document."""
        source = self._sources.find(str(document.get("bucket")), str(document.get("name")))
        if source is None or not source.alerts:
            self.without_rules += 1
            return

        def matching(result: ImageResult, settings: SourceSettings) -> dict[str, Example]:
            captured_at, event_time = document["captured_at"], document["event_time"]
            time = (event_time or document["created_at"]).astimezone(UTC)
            dated = replace(result, captured_at=captured_at, event_time=event_time)
            alerts = fired(settings.alerts, dated, None) if settings.alerts else ()
            ref = result.ref
            return {
                alert.rule: Example(time, ref.uri, ref.generation, alert.text) for alert in alerts
            }

        found = on_stored(document, self._settings_of, self._store_confidence, matching)
        if isinstance(found, Verdict):
            self.unanswered[found] += 1
            return
        self.evaluated += 1
        self.undated += not (document["captured_at"] or document["event_time"])
        for rule, example in found.items():
            tally = self._rules[source.id, rule]
            tally.times.append(example.time.timestamp())
            if self._max_examples is None or len(tally.examples) < self._max_examples:
                tally.examples.append(example)
