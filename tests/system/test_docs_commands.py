"""The shell blocks of tutorials and how-to guides that are marked `<!-- run -->`.

The blocks of a page run in their order, in a directory of their own that holds three images,
against the session's stack: bucket `uploads`, topic `jobs`, `yolo-batch` on the path.
"""

import os
import re
import shutil
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest

from devtools.demo_model.shapes import Scene
from devtools.local_stack.stack import Stack
from tests.system.conftest import PATIENT

DOCS = Path(__file__).parents[2] / "docs"
PAGES = [
    page for folder in ("tutorials", "how-to") for page in sorted((DOCS / folder).glob("*.md"))
]
# Programs that a machine may lack: `make test` does not install them.
OPTIONAL = ("gcloud", "gsutil", "jq")
MAX_SECONDS = 360  # of one block: longer is a hang

_BLOCK = re.compile(r"^( *)<!-- run -->\n\1```sh\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
# On one line with the block's first, so that bash counts lines as the block does.
_TRAP = """trap 'echo "$LINENO" > "$FAILED_LINE"' ERR; """


@dataclass(frozen=True)
class Block:
    """A shell block that runs. `line` is the number of its first line in the page."""

    line: int
    text: str


def blocks_of(text: str) -> list[Block]:
    return [
        Block(text[: match.start(2)].count("\n") + 1, textwrap.dedent(match[2]))
        for match in _BLOCK.finditer(text)
    ]


def run_block(block: Block, page: str, directory: Path) -> None:
    """Run a block with bash; fail with the page, the line, the command and the output."""
    failed_line = directory / ".failed-line"
    script = directory / ".block.sh"
    script.write_text(_TRAP + block.text, encoding="utf-8")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    try:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", str(script)],
            cwd=directory,
            env=os.environ | PATIENT | {"PATH": path, "FAILED_LINE": str(failed_line)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=MAX_SECONDS,
        )
    except subprocess.TimeoutExpired as exc:
        output = (exc.output or b"").decode(errors="replace")  # bytes, in spite of `text`
        pytest.fail(f"{page}:{block.line}: longer than {MAX_SECONDS} s\n{output}", pytrace=False)
    if done.returncode:
        number = int(failed_line.read_text()) if failed_line.exists() else 1
        command = block.text.splitlines()[number - 1]
        pytest.fail(
            f"{page}:{block.line + number - 1}: exit status {done.returncode}\n"
            f"$ {command}\n{done.stdout}",
            pytrace=False,
        )


RUNNABLE = {
    str(page.relative_to(DOCS.parent)): blocks
    for page in PAGES
    if (blocks := blocks_of(page.read_text(encoding="utf-8")))
}


@pytest.mark.parametrize("page", RUNNABLE)
def test_blocks_of_a_page_run(
    page: str, stack: Stack, samples: list[tuple[Path, Scene]], tmp_path: Path
) -> None:
    text = "\n".join(block.text for block in RUNNABLE[page])
    missing = [
        program
        for program in OPTIONAL
        if re.search(rf"\b{program}\b", text) and not shutil.which(program)
    ]
    if missing:
        pytest.skip(f"NOT RUN: {', '.join(missing)} is not installed")
    assert stack.bucket == "uploads"
    (tmp_path / "images").mkdir()
    for number, (sample, _) in enumerate(samples[:3], start=1):
        shutil.copy(sample, tmp_path / "images" / f"street-{number}.jpg")
    for block in RUNNABLE[page]:
        run_block(block, page, tmp_path)


def test_pages_have_blocks_that_run() -> None:
    assert any(page.startswith("docs/how-to/") for page in RUNNABLE)


def test_block_is_found_with_its_line() -> None:
    text = "# Page\n\n<!-- run -->\n```sh\ntrue\nfalse\n```\n\n```sh\nnot run\n```\n"
    assert blocks_of(text) == [Block(5, "true\nfalse\n")]
    indented = "1. Do:\n\n   <!-- run -->\n   ```sh\n   true\n   ```\n"
    assert blocks_of(indented) == [Block(5, "true\n")]


def test_failing_block_names_page_line_and_command(tmp_path: Path) -> None:
    block = Block(5, "echo one\nls /does-not-exist | cat\necho two\n")
    with pytest.raises(pytest.fail.Exception) as raised:
        run_block(block, "docs/how-to/page.md", tmp_path)
    message = str(raised.value)
    assert message.startswith("docs/how-to/page.md:6: exit status 2\n$ ls /does-not-exist | cat\n")
    assert "one" in message and "two" not in message
