"""The generated reference is current, complete and produced from the code."""

import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from devtools.docs import (
    document,
    error_codes,
    http_contract,
    log_lines,
    settings,
    terraform,
    terraform_readme,
    terraform_root,
)
from devtools.docs.__main__ import (
    COMMAND,
    HOW_TO,
    PARTS,
    REFERENCE,
    current,
    main,
    stale_files,
    stale_pages,
)
from devtools.docs.markdown import plain, table
from service.domain import Task
from service.errors import NoFreeSlotError, TooLateError
from service.settings import Settings

LINES = {line.message: line for line in log_lines.log_lines()}


def one_line(source: str) -> log_lines.LogLine:
    [line] = log_lines.lines_of(source, "service.test")
    return line


def test_reference_is_current() -> None:
    stale = [page.name for page in stale_pages(REFERENCE) | stale_pages(HOW_TO)]
    assert not stale, f"{stale}: run `{COMMAND}` and commit the result"


def test_root_module_is_current() -> None:
    stale = [path.name for path in stale_files(terraform_root.files())]
    assert not stale, f"{stale}: run `{COMMAND}` and commit the result"


def test_readme_of_the_module_is_current() -> None:
    [(path, text)] = terraform_readme.files().items()
    assert not stale_files({path: text}), f"run `{COMMAND}` and commit the result"
    for row in ("| kms_key | ", "| [google_eventarc_trigger.uploads](https://"):
        assert row in text


def test_resource_without_a_role_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "`roles/run.admin`" in terraform.roles()
    monkeypatch.delitem(terraform._ROLES, "google_eventarc_")
    with pytest.raises(LookupError, match="google_eventarc_trigger"):
        terraform.roles()


def test_every_part_is_in_one_page() -> None:
    pages = [*REFERENCE.glob("*.md"), *HOW_TO.glob("*.md")]
    texts = "".join(page.read_text(encoding="utf-8") for page in pages)
    assert sorted(re.findall(r"<!-- generated: (\S+) -->", texts)) == sorted(PARTS)


def test_check_names_stale_pages_and_the_command(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Title\n\n<!-- generated: formats -->\nold\n<!-- end -->\n\nText.\n")
    options = ["--reference", str(tmp_path)]
    checked = CliRunner().invoke(main, ["--check", *options])
    assert checked.exit_code == 1
    assert "page.md" in checked.output and COMMAND in checked.output
    assert "old" in page.read_text()

    assert CliRunner().invoke(main, options).output == "Wrote page.md\n"
    assert "`JPEG`" in page.read_text() and page.read_text().endswith("\n\nText.\n")
    again = CliRunner().invoke(main, ["--check", *options])
    assert (again.exit_code, again.output) == (0, "The reference is current.\n")


def test_page_with_an_unknown_part_is_refused() -> None:
    with pytest.raises(KeyError, match="nothing"):
        current("<!-- generated: nothing -->\n<!-- end -->")


def test_table_cell_cannot_end_its_cell() -> None:
    assert table(("a",), [("x|y\nz",)]) == "| a |\n| --- |\n| x\\|y z |"


def test_plain_text_is_no_markdown() -> None:
    assert plain("** of <name>\nin [a]") == "\\*\\* of \\<name> in \\[a]"


# --- Settings


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("port", "a whole number from 1 to 65535"),
        ("min_confidence", "a number from 0.001 to 1"),
        ("reduced_decode", "true or false"),
        ("log_level", "one of DEBUG, INFO, WARNING, ERROR"),
        ("model_path", "a path"),
        ("device", "text"),
    ],
)
def test_allowed_values_are_those_of_the_parser(name: str, allowed: str) -> None:
    parse = Settings.__dataclass_fields__[name].metadata["parse"]
    assert settings.allowed(parse) == allowed


def test_default_is_written_as_a_person_reads_it() -> None:
    defaults = settings.defaults()
    assert defaults["PORT"] == "`8080`"
    assert defaults["REDUCED_DECODE"] == "`true`"
    assert defaults["ALLOWED_BUCKETS"] == "unset"
    assert defaults["MODEL_PATH"] == "the bundled demo model"


def test_readme_shows_eight_settings_with_their_defaults() -> None:
    readme = (REFERENCE.parents[1] / "README.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([A-Z_]+)` \| (.+?) \|", readme, re.MULTILINE))
    assert len(rows) == 8
    assert rows.items() <= settings.defaults().items()


