"""Every query has its index, and every index has its query.

The Firestore emulator needs no indexes, so only this test finds a missing one. It runs the queries
of the documentation, of `examples/` and of `service/` against a client that records them. A query
in a new place fails `test_no_query_was_overlooked`: run it in `_run_service`, or write it into a
page.
"""

import ast
import importlib.util
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from google.cloud import firestore
from google.cloud.firestore_v1.aggregation import AggregationQuery
from google.cloud.firestore_v1.base_collection import BaseCollectionReference
from google.cloud.firestore_v1.base_query import BaseQuery, FieldFilter
from google.cloud.firestore_v1.field_path import parse_field_path
from google.cloud.firestore_v1.types import StructuredQuery

from devtools.bench.index_entries import Indexes, deployed_alert_indexes, deployed_indexes
from service.gcp.alert_reader import AlertReader
from service.gcp.alert_store import AlertStore
from service.gcp.collection import ALERTS
from service.gcp.result_pages import ResultPages, StoredResult
from service.gcp.result_reader import ResultReader
from service.gcp.verdict_store import COLLECTION as VERDICTS
from service.gcp.verdict_store import VerdictStore
from tests.filters import possible_filters

REPOSITORY = Path(__file__).parents[2]
PAGE = REPOSITORY / "docs" / "how-to" / "query-results.md"
CALLS = {"FieldFilter", "where", "order_by", "find_nearest", "collection_group"}
OTHER_LANGUAGES = re.compile(r"orderBy|structuredQuery|runQuery|RunQueryRequest|StructuredQuery\(")
Operator = StructuredQuery.FieldFilter.Operator
CONTAINS = {Operator.ARRAY_CONTAINS, Operator.ARRAY_CONTAINS_ANY}
ANY_OF = {Operator.IN, Operator.ARRAY_CONTAINS_ANY}
EQUAL = {Operator.EQUAL, Operator.IN, *CONTAINS}
# https://firebase.google.com/docs/firestore/query-data/queries#limits_on_or_queries
MAX_DISJUNCTIONS = 30
GROWING = {"captured_at", "created_at", "event_time", "generation"}  # with time


# --- What a query needs


@dataclass(frozen=True)
class Needs:
    """What the index of a query must have.

    Attributes:
        equal: fields that are compared for equality, with CONTAINS or an empty mode.
        sort: fields that are compared for a range or sorted by, each with its direction.
        disjunctions: the number of alternatives: the product of the lengths of its lists.
        has_range: whether it compares a field for a range.
    """

    equal: dict[str, str]
    sort: list[tuple[str, str]]
    disjunctions: int = 1
    has_range: bool = False


def _needs(query: BaseQuery) -> Needs:
    # The public interface of a query has neither its filters nor its orders.
    structured = query._to_protobuf()
    equal: dict[str, str] = {}
    ranges: list[str] = []
    disjunctions = 1
    for each in _filters(structured.where):
        path = ".".join(parse_field_path(each.field.field_path))
        if isinstance(each, StructuredQuery.UnaryFilter) or each.op in EQUAL:
            is_contains = isinstance(each, StructuredQuery.FieldFilter) and each.op in CONTAINS
            equal[path] = "CONTAINS" if is_contains else ""
            if isinstance(each, StructuredQuery.FieldFilter) and each.op in ANY_OF:
                disjunctions *= len(each.value.array_value.values)
        elif path not in ranges:
            ranges.append(path)
    sort = [
        (".".join(parse_field_path(order.field.field_path)), order.direction.name)
        for order in structured.order_by
        if order.field.field_path != "__name__"
    ]
    sorted_by = [path for path, _ in sort]
    sort += [(path, "ASCENDING") for path in ranges if path not in sorted_by]
    return Needs(equal, sort, disjunctions, bool(ranges))


