"""The help of every command: what it contains, in a pipe and on a narrow terminal."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from devtools.cli.main import main as dev_main
from service.cli.commands import Command, Commands
from service.cli.main import main

LINES = {"yolo-batch": main, "yolo-batch-dev": dev_main}
MOST_UNGROUPED = 7  # options under "Options", --help among them
WIDTH = 80


def commands() -> Iterator[tuple[str, Command | Commands]]:
    for name, line in LINES.items():
        yield name, line
        for command in line.commands.values():
            yield from below(name, command)


def below(path: str, command: click.Command) -> Iterator[tuple[str, Command | Commands]]:
    """A command with its path, and the commands of a group."""
    assert isinstance(command, Command | Commands)
    path = f"{path} {command.name}"
    yield path, command
    if isinstance(command, Commands):
        for each in command.commands.values():
            yield from below(path, each)


COMMANDS = dict(commands())


def help_of(path: str, **environment: str) -> str:
    line, *arguments = path.split()
    done = CliRunner().invoke(
        LINES[line], [*arguments, "--help"], prog_name=line, env=dict(environment)
    )
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.parametrize("path", COMMANDS)
def test_help_begins_with_one_short_sentence(path: str) -> None:
    usage, sentence = help_of(path).split("\n\n")[:2]
    assert usage.startswith(f"Usage: {path} ")
    assert sentence.count(". ") == 0 and sentence.endswith(".")
    assert len(sentence) < 2 * WIDTH


@pytest.mark.parametrize("path", COMMANDS)
def test_help_is_plain_and_80_columns_wide_in_a_pipe(path: str) -> None:
    for environment in ({}, {"NO_COLOR": "1"}, {"GITHUB_ACTIONS": "true"}):
        text = help_of(path, **environment)
        assert text.isascii()
        assert "\x1b" not in text
        assert max(map(len, text.splitlines())) <= WIDTH
        assert not re.search(r" $", text, re.MULTILINE)
        assert "\n\n\n" not in text


@pytest.mark.parametrize("path", COMMANDS)
def test_help_of_every_option_and_argument_is_written(path: str) -> None:
    for parameter in COMMANDS[path].params:
        assert getattr(parameter, "help", None), parameter.name


@pytest.mark.parametrize("path", COMMANDS)
def test_many_options_are_grouped(path: str) -> None:
    options = [p for p in COMMANDS[path].params if isinstance(p, click.Option)]
    ungrouped = [p for p in options if not getattr(p, "panel", None)]
    assert len(ungrouped) < MOST_UNGROUPED


@pytest.mark.parametrize("line", LINES)
def test_every_command_is_in_a_group(line: str) -> None:
    panels = [getattr(command, "panel", None) for command in LINES[line].commands.values()]
    assert all(panels)
    text = help_of(line)
    assert [text.index(f"\n{panel}:") for panel in dict.fromkeys(panels)] == sorted(
        text.index(f"\n{panel}:") for panel in dict.fromkeys(panels)
    )
    assert "\nCommands:" not in text


@pytest.mark.parametrize("path", COMMANDS)
def test_examples_are_command_lines_that_parse(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("photos", "my_openvino_model"):
        (tmp_path / name).mkdir()
    (tmp_path / "sources.yaml").touch()
    monkeypatch.chdir(tmp_path)
    examples = [line for line in COMMANDS[path].examples if not line.startswith("#")]
    assert 1 <= len(examples) <= 3
    for example in examples:
        assert f"  {example}\n" in help_of(path)
        words = shlex.split(example.split(">")[0].split("<")[0])
        while "=" in words[0]:  # a variable of the environment
            words.pop(0)
        line, name, *arguments = words
        command = LINES[line].commands[name]
        while isinstance(command, Commands):
            name, *arguments = arguments
            command = command.commands[name]
        if "--help" not in arguments:
            command.make_context(name, arguments)  # raises a usage error


def test_local_examples_run(tmp_path: Path) -> None:
    from devtools.demo_model.shapes import write_samples

    write_samples(tmp_path / "photos")
    [example, *_] = COMMANDS["yolo-batch detect"].examples
    assert "photos" in example and "annotated" in example
    program, *arguments = shlex.split(example)
    done = subprocess.run(
        [Path(sys.executable).with_name(program), *arguments],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" done ") == len(list((tmp_path / "annotated").iterdir())) == 12


@pytest.mark.parametrize(
    ("words", "completions"),
    [
        ("yolo-batch re", {"results", "reconcile"}),
        ("yolo-batch export --pre", {"--precision"}),
        ("yolo-batch export --precision ", {"fp32", "fp16", "int8"}),
        ("yolo-batch reconcile --enqueue ", {"missing", "failed", "stale", "all"}),
        ("yolo-batch detect --device ", {"cpu", "cuda:0"}),
        ("yolo-batch-dev chaos --without storage", {"storage 429"}),
    ],
)
def test_shell_completes(words: str, completions: set[str]) -> None:
    program = words.split()[0]
    variable = f"_{program.replace('-', '_').upper()}_COMPLETE"
    own = {variable: "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    done = subprocess.run(
        [Path(sys.executable).with_name(program)],
        env=dict(os.environ) | own, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert completions <= {line.partition(",")[2] for line in done.stdout.splitlines()}


def test_help_of_a_terminal_has_no_colour_under_no_color() -> None:
    from tests.unit.test_output import printed_on_terminal

    code = "from service.cli.main import main; main(['export', '--help'])"
    coloured = printed_on_terminal(code, columns=60).decode()
    assert re.search(r"\x1b\[[\d;]*3\d", coloured)
    plain = printed_on_terminal(code, columns=60, NO_COLOR="1").decode()
    assert not re.search(r"\x1b\[[\d;]*[349]\d", plain)
    text = re.sub(r"\x1b\[[\d;]*m", "", plain)
    assert max(len(line) for line in text.splitlines() if not line.startswith("  yolo")) <= 60


def test_commands_in_the_advice_of_alerts_exist() -> None:
    page = Path(__file__).parents[2] / "docs" / "reference" / "logs-and-metrics.md"
    lines = re.findall(r"`(yolo-batch [^`]+)`", page.read_text(encoding="utf-8"))
    assert len(lines) >= 3
    for line in lines:
        words = shlex.split(line)
        path = next(p for p in (" ".join(words[:3]), " ".join(words[:2])) if p in COMMANDS)
        options = {option for parameter in COMMANDS[path].params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options, line
