"""`yolo-batch dead-letters`: what Pub/Sub gave up, shown and tried again."""

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import click
from tabulate import tabulate

from service.cli.report import printable
from service.errors import YoloBatchError
from service.settings import Settings

if TYPE_CHECKING:
    from service.gcp.subscriber import DeadLetter, Subscription
    from service.operate.dead_letters import Reading

_HEADERS = ("id", "kind", "attempts", "age", "from", "image, or reason")


@click.command(name="dead-letters")
@click.option(
    "--subscription",
    default="jobs-dead-letter",
    show_default=True,
    help="Subscription's name, or projects/PROJECT/subscriptions/NAME.",
)
@click.option(
    "--limit", default=1000, show_default=True, type=click.IntRange(1), help="Messages at most."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.option(
    "--replay",
    is_flag=True,
    help="Publish the readable ones as jobs to --topic; each is removed from here once it is "
    "published.",
)
@click.option("--id", "ids", multiple=True, help="With --replay: only this message; repeatable.")
@click.option(
    "--as-is",
    is_flag=True,
    help="With --replay: publish them as they were, unreadable ones too, to the topic that they "
    "came from, or to --topic.",
)
@click.option("--topic", help="Topic's name, or projects/PROJECT/topics/NAME.  [default: jobs]")
def dead_letters(
    subscription: str,
    limit: int,
    as_json: bool,
    replay: bool,
    ids: tuple[str, ...],
    as_is: bool,
    topic: str | None,
) -> None:
    """Show the messages in a dead-letter subscription; they stay there.

    With --replay, try them again. An image that has its document meanwhile is not detected again.
    """
    from service.gcp.subscriber import connect
    from service.operate.dead_letters import read

    if (ids or as_is) and not replay:
        raise click.UsageError("--id and --as-is need --replay")
    project = Settings.from_env().google_cloud_project
    source = connect(subscription, project)
    has_failed = False
    with source.leases():
        readings = [(letter, read(letter)) for letter in source.pull(limit)]
        _show(readings, as_json=as_json)
        if replay:
            chosen = [pair for pair in readings if not ids or pair[0].message_id in ids]
            if missing := set(ids) - {letter.message_id for letter, _ in chosen}:
                click.echo(f"No such message: {', '.join(sorted(missing))}", err=True)
            sender = _Sender(source, project, topic, as_is=as_is)
            try:
                for letter, reading in chosen:
                    sender.send(letter, reading)
            finally:
                click.echo(
                    f"Replayed {sender.sent} of {len(readings)} messages to "
                    f"{', '.join(sorted(sender.topics)) or 'no topic'}",
                    err=as_json,
                )
            has_failed = sender.has_failed
    if has_failed:
        raise SystemExit(1)


class _Sender:
    """Publishes letters again."""

    def __init__(
        self, source: "Subscription", project: str | None, topic: str | None, *, as_is: bool
    ) -> None:
        from service.gcp.publisher import connect, topic_path

        self._client = connect()
        self._source = source
        self._as_is = as_is
        self._topic = topic_path(topic or "jobs", project) if topic or not as_is else None
        self._origins: dict[str, str] = {}  # topics by their subscriptions
        self._broken: dict[str, YoloBatchError] = {}  # topics and subscriptions
        self.sent = 0
        self.topics: set[str] = set()
        self.has_failed = False

    def send(self, letter: "DeadLetter", reading: "Reading") -> None:
        """Publish one dead letter and take it out, or print why it stays."""
        from service.gcp.publisher import MessageError
        from service.operate.dead_letters import Kind

        if not self._as_is and reading.kind is Kind.UNREADABLE:
            self._keep(letter, "it cannot be read; --as-is publishes it as it was")
            return
        if not self._as_is and not reading.uri:
            reason = f"it names no image ({reading.reason}); --as-is publishes it as it was"
            self._keep(letter, reason)
            return
        place = self._topic or letter.source
        try:
            if broken := self._broken.get(place or ""):  # each attempt may take a time-out
                raise broken
            topic = self._topic or self._origin(letter)
            self._publish(topic, letter, reading)
        except YoloBatchError as exc:
            self.has_failed = True
            if place and not isinstance(exc, MessageError):
                self._broken[place] = exc
            self._keep(letter, str(exc))
            return
        self.sent += 1
        self.topics.add(topic)
        try:
            self._source.acknowledge([letter])
        except YoloBatchError as exc:
            self.has_failed = True
            click.echo(
                f"{letter.message_id} was published but not acknowledged, so Pub/Sub will deliver "
                f"it again: {exc}",
                err=True,
            )

    def _publish(self, topic: str, letter: "DeadLetter", reading: "Reading") -> None:
        """Publish one letter, and wait for the confirmation."""
        from service.gcp.publisher import job_message, publish_jobs

        if self._as_is or not (reading.uri and reading.event.ref):
            publish_jobs(self._client, topic, [letter.data], attributes=letter.own_attributes)
        else:
            message = job_message(reading.uri, reading.event.ref.replace)
            publish_jobs(self._client, topic, [message])

    def _origin(self, letter: "DeadLetter") -> str:
        """Return the topic that a letter came from.

        Raises:
            PublishError: it does not say.
            SubscriptionError: the subscription that it came from is not there.
        """
        from service.gcp.publisher import PublishError

        if not letter.source:
            raise PublishError("it does not say where it came from: give --topic")
        if letter.source not in self._origins:
            self._origins[letter.source] = self._source.topic_of(letter.source)
        return self._origins[letter.source]

    def _keep(self, letter: "DeadLetter", reason: str) -> None:
        click.echo(f"{letter.message_id} stays: {reason}", err=True)


def _show(readings: "list[tuple[DeadLetter, Reading]]", *, as_json: bool) -> None:
    if as_json:
        for letter, reading in readings:
            click.echo(json.dumps(_plain(letter, reading), ensure_ascii=False))
        return
    click.echo(tabulate([_row(*pair) for pair in readings], _HEADERS, disable_numparse=True))


def _row(letter: "DeadLetter", reading: "Reading") -> tuple[str, ...]:
    return (
        letter.message_id,
        reading.kind,
        str(letter.attempts or ""),
        _age(datetime.now(UTC) - letter.published_at),
        (letter.source or "").rpartition("/")[2],
        reading.reason or printable(reading.uri or ""),
    )


def _plain(letter: "DeadLetter", reading: "Reading") -> dict[str, object]:
    return {
        "id": letter.message_id,
        "kind": reading.kind,
        "uri": reading.uri,
        "reason": reading.reason,
        "attempts": letter.attempts,
        "published_at": letter.published_at.isoformat(),
        "source": letter.source,
        "attributes": dict(letter.attributes),
    }


def _age(age: timedelta) -> str:
    """Write an age in its largest unit."""
    for unit, seconds in (("d", 86400), ("h", 3600), ("min", 60)):
        if age.total_seconds() >= seconds:
            return f"{age.total_seconds() / seconds:.0f} {unit}"
    return f"{max(0.0, age.total_seconds()):.0f} s"
