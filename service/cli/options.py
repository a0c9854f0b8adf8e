"""Options and arguments that several commands have."""

from collections.abc import Callable
from typing import Any

import click

topic_option = click.option(
    "--topic",
    default="jobs",
    show_default=True,
    help="Topic's name, or projects/PROJECT/topics/NAME.",
)


def _bucket_and_prefix(ctx: click.Context, param: click.Parameter, value: str) -> tuple[str, str]:
    """Read `gs://bucket[/prefix]`; the prefix may be empty.

    Raises:
        click.BadParameter: it is not such a uri.
    """
    bucket, _, prefix = value.removeprefix("gs://").partition("/")
    if not value.startswith("gs://") or not bucket:
        raise click.BadParameter("it must be gs://bucket or gs://bucket/prefix", ctx, param)
    return bucket, prefix


# The command gets the bucket's name and the prefix.
bucket_argument = click.argument("uri", callback=_bucket_and_prefix)

_DEPLOYMENT_OPTIONS = (
    click.option(
        "--cpu-ms",
        default=80.0,
        show_default=True,
        type=click.FloatRange(0.1),
        help="CPU time of one image in the service, in milliseconds.",
    ),
    click.option(
        "--vcpu",
        default=2.0,
        show_default=True,
        type=click.FloatRange(0.1),
        help="vCPUs of one instance.",
    ),
    click.option(
        "--images-per-second",
        type=click.FloatRange(0.001),
        help="Of one instance; by default what --cpu-ms and --vcpu allow.",
    ),
    click.option(
        "--instances",
        default=10,
        show_default=True,
        type=click.IntRange(1),
        help="Instances at work at once.",
    ),
)


def deployment_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add what the deployed service can do, which paces the jobs; see `Deployment`."""
    for option in reversed(_DEPLOYMENT_OPTIONS):
        command = option(command)
    return command
