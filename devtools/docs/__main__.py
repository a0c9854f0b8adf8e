"""Write the generated parts of the reference, of terraform/ and of service/, or check them.

    python -m devtools.docs            # writes pages in docs/, and files elsewhere
    python -m devtools.docs --check    # exits with 1 and names the files that are not current

A page marks each generated part. The text around the parts is written by hand:

    <!-- generated: settings -->
    ...
    <!-- end -->
"""

import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import click

from devtools.docs import (
    alerts,
    commands,
    document,
    error_codes,
    http_contract,
    indexes,
    log_lines,
    openapi,
    result_message,
    settings,
    tasks,
    terraform,
    terraform_readme,
    terraform_root,
)

REPOSITORY = Path(__file__).parents[2]
REFERENCE = REPOSITORY / "docs" / "reference"
HOW_TO = REPOSITORY / "docs" / "how-to"
COMMAND = "python -m devtools.docs"

PARTS: Mapping[str, Callable[[], str]] = {
    "alert-document-examples": alerts.document_examples,
    "alert-document-fields": alerts.document_fields,
    "alert-message-examples": alerts.message_examples,
    "alert-message-fields": alerts.message_fields,
    "alerts": terraform.alerts,
    "commands": commands.render,
    "detect-statuses": openapi.statuses,
    "developer-commands": commands.render_developer,
    "document-examples": document.examples,
    "document-fields": document.fields_table,
    "error-codes": error_codes.describe,
    "exit-codes": commands.exit_codes,
    "formats": error_codes.formats,
    "http-examples": http_contract.examples,
    "http-probes": http_contract.probes,
    "http-routes": http_contract.routes,
    "http-statuses": http_contract.statuses,
    "index-entries": indexes.storage,
    "indexes": indexes.render,
    "internal-errors": error_codes.internal_errors,
    "log-lines": log_lines.render,
    "message-examples": result_message.examples,
    "message-fields": result_message.fields_table,
    "metrics": terraform.metrics,
    "outcomes": error_codes.outcomes,
    "settings": settings.render,
    "task-examples": tasks.examples,
    "terraform-outputs": terraform.outputs,
    "terraform-roles": terraform.roles,
    "terraform-variables": terraform.variables,
}

_MARKED = re.compile(r"(<!-- generated: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def current(text: str, parts: Mapping[str, Callable[[], str]] = PARTS) -> str:
    """Return the text of a page, with its parts generated again.

    Raises:
        KeyError: the page marks a part that does not exist.
    """
    return _MARKED.sub(lambda match: f"{match[1]}\n{parts[match[2]]()}\n\n{match[3]}", text)


def stale_pages(directory: Path) -> dict[Path, str]:
    """Return the new text of every page in a directory that is out of date."""
    texts = {page: page.read_text(encoding="utf-8") for page in sorted(directory.glob("*.md"))}
    return {page: new for page, text in texts.items() if (new := current(text)) != text}


def stale_files(files: Mapping[Path, str]) -> dict[Path, str]:
    """Return the files, of those given with their texts, whose text on disk differs."""
    return {
        path: text
        for path, text in files.items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    }


@click.command()
@click.option("--check", is_flag=True, help="Write nothing. Exit with 1 if a page is not current.")
@click.option(
    "--reference",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default=REFERENCE,
    help="Folder of the pages, by default docs/reference.",
)
def main(check: bool, reference: Path) -> None:
    """Write the generated parts of the reference, the root module, and the module's README."""
    stale = stale_pages(reference) | stale_pages(HOW_TO)
    stale |= stale_files(terraform_root.files() | terraform_readme.files() | openapi.files())
    stale |= stale_files(result_message.files() | alerts.files())
    if check and stale:
        names = ", ".join(page.name for page in stale)
        raise click.ClickException(
            f"The reference is not current: {names}. Run `{COMMAND}` and commit the result."
        )
    for page, text in stale.items():
        page.write_text(text, encoding="utf-8")
        click.echo(f"Wrote {page.name}")
    if not stale:
        click.echo("The reference is current.")


if __name__ == "__main__":
    # The application handles requests here. Its log lines do not interest the user of this command.
    logging.getLogger("service").addHandler(logging.NullHandler())
    main()
