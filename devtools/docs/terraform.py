"""The reference of the Terraform module's variables, outputs, roles, metrics and alerts."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import hcl2

from devtools.docs.markdown import code, table

MODULE = Path(__file__).parents[2] / "terraform" / "modules" / "yolo-batch"

# The role that may create, change and delete the resources whose type starts with the key. The
# longest key that matches counts.
_ROLES = {
    "google_artifact_registry_": "roles/artifactregistry.admin",
    "google_bigquery_": "roles/bigquery.dataOwner",
    "google_billing_budget": "roles/billing.costsManager",
    "google_cloud_run_v2_": "roles/run.admin",
    "google_cloud_scheduler_": "roles/cloudscheduler.admin",
    "google_eventarc_": "roles/eventarc.admin",
    "google_firestore_": "roles/datastore.owner",
    "google_iap_": "roles/iap.admin",
    "google_logging_": "roles/logging.configWriter",
    "google_monitoring_": "roles/monitoring.editor",
    "google_project_iam_": "roles/resourcemanager.projectIamAdmin",
    "google_project_service": "roles/serviceusage.serviceUsageAdmin",
    "google_pubsub_": "roles/pubsub.admin",
    "google_service_account": "roles/iam.serviceAccountAdmin",
    "google_storage_": "roles/storage.admin",
}
# No resource shows that these are needed.
_OTHER_ROLES = {
    "roles/cloudbuild.builds.editor": "the first container image (`gcloud builds submit`)",
    "roles/iam.serviceAccountUser": "the service, the job and the trigger, which act as accounts",
}


@dataclass(frozen=True)
class Metric:
    """A metric that Cloud Logging reads from log lines."""

    name: str
    kind: str
    filter: str  # for log lines, without the part that names the service
    reads: str  # the field whose value or label is taken
    description: str


def variables() -> str:
    """Return a table of the module's variables."""
    rows = [
        (code(name), body["type"].strip("${}"), default_of(body), body["description"])
        for name, body in sorted(named("variable"))
    ]
    return table(("variable", "type", "default", "meaning"), rows)


def outputs() -> str:
    """Return a table of the module's outputs."""
    rows = [(code(name), body["description"]) for name, body in sorted(named("output"))]
    return table(("output", "meaning"), rows)


def roles() -> str:
    """Return a table of the roles that an apply needs.

    Raises:
        LookupError: a type of resource has no role yet.
    """
    needed: dict[str, set[str]] = {}
    for kind in {kind for block in blocks("resource") for kind in block}:
        if kind.startswith("google_"):
            needed.setdefault(_role(kind), set()).add(kind)
    rows = [(code(role), ", ".join(map(code, sorted(kinds)))) for role, kinds in needed.items()]
    rows += [(code(role), reason) for role, reason in _OTHER_ROLES.items()]
    return table(("role", "for"), sorted(rows))


def _role(kind: str) -> str:
    prefixes = [prefix for prefix in _ROLES if kind.startswith(prefix)]
    if not prefixes:
        raise LookupError(f"which role may create {kind}?")
    return _ROLES[max(prefixes, key=len)]


def metrics() -> str:
    """Return a table of the metrics."""
    rows = [
        (
            code(metric.name),
            metric.kind,
            code(metric.filter),
            code(metric.reads),
            metric.description,
        )
        for metric in log_metrics()
    ]
    return table(("metric", "kind", "log lines", "reads", "meaning"), rows)


def log_metrics() -> list[Metric]:
    """Return every metric, for each key of its `for_each`."""
    log_based = []
    for _, body in _resources("google_logging_metric"):
        [descriptor] = body["metric_descriptor"]
        for names in _each(body):
            extractor = body.get("value_extractor") or next(iter(body["label_extractors"].values()))
            reads = re.fullmatch(r"EXTRACT\((?:jsonPayload\.)?(.*)\)", _filled(extractor, names))
            assert reads, extractor
            log_based.append(
                Metric(
                    name=_filled(body["name"], names),
                    kind="counter" if descriptor["value_type"] == "INT64" else "distribution",
                    filter=_filled(body["filter"], names).partition(" AND ")[2],
                    reads=reads[1],
                    description=_filled(body["description"], names),
                )
            )
    return log_based


