"""The documents of the repository: links, tables, code blocks, and the tests that they name.

Each test checks all documents and lists every fault that it found.
"""

import ast
import json
import re
import subprocess
import textwrap
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
DOCUMENTS = sorted(
    {
        *REPOSITORY.glob("*.md"),
        *(
            path
            for folder in ("docs", "devtools", "terraform", "models", "examples")
            for path in (REPOSITORY / folder).rglob("*.md")
            if ".terraform" not in path.parts
        ),
    }
)
README_LINES = 200
COMMENTS = r"run|end|generated: [\w-]+|Written by [^>]*|(BEGIN|END)_TF_DOCS"

_FENCE = re.compile(r"^( *)(`{3,})([^`\n]*)\n(.*?)^\1\2 *$", re.MULTILINE | re.DOTALL)
_TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


@dataclass(frozen=True)
class Block:
    """A fenced code block. `line` is the number of its first line in the document."""

    document: Path
    line: int
    language: str
    text: str

    @property
    def where(self) -> str:
        return f"{self.document.relative_to(REPOSITORY)}:{self.line}"


@cache
def text_of(document: Path) -> str:
    return document.read_text(encoding="utf-8")


@cache
def prose_of(document: Path) -> str:
    """The document without its code blocks; line numbers stay as they are."""
    return _FENCE.sub(lambda match: "\n" * match[0].count("\n"), text_of(document))


def blocks(*languages: str) -> list[Block]:
    return [
        Block(document, text_of(document)[: match.start()].count("\n") + 2, language, code)
        for document in DOCUMENTS
        for match in _FENCE.finditer(text_of(document))
        if (language := match[3].strip()) in languages or not languages
        for code in [textwrap.dedent(match[4])]
    ]


def lines_that_match(pattern: str) -> Iterator[tuple[str, "re.Match[str]"]]:
    """Each match in the prose of a document, with its place."""
    for document in DOCUMENTS:
        for number, line in enumerate(prose_of(document).splitlines(), start=1):
            for match in re.finditer(pattern, line):
                yield f"{document.relative_to(REPOSITORY)}:{number}", match


