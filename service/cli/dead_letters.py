"""`yolo-batch dead-letters`: shows and replays messages that failed at every delivery."""

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import click

from service.cli.commands import command, option
from service.cli.exit_codes import ExitCode
from service.cli.options import json_lines_option
from service.cli.output import Column, note, progress, say, say_json, say_table
from service.errors import YoloBatchError
from service.settings import Settings

if TYPE_CHECKING:
    from service.gcp.subscriber import DeadLetter, Subscription
    from service.operate.dead_letters import Reading

_COLUMNS = (
    Column("id"),
    Column("kind"),
    Column("attempts", is_number=True),
    Column("age"),
    Column("subscription"),
    Column("image, or reason"),
)
_REPLAY = "Replay"


@command(
    "dead-letters",
    panel="Operate",
    examples=[
        "yolo-batch dead-letters",
        "yolo-batch dead-letters --replay",
    ],
)
@option(
    "--subscription",
    default="jobs-dead-letter",
    show_default=True,
    help="Name of the subscription, or projects/PROJECT/subscriptions/NAME.",
)
@option(
    "--limit",
    default=1000,
    show_default=True,
    type=click.IntRange(1),
    help="Read at most this many messages.",
)
@json_lines_option("each message")
@option(
    "--replay",
    is_flag=True,
    panel=_REPLAY,
    help="Publish each readable message as a job to --topic, and then remove it from the "
    "subscription.",
)
@option(
    "--id",
    "ids",
    multiple=True,
    panel=_REPLAY,
    help="Replay only the message with this id. Can be repeated.",
)
@option(
    "--as-is",
    is_flag=True,
    panel=_REPLAY,
    help="Publish messages unchanged, including unreadable messages. They go to the topic that "
    "they came from, or to --topic.",
)
@option(
    "--topic",
    panel=_REPLAY,
    help="Topic to publish to: NAME, or projects/PROJECT/topics/NAME.  [default: jobs]",
)
def dead_letters(
    subscription: str,
    limit: int,
    as_json: bool,
    replay: bool,
    ids: tuple[str, ...],
    as_is: bool,
    topic: str | None,
) -> None:
    """Show or replay dead letters: messages that failed at every delivery.

    Without --replay, they stay in the subscription. An image that already has its document is not
    processed again.
    """
    from service.gcp.subscriber import connect
    from service.operate.dead_letters import read

    if (ids or as_is) and not replay:
        raise click.UsageError("--id and --as-is need --replay")
    project = Settings.from_env().google_cloud_project
    source = connect(subscription, project)
    has_failed = False
    with source.leases():
        with progress("Reading messages") as bar:
            readings = []
            for dead_letter in source.pull(limit):
                readings.append((dead_letter, read(dead_letter)))
                bar.describe(f"Reading messages: {len(readings):,}")
        _show(readings, as_json=as_json)
        if not readings:
            note(f"There is no dead letter in {source.name}")
        if replay:
            chosen = [pair for pair in readings if not ids or pair[0].message_id in ids]
            if missing := set(ids) - {dead_letter.message_id for dead_letter, _ in chosen}:
                note(f"The subscription has no message {', '.join(sorted(missing))}")
            sender = _Sender(source, project, topic, as_is=as_is)
            try:
                with progress("Replaying", len(chosen)) as bar:
                    for dead_letter, reading in chosen:
                        sender.send(dead_letter, reading)
                        bar.advance()
            finally:
                (note if as_json else say)(
                    f"Replayed {sender.sent} of {len(readings)} messages to "
                    f"{', '.join(sorted(sender.topics)) or 'no topic'}"
                )
            has_failed = sender.has_failed
    if has_failed:
        click.get_current_context().exit(ExitCode.FAILED)


