"""`yolo-batch submit`: jobs for objects."""

import sys
from collections.abc import Iterator
from typing import Any

import click

from service.cli.options import deployment_options, topic_option
from service.settings import Settings


@click.command()
@click.argument("uris", nargs=-1, required=True)
@topic_option
@click.option(
    "--no-check",
    is_flag=True,
    help="Publish the uris as they are. Do not look for objects, and do not expand patterns.",
)
@deployment_options
def submit(uris: tuple[str, ...], topic: str, no_check: bool, **deployed: Any) -> None:
    """Publish a job for each of URIS (gs://bucket/object; - reads them from standard input, UTF-8).

    Each object must exist. In a name, * and ? match within a folder, and ** matches across folders.
    If an object has exactly the given name, only that object is submitted.

    So many jobs that the service would reject some for hours are published no faster than it works.
    """
    from service.cli.report import bucket_note, pace_note
    from service.gcp.listing import connect_lister
    from service.gcp.publisher import connect, job_message, publish_jobs, topic_path
    from service.operate.backfill import Deployment, backfill_estimate, token_bucket
    from service.operate.submission import LOOKUPS, is_pattern, look_up, read

    refs = read(_stdin_lines() if uris == ("-",) else uris)
    settings = Settings.from_env()
    project = settings.google_cloud_project
    topic = topic_path(topic, project)
    wanted = list(refs)
    if no_check:
        for uri in (uri for uri, ref in refs.items() if is_pattern(ref)):
            click.echo(
                f"Warning: {uri} is published as it is. --no-check expands no patterns.", err=True
            )
    else:
        found = look_up(refs, connect_lister(project, connections=LOOKUPS))
        for pattern, count in found.matches.items():
            click.echo(f"{pattern} matches {count:,} objects", err=True)
        wanted = found.uris
    for bucket in sorted({ref.bucket for ref in refs.values()}):
        if note := bucket_note(bucket, settings.allowed_buckets):
            click.echo(note, err=True)
    deployment = Deployment(**deployed)
    if note := pace_note(backfill_estimate(len(wanted), deployment), deployment):
        click.echo(note, err=True)
    jobs = token_bucket(deployment).paced(wanted)
    count = publish_jobs(connect(), topic, map(job_message, jobs))
    click.echo(f"Published {count:,} jobs to {topic}")


def _stdin_lines() -> Iterator[str]:
    """Read uris from standard input: names are UTF-8, whatever the locale is.

    Raises:
        SubmissionError: it is closed.
    """
    from service.operate.submission import SubmissionError

    if not sys.stdin:
        raise SubmissionError("Standard input is closed")
    for line in sys.stdin.buffer:
        # Blanks stay: an object's name may begin or end with them.
        if text := line.decode(errors="surrogateescape").rstrip("\r\n"):
            yield text