def test_setting_without_a_group_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "GROUPS", {"Server": ("port",)})
    with pytest.raises(ValueError, match="log_level"):
        settings.render()


# --- Errors, HTTP and the document


def test_response_is_the_applications_own() -> None:
    assert http_contract.respond(None).status_code == 204
    full = http_contract.respond(NoFreeSlotError)
    assert (full.status_code, full.headers["Retry-After"]) == (429, "2")
    assert http_contract.respond(TooLateError).status_code == 503


def test_every_request_error_has_a_status() -> None:
    statuses = {
        error.__name__: http_contract.respond(error).status_code
        for error in error_codes.request_errors()
    }
    assert len(statuses) > 10
    assert set(statuses.values()) == {400, 401, 403, 429, 500, 503}
    assert [name for name, status in statuses.items() if status == 500] == ["DetectorError"]


def test_field_without_a_meaning_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    meanings = {key: value for key, value in document.MEANINGS.items() if key != "labels"}
    monkeypatch.setattr(document, "MEANINGS", meanings)
    with pytest.raises(LookupError, match="labels"):
        document.fields_table()


def test_fields_said_never_null_are_never_null() -> None:
    def values(value: Any, path: list[str]) -> list[Any]:
        if not path:
            return [value]
        name, *rest = path
        if name.endswith("[]"):
            items = value.get(name[:-2]) or ()
            return [leaf for item in items for leaf in values(item, rest)]
        return values(value[name], rest) if value is not None and name in value else []

    for path, meaning in document.MEANINGS.items():
        found = [leaf for each in document.samples() for leaf in values(each, path.split("."))]
        assert found, path
        assert meaning.null or None not in found, path


def test_every_task_has_an_example() -> None:
    shown = document.examples()
    for task in Task:
        assert f"task `{task}`" in shown
        assert f'"task": "{task}"' in shown


def test_field_is_indexed_as_terraform_says() -> None:
    rows = dict(re.findall(r"^\| `([^`]+)` \|.* \| ([^|]*) \|$", document.fields_table(), re.M))
    assert set(rows) == set(document.MEANINGS)
    assert rows["labels"] == rows["best"] == "yes"
    assert rows["name"] == "with `bucket`"
    assert rows["created_at"] == "with `shard`"
    assert not any(index for path, index in rows.items() if path.startswith("detections"))


# --- Log lines and metrics


def test_log_line_has_its_message_severity_and_fields() -> None:
    line = one_line('logger.warning("An image failed: %s", uri, extra={"uri": 1, "code": 2})')
    assert line == log_lines.LogLine(
        "An image failed: ...", ("WARNING",), ("uri", "code"), "service.test"
    )


def test_log_line_with_a_trace_has_a_field_for_it() -> None:
    assert one_line('logger.exception("Failed")').fields == ("stack_trace",)
    assert one_line('logger.error("Failed", exc_info=error)').fields == ("stack_trace",)
    assert one_line('logger.warning("Failed", exc_info=error)').fields == ("exc_info",)


def test_log_line_of_two_levels_has_both_severities() -> None:
    source = 'logger.log(logging.DEBUG if quiet else logging.WARNING, "Rejected")'
    assert one_line(source).severities == ("WARNING", "DEBUG")


def test_log_line_that_cannot_be_read_is_refused() -> None:
    for source in ('logger.info(f"x {y}")', 'logger.info("x", extra=y())', 'logger.log(z, "x")'):
        with pytest.raises(ValueError, match="line 1: "):
            one_line(source)


def test_lines_of_the_service_have_the_known_fields() -> None:
    assert {"uri", "generation", "code", "reason"} <= set(LINES["An image failed"].fields)
    assert {"images", "commit_ms", "done"} <= set(LINES["Committed"].fields)


def test_every_metric_reads_a_field_that_is_logged() -> None:
    of_requests = {"NAME/http_errors": "httpRequest.status"}  # logged by Cloud Run
    metrics = terraform.log_metrics()
    assert len(metrics) > 5
    for metric in metrics:
        if metric.name in of_requests:
            assert metric.reads == of_requests[metric.name]
            continue
        messages = re.findall(r'"([^"]+)"', metric.filter)
        assert messages and set(messages) <= set(LINES), metric.filter
        assert any(metric.reads in LINES[message].fields for message in messages), metric.name


def test_alerts_have_no_unfilled_expression() -> None:
    assert "${" not in terraform.alerts()
