"""`yolo-batch submit`: jobs for objects."""

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from service.cli.commands import argument, command, option
from service.cli.options import deployment_options, json_option, topic_option
from service.cli.output import counted, note, progress, say, say_json
from service.settings import Settings

if TYPE_CHECKING:
    from service.domain import ImageRef
    from service.operate.submission import Objects


@command(
    panel="Data",
    examples=[
        "yolo-batch submit 'gs://my-bucket/2026-11/**.jpg'",
        "yolo-batch submit - < uris.txt",
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
@json_option("published, topic, matches")
@deployment_options()
def submit(
    uris: tuple[str, ...], topic: str, no_check: bool, as_json: bool, **deployed: Any
) -> None:
    """Publish jobs for objects that are in a bucket already.

    Each object must exist. In a name, * and ? match within a folder, and ** matches across folders.
    If an object has exactly the given name, only that object is submitted.

    Very many jobs are published no faster than the deployed service works. Otherwise it would
    reject them again and again until they become dead letters.
    """
    from service.cli.report import bucket_note, pace_note
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
    if no_check:
        for uri in (uri for uri, ref in refs.items() if is_pattern(ref)):
            note(f"Warning: {uri} is published as it is. --no-check expands no patterns.")
    else:
        with progress("Looking up the objects", len(refs)) as bar:
            lister = connect_lister(project, connections=LOOKUPS)
            submission = look_up(refs, _Counted(lister, bar.advance))
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
    if as_json:
        say_json({"published": count, "topic": topic, "matches": matches})
    else:
        say(f"Published {count:,} jobs to {topic}")


class _Counted:
    """A bucket's objects. Calls `advance` after each lookup."""

    def __init__(self, objects: "Objects", advance: Callable[[], None]) -> None:
        self._objects = objects
        self._advance = advance

    def exists(self, ref: "ImageRef") -> bool:
        exists = self._objects.exists(ref)
        self._advance()
        return exists

    def pages(self, bucket: str, prefix: str) -> "Iterator[Sequence[ImageRef]]":
        return self._objects.pages(bucket, prefix)


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
