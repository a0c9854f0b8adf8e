"""The service responds as its OpenAPI description says. schemathesis makes the requests.

The decoders and the model are the real ones. Cloud Storage and Firestore are fakes.
"""

import copy
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import cv2
import jsonschema
import pytest
import schemathesis
from flask import Flask
from hypothesis import strategies as st
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import events, from_schema
from werkzeug.serving import make_server

from devtools.demo_model.shapes import write_samples
from devtools.docs import openapi
from devtools.docs.error_codes import request_errors
from devtools.docs.http_contract import respond
from devtools.fuzz.corpus import CASES
from service.domain import ErrorCode
from service.errors import UnauthenticatedError, YoloBatchError
from service.images.decoders import Decoders, build_decoders
from service.inference.detector import Detector
from service.inference.loading import load_detector
from service.server import detect_api
from service.server.app import create_app
from service.settings import BUNDLED_MODEL, Settings
from tests.fakes import (
    PATIENCE_SECONDS,
    DecodersHere,
    FakeDetector,
    FakeStorage,
    FakeStore,
    pipeline_of,
)

TOKEN = "Bearer good"
LIMIT_BYTES = 2**26  # some files of the corpus are larger than MAX_IMAGE_BYTES
EXAMPLES = 80
DESCRIPTION: dict[str, Any] = json.loads(detect_api.OPENAPI.read_text(encoding="utf-8"))
DOCUMENT = {"$ref": "#/components/schemas/Document", "components": DESCRIPTION["components"]}
SOME_CASES = list(CASES)[::7]  # the decoders' own tests read all of them
# The description cannot say which bytes are an image, or that only an object can be stored.
CHECKS = {"positive_data_acceptance": {"expected-statuses": ["200", "400", "403", "404"]}}


def verify(header: str | None) -> None:
    if header != TOKEN:
        raise UnauthenticatedError("The request has no token.")