class _Sender:
    """Publishes dead letters again."""

    def __init__(
        self, source: "Subscription", project: str | None, topic: str | None, *, as_is: bool
    ) -> None:
        from service.gcp.publisher import connect, topic_path

        self._client = connect()
        self._source = source
        self._as_is = as_is
        self._topic = topic_path(topic or "jobs", project) if topic or not as_is else None
        self._origins: dict[str, str] = {}  # topics by their subscriptions
        self._broken: dict[str, YoloBatchError] = {}  # by topic or subscription that failed
        self.sent = 0
        self.topics: set[str] = set()
        self.has_failed = False

    def send(self, dead_letter: "DeadLetter", reading: "Reading") -> None:
        """Publish one dead letter and remove it, or print why it stays."""
        from service.gcp.publisher import MessageError
        from service.operate.dead_letters import Kind

        if not self._as_is and reading.kind is Kind.UNREADABLE:
            self._keep(dead_letter, "it cannot be read. --as-is publishes it unchanged")
            return
        if not self._as_is and not reading.uri:
            reason = f"it names no image ({reading.reason}). --as-is publishes it unchanged"
            self._keep(dead_letter, reason)
            return
        destination = self._topic or dead_letter.source
        try:
            # Do not use a destination again that has failed: each attempt may wait for a timeout.
            if broken := self._broken.get(destination or ""):
                raise broken
            topic = self._topic or self._origin(dead_letter)
            self._publish(topic, dead_letter, reading)
        except YoloBatchError as exc:
            self.has_failed = True
            if destination and not isinstance(exc, MessageError):
                self._broken[destination] = exc
            self._keep(dead_letter, str(exc))
            return
        self.sent += 1
        self.topics.add(topic)
        try:
            self._source.acknowledge([dead_letter])
        except YoloBatchError as exc:
            self.has_failed = True
            note(
                f"{dead_letter.message_id} was published but not acknowledged, so Pub/Sub will "
                f"deliver it again: {exc}"
            )

    def _publish(self, topic: str, dead_letter: "DeadLetter", reading: "Reading") -> None:
        """Publish one dead letter, and wait until Pub/Sub confirms it."""
        from service.gcp.publisher import job_message, publish_jobs

        if self._as_is or not (reading.uri and reading.event.ref):
            publish_jobs(
                self._client, topic, [dead_letter.data], attributes=dead_letter.own_attributes
            )
        else:
            message = job_message(reading.uri, reading.event.ref.replace)
            publish_jobs(self._client, topic, [message])

    def _origin(self, dead_letter: "DeadLetter") -> str:
        """Return the topic that a dead letter came from.

        Raises:
            PublishError: its attributes do not name its subscription.
            SubscriptionError: there is no such subscription any more.
        """
        from service.gcp.publisher import PublishError

        if not dead_letter.source:
            raise PublishError("it does not name the subscription that it came from: give --topic")
        if dead_letter.source not in self._origins:
            self._origins[dead_letter.source] = self._source.topic_of(dead_letter.source)
        return self._origins[dead_letter.source]

    def _keep(self, dead_letter: "DeadLetter", reason: str) -> None:
        note(f"{dead_letter.message_id} stays: {reason}")


def _show(readings: "list[tuple[DeadLetter, Reading]]", *, as_json: bool) -> None:
    if as_json:
        for dead_letter, reading in readings:
            say_json(_plain(dead_letter, reading))
        return
    say_table(_COLUMNS, [_row(*pair) for pair in readings])


def _row(dead_letter: "DeadLetter", reading: "Reading") -> tuple[str, ...]:
    return (
        dead_letter.message_id,
        reading.kind,
        str(dead_letter.attempts or ""),
        _age(datetime.now(UTC) - dead_letter.published_at),
        (dead_letter.source or "").rpartition("/")[2],
        reading.reason or reading.uri or "",
    )


def _plain(dead_letter: "DeadLetter", reading: "Reading") -> dict[str, object]:
    return {
        "id": dead_letter.message_id,
        "kind": reading.kind,
        "uri": reading.uri,
        "reason": reading.reason,
        "attempts": dead_letter.attempts,
        "published_at": dead_letter.published_at,
        "source": dead_letter.source,
        "attributes": dict(dead_letter.attributes),
    }


def _age(age: timedelta) -> str:
    """Return an age as text, in the largest unit that fits."""
    for unit, seconds in (("d", 86400), ("h", 3600), ("min", 60)):
        if age.total_seconds() >= seconds:
            return f"{age.total_seconds() / seconds:.0f} {unit}"
    return f"{max(0.0, age.total_seconds()):.0f} s"
