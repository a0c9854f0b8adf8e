"""How both command lines show help and report errors.

A command is declared with `command`, `argument` and `option` of this module. It carries what help
and the generated documentation need: its docstring, `Command.examples`, and the `panel` of each
option and command, which is the heading that groups them.
"""

import errno
import os
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import click
from rich_click import RichCommand, RichGroup, argument, version_option
from rich_click import option as _option

from service.cli.exit_codes import ExitCode
from service.cli.output import note
from service.errors import (
    FirestoreRefusedError,
    FirestoreUnavailableError,
    ModelError,
    SettingsError,
    StorageRefusedError,
    StorageUnavailableError,
    YoloBatchError,
)

__all__ = ["Command", "Commands", "argument", "command", "group", "option", "version_option"]

_DEVELOPER_COMMANDS = ("bench", "chaos", "demo", "up")
_EXTRA_OF = {"pyarrow": "parquet"}  # by package. Every other package is in `export`.
_EMULATORS = ("FIRESTORE_EMULATOR_HOST", "PUBSUB_EMULATOR_HOST", "STORAGE_EMULATOR_HOST")
_SETTINGS: dict[str, Any] = {
    "help_option_names": ["-h", "--help"],
    "rich_help_config": {
        "theme": "default-slim",  # no boxes: it reads the same in a pipe and in any locale
        "text_markup": None,  # brackets in our texts are not markup
        "text_paragraph_linebreaks": "\n\n",
        "padding_helptext_first_line": (0, 0, 1, 0),
        "default_string": "\\[default: {}]",
        "force_terminal": None,  # rich-click would force it in GitHub Actions, where help is piped
    },
}


class _Reporting(RichCommand):
    """Reports every expected error in a sentence, and ends with a documented exit code."""

    def __init__(self, *args: Any, examples: Sequence[str] = (), **settings: Any) -> None:
        """Take click's arguments.

        Args:
            args: click's positional arguments.
            examples: shell lines, each a `# comment` or a command. The help ends with them.
            settings: click's keyword arguments.
        """
        settings["context_settings"] = _SETTINGS | (settings.get("context_settings") or {})
        super().__init__(*args, **settings)
        self.examples = tuple(examples)

    def get_help(self, ctx: click.Context) -> str:
        """Return the help without blanks at the ends of its lines."""
        text = "\n".join(line.rstrip() for line in super().get_help(ctx).splitlines())
        return re.sub("\n{3,}", "\n\n", text)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the panels: arguments, options without a group, then each group."""
        from rich_click.rich_panel import construct_panels

        order = (
            {"Arguments": 0} if isinstance(self, click.Group) else {"Arguments": 0, "Options": 1}
        )
        panels = construct_panels(self, ctx, formatter)  # type: ignore[arg-type]
        for panel in sorted(panels, key=lambda panel: order.get(panel.name, 2)):
            rendered: Any = panel.render(self, ctx, formatter)  # type: ignore[arg-type]
            if getattr(rendered.renderable, "rows", True):
                formatter.write(rendered)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples unchanged, because shell lines must not be wrapped."""
        if self.examples:
            from rich.text import Text

            lines = Text("Examples:\n" + "".join(f"  {line}\n" for line in self.examples))
            formatter.write(lines, no_wrap=True, overflow="ignore", crop=False)  # type: ignore

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command line and exit. Without `standalone_mode`, return or raise as click does."""
        run = partial(
            click.Command.main, self, args, prog_name, complete_var, standalone_mode=False, **extra
        )
        if not standalone_mode:
            return run()
        sys.exit(_run(run))


class Command(_Reporting):
    """A command with examples and groups of options in its help."""


class Commands(_Reporting, RichGroup):
    """A group of commands. Each command's `panel` is the heading that it is listed under."""

    command_class = Command

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands in the order in which they were added."""
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command.

        Raises:
            click.UsageError: there is no such command. If `yolo-batch-dev` has it, the message
                names that command line.
        """
        if args and args[0] in _DEVELOPER_COMMANDS and self.get_command(ctx, args[0]) is None:
            ctx.fail(
                f"`{args[0]}` is a developer's command: run `yolo-batch-dev {args[0]}` "
                "from a checkout of yolo-batch."
            )
        return super().resolve_command(ctx, args)


