"""`yolo-batch submit`: jobs for objects."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from service.cli.commands import argument, command, option
from service.cli.options import deployment_options, json_option, topic_option
from service.cli.output import counted, note, progress, say, say_json
from service.cli.watch import JSON_KEYS, conclude, shown, wait_options
from service.settings import Settings

if TYPE_CHECKING:
    from service.domain import ImageRef
    from service.gcp.listing import ObjectLister
    from service.operate.watch import Counts

_WAIT = "Wait for the results"
_PAGE_SIZE = 1000  # images


@command(
    panel="Data",
    examples=[
        "yolo-batch submit 'gs://my-bucket/2026-11/**.jpg'",
        "yolo-batch submit - < uris.txt",
        "yolo-batch submit gs://my-bucket/street.jpg --wait --timeout 600",
    ],
)
@argument(
    "uris",
    nargs=-1,
    required=True,
    metavar="gs://BUCKET/OBJECT...",
    help="Objects or patterns. Use - to read them from standard input, one a line, in UTF-8.",
)
@topic_option()
@option(
    "--no-check",
    is_flag=True,
    help="Publish the URIs as they are: do not look for objects, and do not expand patterns.",
)
@option("--wait", panel=_WAIT, is_flag=True, help="Wait until every submitted image has a result.")
@wait_options(_WAIT)
@json_option(f"published, topic, matches; with --wait also {JSON_KEYS}")
@deployment_options()
def submit(
    uris: tuple[str, ...],
    topic: str,
    no_check: bool,
    wait: bool,
    timeout: float | None,
    interval: float,
    as_json: bool,
    **deployed: Any,
) -> None:
    """Publish jobs for objects that are in a bucket already.

    Each object must exist. In a name, * and ? match within a folder, and ** matches across folders.
    If an object has exactly the given name, only that object is submitted.

    Very many jobs are published no faster than the deployed service works. Otherwise it would
    reject them again and again until they become dead letters.

    With --wait, the exit code is that of `yolo-batch watch`. An image that had a result already, or
    that is parked, counts at once.
    """
    from service.cli.report import bucket_note, pace_note
    from service.events import parse_uri
    from service.gcp.listing import connect_lister
    from service.gcp.publisher import connect, job_message, publish_jobs, topic_path
    from service.operate.backfill import Deployment, backfill_estimate, token_bucket
    from service.operate.submission import (
        LOOKUPS,
        SubmissionError,
        is_pattern,
        look_up,
        read,
    )

    if no_check and wait:
        raise click.UsageError("--wait needs to know each object's generation: omit --no-check")
    if timeout is not None and not wait:
        raise click.UsageError("--timeout needs --wait")
    try:
        refs = read(_stdin_lines() if uris == ("-",) else uris)
    except SubmissionError as exc:
        if uris == ("-",):
            raise
        raise click.UsageError(str(exc)) from exc
    settings = Settings.from_env()
    project = settings.google_cloud_project
    topic = topic_path(topic, project)
    wanted = list(refs)
    matches: dict[str, int] = {}
    found: dict[ImageRef, ImageRef] = {}
    if no_check:
        for uri in (uri for uri, ref in refs.items() if is_pattern(ref)):
            note(f"Warning: {uri} is published as it is. --no-check expands no patterns.")
    else:
        with progress("Looking up the objects", len(refs)) as bar:
            objects = _Found(connect_lister(project, connections=LOOKUPS), found, bar.advance)
            submission = look_up(refs, objects)
        wanted, matches = submission.uris, submission.matches
        for pattern, count in matches.items():
            note(f"{pattern} matches {count:,} objects")
    for bucket in sorted({ref.bucket for ref in refs.values()}):
        if warning := bucket_note(bucket, settings.allowed_buckets):
            note(warning)
    deployment = Deployment(**deployed)
    if pace := pace_note(backfill_estimate(len(wanted), deployment), deployment):
        note(pace)
    jobs = token_bucket(deployment).paced(wanted)
    with progress("Publishing jobs", len(wanted)) as bar:
        count = publish_jobs(connect(), topic, map(job_message, counted(jobs, bar.advance)))
    report = {"published": count, "topic": topic, "matches": matches}
    if not as_json:
        say(f"Published {count:,} jobs to {topic}")
    if not wait:
        if as_json:
            say_json(report)
        return
    started = time.monotonic()
    submitted = map(parse_uri, wanted)
    counts = _wait(
        list(dict.fromkeys(found.get(ref, ref) for ref in submitted)),
        settings,
        timeout_seconds=timeout,
        interval_seconds=interval,
    )
    if as_json:
        say_json(report | counts.report() | {"seconds": round(time.monotonic() - started, 1)})
    else:
        say(shown(counts))
    click.get_current_context().exit(conclude(counts))


class _Found:
    """Looks up objects, and keeps them in `found` with their generations.

    Calls `advance` after each lookup.
    """

    def __init__(
        self,
        objects: "ObjectLister",
        found: "dict[ImageRef, ImageRef]",
        advance: Callable[[], None],
    ) -> None:
        self._objects = objects
        self._found = found
        self._advance = advance

    def exists(self, ref: "ImageRef") -> bool:
        found = self._objects.find(ref)
        if found:
            self._found[ref] = found
        self._advance()
        return found is not None

    def pages(self, bucket: str, prefix: str) -> "Iterator[Sequence[ImageRef]]":
        return self._objects.pages(bucket, prefix)


def _wait(images: "Sequence[ImageRef]", settings: Settings, **limits: Any) -> "Counts":
    """Wait for the results of images. Images that are deleted or overwritten are not missing."""
    from concurrent.futures import ThreadPoolExecutor

    from service.cli.watch import wait as wait_for
    from service.gcp.listing import connect_lister
    from service.operate.submission import LOOKUPS

    lister = connect_lister(settings.google_cloud_project, connections=LOOKUPS)
    with ThreadPoolExecutor(LOOKUPS) as threads:
        return wait_for(
            lambda: (images[at : at + _PAGE_SIZE] for at in range(0, len(images), _PAGE_SIZE)),
            settings,
            are_live=lambda refs: threads.map(lister.exists, refs),
            **limits,
        )


def _stdin_lines() -> Iterator[str]:
    """Read URIs from standard input. Names are UTF-8, whatever the locale is.

    Raises:
        SubmissionError: standard input is closed.
    """
    from service.operate.submission import SubmissionError

    if not sys.stdin:
        raise SubmissionError("Standard input is closed")
    for line in sys.stdin.buffer:
        # Blanks stay: an object's name may begin or end with them.
        if text := line.decode(errors="surrogateescape").rstrip("\r\n"):
            yield text