def alerts() -> str:
    """Return a table of the alerts: the condition of each, and what to do."""
    rows = [
        (
            _filled(body["display_name"], names),
            _filled(body["severity"], names),
            f" {body['combiner'].lower()} ".join(
                _filled(condition["display_name"], names) for condition in body["conditions"]
            ),
            _filled(body["documentation"][0]["content"], names),
        )
        for _, body in _resources("google_monitoring_alert_policy")
        for names in _each(body)
    ]
    return table(("alert", "severity", "condition", "what to do"), rows)


def _each(body: dict[str, Any]) -> Iterator[dict[str, str]]:
    """Yield what the expressions in a resource stand for, for each key of its `for_each`."""
    names = {"local.watched": "SERVICE", "local.max_instances": "`max_instances`"}
    names |= {"var.name": "NAME", "var.project_id": "PROJECT", "var.region": "REGION"}
    names |= {"local.reconcile_name": "NAME-reconcile", "local.silence_name": "NAME-silence"}
    names |= {"local.detect_name": "SERVICE-detect"}
    names |= {"local.slo_seconds": _local("slo_seconds")}
    names |= {f"local.retry.{key}": str(value) for key, value in _local("retry").items()}
    if "for_each" not in body:
        yield names
        return
    each = re.search(r"local\.(\w+)", body["for_each"])
    assert each, body["for_each"]
    for key, value in _local(each[1]).items():
        values = {f"each.value.{name}": _filled(str(text), names) for name, text in value.items()}
        yield names | {"each.key": key} | values


def _filled(text: str, names: dict[str, str]) -> str:
    """Replace each `${...}` in a text by its value, or by its name in capitals."""

    def value(match: re.Match[str]) -> str:
        expression = match[1].strip("()")
        resource = re.fullmatch(r"google_\w+\.(\w+)\.(id|name)", expression)
        known = names.get(expression)
        return str(known) if known else (resource[1] if resource else expression).upper()

    return re.sub(r"\$\{(.*?)\}", value, text)


def default_of(body: dict[str, Any]) -> str:
    """Return the default of a variable as inline code, or `required`."""
    if "default" not in body:
        return "required"
    value = body["default"]
    if isinstance(value, bool):
        return code(str(value).lower())
    if isinstance(value, str) and value != "null":
        return code(f'"{value}"')
    return code("null" if value is None else value)


def named(kind: str) -> Iterator[tuple[str, Any]]:
    """Return the blocks of the module that have one label, such as `variable`, with it."""
    for block in blocks(kind):
        yield from block.items()


def _resources(kind: str) -> Iterator[tuple[str, Any]]:
    for block in blocks("resource"):
        yield from block.get(kind, {}).items()


def _local(name: str) -> Any:
    for block in blocks("locals"):
        if name in block:
            return block[name]
    raise LookupError(f"local.{name}")


def blocks(kind: str) -> Iterator[dict[str, Any]]:
    """Return the blocks of a kind in all files of the module."""
    for path in sorted(MODULE.glob("*.tf")):
        yield from blocks_of(path, kind)


def blocks_of(path: Path, kind: str) -> list[dict[str, Any]]:
    """Return the blocks of a kind in an HCL file, such as all `variable` blocks."""
    return list(_parsed(path.read_text(encoding="utf-8")).get(kind, []))


@cache  # a file takes up to a second
def _parsed(text: str) -> Any:
    return _plain(hcl2.loads(text))


def _plain(value: Any) -> Any:
    """Return a parsed value without quotes, escapes, comments and the marks of the parser."""
    if isinstance(value, str) and len(value) > 1 and value[0] == value[-1] == '"':
        return value[1:-1].replace('\\"', '"')
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {
            _plain(key): _plain(item) for key, item in value.items() if not key.startswith("__")
        }
    return value
