"""Exports of edited documents, and of folders that somebody else changed."""

import json
import math
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from service.derived import NOTHING, DeriveOptions, Redaction
from service.domain import SourceVersion
from service.gcp.result_pages import StoredResult
from service.result_exports.exported import shown_uri
from service.result_exports.exporting import exported_images, write_export
from service.result_exports.folder import ExportFolder, ExportFolderError
from service.result_exports.formats import FORMATS
from service.result_exports.images import ImageFiles, NotFetchedError, StoredFiles
from service.result_exports.names import FileNames
from service.result_exports.records import ExportedImage, ExportOptions
from service.result_exports.selection import Selection
from service.sources.current import SourceSettings
from service.sources.rules import Rules
from service.stored_json import json_line
from tests.exports import REQUEST, detection, every_kind, export_to, many, stored, with_cursors

ODD: list[Any] = [math.nan, math.inf, b"\xff", datetime(1, 1, 1, tzinfo=UTC), [], {}, None, "x"]


class Interrupted(Exception):
    """What ends an export."""


def interrupted(results: list[StoredResult], at: int) -> Any:
    yield from results[:at]
    raise Interrupted


class Nothing:
    """No path was given. It is a `Taken`."""

    def add(self, key: str) -> bool:
        return True

    def has(self, key: str) -> bool:
        return False


def image_of(result: StoredResult) -> ExportedImage:
    images = exported_images(with_cursors([result]), FileNames(Nothing()), Selection())
    return next(images)[0]


@pytest.mark.parametrize("name", sorted(FORMATS))
@pytest.mark.parametrize("value", ODD)
def test_odd_generation_does_not_end_an_export(tmp_path: Path, name: str, value: Any) -> None:
    tally, _ = export_to(tmp_path, name, [stored("a.jpg", edited={"generation": value})])
    assert (tally.images, tally.unreadable) == (1, 1)


def test_coco_has_no_infinite_number(tmp_path: Path) -> None:
    item = stored("a.jpg", detection())
    item.document["detections"][0]["box"]["x2"] = 1e308
    export_to(tmp_path, "coco", [item])
    assert "Infinity" not in (tmp_path / "annotations.json").read_text(encoding="utf-8")


def test_coco_takes_a_mask_with_an_empty_ring(tmp_path: Path) -> None:
    item = every_kind()[2]
    item.document["detections"][0]["polygons"].append({"points": []})
    tally, _ = export_to(tmp_path, "coco", [item])
    assert tally.detections == 1


def test_json_line_has_every_type_of_firestore() -> None:
    reference = SimpleNamespace(path="detections/a")
    vector = range(2)
    line = json_line({"reference": reference, "vector": vector, "numbers": [math.nan, -math.inf]})
    assert json.loads(line) == {
        "reference": "detections/a",
        "vector": [0, 1],
        "numbers": [None, None],
    }


@pytest.mark.parametrize("kind", [[], {}, None, 1])
def test_odd_kind_of_derived_image_is_ignored(kind: Any) -> None:
    assert shown_uri({"uri": "gs://uploads/a.jpg", "derived": [{"kind": kind}]})


@pytest.mark.parametrize("first", "=+-@\t\r\n＝＋－＠")
def test_csv_text_is_never_a_formula(tmp_path: Path, first: str) -> None:
    export_to(tmp_path, "csv", [stored("a.jpg", detection(f"{first}1"))])
    assert f"'{first}1" in (tmp_path / "detections.csv").read_bytes().decode()