def _filters(where: StructuredQuery.Filter) -> Iterator[Any]:
    kind = StructuredQuery.Filter.pb(where).WhichOneof("filter_type")
    if kind == "composite_filter":
        assert where.composite_filter.op.name == "AND", "OR is not known here"
        for each in where.composite_filter.filters:
            yield from _filters(each)
    elif kind:
        yield getattr(where, kind)


def _index_of(query: BaseQuery, indexes: Indexes) -> set[object] | None:
    """Return the indexes that serve a query, or None if there are none.

    Firestore merges the indexes of single fields for conditions of equality. Anything else needs
    one index of all fields: https://firebase.google.com/docs/firestore/query-data/index-overview
    A condition with `in` is one of equality in each of its alternatives. Firestore also merges
    composite indexes for conditions of equality, if they end with the same order: "Use index
    merging" on the same page. It says nothing of ranges, so a range needs an index of all fields.
    Cursors need no index of their own.
    """
    needs = _needs(query)
    if needs.disjunctions > MAX_DISJUNCTIONS:
        return None
    if not needs.sort:
        single = {
            path: [mode for mode in indexes.modes(path) if (mode == "CONTAINS") == bool(kind)][:1]
            for path, kind in needs.equal.items()
        }
        if all(single.values()):
            return {(indexes.owner(path), *mode) for path, mode in single.items()}
    if not needs.equal and len(needs.sort) == 1:
        [(path, mode)] = needs.sort
        return {(indexes.owner(path), mode)} if mode in indexes.modes(path) else None
    for index in indexes.composite:
        first, rest = index[: len(needs.equal)], list(index[len(needs.equal) :])
        kinds = {path: mode if mode == "CONTAINS" else "" for path, mode in first}
        if kinds == needs.equal and rest == needs.sort:
            return {tuple(index)}
    return None if needs.has_range else _merged(needs, indexes)


def _merged(needs: Needs, indexes: Indexes) -> set[object] | None:
    """Return the composite indexes that serve a query together, or None.

    Each begins with fields that the query compares for equality, and ends with the query's order.
    Only one may be on an array, because a query has at most one condition `array-contains`.
    """
    merged: set[object] = set()
    covered: set[str] = set()
    count = len(needs.sort)
    for index in indexes.composite:
        first, rest = list(index[: len(index) - count]), list(index[len(index) - count :])
        kinds = {path: mode if mode == "CONTAINS" else "" for path, mode in first}
        serves = count and rest == needs.sort and kinds.items() <= needs.equal.items()
        if serves and kinds.keys() - covered:
            merged.add(tuple(index))
            covered |= kinds.keys()
    return merged if covered == needs.equal.keys() else None


def _is_of_alerts(query: BaseQuery) -> bool:
    return str(query._parent.id).endswith(ALERTS)


def _is_of_verdicts(query: BaseQuery) -> bool:
    return str(query._parent.id) == VERDICTS


def _all(indexes: Indexes) -> set[object]:
    single = {(path, mode) for path, modes in indexes.fields.items() for mode in modes}
    return {*single, *(tuple(index) for index in indexes.composite)}


# --- Recording


@dataclass
class Recorder:
    """The queries that were made, and the calls that built them."""

    queries: list[BaseQuery] = field(default_factory=list)
    calls: set[tuple[str, str, int]] = field(default_factory=set)  # file, name, line

    def wrap(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any, **kwargs: Any) -> Any:
            caller = sys._getframe(1)
            self.calls.add((caller.f_code.co_filename, name, caller.f_lineno))
            return call(*args, **kwargs)

        return noted


