"""`yolo-batch watch`: whether every image of a bucket has a result."""

import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from service.cli.commands import command, option
from service.cli.exit_codes import ExitCode
from service.cli.options import json_option, objects_argument
from service.cli.output import is_terminal, note, progress, say, say_json
from service.cli.report import bucket_note, pattern_note
from service.deadline import NO_DEADLINE
from service.errors import YoloBatchError
from service.settings import Settings
from service.sources.current import current_sources

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from service.domain import ImageRef
    from service.operate.watch import Counts, Pages

_CALL_SECONDS = 60.0  # Firestore is retried longer than in the service, which has a deadline
JSON_KEYS = "uploaded, done, failed, parked, disabled, missing, gone, missing_uris, seconds"


class NoImagesError(YoloBatchError):
    """There is nothing to wait for."""


def wait_options(panel: str | None = None) -> "Callable[[Callable[..., Any]], Any]":
    """Add the options that say how long to wait, and how often to look."""

    def add(command: "Callable[..., Any]") -> "Callable[..., Any]":
        for add_option in (
            option(
                "--timeout",
                panel=panel,
                type=click.FloatRange(0),
                help="How long to wait at most, in seconds.  [default: no limit]",
            ),
            option(
                "--interval",
                panel=panel,
                default=5.0,
                show_default=True,
                type=click.FloatRange(0.1),
                help="Time between two looks, in seconds.",
            ),
        ):
            command = add_option(command)
        return command

    return add


@command(
    panel="Data",
    examples=[
        "yolo-batch watch gs://my-bucket/2026/",
        "yolo-batch watch gs://my-bucket/2026/ --timeout 3600 --json",
    ],
)
@objects_argument
@wait_options()
@json_option(f"uri, {JSON_KEYS}")
def watch(
    uri: tuple[str, str],
    timeout: float | None,
    interval: float,
    as_json: bool,
) -> None:
    """Wait until every image of a bucket has a result.

    Counts the images that are uploaded, done, failed, parked, disabled and missing, and ends when
    none is missing. Images that are uploaded meanwhile count, too. A parked image counts as
    finished, because the service continues it on another day.

    The exit code is 0 if all images are done or disabled, 4 if some failed or are parked, and 5 if
    some are still missing after --timeout.
    """
    from service.gcp.listing import connect_lister

    bucket, prefix = uri
    settings = Settings.from_env()
    if warning := bucket_note(bucket, settings.allowed_buckets):
        note(warning)
    lister = connect_lister(settings.google_cloud_project)
    name = f"gs://{bucket}/{prefix}"
    started = time.monotonic()
    counts = wait(
        lambda: lister.pages(bucket, prefix),
        settings,
        timeout_seconds=timeout,
        interval_seconds=interval,
    )
    if not counts.uploaded:
        raise NoImagesError(pattern_note(prefix) or f"There is no image in {name}")
    seconds = round(time.monotonic() - started, 1)
    if as_json:
        say_json({"uri": name} | counts.report() | {"seconds": seconds})
    else:
        say(f"{name}: {shown(counts)}")
    click.get_current_context().exit(conclude(counts))


def wait(
    pages: "Pages",
    settings: Settings,
    *,
    are_live: "Callable[[Sequence[ImageRef]], Iterable[bool]] | None" = None,
    timeout_seconds: float | None,
    interval_seconds: float,
) -> "Counts":
    """Show the progress of images until none is missing. Return the last counts.

    Args:
        pages: lists the images.
        settings: of the service.
        are_live: returns whether images still exist. None: `pages` lists only those that exist.
        timeout_seconds: how long to wait at most. None: without a limit.
        interval_seconds: time between two passes.

    Raises:
        YoloBatchError: Cloud Storage or Firestore did not respond.
    """
    from service.gcp.clients import build_reader, build_source_store
    from service.operate.watch import watch as watch_images

    settings = replace(settings, firestore_timeout_seconds=_CALL_SECONDS)
    sources = current_sources(build_source_store(settings), settings)
    last = ""
    with progress("Waiting for results", 0) as bar:

        def progressed(counts: "Counts") -> None:
            nonlocal last
            text = shown(counts)
            bar.show(text, counts.finished, counts.uploaded)
            if not is_terminal(sys.stderr) and counts.missing and text != last:
                note(text)
            last = text

        return watch_images(
            pages,
            build_reader(settings),
            is_enabled=lambda ref: sources.settings_of(ref, NO_DEADLINE).is_enabled,
            are_live=are_live,
            timeout_seconds=timeout_seconds,
            interval_seconds=interval_seconds,
            progressed=progressed,
        )


def shown(counts: "Counts") -> str:
    """Return counts as text."""
    gone = f" + {counts.gone:,} gone" if counts.gone else ""
    return (
        f"{counts.uploaded:,} uploaded = {counts.done:,} done + {counts.failed:,} failed + "
        f"{counts.parked:,} parked + {counts.disabled:,} disabled + {counts.missing:,} missing"
        f"{gone}"
    )


def conclude(counts: "Counts") -> ExitCode:
    """Return the exit code of a wait, and print what a person can do."""
    if counts.missing:
        note(f"No result after --timeout, for example: {', '.join(counts.missing_uris)}")
        return ExitCode.NOT_FINISHED
    if counts.failed:
        note("`yolo-batch results` has the reason of each failed image.")
    is_all_done = not (counts.failed or counts.parked or counts.gone)
    return ExitCode.DONE if is_all_done else ExitCode.NOT_ALL_DONE
