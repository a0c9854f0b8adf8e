"""The sources that the service uses, and what happens if their document is broken or deleted.

The document of the sources is untrusted input: anybody who can write to the database can edit it.
A broken or deleted document must not stop the service, and must not turn off what protects privacy.
So the last good sources are used then. A new instance reads them from a second document.

| document `sources` | last good sources | used |
|---|---|---|
| good | any | the document. It becomes the last good one. |
| broken or deleted | known to this instance, or stored | the newer of these |
| deleted or never written | none stored | no sources: there never were any |
| broken | none stored | no sources, and no derived images: it may ask for redactions |
| broken or deleted | stored, but broken, too | nothing: images are rejected with 503 |
| unknown: Firestore does not respond | known to this instance | the last good sources |
| unknown: Firestore does not respond | not known | nothing: images are rejected with 503 |
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Protocol
from zoneinfo import ZoneInfo

from service.deadline import Deadline
from service.derived import NOTHING, DeriveOptions
from service.domain import ImageRef, SourceVersion
from service.errors import SourcesError, SourcesUnknownError, TransientError
from service.settings import Settings
from service.sources.rules import AlertRules, Rules
from service.sources.schema import DerivedSettings, Sources, check_buckets, parse

logger = logging.getLogger(__name__)

_LOGGED_SOURCES = 20  # ids in one log line
_DELETED = "The document was deleted."


@dataclass(frozen=True)
class StoredSources:
    """A document with sources. Its data are untrusted."""

    data: Mapping[str, Any]
    version: datetime  # when Firestore last changed the sources


class Documents(Protocol):
    """Where sources are stored. `service.gcp.source_store.SourceStore` implements it."""

    def read(self, deadline: Deadline) -> StoredSources | None:
        """Return the sources, or None if there is no document."""

    def last_good(self, deadline: Deadline) -> StoredSources | None:
        """Return the last good sources, or None if there is no document."""

    def remember(self, good: StoredSources, deadline: Deadline) -> None:
        """Store the last good sources, unless newer ones are stored."""


@dataclass(frozen=True)
class SourceSettings:
    """The settings of one image. The defaults are those of an image without a source."""

    rules: Rules = Rules()
    version: SourceVersion = SourceVersion()
    timezone: ZoneInfo | None = None
    store_location: bool = False
    is_enabled: bool = True
    alerts: AlertRules | None = None  # None: nothing alerts
    derive: DeriveOptions = DeriveOptions()  # the thumbnail


def settings_of(
    ref: ImageRef,
    sources: Sources,
    version: datetime | None,
    *,
    min_confidence: float,
    store_confidence: float,
) -> SourceSettings:
    """Return the settings that sources give an image.

    Args:
        ref: the image.
        sources: all sources.
        version: when Firestore last changed them. None: they were never stored.
        min_confidence: the threshold of sources that have none.
        store_confidence: the lowest confidence that is recorded. No threshold is lower.
    """
    source = sources.find(ref.bucket, ref.name)
    rules = Rules.of(source, min_confidence=min_confidence, store_confidence=store_confidence)
    if source is None:
        return SourceSettings(rules, SourceVersion(version=version))
    timezone = ZoneInfo(source.timezone) if source.timezone else None
    return SourceSettings(
        rules,
        SourceVersion(source.id, version),
        timezone,
        source.store_location,
        source.enabled,
        AlertRules(source.id, source.alerts, sources.groups, timezone) if source.alerts else None,
        source.derived.options(sources.groups),
    )


@dataclass(frozen=True)
class _Known:
    sources: Sources
    version: datetime | None  # None: there never were any
    derives: bool = True  # False: nothing is derived, because nobody knows what to redact


class CurrentSources:
    """The sources of this instance. Safe to use from many threads.

    It has no thread of its own. A request reads the document if the last read was
    `refresh_seconds` ago. Only one request reads at a time. The others use the known sources.
    """

    def __init__(
        self,
        documents: Documents,
        *,
        min_confidence: float,
        store_confidence: float,
        refresh_seconds: float,
        results_bucket: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start without sources. They are read for the first image, or by `look`.

        Args:
            documents: where sources are stored.
            min_confidence: the threshold of sources that have none.
            store_confidence: the lowest confidence that is recorded. No threshold is lower.
            refresh_seconds: time between two reads of the document.
            results_bucket: RESULTS_BUCKET. Sources with this bucket count as broken.
            clock: returns seconds.
        """
        self._documents = documents
        self._min_confidence = min_confidence
        self._store_confidence = store_confidence
        self._refresh_seconds = refresh_seconds
        self._results_bucket = results_bucket
        self._clock = clock
        self._looking = threading.Lock()
        self._looked_at = -math.inf  # seconds of the clock
        self._known: _Known | None = None
        self._remembered: datetime | None = None  # version that is stored as the last good one
        self._error: TransientError | None = None  # of the last read
        self._broken: tuple[datetime, str] | None = None  # version and reason
        self._unusable = 0  # number of reads that found the document broken or deleted

    def settings_of(self, ref: ImageRef, deadline: Deadline) -> SourceSettings:
        """Return the settings of an image. Read the document first, if that is due.

        Raises:
            SourcesUnknownError: neither the sources nor the last good ones can be used.
            FirestoreUnavailableError: no sources are known, and Firestore did not respond.
        """
        known = self._current(deadline)
        settings = settings_of(
            ref,
            known.sources,
            known.version,
            min_confidence=self._min_confidence,
            store_confidence=self._store_confidence,
        )
        return settings if known.derives else replace(settings, derive=NOTHING)

    def sources(self, deadline: Deadline) -> Sources:
        """Return all sources. Read the document first, if that is due.

        Raises:
            SourcesUnknownError: neither the sources nor the last good ones can be used.
            FirestoreUnavailableError: no sources are known, and Firestore did not respond.
        """
        return self._current(deadline).sources

    def _current(self, deadline: Deadline) -> _Known:
        is_due = self._clock() - self._looked_at >= self._refresh_seconds
        if is_due or (self._known is None and self._error):
            self.look(deadline)
        if self._known is None:
            raise self._error or SourcesUnknownError()
        return self._known

    def look(self, deadline: Deadline) -> None:
        """Read the document, unless another thread reads it now.

        It never raises. If the document cannot be read, the known sources stay in use.

        Args:
            deadline: ends the read.
        """
        if not self._looking.acquire(blocking=False):
            return
        self._error = None
        try:
            self._look(deadline)
        except TransientError as exc:
            self._error = exc
            logger.log(
                logging.DEBUG if exc.is_logged or self._known is None else logging.WARNING,
                "The sources could not be read or stored",
                extra={"reason": str(exc)},
            )
        except BaseException:  # noqa: BLE001 - a Rust library's panic is not an Exception
            logger.exception("Reading the sources failed, so the known sources stay in use")
        finally:
            self._looked_at = self._clock()
            self._looking.release()

    def _look(self, deadline: Deadline) -> None:
        stored = self._documents.read(deadline)
        reason = self._adopt(stored) if stored else _DELETED
        if stored and reason is None:
            if self._remembered != stored.version:
                self._documents.remember(stored, deadline)
                self._remembered = stored.version
            return
        self._fall_back(deadline, is_broken=stored is not None)
        if self._known is None or (stored is None and self._known.version is None):
            return
        self._unusable += 1
        logger.error(
            "The document of the sources is broken or deleted, so the last good sources are used. "
            "Repair it with `yolo-batch sources apply`",
            extra={
                "reason": reason,
                "version": self._known.version,
                "reads": self._unusable,
            },
        )

    def _adopt(self, stored: StoredSources) -> str | None:
        """Use the stored sources, or return why they are broken."""
        if self._known and self._known.version == stored.version:
            return None
        if not self._broken or self._broken[0] != stored.version:
            self._broken = None
            try:
                sources = self._parse(stored)
            except SourcesError as exc:
                self._broken = (stored.version, str(exc))
            else:
                self._known = _Known(sources, stored.version)
                logger.info(
                    "New sources are used",
                    extra={"version": stored.version, "sources": len(sources.sources)},
                )
                self._warn_of_no_bucket(sources)
        return self._broken and self._broken[1]

    def _fall_back(self, deadline: Deadline, *, is_broken: bool) -> None:
        """Use the stored last good sources, if they are newer than the known ones.

        They are newer if another instance saw a version that this instance did not see.
        """
        stored = self._documents.last_good(deadline)
        if stored is None:
            if self._known is None or self._known.version is None:
                self._known = _Known(Sources(sources=()), None, derives=not is_broken)
            return
        version = self._known and self._known.version
        if version and version >= stored.version:
            return
        try:
            self._known = _Known(self._parse(stored), stored.version)
        except SourcesError as exc:
            if self._known is None:
                logger.critical(
                    "No sources can be used, so images are rejected until you run "
                    "`yolo-batch sources apply`",
                    extra={"reason": str(exc)},
                )

    def _parse(self, stored: StoredSources) -> Sources:
        """Return stored sources.

        Raises:
            SourcesError: they are broken, or one of them has the bucket RESULTS_BUCKET.
        """
        sources = parse(stored.data)
        check_buckets(sources, self._results_bucket)
        return sources

    def _warn_of_no_bucket(self, sources: Sources) -> None:
        asking = [each.id for each in sources.sources if each.derived != DerivedSettings()]
        if asking and not self._results_bucket:
            logger.warning(
                "Sources ask for derived images, but RESULTS_BUCKET is not set, so none are made",
                extra={"sources": asking[:_LOGGED_SOURCES]},
            )


def current_sources(documents: Documents, settings: Settings) -> CurrentSources:
    """Return the sources, read once, with the thresholds and times of the settings."""
    sources = CurrentSources(
        documents,
        min_confidence=settings.min_confidence,
        store_confidence=settings.store_confidence,
        refresh_seconds=settings.sources_refresh_seconds,
        results_bucket=settings.results_bucket,
    )
    sources.look(Deadline.after(settings.firestore_timeout_seconds))
    return sources