@cache
def anchors(document: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub and the site make them."""
    found: Counter[str] = Counter()
    names = set()
    for heading in re.findall(r"^#+ (.+)$", prose_of(document), re.MULTILINE):
        title = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)  # a link's text
        anchor = re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-")
        names.add(f"{anchor}-{found[anchor]}" if found[anchor] else anchor)
        found[anchor] += 1
    return names


@cache
def functions(file: str) -> set[str]:
    path = REPOSITORY / file
    if not path.exists():
        return set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def listed(faults: list[str]) -> str:
    return "\n".join(["", *faults])


def test_there_are_documents_to_check() -> None:
    assert len(DOCUMENTS) > 20
    assert len(blocks()) > 20
    assert len(list(lines_that_match(_TEST.pattern))) > 20


def test_links_point_to_files_and_headings() -> None:
    faults = []
    for where, match in lines_that_match(r"\]\(([^)\s]+)(?: \"[^\"]*\")?\)"):
        path, _, anchor = match[1].partition("#")
        if "://" in match[1] or match[1].startswith("mailto:"):
            continue
        document = REPOSITORY / where.partition(":")[0]
        target = (document.parent / path).resolve() if path else document
        if not target.exists():
            faults.append(f"{where}: no file {match[1]}")
        elif anchor and anchor not in anchors(target):
            faults.append(f"{where}: no heading {match[1]}")
    assert not faults, listed(faults)


def test_links_of_the_site_stay_in_the_site() -> None:
    """The site has docs/ alone: there, name other files of the repository in `code`."""
    faults = []
    for where, match in lines_that_match(r"\]\(([^)\s#]+)"):
        document = REPOSITORY / where.partition(":")[0]
        if document.is_relative_to(REPOSITORY / "docs") and "://" not in match[1]:
            target = (document.parent / match[1]).resolve()
            if not target.is_relative_to(REPOSITORY / "docs") or target.is_dir():
                faults.append(f"{where}: {match[1]}")
    assert not faults, listed(faults)


def test_tests_that_documents_name_exist() -> None:
    faults = [
        f"{where}: {match[0]}"
        for where, match in lines_that_match(_TEST.pattern)
        if not match[2].startswith("test_") or match[2] not in functions(match[1])
    ]
    assert not faults, listed(faults)


def test_documents_have_nothing_left_to_fill_in() -> None:
    pattern = rf"<!--(?! ({COMMENTS}) -->).*|\b(TODO|FIXME|XXX)\b.*"
    faults = [f"{where}: {match[0]}" for where, match in lines_that_match(pattern)]
    assert not faults, listed(faults)


def test_tables_are_whole() -> None:
    """A blank line inside a table cuts it: the rest is shown as text."""
    faults = []
    for document in DOCUMENTS:
        lines = ["", *prose_of(document).splitlines(), ""]
        for number, line in enumerate(lines):
            begins = line.startswith("|") and not lines[number - 1].startswith("|")
            if begins and not re.fullmatch(r"[|:\- ]+", lines[number + 1]):
                faults.append(f"{document.relative_to(REPOSITORY)}:{number}: {line[:60]}")
    assert not faults, listed(faults)


def test_lists_and_tables_follow_a_blank_line() -> None:
    """Otherwise the site, unlike GitHub, shows them as part of the paragraph before."""
    faults = []
    for document in DOCUMENTS:
        if not document.is_relative_to(REPOSITORY / "docs"):
            continue
        lines = ["", *prose_of(document).splitlines()]
        for number, line in enumerate(lines):
            before = lines[number - 1] if number else ""
            is_start = re.match(r"(- |\* |1\. |\|)", line)
            is_inside = re.match(r"(\s|- |\* |\d+\. |\||<!--|$)", before)
            if is_start and not is_inside:
                faults.append(f"{document.relative_to(REPOSITORY)}:{number}: {line[:60]}")
    assert not faults, listed(faults)


def test_code_blocks_have_a_language() -> None:
    faults = [block.where for block in blocks() if not block.language]
    assert not faults, listed(faults)


def test_json_blocks_parse() -> None:
    faults = []
    for block in blocks("json"):
        try:
            json.loads(block.text)
        except ValueError as exc:
            faults.append(f"{block.where}: {exc}")
    assert not faults, listed(faults)


def test_python_blocks_compile() -> None:
    faults = []
    for block in blocks("python"):
        try:
            compile(block.text, block.where, "exec")
        except SyntaxError as exc:
            faults.append(f"{block.where}: {exc}")
    assert not faults, listed(faults)


def test_shell_blocks_parse() -> None:
    faults = []
    for block in blocks("sh", "bash"):
        command = ["bash", "-n"]
        done = subprocess.run(command, input=block.text, capture_output=True, text=True)
        if done.returncode:
            faults.append(f"{block.where}: {done.stderr.strip()}")
    assert not faults, listed(faults)


def test_blocks_that_run_are_shell_blocks() -> None:
    """`<!-- run -->` stands directly before a ```sh block, in tutorials and how-to guides."""
    faults = []
    for document in DOCUMENTS:
        folder = document.parent.name
        lines = text_of(document).splitlines()
        for number, line in enumerate(lines, start=1):
            if line.strip() != "<!-- run -->":
                continue
            follows = lines[number].strip() if number < len(lines) else ""
            if follows != "```sh" or folder not in ("tutorials", "how-to"):
                faults.append(f"{document.relative_to(REPOSITORY)}:{number}: {follows}")
    assert not faults, listed(faults)


def test_readme_has_at_most_200_lines() -> None:
    assert len((REPOSITORY / "README.md").read_text().splitlines()) <= README_LINES
