"""Every file of the corpus ends as expected within bounds. Every name is read unchanged."""

import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from devtools.fuzz.corpus import CASES, NAMES, CaseResult
from service.domain import ImageRef
from service.events import parse_event

ROOT = Path(__file__).parents[2]
CORPUS_SECONDS = 400  # twenty times what all files take


@pytest.fixture(scope="module")
def results() -> dict[str, CaseResult]:
    """How each case ended. A process without threads reads the files, because it forks."""
    command = [sys.executable, "-m", "devtools.fuzz.corpus", "--together"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=CORPUS_SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
    return {line["name"]: CaseResult(**line) for line in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("name", CASES)
def test_file_of_the_corpus_ends_as_expected_within_bounds(
    results: dict[str, CaseResult], name: str
) -> None:
    assert results[name].is_good, results[name]


def test_corpus_page_has_every_file() -> None:
    page = (ROOT / "docs" / "evidence" / "malformed-files.md").read_text(encoding="utf-8")
    assert f"{len(CASES)} of {len(CASES)} as expected." in page
    assert all(f"| {name} " in page for name in CASES)


def encoded(value: Any) -> str:
    return base64.b64encode(json.dumps(value).encode()).decode()


def as_latin_1(text: str) -> str:
    """Return the text of a header as WSGI passes it (PEP 3333)."""
    return text.encode().decode("latin-1")


def requests_for(name: str) -> dict[str, tuple[dict[str, str], Any]]:
    """Return requests that name generation 7 of an object, one for each form."""
    resource = {"bucket": "uploads", "name": name, "generation": "7"}
    attributes = {"eventType": "OBJECT_FINALIZE", "bucketId": "uploads", "objectId": name}
    attributes["objectGeneration"] = "7"
    finalized = "google.cloud.storage.object.v1.finalized"
    return {
        "binary": ({"ce-type": finalized}, resource),
        "structured": (
            {"content-type": "application/cloudevents+json"},
            {"type": finalized, "data": resource},
        ),
        "push of data": ({}, {"message": {"data": encoded(resource), "attributes": attributes}}),
        "push of attributes": ({}, {"message": {"attributes": attributes}}),
        "unwrapped": ({key: as_latin_1(value) for key, value in attributes.items()}, None),
        "job": ({}, {"message": {"data": encoded({"uri": f"gs://uploads/{name}#7"})}}),
    }


@pytest.mark.parametrize("name", NAMES.values(), ids=list(NAMES))
@pytest.mark.parametrize("form", requests_for(""))
def test_name_of_the_corpus_is_read_from_every_form_of_event(name: str, form: str) -> None:
    headers, body = requests_for(name)[form]
    event = parse_event(headers, json.dumps(body).encode() if body else b"")
    image = event.ref
    assert image
    assert (image.bucket, image.name, image.generation) == ("uploads", name, 7)


def test_similar_names_have_different_document_ids() -> None:
    ids = {ImageRef("uploads", name, 7).document_id for name in NAMES.values()}
    assert len(ids) == len(NAMES)
    assert all("/" not in id_ and len(id_.encode()) <= 1500 for id_ in ids)
