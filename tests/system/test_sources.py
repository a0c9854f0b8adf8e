"""Sources through the whole local stack: one prefix is configured without touching another."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.cloud import firestore

from devtools.demo_model.shapes import Scene
from devtools.local_stack.stack import Stack
from service.domain import ImageRef
from tests.fakes import wait_until
from tests.system.conftest import ASIDE, Service, document, put_aside, run_cli

pytestmark = pytest.mark.emulator

SQUARE = [[0, 0], [1, 0], [1, 1], [0, 1]]
LEFT = [[0, 0], [0.5, 0], [0.5, 1], [0, 1]]
DERIVED = ("detections", "faint", "labels", "counts", "counts_by_zone", "best", "num_detections")


def source(name: str, **fields: Any) -> dict[str, Any]:
    return {"id": name, "bucket": ASIDE, "prefix": f"sources/{name}/"} | fields


YARD = source(
    "yard",
    min_confidence=0.1,
    zones=[
        {"name": "left", "mode": "include", "points": LEFT, "anchor": "center"},
        {"name": "everywhere", "mode": "include", "points": SQUARE},
    ],
)


@pytest.fixture
def apply(tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Apply sources as a user does. The test's end removes all sources."""
    file = tmp_path / "sources.yaml"

    def write(*sources: dict[str, Any]) -> None:
        file.write_text(yaml.safe_dump({"sources": list(sources)}))
        done = run_cli("sources", "apply", file, "--yes")
        assert done.returncode == 0, done.stderr

    yield write
    write()


def deliver(service: Service, ref: ImageRef) -> dict[str, Any]:
    assert service.deliver(ref)[-1] == 204
    stored = document(ref)
    assert stored
    return stored


def test_each_prefix_has_its_own_settings(
    stack: Stack,
    start_service: Callable[..., Service],
    samples: list[tuple[Path, Scene]],
    apply: Callable[..., None],
) -> None:
    image = samples[0][0].read_bytes()
    count = iter(range(10**6))

    def put(name: str) -> ImageRef:
        return put_aside(stack, f"sources/{name}/{next(count)}.jpg", image)

    apply(source("gate", min_confidence=1, keep_faint=False), YARD, source("off", enabled=False))
    service = start_service(SOURCES_REFRESH_SECONDS="1")
    gate, yard, other = (deliver(service, put(name)) for name in ("gate", "yard", "other"))
    assert (gate["num_detections"], gate["faint"]) == (0, None)
    assert other["num_detections"] > 0 and other["source"]["id"] is None
    assert yard["num_detections"] >= other["num_detections"]
    assert sum(yard["counts_by_zone"]["everywhere"].values()) == yard["num_detections"]
    in_left = sum("left" in detection["zones"] for detection in yard["detections"])
    assert sum(yard["counts_by_zone"]["left"].values()) == in_left

    # A disabled source: acknowledged, recorded nowhere, and not missing.
    disabled = put("off")
    assert service.deliver(disabled) == [204]
    assert document(disabled) is None
    counted = run_cli("reconcile", f"gs://{ASIDE}/sources/", "--json")
    report = json.loads(counted.stdout)
    assert (report["disabled"], report["missing"], report["done"]) == (1, 0, 3)

    # A change of one source reaches its next images, and no others.
    apply(source("gate", min_confidence=0.1), YARD, source("off", enabled=False))

    def sees_the_change() -> bool:
        return bool(deliver(service, put("gate"))["faint"])

    wait_until(sees_the_change, "the service does not look at the sources again")
    changed, same = (deliver(service, put(name)) for name in ("gate", "yard"))
    assert changed["num_detections"] == yard["num_detections"]
    assert {key: same[key] for key in DERIVED} == {key: yard[key] for key in DERIVED}
    assert same["source"]["version"] > yard["source"]["version"]

    # A document that is broken in the console changes nothing, for a new instance either.
    firestore.Client().document("config/sources").set({"sources": "none"})
    later = start_service(SOURCES_REFRESH_SECONDS="1")
    assert deliver(later, put("gate"))["source"] == changed["source"]
    assert later.deliver(disabled) == [204]
    assert document(disabled) is None
    service.stop()
    assert service.outcomes()["disabled"] == 1
