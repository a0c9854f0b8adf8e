"""The tables in the README of the Terraform module, as terraform-docs writes them (no anchors)."""

import re
from pathlib import Path

from devtools.docs.markdown import code, table
from devtools.docs.terraform import MODULE, blocks, default_of, named

README = MODULE / "README.md"
_TABLES = re.compile(r"(<!-- BEGIN_TF_DOCS -->\n).*(<!-- END_TF_DOCS -->)", re.DOTALL)
_REGISTRY = "https://registry.terraform.io/providers"
_BUILT_IN = "https://developer.hashicorp.com/terraform/language/resources/terraform-data"


def files() -> dict[Path, str]:
    """Return the README with its tables written again. The text around them is written by hand."""
    text = README.read_text(encoding="utf-8")
    parts = {
        "Requirements": _requirements(),
        "Providers": _providers(),
        "Modules": "No modules.",
        "Resources": _resources(),
        "Inputs": _inputs(),
        "Outputs": _outputs(),
    }
    tables = "\n\n".join(f"## {title}\n\n{part}" for title, part in parts.items())
    return {README: _TABLES.sub(lambda match: f"{match[1]}{tables}\n{match[2]}", text)}


def _required() -> dict[str, dict[str, str]]:
    [settings] = blocks("terraform")
    [providers] = settings["required_providers"]
    return dict(sorted(providers.items()))


def _requirements() -> str:
    [settings] = blocks("terraform")
    versions = {"terraform": settings["required_version"]}
    versions |= {name: each["version"] for name, each in _required().items()}
    return table(("Name", "Version"), list(versions.items()))


def _providers() -> str:
    versions = {name: each["version"] for name, each in _required().items()} | {"terraform": "n/a"}
    return table(("Name", "Version"), sorted(versions.items()))


def _resources() -> str:
    rows = []
    for block, section, label in (
        ("resource", "resources", "resource"),
        ("data", "data-sources", "data source"),
    ):
        found = [
            (f"{kind}.{name}", kind, body.get("provider"))
            for each in blocks(block)
            for kind, named_bodies in each.items()
            for name, body in named_bodies.items()
        ]
        rows += [
            (f"[{name}]({_page(kind, provider, section)})", label)
            for name, kind, provider in sorted(found, key=lambda each: each[0])
        ]
    return table(("Name", "Type"), rows)


def _page(kind: str, provider: str | None, section: str) -> str:
    prefix, _, name = kind.partition("_")
    source = _required().get((provider or prefix).strip("${}"))
    return f"{_REGISTRY}/{source['source']}/latest/docs/{section}/{name}" if source else _BUILT_IN


def _inputs() -> str:
    rows = []
    for name, body in sorted(named("variable")):
        given = "default" in body
        rows.append(
            (
                name,
                body["description"],
                code(body["type"].strip("${}")),
                default_of(body) if given else "n/a",
                "no" if given else "yes",
            )
        )
    return table(("Name", "Description", "Type", "Default", "Required"), rows)


def _outputs() -> str:
    rows = [(name, body["description"]) for name, body in sorted(named("output"))]
    return table(("Name", "Description"), rows)
