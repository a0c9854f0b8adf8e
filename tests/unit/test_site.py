"""The documentation site: it builds without a warning, can be searched, and loads only itself."""

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
BUILD_SECONDS = 300

# Addresses in the theme's own script, and what would make it load them.
_THEME_LOADS = {
    "https://unpkg.com/mermaid@": 'class="mermaid"',  # a diagram in a page
    "https://api.github.com/": 'data-md-component="source"',  # a link to a repository
    "https://${e}/api/v4/": 'data-md-component="source"',
    # A browser older than 2020. No page can prevent it, so it is only listed.
    "https://unpkg.com/resize-observer-polyfill": None,
}
_NAMESPACES = ("http://www.w3.org/",)  # names of XML vocabularies: nothing is loaded
_LOADING_ATTRIBUTES = ("src", "srcset", "poster", "data", "background", "action", "formaction")
_PASSIVE_LINKS = ("canonical", "alternate", "author", "license", "next", "prev")
_OTHER_HOST = r"(?:https?:|wss?:)?//[^\s\"'`)]+"


class Page(HTMLParser):
    """Collects what a browser loads with a page, and the text of its paragraphs."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.code: list[str] = []  # of scripts and styles
        self.paragraphs: list[str] = []
        self._open = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.loads += [values[name] for name in _LOADING_ATTRIBUTES if name in values]
        if tag == "link" and values.get("rel") not in _PASSIVE_LINKS:
            self.loads.append(values.get("href", ""))
        if tag in ("image", "use"):
            self.loads += [values.get("href", ""), values.get("xlink:href", "")]
        if tag == "meta" and values.get("http-equiv", "").lower() == "refresh":
            self.loads.append(values.get("content", ""))
        self.code.append(values.get("style", ""))
        if tag in ("script", "style", "p"):
            self._open = tag
            if tag == "p":
                self.paragraphs.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == self._open:
            self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open in ("script", "style"):
            self.code.append(data)
        elif self._open == "p":
            self.paragraphs[-1] += data


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> "subprocess.CompletedProcess[str]":
    """The build of the site; its last argument is the folder of the site."""
    target = tmp_path_factory.mktemp("site")
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(target)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=BUILD_SECONDS,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )


@pytest.fixture(scope="module")
def site(build: "subprocess.CompletedProcess[str]") -> Path:
    return Path(build.args[-1])


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Page]:
    return {str(path.relative_to(site)): Page(path) for path in sorted(site.rglob("*.html"))}


def other_hosts(text: str) -> list[str]:
    return [found for found in re.findall(_OTHER_HOST, text) if not found.startswith(_NAMESPACES)]


def loads_of_style(text: str) -> list[str]:
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    text = re.sub(r"url\(([\"']?)data:.*?\1\)", "", text, flags=re.DOTALL)  # carries its content
    addresses = re.findall(r"url\(\s*([^)]*)\)|@import\s+[\"']([^\"']*)", text)
    return [found for address in addresses for found in other_hosts("".join(address))]


def loads_of_script(text: str) -> list[str]:
    """Addresses of other hosts in a script's strings; its comments are not strings."""
    strings = re.findall(r"[\"'`]((?:https?:|wss?:)?//[^\s\"'`/]*[.}][^\s\"'`]*)", text)
    return [found for found in strings if not found.startswith(_NAMESPACES)]


def test_site_builds_without_a_warning(build: "subprocess.CompletedProcess[str]") -> None:
    assert build.returncode == 0, build.stdout + build.stderr


def test_pages_load_from_no_other_host(pages: dict[str, Page]) -> None:
    assert len(pages) > 20
    faults = [
        f"{name}: {load}"
        for name, page in pages.items()
        for load in [
            *(found for each in page.loads for found in other_hosts(each)),
            *(found for each in page.code for found in loads_of_style(each)),
            *(found for each in page.code for found in loads_of_script(each)),
        ]
    ]
    assert not faults, "\n".join(faults)


def test_styles_load_from_no_other_host(site: Path) -> None:
    styles = sorted(site.rglob("*.css"))
    assert styles
    assert [load for path in styles for load in loads_of_style(path.read_text())] == []


def test_scripts_load_from_no_other_host(site: Path) -> None:
    """The theme's script names other hosts, but only for elements that no page has."""
    scripts = sorted(site.rglob("*.js"))
    html = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.html"))
    loads = {load for path in scripts for load in loads_of_script(path.read_text(encoding="utf-8"))}
    assert loads  # or the pattern finds nothing any more
    for load in loads:
        [element] = [value for start, value in _THEME_LOADS.items() if load.startswith(start)]
        assert element is None or element not in html, f"a page makes the theme load {load}"


def test_drawings_load_from_no_other_host(site: Path) -> None:
    for path in site.rglob("*.svg"):
        assert other_hosts(path.read_text(encoding="utf-8")) == [], path.name


@pytest.mark.parametrize(
    ("text", "loads"),
    [
        ("@import 'https://fonts.example/a.css';", 1),
        ("a { background: url(//cdn.example/a.png) }", 1),
        ("a { background: url('data:image/svg+xml;<!-- https://a.example -->') }", 0),
        ("/* https://example.com */ a { background: url(a.png) }", 0),
    ],
)
def test_loads_of_a_style_are_found(text: str, loads: int) -> None:
    assert len(loads_of_style(text)) == loads


@pytest.mark.parametrize(
    ("text", "loads"),
    [
        ('fetch("https://example.com/a")', 1),
        ("load(`//cdn.example/${name}`)", 1),
        ("// https://example.com\nload('a.js')", 0),
    ],
)
def test_loads_of_a_script_are_found(text: str, loads: int) -> None:
    assert len(loads_of_script(text)) == loads


def test_loads_of_a_page_are_found(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(
        '<link rel="stylesheet" href="//a.example/a.css"><link rel="canonical" href="//b.example">'
        '<img srcset="https://c.example/c.png 2x"><a href="https://d.example">d</a>'
    )
    assert [found for each in Page(path).loads for found in other_hosts(each)] == [
        "//a.example/a.css",
        "https://c.example/c.png",
    ]


def test_no_paragraph_shows_markdown(pages: dict[str, Page]) -> None:
    """A list or a table without a blank line before it becomes part of the paragraph."""
    faults = [
        f"{name}: {paragraph[:80]!r}"
        for name, page in pages.items()
        for paragraph in page.paragraphs
        if re.search(r"\n\s*(- |\* |1\. |\||```)", paragraph)
    ]
    assert not faults, "\n".join(faults)


def test_search_index_has_every_page(site: Path, pages: dict[str, Page]) -> None:
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    found = {entry["location"].partition("#")[0] + "index.html" for entry in index["docs"]}
    assert found == set(pages) - {"404.html"}


def test_navigation_has_every_page_once() -> None:
    class Loader(yaml.SafeLoader):
        """Reads the configuration without its Python objects."""

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)
    text = (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8")
    listed = re.findall(r"[\w/-]+\.md", str(yaml.load(text, Loader)["nav"]))  # noqa: S506
    docs = REPOSITORY / "docs"
    assert sorted(listed) == sorted(str(path.relative_to(docs)) for path in docs.rglob("*.md"))
