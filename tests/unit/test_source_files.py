"""Files of sources: every fault with its line, and what changes between two versions."""

import re
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from service.cli.main import main
from service.sources.changes import changes
from service.sources.files import Fault, FaultyFileError, load
from service.sources.schema import Source, Sources, parse

FAULTY = """\
sources:
  - id: yard
    bucket: uploads
    zones:
      - name: gate
        mode: include
        points: [[0, 0], [1, 0],
                 [0, 3]]
  - id: road
    bucket: uploads
    min_confidense: 1
  - id: zoo
    bucket: uploads
    enabled: yes please
  - id: farm
    bucket: uploads
    zones:
      - name: gate
        mode: include
        points:
          - [0, 0]
          - [1, 1]
          - {x: 0.5, y: 0.5}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "sources.yaml"


def faults(file: Path, text: str) -> list[Fault]:
    file.write_text(text, encoding="utf-8")
    with pytest.raises(FaultyFileError) as caught:
        load(file)
    return caught.value.faults


def check(file: Path) -> Result:
    return CliRunner().invoke(main, ["sources", "check", str(file)])


def test_fault_of_each_source_is_named_with_its_line(file: Path) -> None:
    found = faults(file, FAULTY)
    assert [fault.line for fault in found] == [8, 11, 14, 18]
    for fault, text in zip(
        found,
        ("must be at most 1", "`min_confidense`", "must be true or false, not text", "crosses"),
        strict=True,
    ):
        assert text in fault.message


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("sources: [\n", 2, "not valid YAML: expected the node content"),
        ("", 1, "the file must be a mapping, not empty"),
        ("sources: []\ntopic: jobs\n", 2, "unknown field `topic` in the file"),
        ("sources:\n  - 5\n", 2, "sources[0] must be a mapping, not a number"),
        (
            "sources:\n  - id: a\n    bucket: aaa\n    id: b\n",
            4,
            "the key id occurs twice in one mapping",
        ),
        (
            "sources:\n  - {id: a, bucket: aaa}\n\n  - {id: b, bucket: aaa}\n",
            4,
            "the source in line 2 has the same prefix gs://aaa/",
        ),
        (
            "sources:\n  - {id: a, bucket: aaa}\n  - {id: a, bucket: bbb}\n",
            3,
            "the source in line 2 has the same id a",
        ),
        ("sources: &s\n  - *s\n", 1, "sources[0] must be a mapping, not a list"),
        ("sources: []\n? [a, b]\n: 1\n", 2, "unhashable key"),
        ("sources: !!bool perhaps\n", 1, "does not fit its YAML tag"),
        ("sources: !!int ''\n", 1, "does not fit its YAML tag"),
        ("sources: !!timestamp now\n", 1, "does not fit its YAML tag"),
        (
            'sources:\n  - {id: a, bucket: aaa,\n     prefix: "\\ud800"}\n',
            3,
            "must be valid Unicode",
        ),
        ("sources: \0\n", 1, "the file is not valid YAML"),
        (
            "groups: {pets: [dog]}\nsources:\n  - id: a\n    bucket: aaa\n    alerts:\n"
            "      - name: r\n        group: pets\n      - name: s\n        group: cars\n",
            9,
            "there is no group cars (sources[0].alerts[1].group)",
        ),
        (
            "groups: {1: [dog]}\nsources: []\n",
            1,
            "a key of groups must be text, not a number",
        ),
        (
            "sources:\n  - id: a\n    bucket: aaa\n    alerts:\n      - name: r\n"
            "      - name: s\n        zones: [gate]\n",
            7,
            "source a has no include zone gate, so rule s could not use it",
        ),
        (
            "sources:\n  - id: a\n    bucket: aaa\n    alerts:\n      - name: r\n"
            "      - severity: info\n        name: r\n",
            7,
            "source a has two rules named r",
        ),
        (
            "groups:\n  dogs: [dog]\n  my-pets: []\nsources: []\n",
            3,
            "groups.my-pets must not be empty",
        ),
    ],
)
def test_fault_of_a_file_is_named_with_its_line(
    file: Path, text: str, line: int, message: str
) -> None:
    [fault] = faults(file, text)
    assert fault.line == line
    assert message in fault.message


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("{bucket: aaa}", "sources[0] lacks the field `id`"),
        (
            "{id: Cam 1, bucket: aaa}",
            "sources[0].id must be 1 to 63 lower-case letters, digits or hyphens",
        ),
        (
            "{id: a, bucket: 'gs://aaa'}",
            "sources[0].bucket must be the name of a bucket, without gs://",
        ),
        (
            "{id: a, bucket: aaa, min_confidence: high}",
            "sources[0].min_confidence must be a number or empty, not text",
        ),
        ("{id: a, bucket: aaa, latitude: -91}", "sources[0].latitude must be at least -90"),
        (
            "{id: a, bucket: aaa, keep_labels: []}",
            "sources[0].keep_labels must not be empty",
        ),
        (
            "{id: a, bucket: aaa, timezone: ''}",
            "sources[0].timezone must not be empty",
        ),
        (
            "{id: a, bucket: aaa, min_confidence_by_label: {'': 0.5}}",
            "a key of sources[0].min_confidence_by_label must not be empty",
        ),
        ("{id: a, bucket: aaa, model: big}", "sources[0].model must be default, not big"),
        (
            "{id: a, bucket: aaa, zones: [{name: z, mode: in, points: []}]}",
            "sources[0].zones[0].mode must be include or exclude, not in",
        ),
        (
            "{id: a, bucket: aaa, zones: [{name: z, mode: include, points: [[0, 0, 0]]}]}",
            "sources[0].zones[0].points must have at least 3 elements",
        ),
        (
            "{id: a, bucket: aaa, silent_minutes: 1.5}",
            "sources[0].silent_minutes must be a whole number",
        ),
        (
            "{id: a, bucket: aaa, alerts: [{name: r, between: 22-6}]}",
            'sources[0].alerts[0].between must be two local times, for example "22:00-06:00"',
        ),
        (
            "{id: a, bucket: aaa, alerts: [{name: r, severity: high}]}",
            "sources[0].alerts[0].severity must be info or warning or critical, not high",
        ),
        (
            "{id: a, bucket: aaa, alerts: [{name: r, labels: [dog], group: pets}]}",
            "rule r has both labels and group: give one of them (sources[0].alerts[0])",
        ),
        (
            "{id: a, bucket: aaa, timezone: Berlin}",
            "source a: 'Berlin' is not a time zone. Use a name such as Europe/Berlin (sources[0])",
        ),
    ],
)
def test_fault_is_a_sentence(file: Path, fields: str, message: str) -> None:
    [fault] = faults(file, f"sources:\n  - {fields}\n")
    assert fault.message == message


def test_small_file_with_many_aliases_is_checked_at_once(file: Path) -> None:
    lines = ["a0: &a0 [1]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 200))]
    [fault] = faults(file, "\n".join(lines))
    assert "unknown field" in fault.message


def test_check_prints_the_faults_and_fails(file: Path) -> None:
    file.write_text(FAULTY)
    done = check(file)
    assert done.exit_code == 1
    assert f"{file}:11: unknown field `min_confidense` in sources[1]" in done.stderr
    assert done.stderr.count(f"{file}:") == 4


def test_check_refuses_a_file_that_firestore_cannot_store(file: Path) -> None:
    prefix = "p" * 1000
    sources = (f"  - {{id: s{i}, bucket: aaa, prefix: {prefix}{i}}}\n" for i in range(900))
    file.write_text("sources:\n" + "".join(sources))
    done = check(file)
    assert done.exit_code == 1
    assert "more than 900,000" in done.stderr


def test_check_of_a_good_file_counts_the_sources(file: Path) -> None:
    file.write_text("sources:\n  - {id: a, bucket: aaa, min_confidence: 0.01}\n")
    done = check(file)
    assert (done.exit_code, done.stdout) == (0, f"{file}: 1 sources, no faults\n")
    assert "STORE_CONFIDENCE=0.05, which applies instead" in done.stderr


def test_wrong_setting_is_reported_before_the_file(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORE_CONFIDENCE", "high")
    file.write_text("sources: []\n")
    done = check(file)
    assert (done.exit_code, done.stdout) == (3, "")
    assert "STORE_CONFIDENCE='high' is wrong" in done.stderr


def sources(*fields: dict[str, object], **others: object) -> Sources:
    plain = [{"bucket": "uploads", "prefix": one["id"], **one} for one in fields]
    return parse({"sources": plain, **others})


def test_changes_name_sources_fields_and_zones() -> None:
    square = {"name": "gate", "mode": "include", "points": [[0, 0], [1, 0], [1, 1], [0, 1]]}
    exclude = square | {"mode": "exclude"}
    old = sources(
        {"id": "a", "min_confidence": 0.3, "zones": [square]}, {"id": "b"}, {"id": "same"}
    )
    new = sources({"id": "a", "keep_faint": False, "zones": [exclude]}, {"id": "c"}, {"id": "same"})
    assert changes(old, new) == [
        "- b: removed (gs://uploads/b)",
        "+ c: added (gs://uploads/c)",
        "~ a: keep_faint: default -> False",
        "~ a: min_confidence: 0.3 -> default",
        "~ a: zone gate: changed",
    ]
    assert changes(new, new) == []


def test_changes_name_groups_and_alert_rules() -> None:
    old = sources({"id": "a", "alerts": [{"name": "night"}, {"name": "day"}]})
    new = sources(
        {"id": "a", "alerts": [{"name": "night", "min_count": 2}, {"name": "noon"}]},
        groups={"pets": ["dog", "cat"]},
    )
    assert changes(old, new) == [
        "~ group pets: none -> cat, dog",
        "~ a: alert rule day: removed",
        "~ a: alert rule night: changed",
        "~ a: alert rule noon: added",
    ]
    assert changes(new, old)[0] == "~ group pets: cat, dog -> none"


def test_examples_of_the_documentation_have_no_faults(file: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "how-to" / "sources.md"
    examples = re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    for example in examples:
        file.write_text(example)
        assert check(file).exit_code == 0
    documented = set(re.findall(r"`(\w+)`", page.read_text().partition("| field |")[2]))
    assert set(Source.__struct_fields__) <= documented
    shown = [each for example in examples for each in yaml.safe_load(example)["sources"]]
    assert {key for each in shown for key in each} == set(Source.__struct_fields__)
