"""The gallery's page of one image, on the emulators."""

import json
import random
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from html import unescape
from typing import Any

import pytest
from google.cloud import firestore

from service.deadline import NO_DEADLINE
from service.domain import (
    Camera,
    CapturedAtSource,
    ClassScore,
    ErrorCode,
    GeoPoint,
    ObjectMetadata,
    RotatedBox,
    SourceVersion,
    Task,
    Timings,
)
from service.gallery.image import console_url
from service.gallery.parts import GalleryOptions
from service.gcp.firestore import ResultStore
from service.gcp.large_results import LargeResults
from service.gcp.result_uploads import ResultUploads
from service.health import Health
from service.recorder import Recorder
from tests.fakes import PATIENCE_SECONDS
from tests.gallery_pages import HOSTILE, MODEL, Pages, failed, found, person, reads
from tests.masks import segmented

pytestmark = pytest.mark.emulator

# Values that a person may have written in place of any field.
EDITS: tuple[Any, ...] = (
    None, True, -1, 2**62, 0.5, float("nan"), float("inf"), "", HOSTILE, b"\xff\x00",
    [], ["text", None, {"label": 1}], {}, {"x": {"y": HOSTILE}},
    datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, tzinfo=UTC),
)  # fmt: skip


@pytest.fixture
def pages(collection: str) -> Pages:
    return Pages(collection)


def data_of(html: str) -> dict[str, Any]:
    """Return what the page gives to its script."""
    [text] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html)
    data: dict[str, Any] = json.loads(text)
    return data


def plain_text(html: str) -> str:
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", html)).split())


def test_page_shows_everything_about_an_image(pages: Pages) -> None:
    metadata = ObjectMetadata(
        size=130510, content_type="image/png", md5="XUFAKrxL==", custom={"survey": "autumn"}
    )
    result = found(
        "cam1/07.png",
        person(),
        captured_at=datetime(2026, 11, 21, 3, 20, tzinfo=UTC),
        captured_at_source=CapturedAtSource.EXIF_OFFSET,
        camera=Camera("Reconyx", "HC600", "H6"),
        location=GeoPoint(46.6, 8.03),
        timings=Timings(21.4, 5.1, 18.0, 25.9),
        source=SourceVersion("cam1"),
        faint=(person(0.1),),
    )
    document_id = pages.put(replace(result, ref=replace(result.ref, metadata=metadata)))
    html = pages.client().text(f"/image/{document_id}")
    text = plain_text(html)
    for shown in (
        "gs://uploads/cam1/07.png", "person 0.900 200 × 400 gate", "faint 0.100",
        "640 × 480 pixels, PNG", "130,510 bytes", "XUFAKrxL==", "survey autumn",
        "2026-11-21 03:20:00 UTC (the file's EXIF data have the UTC offset)",
        "Reconyx", "HC600", "46.60000, 8.03000", "Inference 25.9 ms", "yolo26n.pt", '"schema": 2',
    ):  # fmt: skip
        assert shown in text
    assert data_of(html)["card"]["detections"][0]["label"] == "person"


@pytest.mark.parametrize(
    ("task", "fields", "shown"),
    [
        (Task.OBB, {"rotated_box": RotatedBox(50, 50, 20, 10, 33.3)}, "angle 33.3°"),
        (Task.SEGMENT, {"area": 1234.0}, "area 1,234 pixels"),
    ],
    ids=["obb", "segment"],
)
def test_table_has_what_the_task_measures(
    pages: Pages, task: Task, fields: dict[str, Any], shown: str
) -> None:
    model = replace(MODEL, task=task)
    document_id = pages.put(found("a.png", person(**fields), model=model))
    assert shown in plain_text(pages.client().text(f"/image/{document_id}"))


def test_classes_of_an_image_are_shown_with_bars(pages: Pages) -> None:
    classes = (ClassScore("fox", 1, 0.75), ClassScore("hare", 2, 0.25))
    model = replace(MODEL, task=Task.CLASSIFY)
    result = found("a.png", classes=classes, kept_classes=classes[:1], model=model)
    html = pages.client().text(f"/image/{pages.put(result)}")
    assert '<meter min="0" max="1" value="0.75"' in html
    assert "fox 0.750" in plain_text(html)


def test_failed_image_says_why_and_what_to_do(pages: Pages) -> None:
    text = plain_text(pages.client().text(f"/image/{pages.put(failed('a.jpg'))}"))
    assert "The reason of a.jpg." in text
    assert ErrorCode.CORRUPT_IMAGE.description in text
    assert ErrorCode.CORRUPT_IMAGE.remedy in text
    assert "yolo-batch reconcile" in text


def edited(value: Any, chosen: random.Random) -> Any:
    """Return a value of a document with some parts replaced by what a person may have written."""
    if chosen.random() < 0.2:
        return chosen.choice(EDITS)
    if isinstance(value, dict):
        return {key: edited(item, chosen) for key, item in value.items()}
    if isinstance(value, list):
        items = [edited(item, chosen) for item in value]
        return [item for item in items if not isinstance(item, list)]  # Firestore refuses them
    return value


def test_any_edit_of_a_document_is_shown(pages: Pages) -> None:
    client = pages.client()
    rule = {"id": "a", "rule": "b", "severity": "c"}
    document_id = pages.put(
        found("a.png", person(), location=GeoPoint(1.0, 2.0), camera=Camera("make")),
        alerts=[rule, rule],
        derived=[{"kind": "thumbnail", "uri": "gs://b/c", "width": 1, "height": 2}],
        classes=[{"label": "fox", "confidence": 0.5}],
        error={"code": "corrupt_image", "message": "cut"},
    )
    reference = firestore.Client().collection(pages.collection).document(document_id)
    document = reference.get().to_dict() or {}
    chosen = random.Random(1)
    for number in range(100):
        status = ("done", "failed", "parked")[number % 3]
        fields = {key: edited(value, chosen) for key, value in document.items()}
        reference.set(fields | {"status": status})
        assert "<script>window" not in client.text(f"/image/{document_id}")