class Site:
    """The application for callers, with fakes of Google's services only."""

    def __init__(self, decoders: Decoders, detector: Detector, images: list[bytes]) -> None:
        storage, self.store = FakeStorage(), FakeStore()
        storage.put("cam1/07.jpg", images[0])  # the description's example, without a generation
        self.pipeline = pipeline_of(
            storage,
            self.store,
            cast(FakeDetector, detector),
            decoders=cast(DecodersHere, decoders),
            allowed_buckets=("uploads",),
        )

    def app(self) -> Flask:
        limits = detect_api.DetectLimits(LIMIT_BYTES, 2**17, PATIENCE_SECONDS, commit_seconds=1.0)
        detect = detect_api.detect_blueprint(self.pipeline, self._read, limits)
        return create_app(
            self.pipeline, max_request_bytes=LIMIT_BYTES, verify=verify, detect=detect
        )

    def _read(self, document_id: str, deadline: object) -> Mapping[str, Any] | None:
        document = self.store.documents.get(document_id)
        return document and document | {"created_at": self.store.created[document_id]}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Small JPEG files. schemathesis writes each request into its reports."""
    scenes = [scene.image for _, scene in write_samples(tmp_path_factory.mktemp("samples"))[:3]]
    return [
        cv2.imencode(".jpg", cv2.resize(image, (320, 240)), [cv2.IMWRITE_JPEG_QUALITY, 50])[
            1
        ].tobytes()
        for image in scenes
    ]


@pytest.fixture(scope="module")
def site(images: list[bytes]) -> Iterator[Site]:
    decoders = build_decoders(Settings())
    site = Site(decoders, load_detector(BUNDLED_MODEL), images)
    for media_type in ("image/*", "application/octet-stream"):
        schemathesis.openapi.media_type(media_type, st.sampled_from(images))
    yield site
    site.pipeline.close(timeout_seconds=PATIENCE_SECONDS)


@dataclass
class Report:
    """What schemathesis found."""

    requests: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    checks: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


def events_of(app: Flask, config: SchemathesisConfig) -> Iterator[events.EngineEvent]:
    """Serve the application on a port of this machine, and yield what schemathesis does with it."""
    server = make_server("127.0.0.1", 0, app, threaded=True)
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/openapi.json"
        headers = {"Authorization": TOKEN}
        schema = schemathesis.openapi.from_url(url, config=config, headers=headers)
        yield from from_schema(schema).execute()
    finally:
        server.shutdown()
        serving.join()
        server.server_close()


def examine(app: Flask) -> Report:
    """Make the same requests each time, valid and invalid ones, and check the responses."""
    config = SchemathesisConfig.from_dict(
        {
            "generation": {"deterministic": True, "max-examples": EXAMPLES, "database": "none"},
            "phases": {"stateful": {"enabled": False}},
            "headers": {"Authorization": TOKEN},
            "checks": CHECKS,
        }
    )
    report = Report()
    for event in events_of(app, config):
        if isinstance(event, events.FatalError | events.NonFatalError):
            report.failures.append(repr(event))
        if not isinstance(event, events.ScenarioFinished):
            continue
        report.requests += len(event.recorder.interactions)
        for interaction in event.recorder.interactions.values():
            if interaction.response:
                report.statuses[interaction.response.status_code] += 1
        for name, checks in event.recorder.checks.items():
            for check in checks:
                report.checks[check.name] += 1
                if check.failure_info:
                    case = event.recorder.cases[name].value
                    what = f"{case.method} {case.query} {case.media_type} {str(case.body)[:80]}"
                    failure = check.failure_info.failure
                    report.failures.append(f"{failure.title}: {failure.message}: {what}")
    return report


def test_the_description_is_current() -> None:
    assert openapi.description() == DESCRIPTION


@pytest.mark.parametrize("error", request_errors())
def test_it_has_the_errors_of_every_endpoint(error: type[YoloBatchError]) -> None:
    response = respond(error)
    code = response.get_json()["error"]["code"]
    assert code in openapi.errors_by_status()[response.status_code]


def test_it_is_served(site: Site) -> None:
    response = site.app().test_client().get("/openapi.json", headers={"Authorization": TOKEN})
    assert (response.status_code, response.mimetype) == (200, "application/json")
    assert response.get_json() == DESCRIPTION


def test_every_response_is_as_described(site: Site) -> None:
    report = examine(site.app())
    assert report.failures == []
    assert report.requests > EXAMPLES
    assert set(report.statuses) >= {200, 400, 401, 403, 404}
    assert {"response_schema_conformance", "negative_data_rejection"} <= set(report.checks)


def without_a_status(description: dict[str, Any]) -> None:
    del description["paths"]["/v1/detect"]["post"]["responses"]["403"]


def with_a_wrong_type(description: dict[str, Any]) -> None:
    description["components"]["schemas"]["Document"]["properties"]["labels"]["type"] = "string"


def with_a_missing_code(description: dict[str, Any]) -> None:
    description["paths"]["/v1/detect"]["post"]["responses"]["400"]["content"]["application/json"][
        "schema"
    ]["allOf"][1]["properties"]["error"]["properties"]["code"]["enum"] = ["empty_object"]


@pytest.mark.parametrize("damage", [without_a_status, with_a_wrong_type, with_a_missing_code])
def test_a_wrong_description_is_found(
    site: Site,
    damage: Callable[[dict[str, Any]], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    description = copy.deepcopy(DESCRIPTION)
    damage(description)
    path = tmp_path / "openapi.json"
    path.write_text(json.dumps(description), encoding="utf-8")
    monkeypatch.setattr(detect_api, "OPENAPI", path)
    assert examine(site.app()).failures


@pytest.mark.parametrize("name", SOME_CASES)
def test_a_file_has_the_status_of_its_record(site: Site, name: str) -> None:
    case = CASES[name]
    response = (
        site.app()
        .test_client()
        .post("/v1/detect", data=case.make(), headers={"Authorization": TOKEN})
    )
    if response.status_code == 200:
        jsonschema.validate(response.get_json(), DOCUMENT)
        outcome = "done"
    else:
        outcome = response.get_json()["error"]["code"]
        assert response.status_code == detect_api.FAILURES[ErrorCode(outcome)]
    assert outcome in {expected.split()[0] for expected in case.expected}
