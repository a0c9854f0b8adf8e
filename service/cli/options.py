"""Options and arguments that several commands have."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from service.cli.commands import argument, option


def _bucket_and_prefix(ctx: click.Context, param: click.Parameter, value: str) -> tuple[str, str]:
    """Return the bucket and the prefix of `gs://bucket[/prefix]`. The prefix may be empty.

    Raises:
        click.BadParameter: the value has another form.
    """
    bucket, _, prefix = value.removeprefix("gs://").partition("/")
    if not value.startswith("gs://") or not bucket:
        raise click.BadParameter("it must be gs://bucket or gs://bucket/prefix", ctx, param)
    return bucket, prefix


def bucket_or_folder(
    ctx: click.Context, param: click.Parameter, value: str
) -> tuple[str, str] | Path:
    """Return the bucket and the prefix of `gs://bucket[/prefix]`, or the path of a folder.

    Raises:
        click.BadParameter: the value has another form, or there is no such folder.
    """
    if value.startswith("gs://"):
        return _bucket_and_prefix(ctx, param, value)
    path = Path(value)
    if not path.is_dir():
        raise click.BadParameter(
            f"{value!r} is neither a folder nor gs://bucket/prefix", ctx, param
        )
    return path


def page_options(what: str, *, is_default: bool) -> Callable[[Any], Any]:
    """Return the options for a page in the browser. The command gets `page` and `port`.

    Args:
        what: what the page is, as the help names it.
        is_default: whether the page is served without an option.
    """
    name, text = ("--page/--no-page", f"Serve {what} on this machine until Ctrl-C.")
    if is_default:
        text += " It is served by default."

    page = option(name, "page", panel="Page", default=is_default, help=text)
    port = option(
        "--port",
        panel="Page",
        default=0,
        type=click.IntRange(0, 65535),
        help="Port of the page. By default a free one.",
    )
    return lambda command: page(port(command))


def bucket_argument(help_text: str) -> Callable[[Any], Any]:
    """Return the argument `gs://BUCKET/[PREFIX]`. The command gets the bucket and the prefix.

    Args:
        help_text: what the command does with them, as a sentence of the help.
    """
    return argument(
        "uri", metavar="gs://BUCKET/[PREFIX]", callback=_bucket_and_prefix, help=help_text
    )


objects_argument = bucket_argument(
    "Bucket. With a prefix: only the objects whose names begin with it."
)

_PACE = "Pace and cost of the deployment"
_DEPLOYMENT_OPTIONS = (
    option(
        "--cpu-ms",
        default=80.0,
        show_default=True,
        type=click.FloatRange(0.1),
        panel=_PACE,
        help="CPU time of one image in the service, in milliseconds.",
    ),
    option(
        "--vcpu",
        default=2.0,
        show_default=True,
        type=click.FloatRange(0.1),
        panel=_PACE,
        help="vCPUs of one instance.",
    ),
    option(
        "--images-per-second",
        type=click.FloatRange(0.001),
        panel=_PACE,
        help="Rate of one instance. By default it follows from --cpu-ms and --vcpu.",
    ),
    option(
        "--instances",
        default=10,
        show_default=True,
        type=click.IntRange(1),
        panel=_PACE,
        help="Instances that work at the same time.",
    ),
)
price_options = (
    option(
        "--instance-price",
        type=click.FloatRange(0),
        panel=_PACE,
        help="USD an hour of one instance. By default Cloud Run's price in us-central1 for --vcpu "
        "vCPUs and as many GiB of memory, at least two.",
    ),
    option(
        "--image-price",
        default=0.0000016,
        show_default=True,
        type=click.FloatRange(0),
        panel=_PACE,
        help="USD of Firestore and Cloud Storage for one image.",
    ),
)


def _time(ctx: click.Context, param: click.Parameter, value: str | None) -> datetime | None:
    """Return the time that an option names as a date, a time or an age.

    Raises:
        click.BadParameter: the value has another form.
    """
    from service.operate.purge import parse_before

    if value is None:
        return None
    try:
        return parse_before(value, datetime.now(UTC))
    except (ValueError, OverflowError) as exc:
        raise click.BadParameter(
            "it must be a date (2026-11-21), a time with its zone (2026-11-21T00:00:00Z) or an age "
            "(7d, 12h)",
            ctx,
            param,
        ) from exc


def since_option(help_text: str, *, default: str | None = None) -> Callable[[Any], Any]:
    """Return the option for a point in time. The command gets a `datetime` in UTC, or None.

    Args:
        help_text: what the command does with it, as a sentence of the help.
        default: the value without the option.
    """
    return option(
        "--since",
        callback=_time,
        default=default,
        show_default=default is not None,
        help=f"{help_text} The value is a date (UTC), a time (RFC 3339) or an age such as 7d or "
        "12h.",
    )


def json_option(keys: str) -> Callable[[Any], Any]:
    """Return the option for a report as one JSON object.

    Args:
        keys: the keys of the object, as the help lists them.
    """
    return option("--json", "as_json", is_flag=True, help=f"Print one JSON object: {keys}.")


def json_lines_option(what: str) -> Callable[[Any], Any]:
    """Return the option for one JSON object a line.

    Args:
        what: what each object is, as the help names it.
    """
    return option("--json", "as_json", is_flag=True, help=f"Print {what} as a line of JSON.")


def topic_option(panel: str | None = None) -> Callable[[Any], Any]:
    """Return the option that names the topic of the jobs."""
    return option(
        "--topic",
        panel=panel,
        default="jobs",
        show_default=True,
        help="Name of the topic, or projects/PROJECT/topics/NAME.",
    )


def deployment_options(*further: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """Add the options that describe the deployed service. Its rate paces the jobs.

    Args:
        further: options of the same group that only some commands have.
    """

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for add_option in reversed((*_DEPLOYMENT_OPTIONS, *further)):
            command = add_option(command)
        return command

    return add