def test_continued_export_has_each_label_once(tmp_path: Path) -> None:
    results = [stored(f"images/{number:04}.jpg", detection()) for number in range(400)]
    with pytest.raises(Interrupted):
        export_to(tmp_path, "yolo", interrupted(results, 350))
    export_to(tmp_path, "yolo", results, is_resumed=True)
    lines = [path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.txt")]
    assert (len(lines), {text.count("\n") for text in lines}) == (400, {1})


def test_export_is_written_by_one_process(tmp_path: Path) -> None:
    with closing(ExportFolder(tmp_path)) as first:
        first.begin(REQUEST)
        with pytest.raises(ExportFolderError, match="Another process"):
            ExportFolder(tmp_path).resume(REQUEST)


def test_export_that_lost_a_file_is_not_continued(tmp_path: Path) -> None:
    results = list(many(350))
    with pytest.raises(Interrupted):
        export_to(tmp_path, "coco", interrupted(results, 320))
    (tmp_path / ".part-annotations").unlink()
    with pytest.raises(ExportFolderError, match="incomplete"):
        export_to(tmp_path, "coco", results, is_resumed=True)


def test_damaged_state_is_reported(tmp_path: Path) -> None:
    (tmp_path / ".export-state.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(ExportFolderError, match="damaged"):
        ExportFolder(tmp_path).resume(REQUEST)


def test_state_without_a_record_begins_again(tmp_path: Path) -> None:
    (tmp_path / ".export-state.sqlite").touch()
    with closing(ExportFolder(tmp_path)) as folder:
        assert folder.resume(REQUEST) == (None, {})


def test_continued_export_fetches_the_right_image(tmp_path: Path) -> None:
    def export(results: Any, data: bytes, *, is_resumed: bool) -> None:
        with closing(ExportFolder(tmp_path)) as folder:
            folder.resume(REQUEST) if is_resumed else folder.begin(REQUEST)
            files = ImageFiles(folder, lambda image: data)
            images = exported_images(with_cursors(results), FileNames(folder), Selection())
            writer = FORMATS["csv"].writer(ExportOptions())
            try:
                write_export(images, writer, folder, folder, files=files)
            finally:
                files.close()

    with pytest.raises(Interrupted):
        export(interrupted([stored("a.jpg", detection())], 1), b"first", is_resumed=False)
    # Since then, the object was overwritten, and its new document comes first.
    export([stored("a.jpg", detection())], b"second", is_resumed=True)
    assert (tmp_path / "images/a.jpg").read_bytes() == b"second"


def no_download(*args: object) -> None:
    raise AssertionError("The original was fetched")


def files_with(derive: DeriveOptions, source: str | None = "cam") -> StoredFiles:
    rules = Rules.of(None, min_confidence=0.25, store_confidence=0.1)
    settings = SourceSettings(rules, SourceVersion(source), derive=derive)
    sources = SimpleNamespace(settings_of=lambda ref, deadline: settings)
    uploads = SimpleNamespace(download=no_download)
    return StoredFiles(cast("Any", uploads), cast("Any", None), cast("Any", sources))


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (files_with(DeriveOptions(redaction=Redaction())), "asks for redaction"),
        (files_with(NOTHING, source=None), "nobody knows"),
    ],
)
def test_original_is_not_fetched_with_redaction(files: StoredFiles, reason: str) -> None:
    with pytest.raises(NotFetchedError, match=reason):
        files(image_of(stored("a.jpg", detection())))


@pytest.mark.parametrize("field", ["bucket", "name"])
def test_edited_document_names_no_other_object(field: str) -> None:
    files = files_with(DeriveOptions())
    with pytest.raises(NotFetchedError, match="names another object"):
        files(image_of(stored("a.jpg", detection(), edited={field: "private"})))


def is_full(path: Path, target: Path) -> None:
    raise OSError(28, "No space left on device")


def test_full_disk_leaves_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "replace", is_full)
    with closing(ExportFolder(tmp_path)) as folder:
        folder.begin(REQUEST)
        files = ImageFiles(folder, lambda image: b"data")
        files.add(image_of(stored("a.jpg", detection())), folder)
        assert files.wait(folder) == 1
        files.close()
    assert not list((tmp_path / "images").iterdir())


class _Reference:
    """A reference to a document, as Firestore's client has it."""

    def get(self, field_paths: str) -> None:
        raise ValueError("'field_paths' must be a sequence of paths, not a string.")


def test_reference_for_a_detection_does_not_end_an_export(tmp_path: Path) -> None:
    edited = {"detections": [_Reference()]}
    tally, _ = export_to(tmp_path, "csv", [stored("a.jpg", edited=edited)])
    assert (tally.images, tally.unreadable) == (1, 1)
