"""The command lines: from their click commands."""

import inspect
from collections.abc import Iterator

import click

from devtools.cli.main import main as developer_main
from devtools.docs.markdown import code, fence, table
from service.cli.main import main


def render() -> str:
    """Return a section for each command of `yolo-batch`."""
    return _sections(main, "yolo-batch")


def render_developer() -> str:
    """Return a section for each command of `yolo-batch-dev`."""
    return _sections(developer_main, "yolo-batch-dev")


def exit_codes() -> str:
    """Return a table of the exit codes."""
    return ""


def _sections(group: click.Group, program: str) -> str:
    context = click.Context(group, info_name=program)
    parts = [f"## {program}", fence("text", _usage(context)), *_help(group)]
    names = group.list_commands(context)
    commands = [(name, command) for name in names if (command := group.get_command(context, name))]
    rows = [
        (f"[`{name}`](#{program}-{name})", command.get_short_help_str(200))
        for name, command in commands
    ]
    parts.append(table(("command", "purpose"), rows))
    parts += [_section(command, name, context) for name, command in commands]
    return "\n\n".join(parts)


def _section(command: click.Command, name: str, parent: click.Context) -> str:
    context = click.Context(command, info_name=name, parent=parent)
    parts = [f"### {context.command_path}", fence("text", _usage(context)), *_help(command)]
    if options := list(_options(command, context)):
        parts.append(table(("option", "default", "meaning"), options))
    return "\n\n".join(parts)


def _usage(context: click.Context) -> str:
    return " ".join([context.command_path, *context.command.collect_usage_pieces(context)])


def _help(command: click.Command) -> Iterator[str]:
    """Yield the paragraphs of the help; those that keep their line breaks, as code."""
    for text in (command.help, command.epilog):
        for paragraph in inspect.cleandoc(text or "").partition("\f")[0].split("\n\n"):
            if paragraph.startswith("\b"):
                yield fence("text", inspect.cleandoc(paragraph.removeprefix("\b")))
            elif paragraph:
                yield " ".join(paragraph.split())


def _options(command: click.Command, context: click.Context) -> Iterator[tuple[str, str, str]]:
    for option in command.params:
        if isinstance(option, click.Option) and (record := option.get_help_record(context)):
            extra = option.get_help_extra(context)
            default = code(extra["default"].strip("()")) if "default" in extra else ""
            allowed = f" ({code(extra['range'])})" if "range" in extra else ""
            yield code(record[0].replace(" RANGE", "")), default, (option.help or "") + allowed
