"""Metrics, dashboard, alerts, the SLO and the budget, as an apply creates them."""

import json
import re
import shlex
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import promql_parser as promql
import pytest
import re2

from devtools.docs.log_lines import log_lines as documented_lines
from service.alerts.message import AlertMessage
from service.alerts.step import log_alert
from service.cli.main import main as yolo_batch
from service.deadline import NO_DEADLINE
from service.domain import Event, Outcome
from service.server.app import create_app
from tests.deploy.google_metrics import METRICS, RESOURCES, RESPONSE_CLASSES, Descriptor
from tests.deploy.log_filters import matches
from tests.deploy.standin import CHANNELS, Applied, needs_standin
from tests.fakes import FakeDetector, FakeStorage, FakeStore, bmp_image, pipeline_of
from tests.loglines import configure

LONGEST_ALIGNMENT_SECONDS = 90_000  # of an alert: the API refuses a longer one


# --- Queries


def _catalog(applied: Applied) -> dict[str, Descriptor]:
    """Return Google's metrics and our own, by name."""
    own = {
        f"logging.googleapis.com/user/{metric['name']}": Descriptor(
            "DELTA",
            metric["metric_descriptor"][0]["value_type"],
            "cloud_run_revision",
            frozenset(label["key"] for label in metric["metric_descriptor"][0]["labels"]),
        )
        for metric in applied.all("google_logging_metric")
    }
    return METRICS | own


def _in_promql(name: str) -> str:
    """Return a metric's name in PromQL (https://cloud.google.com/monitoring/promql/promql-mapping)."""
    domain, _, path = name.partition("/")
    return re.sub(r"\W", "_", domain) + ":" + re.sub(r"\W", "_", path)


def _queries(applied: Applied) -> Iterator[str]:
    dashboard = json.loads(applied.one("google_monitoring_dashboard", "main")["dashboard_json"])
    for tile in dashboard["mosaicLayout"]["tiles"]:
        for each in tile["widget"]["xyChart"]["dataSets"]:
            yield each["timeSeriesQuery"]["prometheusQuery"]
    for _, condition in _conditions(applied, "condition_prometheus_query_language"):
        yield condition["query"]