@pytest.mark.parametrize("document", [{}, {"name": 1}, {"status": "odd", "x": HOSTILE}], ids=str)
def test_unreadable_document_is_shown_raw(pages: Pages, document: dict[str, Any]) -> None:
    document_id = pages.put_raw("any id", document)
    text = plain_text(pages.client().text(f"/image/{document_id}"))
    assert "This document is unreadable" in text


@pytest.mark.parametrize("document_id", ["0" * 40, "..", "__x__", "%00", "x" * 1600])
def test_unknown_document_is_not_found(pages: Pages, document_id: str) -> None:
    response = pages.client().get(f"/image/{document_id}")
    assert response.status_code == 404
    assert "Error 404" in response.text


def test_damaged_filter_is_refused_with_a_sentence(pages: Pages) -> None:
    document_id = pages.put(found("a.png"))
    response = pages.client().get(f"/image/{document_id}?day=never")
    assert (response.status_code, "is not possible in a filter" in response.text) == (400, True)


def test_links_keep_the_state_of_the_grid(pages: Pages) -> None:
    ids = [pages.put(found(f"{number}.png")) for number in range(3)]
    html = unescape(pages.client().text(f"/image/{ids[1]}?label=a%26b&_scheme=x&threshold=0.4"))
    state = "?label=a%26b&_scheme=x&threshold=0.4"
    assert f'rel="prev" href="/image/{ids[2]}{state}"' in html
    assert f'rel="next" href="/image/{ids[0]}{state}"' in html
    assert f'href="/{state}"' in html


def test_other_generations_are_linked(pages: Pages) -> None:
    first = pages.put(found("a.png", generation=1))
    second = pages.put(found("a.png", generation=2))
    html = pages.client().text(f"/image/{second}")
    assert "Generations of this object" in html
    assert f'href="/image/{first}"' in html


def test_alerts_that_fired_are_read_by_their_ids(pages: Pages) -> None:
    document_id = found("a.png").ref.document_id
    alerts = [
        {"id": f"{document_id}-{number}", "rule": f"rule{number}", "severity": "warning"}
        for number in range(12)
    ]
    foreign = {"id": "other-1", "rule": "foreign", "severity": "info"}
    pages.put(found("a.png"), alerts=[foreign, *alerts])
    pages.put_alert(f"{document_id}-0", {"state": "suppressed", "text": "A person at the gate."})
    pages.put_alert("other-1", {"text": "secret"})
    response = pages.client().get(f"/image/{document_id}")
    text = plain_text(response.text)
    assert "rule0 ( warning ), suppressed : A person at the gate." in text
    assert "<bdi>rule9</bdi>" in response.text
    assert "<bdi>rule10</bdi>" not in response.text
    assert "secret" not in response.text
    assert reads(response) <= 1 + 2 + 1 + 10


def test_large_result_shows_all_of_its_masks(
    pages: Pages, collection: str, large: LargeResults, uploads: ResultUploads
) -> None:
    client = firestore.Client()
    store = ResultStore(client, collection=collection, timeout_seconds=PATIENCE_SECONDS)
    recorder = Recorder(store, Health(hang_timeout_seconds=600), uploads)
    result = segmented("a.jpg")
    recorder.record(result, NO_DEADLINE)
    recorder.close(timeout_seconds=PATIENCE_SECONDS)
    path = f"/image/{result.ref.document_id}"
    card = data_of(pages.client(large_results=large).text(path))["card"]
    assert len(card["detections"]) == 300
    assert len(card["detections"][0]["polygons"][0]) == 600
    without = pages.client().text(path)
    assert "in an object that cannot be read here" in without
    reference = client.collection(collection).document(result.ref.document_id)
    uri = reference.get().get("detections_uri")
    for edited in (uri[:-20] + "0" * 12 + uri[-8:], uri.replace("gs://", "gs://x")):
        reference.update({"detections_uri": edited})
        assert "could not be read" in pages.client(large_results=large).text(path)
    reference.update({"detections_uri": uri.replace(result.ref.document_id, "1" * 40)})
    assert "cannot be read here" in pages.client(large_results=large).text(path)


def test_results_bucket_that_is_unset_is_stated(pages: Pages) -> None:
    document_id = pages.put(found("a.png"), left_out=["polygons"], simplified_pixels=4.0)
    text = plain_text(pages.client().text(f"/image/{document_id}"))
    assert 'it lacks ["polygons"]' in text
    assert "simplified, by at most 4.0 pixels" in text


@pytest.mark.parametrize(
    ("options", "url"),
    [
        (GalleryOptions(), None),
        (
            GalleryOptions(project="p", collection="a b"),
            "https://console.cloud.google.com/firestore/databases/-default-/data/panel/a%20b/x"
            "?project=p",
        ),
    ],
    ids=["emulator", "project"],
)
def test_console_link_needs_a_project(options: GalleryOptions, url: str | None) -> None:
    assert console_url("x", options) == url


def test_page_reads_few_documents(pages: Pages, write_many: Callable[[int], str]) -> None:
    document_id = write_many(40)
    assert reads(pages.client().get(f"/image/{document_id}")) <= 14


@pytest.fixture
def write_many(pages: Pages) -> Callable[[int], str]:
    def write(count: int) -> str:
        return [pages.put(found("a.png", generation=number + 1)) for number in range(count)][20]

    return write
