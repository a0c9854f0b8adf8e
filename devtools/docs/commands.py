"""The reference of the command lines, from their click commands."""

import inspect
from collections.abc import Iterator

import click

from devtools.cli.main import main as developer_main
from devtools.docs.markdown import code, fence, plain, table
from service.cli.exit_codes import ExitCode
from service.cli.main import main


def render() -> str:
    """Return a section for each command of `yolo-batch`."""
    return _sections(main, "yolo-batch")


def render_developer() -> str:
    """Return a section for each command of `yolo-batch-dev`."""
    return _sections(developer_main, "yolo-batch-dev")


def exit_codes() -> str:
    """Return a table of the exit codes."""
    return table(("code", "meaning"), [(int(each), each.description) for each in ExitCode])


def _sections(group: click.Group, program: str) -> str:
    context = click.Context(group, info_name=program)
    parts = [f"## {program}", fence("text", _usage(context)), *_help(group)]
    commands = [
        (name, command)
        for name in group.list_commands(context)
        if (command := group.get_command(context, name))
    ]
    rows = [
        (_panel(command), f"[`{name}`](#{program}-{name})", plain(command.get_short_help_str(200)))
        for name, command in commands
    ]
    rows.sort(key=lambda row: row[0])
    parts.append(table(("group", "command", "purpose"), rows))
    for name, command in commands:
        parts.append(_section(command, name, context))
        if isinstance(command, click.Group):
            below = click.Context(command, info_name=name, parent=context)
            parts += [_section(each, key, below) for key, each in command.commands.items()]
    return "\n\n".join(parts)


def _section(command: click.Command, name: str, parent: click.Context) -> str:
    context = click.Context(command, info_name=name, parent=parent)
    parts = [f"### {context.command_path}", fence("text", _usage(context)), *_help(command)]
    if arguments := list(_arguments(command)):
        parts.append(table(("argument", "meaning"), arguments))
    if options := list(_options(command, context)):
        is_grouped = any(group for group, *_ in options)
        rows = [option[not is_grouped :] for option in options]
        parts.append(table(("group", "option", "default", "meaning")[not is_grouped :], rows))
    return "\n\n".join(parts)


def _usage(context: click.Context) -> str:
    return " ".join([context.command_path, *context.command.collect_usage_pieces(context)])


def _help(command: click.Command) -> Iterator[str]:
    """Yield the paragraphs of the help, then the examples."""
    for paragraph in inspect.cleandoc(command.help or "").partition("\f")[0].split("\n\n"):
        yield plain(paragraph)
    if examples := getattr(command, "examples", ()):
        yield fence("sh", "\n".join(examples))


def _panel(part: click.Command | click.Parameter) -> str:
    """Return the heading that groups a command or an option in the help."""
    return getattr(part, "panel", None) or ""


def _arguments(command: click.Command) -> Iterator[tuple[str, str]]:
    for argument in command.params:
        if isinstance(argument, click.Argument) and (text := getattr(argument, "help", None)):
            yield code(argument.human_readable_name), plain(text)


def _options(command: click.Command, context: click.Context) -> Iterator[tuple[str, ...]]:
    """Yield group, name, default and meaning of each option, in the order of the groups."""
    options = [each for each in command.params if isinstance(each, click.Option)]
    panels = list(dict.fromkeys(map(_panel, options)))
    for option in sorted(options, key=lambda each: panels.index(_panel(each))):
        if not (record := option.get_help_record(context)):
            continue
        extra = option.get_help_extra(context)
        default = code(extra["default"].strip("()")) if "default" in extra else ""
        allowed = f" ({code(extra['range'])})" if "range" in extra else ""
        name = code(record[0].replace(" RANGE", ""))
        yield _panel(option), name, default, plain(option.help or "") + allowed