def _conditions(applied: Applied, kind: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    for policy in applied.all("google_monitoring_alert_policy"):
        for condition in policy["conditions"]:
            for each in condition[kind]:
                yield policy, each


def _faults(query: str, catalog: dict[str, Descriptor]) -> list[str]:
    """Return what is wrong with a query's metrics and labels.

    Raises:
        ValueError: it is not PromQL.
    """
    names = {}
    for metric, descriptor in catalog.items():
        is_distribution = descriptor.value == "DISTRIBUTION"
        for suffix in ("_sum", "_count", "_bucket") if is_distribution else ("",):
            names[_in_promql(metric) + suffix] = descriptor
    faults: list[str] = []
    labels: set[str] = {"le"}
    grouped: set[str] = set()
    ranges: list[str] = []

    def visit(node: Any) -> None:
        if isinstance(node, promql.AggregateExpr) and node.modifier:
            grouped.update(node.modifier.labels)
        if isinstance(node, promql.Call) and node.func.name in ("rate", "increase"):
            ranges.append(str(node.args[0]))
        if not isinstance(node, promql.VectorSelector):
            return
        descriptor = names.get(node.name or "")
        if not descriptor:
            faults.append(f"unknown metric {node.name}")
            return
        labels.update(descriptor.all_labels)
        is_ranged = any(text.startswith(f"{node.name}{{") for text in ranges)
        if is_ranged != (descriptor.kind == "DELTA"):
            faults.append(f"{node.name} is {descriptor.kind}")
        matchers = {matcher.name: matcher for matcher in node.matchers.matchers}
        resource = matchers.pop("monitored_resource", None)
        if not resource or resource.value != descriptor.resource:
            faults.append(f"{node.name} is of {descriptor.resource}")
        for matcher in matchers.values():
            if matcher.name not in descriptor.all_labels:
                faults.append(f"{node.name} has no label {matcher.name}")
            if matcher.op in (promql.MatchOp.Re, promql.MatchOp.NotRe):
                re2.compile(matcher.value)  # Google's regular expressions
            if matcher.name == "response_class":
                unknown = {*matcher.value.split("|")} - RESPONSE_CLASSES
                faults.extend(f"no response_class is {each}" for each in unknown)

    promql.walk(promql.parse(query), visit)
    return faults + [f"no label {label}" for label in grouped - labels]


@needs_standin
def test_queries_are_promql_on_metrics_that_exist(applied: Applied) -> None:
    queries = list(_queries(applied))
    assert len(queries) > 20
    catalog = _catalog(applied)
    assert {query: _faults(query, catalog) for query in queries} == {query: [] for query in queries}


@pytest.mark.parametrize(
    ("query", "fault"),
    [
        ("sum(rate(a:b{monitored_resource='cloud_run_job'}[5m]))", "unknown metric a:b"),
        ("run_googleapis_com:job_completed_execution_count", "is DELTA"),
        ("rate(run_googleapis_com:container_instance_count[5m])", "is GAUGE"),
        (
            "run_googleapis_com:container_instance_count{monitored_resource='cloud_run_job'}",
            "is of cloud_run_revision",
        ),
        ("run_googleapis_com:container_instance_count{service='a'}", "has no label service"),
        ("sum by (status) (run_googleapis_com:container_instance_count)", "no label status"),
        (
            "rate(pubsub_googleapis_com:subscription_push_request_count{response_class='5xx'}[5m])",
            "no response_class is 5xx",
        ),
        ("rate(run_googleapis_com:request_latencies[5m])", "unknown metric"),
    ],
)
def test_wrong_query_is_found(query: str, fault: str) -> None:
    assert any(fault in found for found in _faults(query, METRICS))


def test_query_that_is_no_promql_is_found() -> None:
    with pytest.raises(ValueError, match="unclosed left parenthesis"):
        _faults("sum(rate(a[5m])", METRICS)


_TERM = re.compile(
    r"(?P<part>resource|metric)\.(?:type|labels\.(?P<label>\w+)) = "
    r"(?:\"(?P<value>[^\"]+)\"|monitoring\.regex\.full_match\(\"(?P<regex>[^\"]+)\"\))"
)


def _filtered(text: str, catalog: dict[str, Descriptor]) -> Descriptor:
    """Return the metric of a Monitoring filter, after checking each part of the filter."""
    terms = [_TERM.fullmatch(term) for term in text.split(" AND ")]
    assert all(terms), text
    types = {term["part"]: term["value"] for term in terms if term and not term["label"]}
    descriptor = catalog[types["metric"]]
    assert descriptor.resource == types["resource"]
    for term in terms:
        assert term
        if term["label"]:
            is_own = term["part"] == "metric"
            assert term["label"] in (
                descriptor.labels if is_own else RESOURCES[descriptor.resource]
            )
        if term["regex"]:
            re2.compile(term["regex"])
    return descriptor


@needs_standin
def test_filters_of_alerts_are_on_metrics_that_exist(applied: Applied) -> None:
    catalog, checked = _catalog(applied), 0
    for _, condition in _conditions(applied, "condition_threshold"):
        if condition["filter"].startswith("select_slo_burn_rate("):
            continue
        assert _filtered(condition["filter"], catalog).kind == "DELTA"
        [aggregation] = condition["aggregations"]
        assert aggregation["per_series_aligner"] == "ALIGN_DELTA"
        assert int(aggregation["alignment_period"][:-1]) <= LONGEST_ALIGNMENT_SECONDS
        checked += 1
    assert checked == 3


@needs_standin
def test_absent_reconcile_is_noticed_after_26_hours(applied: Applied) -> None:
    policy = applied.one("google_monitoring_alert_policy", "reconcile_absent")
    [condition] = policy["conditions"][0]["condition_threshold"]
    period = condition["aggregations"][0]["alignment_period"]
    seconds = int(period[:-1]) + int(condition["duration"][:-1])
    assert (policy["enabled"], seconds) == (True, 26 * 3600)
    # After 25 h without an execution there is no value: that must count as too few.
    assert condition["evaluation_missing_data"] == "EVALUATION_MISSING_DATA_ACTIVE"


# --- Alerts


@needs_standin
def test_every_alert_says_how_severe_it_is_and_what_to_do(applied: Applied) -> None:
    policies = applied.all("google_monitoring_alert_policy")
    assert len(policies) == 18
    assert len({policy["display_name"] for policy in policies}) == len(policies)
    for policy in policies:
        assert policy["display_name"].startswith("yolo-batch: ")
        assert policy["severity"] in ("WARNING", "ERROR", "CRITICAL")
        assert policy["notification_channels"] == CHANNELS
        assert policy["user_labels"]["app"] == "yolo-batch"
        assert policy["alert_strategy"][0]["auto_close"] == "86400s"
        [documentation] = policy["documentation"]
        assert len(documentation["content"]) > 150 and documentation["mime_type"] == "text/markdown"


@needs_standin
def test_commands_in_alerts_exist(applied: Applied) -> None:
    commands = [
        shlex.split(command.replace("$(", "").replace(")", ""))
        for policy in applied.all("google_monitoring_alert_policy")
        for command in re.findall(r"`([^`]+)`", policy["documentation"][0]["content"])
        if " " in command
    ]
    assert {command[0] for command in commands} == {"gcloud", "terraform", "yolo-batch"}
    for command, *arguments in commands:
        if command == "yolo-batch":
            name, *options = arguments
            yolo_batch.commands[name].make_context(name, options)
        if command == "gcloud":
            assert "--project" in arguments


@needs_standin
def test_alert_exists_before_its_metric_has_a_value(applied: Applied) -> None:
    for _, condition in _conditions(applied, "condition_prometheus_query_language"):
        assert condition["disable_metric_validation"]
        assert int(condition["duration"][:-1]) % int(condition["evaluation_interval"][:-1]) == 0
    for policy, _ in _conditions(applied, "condition_matched_log"):
        assert policy["alert_strategy"][0]["notification_rate_limit"]  # the API requires it


# --- Logs


def _entry(
    log: str, service: str = "yolo-batch", kind: str = "cloud_run_revision", **fields: Any
) -> dict[str, Any]:
    labels = {"cloud_run_job": "job_name", "cloud_scheduler_job": "job_id"}
    label = labels.get(kind, "service_name")
    resource = {"type": kind, "labels": {label: service, "location": "europe-west1"}}
    name = f"projects/my-project-1/logs/{log.replace('/', '%2F')}"
    return {"logName": name, "resource": resource, "severity": "INFO"} | fields


def _request(status: int, service: str = "yolo-batch") -> dict[str, Any]:
    return _entry("run.googleapis.com/requests", service, httpRequest={"status": status})


def _line(**fields: Any) -> dict[str, Any]:
    return _entry("run.googleapis.com/stdout", jsonPayload=fields)


@needs_standin
def test_only_handled_requests_of_this_service_are_excluded(applied: Applied) -> None:
    exclusion = applied.one("google_logging_project_exclusion", "requests")
    assert exclusion["name"] == "yolo-batch-handled-requests"
    stored = [
        *map(_request, (199, 300, 400, 401, 403, 404, 429, 500, 503)),
        _request(204, "yolo-batch-2"),
        _request(204, "other"),
        _line(message="Committed", images=1),
        _line(message="An image failed"),
        _entry("run.googleapis.com/varlog/system", httpRequest={"status": 204}),
        _entry("run.googleapis.com/requests", kind="cloud_run_job", httpRequest={"status": 204}),
    ]
    assert [entry for entry in stored if matches(exclusion["filter"], entry)] == []
    assert all(matches(exclusion["filter"], _request(status)) for status in (200, 204, 299))


@needs_standin
def test_metrics_count_the_lines_that_they_name(applied: Applied) -> None:
    filters = {each["name"]: each["filter"] for each in applied.all("google_logging_metric")}
    entries = {
        "images": [_line(message="Committed"), _line(message="Outcomes")],
        "failures": [_line(message="An image failed")],
        "rejected": [_line(message="Rejected a message")],
        "http_errors": [_request(401), _request(403), _request(429), _request(503)],
    }
    every = [entry for group in entries.values() for entry in group]
    every += [_request(204), _request(403, "other"), _line(message="Ignored a request")]
    for name, expected in entries.items():
        assert [
            entry for entry in every if matches(filters[f"yolo-batch/{name}"], entry)
        ] == expected


@needs_standin
def test_alerts_on_log_lines_match_lines_that_are_written(applied: Applied) -> None:
    lines = [line for line in documented_lines() if line.message != "Alert"]
    entries = [_line(message=line.message) for line in lines]
    entries += [
        _entry(
            "cloudscheduler.googleapis.com/executions",
            job,
            "cloud_scheduler_job",
            severity=severity,
        )
        for job in ("yolo-batch-2-silence", "yolo-batch-silence", "yolo-batch-reconcile")
        for severity in ("INFO", "ERROR")
    ]
    found = {
        policy["display_name"].partition(": ")[2]: [
            entry for entry in entries if matches(condition["filter"], entry)
        ]
        for policy, condition in _conditions(applied, "condition_matched_log")
    }
    assert found == {
        "a rule of a source matched": [],
        "a source is silent": [],
        "the int8 model failed its canary": [_line(message="Fell back to the float model")],
        "reconcile cannot be started": [entries[-1]],
        "the silence job cannot be started": [entries[-3]],
    }


@needs_standin
def test_alerts_of_sources_are_found_by_rule_and_source(
    applied: Applied, capsys: pytest.CaptureFixture[str]
) -> None:
    configure("INFO")
    for rule in ("person-at-night", "silent_minutes"):
        now = datetime(2026, 11, 30, tzinfo=UTC)
        log_alert(AlertMessage("1-2", rule, "gate", "critical", "2 person", now, suppressed=0))
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    matched, stored, silent = (
        _entry("run.googleapis.com/stdout", service, kind, jsonPayload=line)
        for line, service, kind in zip(
            (lines[0], *lines),
            ("yolo-batch", "yolo-batch-detect", "yolo-batch-silence"),
            ("cloud_run_revision", "cloud_run_revision", "cloud_run_job"),
            strict=True,
        )
    )
    elsewhere = _entry("run.googleapis.com/stdout", "yolo-batch-2", jsonPayload=lines[0])
    found = {
        policy["display_name"].partition(": ")[2]: (
            [
                each
                for each in (matched, stored, silent, elsewhere)
                if matches(condition["filter"], each)
            ],
            condition["label_extractors"],
        )
        for policy, condition in _conditions(applied, "condition_matched_log")
    }
    for title, expected in (
        ("a rule of a source matched", [matched, stored]),
        ("a source is silent", [silent]),
    ):
        entries, labels = found[title]
        assert entries == expected
        entry = entries[0]
        paths = [re.fullmatch(r"EXTRACT\(jsonPayload\.(\w+)\)", each) for each in labels.values()]
        assert [entry["jsonPayload"][path[1]] for path in paths if path] == [
            entry["jsonPayload"][name] for name in labels
        ]
    assert all(elsewhere not in entries for entries, _ in found.values())


@pytest.fixture
def log_lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """Return the log lines of commits, of a failed image and of a rejected message."""
    configure("INFO")
    storage, store = FakeStorage(), FakeStore()
    good, bad = storage.put("good.bmp", bmp_image()), storage.put("bad.bmp", b"no image")
    pipeline = pipeline_of(storage, store, FakeDetector())
    pipeline.handle(Event(good), NO_DEADLINE)
    pipeline.handle(Event(bad), NO_DEADLINE)
    pipeline.stop()
    response = (
        create_app(pipeline)
        .test_client()
        .post("/", json={"message": {"data": "eyJ1cmkiOiAiZ3M6Ly91cGxvYWRzL2EuanBnIn0="}})
    )
    assert response.status_code == 503
    pipeline.close()
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@needs_standin
def test_metrics_read_what_is_logged(applied: Applied, log_lines: list[dict[str, Any]]) -> None:
    totals: dict[str, float] = {}
    for metric in applied.all("google_logging_metric"):
        name = metric["name"].removeprefix("yolo-batch/")
        taken = metric["value_extractor"] or metric["label_extractors"].get("status", "")
        taken = taken or metric["label_extractors"]["code"]
        field = re.fullmatch(r"EXTRACT\(jsonPayload\.(\w+)\)", taken)
        if not field:
            assert taken == "EXTRACT(httpRequest.status)"
            continue
        entries = [_line(**line) for line in log_lines]
        values = [
            entry["jsonPayload"][field[1]]
            for entry in entries
            if matches(metric["filter"], entry) and field[1] in entry["jsonPayload"]
        ]
        totals[name] = sum(values) if metric["value_extractor"] else len(values)
    expected = {"images": 2, "done": 1, "failed": 1, "failures": 1, "rejected": 1}
    assert totals.pop("commit_ms") >= 0
    assert {name: total for name, total in totals.items() if total} == expected
    assert set(totals) == {"images", "failures", "rejected", *map(str, Outcome)}


# --- The dashboard


@needs_standin
def test_dashboard_has_no_zeros_and_no_nulls(applied: Applied) -> None:
    """The API returns neither zeros nor nulls, so each would show up in every plan."""
    text = applied.one("google_monitoring_dashboard", "main")["dashboard_json"]
    tiles = json.loads(text)["mosaicLayout"]["tiles"]
    assert [(tile.get("xPos"), tile.get("yPos")) for tile in tiles[:4]] == [
        (None, None),
        (6, None),
        (None, 4),
        (6, 4),
    ]
    sets = {tile["widget"]["title"]: tile["widget"]["xyChart"]["dataSets"] for tile in tiles}
    assert len(sets) == len(tiles)
    assert "legendTemplate" not in sets["Images recorded a second"][0]
    legends = [each["legendTemplate"] for each in sets["Outcomes of deliveries a second"]]
    assert legends == sorted(map(str, Outcome))
    assert not re.search(r":\s*(0|null)\b", json.dumps(tiles))


# --- The objective and the budget


@needs_standin
def test_objective_is_measured_on_uploads_each_minute(applied: Applied) -> None:
    slo = applied.one("google_monitoring_slo", "uploads")
    [windows] = slo["windows_based_sli"]
    [sli] = windows["metric_mean_in_range"]
    descriptor = _filtered(sli["time_series"], METRICS)
    # The API takes only such a metric for a mean in a range.
    assert (descriptor.kind, descriptor.value) == ("GAUGE", "INT64")
    assert windows["window_period"] == "60s"
    assert (sli["range"][0]["min"], sli["range"][0]["max"]) == (0, 60)
    [regex] = re.findall(r"full_match\(\"(.*?)\"\)", sli["time_series"])
    # Jobs may wait, and would halve the mean.
    subscriptions = ("yolo-batch-uploads", "eventarc-europe-west1-yolo-batch-uploads-sub-906")
    others = ("yolo-batch-jobs", "yolo-batch-dead-letters", "my-yolo-batch-uploads")
    assert all(re2.fullmatch(regex, name) for name in subscriptions)
    assert not any(re2.fullmatch(regex, name) for name in others)


@needs_standin
def test_burn_rates_are_of_the_objective(applied: Applied) -> None:
    slo = applied.one("google_monitoring_slo", "uploads")
    rates = []
    for policy, condition in _conditions(applied, "condition_threshold"):
        if found := re.fullmatch(
            r"select_slo_burn_rate\(\"(.*)\", \"(\d+)s\"\)", condition["filter"]
        ):
            assert (found[1], policy["combiner"]) == (slo["name"], "AND")
            rates.append((condition["threshold_value"], int(found[2])))
    assert sorted(rates) == [(3, 7200), (3, 86400), (14.4, 300), (14.4, 3600)]
    # A burn rate is at most 1 / (1 - goal), so a higher threshold would never be reached.
    assert max(rates)[0] < 1 / (1 - slo["goal"])


@needs_standin
def test_budget_is_of_the_project_and_warns_early(applied: Applied) -> None:
    budget = applied.one("google_billing_budget", "main")
    [project] = budget["budget_filter"][0]["projects"]
    assert re.fullmatch(r"projects/\d+", project)  # the API returns the number
    rules = {(rule["threshold_percent"], rule["spend_basis"]) for rule in budget["threshold_rules"]}
    assert rules == {
        (0.5, "CURRENT_SPEND"),
        (0.9, "CURRENT_SPEND"),
        (1, "CURRENT_SPEND"),
        (1, "FORECASTED_SPEND"),
    }
    [notices] = budget["all_updates_rule"]
    assert notices["monitoring_notification_channels"] == CHANNELS[:5]  # the API takes no more
    assert budget["amount"][0]["specified_amount"][0]["units"] == "100"
