"""Alerts through the real service: a rule in the sources becomes a message on the topic."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.cloud import firestore

from devtools.demo_model.shapes import Scene
from devtools.local_stack.stack import Stack
from service.gcp.collection import ALERTS
from tests.system import hooks
from tests.system.conftest import ASIDE, COLLECTION, Service, document, put_aside, run_cli
from tests.system.test_results_topic import received

pytestmark = pytest.mark.emulator

StartService = Callable[..., Service]
MakeTopic = Callable[..., str]
Samples = list[tuple[Path, Scene]]


@pytest.fixture
def rule(tmp_path: Path, make_topic: MakeTopic) -> Iterator[str]:
    """Apply a source with a rule. Return its topic, which is also the prefix of its images."""
    topic = make_topic()
    file = tmp_path / "sources.yaml"

    def apply(sources: list[dict[str, Any]]) -> None:
        file.write_text(yaml.safe_dump({"groups": {"any": ["unicorn"]}, "sources": sources}))
        done = run_cli("sources", "apply", file, "--yes")
        assert done.returncode == 0, done.stderr

    rules = [{"name": "shapes", "severity": "critical"}, {"name": "never", "group": "any"}]
    apply([{"id": topic, "bucket": ASIDE, "prefix": f"{topic}/", "alerts": rules}])
    yield topic
    apply([])


def alerts_of(topic: str) -> list[dict[str, Any]]:
    """Return the alert documents of a test's images."""
    snapshots = firestore.Client().collection(COLLECTION + ALERTS).stream()
    fields = [{"id": each.id, **(each.to_dict() or {})} for each in snapshots]
    return [each for each in fields if each["name"].startswith(f"{topic}/")]


def test_first_match_alerts_and_the_next_ones_do_not(
    start_service: StartService, stack: Stack, samples: Samples, rule: str
) -> None:
    service = start_service(ALERTS_TOPIC=rule)
    refs = [put_aside(stack, f"{rule}/{i}.jpg", samples[0][0].read_bytes()) for i in range(3)]
    other = put_aside(stack, f"other-{rule}/a.jpg", samples[0][0].read_bytes())
    for ref in [*refs, refs[0], other]:  # the first one is delivered twice
        assert service.deliver(ref) == [204]
    [data] = received(stack, rule, lambda messages: bool(messages))
    message = json.loads(data)
    stored = document(refs[0])
    assert stored
    assert [alert["id"] for alert in stored["alerts"]] == [message["id"]]
    assert (message["rule"], message["severity"]) == ("shapes", "critical")
    assert message["labels"] == stored["counts"]
    assert message["uri"] == refs[0].uri
    states = {each["name"]: each["state"] for each in alerts_of(rule)}
    assert states == {refs[0].name: "published"} | {ref.name: "suppressed" for ref in refs[1:]}
    service.stop()
    lines = [line for line in service.log() if line["message"] == "Alert"]
    assert [(line["alert_id"], line["severity"]) for line in lines] == [(message["id"], "WARNING")]
    assert lines[0]["text"] == message["text"]


def test_crash_after_the_commit_loses_no_alert(
    start_service: StartService, stack: Stack, samples: Samples, rule: str
) -> None:
    service = start_service(ALERTS_TOPIC=rule, **hooks.settings(hooks.CrashingAfterCommitWorker))
    ref = put_aside(stack, f"{rule}/a.jpg", samples[0][0].read_bytes())
    assert service.deliver(ref) == [0, 204]
    [data] = received(stack, rule, lambda messages: bool(messages))
    [alert] = alerts_of(rule)
    assert (json.loads(data)["id"], alert["state"]) == (alert["id"], "published")
    assert service.deliver(ref) == [204]
    assert len(alerts_of(rule)) == 1