def option(*declarations: str, **settings: Any) -> Callable[[Any], Any]:
    """Declare an option. `panel` is the heading that it is listed under."""
    if isinstance(settings.get("type"), click.FloatRange | click.IntRange):
        settings.setdefault("metavar", "NUMBER")  # the help has the range beside it
    return _option(*declarations, **settings)


def command(
    name: str | None = None, *, examples: Sequence[str] = (), **settings: Any
) -> Callable[[Callable[..., None]], Command]:
    """Declare a command whose help ends with `examples`. See `_Reporting`."""
    return click.command(name, cls=Command, examples=examples, **settings)


def group(
    name: str | None = None, *, examples: Sequence[str] = (), **settings: Any
) -> Callable[[Callable[..., None]], Commands]:
    """Declare a command line, which is a group of commands."""
    return click.group(name, cls=Commands, examples=examples, **settings)


def _run(run: Callable[[], Any]) -> int:
    """Run a command, report its errors, and return the exit code."""
    try:
        return run() or ExitCode.DONE  # an int is the argument of `Context.exit`
    except click.exceptions.NoArgsIsHelpError as exc:
        exc.show()
        return ExitCode.USAGE
    except click.ClickException as exc:
        return _report(exc, exc.exit_code)
    except click.Abort as exc:
        if isinstance(exc.__context__, KeyboardInterrupt):
            note("Interrupted")
            return ExitCode.INTERRUPTED
        note("Aborted")
        return ExitCode.FAILED
    except ModuleNotFoundError as exc:
        extra = _EXTRA_OF.get(exc.name or "", "export")
        advice = f"install it with: pip install 'yolo-batch[{extra}]'"
        return _report(click.ClickException(f"{exc.msg}: {advice}"), ExitCode.FAILED)
    except (SettingsError, ModelError) as exc:
        return _report(click.ClickException(str(exc)), ExitCode.CANNOT_SERVE)
    except YoloBatchError as exc:
        is_outage = isinstance(exc, StorageUnavailableError | FirestoreUnavailableError)
        if is_outage and not isinstance(exc, StorageRefusedError | FirestoreRefusedError):
            return _report(click.ClickException(f"{exc}\n{_advice()}"), ExitCode.FAILED)
        return _report(click.ClickException(str(exc)), ExitCode.FAILED)
    except OSError as exc:
        return _report(click.ClickException(_os_error(exc)), ExitCode.FAILED)


def _report(exc: click.ClickException, code: int) -> int:
    if isinstance(exc, click.UsageError) and exc.ctx:
        name = exc.ctx.command_path
        note(f"Usage: {' '.join([name, *exc.ctx.command.collect_usage_pieces(exc.ctx)])}")
        note(f"Try '{name} --help' for help.\n")
    note(f"Error: {exc.format_message()}")
    return code


def _advice() -> str:
    """Return what to do if a cloud service did not respond."""
    emulators = [f"{name}={os.environ[name]}" for name in _EMULATORS if os.environ.get(name)]
    if emulators:
        return f"Check that the local stack still runs: {', '.join(emulators)}"
    return "Try again in a minute. https://status.cloud.google.com/ lists outages."


def _os_error(exc: OSError) -> str:
    if exc.filename is not None:
        return f"{exc.filename!s}: {exc.strerror}"
    if exc.errno in (errno.ENOSPC, errno.EIO, errno.EBADF):
        _discard_output()
        return f"The output cannot be written: {exc.strerror}"
    return str(exc)


def _discard_output() -> None:
    """Drop what standard output has buffered. Otherwise Python fails on it again at its exit."""
    if sys.stdout is sys.__stdout__ and sys.stdout is not None:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