@pytest.fixture(scope="module")
def recorder() -> Iterator[Recorder]:
    recorder = Recorder()

    def stream(query: BaseQuery, *_: Any, **__: Any) -> Iterator[Any]:
        recorder.queries.append(query)
        return iter(())

    def aggregate(aggregation: AggregationQuery, *_: Any, **__: Any) -> list[Any]:
        recorder.queries.append(aggregation._nested_query)
        return [[SimpleNamespace(value=0)]]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FIRESTORE_EMULATOR_HOST", "127.0.0.1:1")  # no credentials, and no requests
        patch.setenv("GOOGLE_CLOUD_PROJECT", "my-project-1")
        patch.setattr(firestore.Query, "stream", stream)
        for name in ("stream", "get"):
            patch.setattr(AggregationQuery, name, aggregate)
        for owner, name in (
            (FieldFilter, "__init__"),
            (BaseQuery, "where"),
            (BaseQuery, "order_by"),
            (BaseCollectionReference, "where"),
            (BaseCollectionReference, "order_by"),
        ):
            shown = "FieldFilter" if name == "__init__" else name
            patch.setattr(owner, name, recorder.wrap(shown, getattr(owner, name)))
        for page in _pages():
            _run_page(recorder, page)
        for program in sorted((REPOSITORY / "examples").glob("*.py")):
            if any(_calls_in(ast.parse(program.read_text()))):
                _run_example(patch, program)
        _run_service()
        yield recorder


def _run_service() -> None:
    """Make every query of service/ and devtools/, with each of its forms."""
    reader = ResultReader(firestore.Client(), collection="detections", timeout_seconds=1)
    for prefix in ("", "cam1/"):
        assert list(reader.results("uploads", prefix)) == []
    assert list(reader.parked()) == []
    since = datetime(2026, 11, 30, tzinfo=UTC)
    assert list(reader.since(since)) == []
    assert reader.newest_of_source("gate") is None
    alerts = AlertReader(firestore.Client(), collection="detections", timeout_seconds=1)
    for source in (None, "gate"):
        assert list(alerts.since(since, source)) == []
    _run_pages()
    store = AlertStore(firestore.Client(), collection="detections", timeout_seconds=1)
    assert store.count_suppressed("alert") == 0
    _run_verdicts()


def _run_verdicts() -> None:
    """Make every query of the verdicts, which have a database with Firestore's own indexes."""
    verdicts = VerdictStore(firestore.Client(), timeout_seconds=1)
    assert list(verdicts.newest(10)) == []
    conditions = {"source": "gate", "bucket": "b", "day": "2026-11-30", "found": True}
    for path in ("labels", "zone_labels"):
        assert verdicts.count({**conditions, path: "x"}) == 0


def _run_pages() -> None:
    """Make every query of the gallery: each combination of a filter that is possible."""
    pages = ResultPages(firestore.Client(), collection="detections", timeout_seconds=1)
    for chosen in possible_filters():
        assert pages.page(chosen, 60).results == ()
        assert pages.count(chosen) == 0
    for source in ("gate", None):
        document = {"source": {"id": source}, "created_at": datetime(2026, 11, 30, tzinfo=UTC)}
        assert pages.neighbours(StoredResult("a" * 40, document)) == (None, None)
    assert pages.generations("gs://uploads/a.jpg") == []


def _run_example(patch: pytest.MonkeyPatch, program: Path) -> None:
    """Run an example with each command line of its docstring."""
    spec = importlib.util.spec_from_file_location(program.stem, program)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    commands = re.findall(rf"^ +python {program.name} (.*)$", module.__doc__ or "", re.MULTILINE)
    assert commands
    for command in commands:
        patch.setattr(sys, "argv", [program.name, *shlex.split(command)])
        module.main()


def _run_page(recorder: Recorder, page: Path) -> None:
    """Run the Python of a page, and note the queries that its blocks end with."""
    names: dict[str, Any] = {"since": datetime(2026, 11, 30, tzinfo=UTC)}
    for tree in _blocks(page):
        last = tree.body[-1]
        value = None
        if isinstance(last, ast.Expr):
            tree.body.pop()
            value = ast.Expression(last.value)
        exec(compile(tree, str(page), "exec"), names)
        if value:
            query = eval(compile(value, str(page), "eval"), names)
            if isinstance(query, BaseQuery):  # otherwise the block itself has run its queries
                recorder.queries.append(query)


def _blocks(page: Path) -> Iterator[ast.Module]:
    """Yield the code of each Python block of a page about Firestore."""
    text = page.read_text(encoding="utf-8")
    for block in re.finditer(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        if re.search(r"firestore|\b(results|newest)\b", block[1]):
            tree = ast.parse(block[1])
            ast.increment_lineno(tree, text[: block.start(1)].count("\n"))
            yield tree


def _pages() -> list[Path]:
    pages = [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md")]
    pages += [*REPOSITORY.glob("examples/**/*.md"), *REPOSITORY.glob("terraform/**/*.md")]
    return [
        page
        for page in sorted(pages)
        if any(call for tree in _blocks(page) for call in _calls_in(tree))
    ]


# --- Finding queries in source


def _calls_in(tree: ast.Module) -> Iterator[tuple[str, int, int]]:
    """Yield name, first and last line of each call that builds a query."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            function = node.func
            name = getattr(function, "attr", getattr(function, "id", ""))
            is_numpy = isinstance(function, ast.Attribute) and ast.unparse(function.value) == "np"
            if name in CALLS and not is_numpy:
                yield name, node.lineno, node.end_lineno or node.lineno


def _sources() -> Iterator[tuple[Path, ast.Module]]:
    for folder in ("service", "devtools", "examples"):
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            yield path, ast.parse(path.read_text(encoding="utf-8"))
    for page in _pages():
        for tree in _blocks(page):
            yield page, tree


# --- Tests


@pytest.mark.parametrize("all_fields", [False, True])
def test_every_query_has_its_index(recorder: Recorder, all_fields: bool) -> None:
    results = deployed_indexes(index_all_fields=all_fields)
    for query in recorder.queries:
        if _is_of_verdicts(query):
            continue
        indexes = deployed_alert_indexes() if _is_of_alerts(query) else results
        assert _index_of(query, indexes) is not None, f"no index for {_needs(query)}"


def test_verdicts_need_no_composite_index(recorder: Recorder) -> None:
    """Their database has Firestore's automatic indexes of single fields, and no others."""
    found = [_needs(query) for query in recorder.queries if _is_of_verdicts(query)]
    assert len(found) >= 3
    for needs in found:
        assert not needs.sort or (len(needs.sort) == 1 and not needs.equal)
        assert list(needs.equal.values()).count("CONTAINS") <= 1


def test_every_index_has_its_query(recorder: Recorder) -> None:
    for is_of_alerts, indexes in ((False, deployed_indexes()), (True, deployed_alert_indexes())):
        of_results = [each for each in recorder.queries if not _is_of_verdicts(each)]
        queries = [each for each in of_results if _is_of_alerts(each) == is_of_alerts]
        used = set().union(*(_index_of(query, indexes) or set() for query in queries))
        assert _all(indexes) - used == set()


@pytest.mark.parametrize("all_fields", [False, True])
def test_no_index_grows_in_one_place(all_fields: bool) -> None:
    """Such an index limits the collection to 500 new documents a second."""
    for indexes in (deployed_indexes(index_all_fields=all_fields), deployed_alert_indexes()):
        assert {path for path in GROWING if indexes.modes(path)} == set()
        for index in indexes.composite:
            for position, (path, _) in enumerate(index):
                if path in GROWING:
                    before = {path for path, _ in index[:position]}
                    assert before & {"shard", "uri"}, f"{index} grows with time"


def test_no_query_was_overlooked(recorder: Recorder) -> None:
    missed = [
        f"{path.relative_to(REPOSITORY)}:{first}: {name}"
        for path, tree in _sources()
        for name, first, last in _calls_in(tree)
        if not any((str(path), name, line) in recorder.calls for line in range(first, last + 1))
    ]
    assert not missed, f"These calls build a query that this test does not run: {missed}"


def test_no_query_is_in_another_language() -> None:
    for folder in ("service", "devtools", "examples", "docs", "terraform"):
        for path in (REPOSITORY / folder).rglob("*"):
            if path.suffix in {".py", ".md", ".sh", ".js", ".json", ".yaml", ".tf"}:
                found = OTHER_LANGUAGES.search(path.read_text(encoding="utf-8"))
                assert not found, f"{path}: {found and found[0]} cannot be checked here"


def test_console_and_code_ask_for_the_same_fields() -> None:
    recorder = Recorder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FIRESTORE_EMULATOR_HOST", "127.0.0.1:1")
        patch.setenv("GOOGLE_CLOUD_PROJECT", "my-project-1")
        patch.setattr(firestore.Query, "stream", lambda *_: iter(()))
        _run_page(recorder, PAGE)
    needed = [_needs(query) for query in recorder.queries]
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    shown = re.findall(r"Console: (.+?)(?:, descending)?\. ", text)
    path = r"(?:`` (.+?) ``|`([^`]+)`)"
    conditions = rf"{path} (?:==|[<>]=?|in|array-contains) |sort by {path}"
    assert [
        {".".join(parse_field_path("".join(found))) for found in re.findall(conditions, each)}
        for each in shown
    ] == [{*needs.equal, *dict(needs.sort)} for needs in needed]


# --- The check itself


def test_planner_finds_missing_indexes() -> None:
    query = firestore.Query(BaseCollectionReference("detections"))
    indexes = Indexes(
        {
            "*": (),
            "counts": ("ASCENDING",),
            "day": ("ASCENDING",),
            "labels": ("CONTAINS",),
            "status": ("ASCENDING",),
        },
        [
            [("status", "ASCENDING"), ("time", "DESCENDING")],
            [("day", "ASCENDING"), ("time", "DESCENDING")],
            [("zones", "CONTAINS"), ("time", "DESCENDING")],
            [("source", "ASCENDING"), ("time", "ASCENDING")],
        ],
    )
    failed = query.where(filter=FieldFilter("status", "==", "failed"))
    person = failed.where(filter=FieldFilter("labels", "array_contains", "person"))
    either = query.where(filter=FieldFilter("status", "in", ["failed", "parked"]))
    lists = either.where(filter=FieldFilter("day", "in", [str(day) for day in range(16)]))
    of_day = failed.where(filter=FieldFilter("day", "==", "1"))
    of_door = of_day.where(filter=FieldFilter("zones", "array_contains", "door"))
    of_source = failed.where(filter=FieldFilter("source", "==", "gate"))
    of_uri = of_day.where(filter=FieldFilter("uri", "==", "a"))
    served = {
        "merged": person,
        "list, sorted": _newest(either),
        "range of the sorted field": _newest(failed.where(filter=FieldFilter("time", ">", 1))),
        "subfield": query.where(filter=FieldFilter("counts.`traffic light`", ">", 1)),
        "sorted": _newest(failed),
        "merged composites": _newest(of_day),
        "merged composites, with an array": _newest(of_door),
    }
    refused = {
        "other field": query.where(filter=FieldFilter("uri", "==", "a")),
        "other direction": query.order_by("counts.car", direction="DESCENDING"),
        "sorted the other way": failed.order_by("time"),
        "merged and sorted": _newest(person),
        "contains on a value": query.where(filter=FieldFilter("status", "array_contains", "a")),
        "32 alternatives": lists,
        "range without composite": failed.where(filter=FieldFilter("counts.car", ">", 1)),
        "range and merged": _newest(of_day.where(filter=FieldFilter("time", ">", 1))),
        "merged, one of them the other way": _newest(of_source),
        "merged, one condition without index": _newest(of_uri),
        "merged, sorted the other way": of_day.order_by("time"),
        "merged, sorted by more": _newest(of_day).order_by("uri"),
    }
    assert [name for name, each in served.items() if not _index_of(each, indexes)] == []
    assert [name for name, each in refused.items() if _index_of(each, indexes)] == []


def _newest(query: BaseQuery) -> BaseQuery:
    return query.order_by("time", direction="DESCENDING")
