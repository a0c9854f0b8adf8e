"""What each format of an export has, and how an export continues after a crash."""

import csv
import io
import json
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.result_exports.exporting import exported_images
from service.result_exports.folder import ExportFolder, ExportFolderError
from service.result_exports.formats import FORMATS
from service.result_exports.names import FileNames
from service.result_exports.records import ExportOptions
from service.result_exports.selection import Selection
from service.result_exports.streaming import TemporaryKeys, stream_file, stream_zip
from service.result_exports.yolo_format import label_path
from tests.exports import REQUEST, detection, every_kind, export_to, many, stored, with_cursors
from tests.fakes import PATIENCE_SECONDS

ALL = sorted(FORMATS)


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def rows_of(folder: Path) -> list[dict[str, str]]:
    text = (folder / "detections.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(io.StringIO(text, newline="")))


def coco_of(folder: Path) -> Any:
    return json.loads((folder / "annotations.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ALL)
def test_every_format_takes_every_kind_of_result(tmp_path: Path, name: str) -> None:
    tally, _ = export_to(tmp_path, name, every_kind())
    assert (tally.images, tally.failed, tally.unreadable) == (11, 1, 2)
    assert not [path for path in files_of(tmp_path) if path.startswith(".")]


def test_csv_has_a_row_for_each_detection(tmp_path: Path) -> None:
    export_to(tmp_path, "csv", every_kind())
    rows = rows_of(tmp_path)
    first, second, nothing = rows[:3]
    assert first["class_name"] == "star"
    assert [float(first[key]) for key in ("x_min", "y_min", "x_max", "y_max")] == [64, 48, 128, 144]
    assert second["confidence"] == "0.6"
    assert (nothing["file"], nothing["x_min"]) == ("cam1/nothing.jpg", "")


def test_csv_has_no_cell_that_is_a_formula(tmp_path: Path) -> None:
    export_to(tmp_path, "csv", every_kind())
    cells = [cell for row in rows_of(tmp_path) for cell in row.values()]
    assert "'=HYPERLINK(1)" in cells
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]


def test_coco_counts_ids_from_1_and_has_categories(tmp_path: Path) -> None:
    export_to(tmp_path, "coco", every_kind())
    coco = coco_of(tmp_path)
    assert coco["licenses"]
    assert [each["id"] for each in coco["images"]] == list(range(1, len(coco["images"]) + 1))
    ids = [each["id"] for each in coco["annotations"]]
    assert ids == list(range(1, len(ids) + 1))
    names = {each["id"]: each["name"] for each in coco["categories"]}
    assert (names[1], names[3]) == ("star", "heart")
    assert {each["category_id"] for each in coco["annotations"]} <= set(names)


def test_coco_has_the_outer_rings_of_masks_only(tmp_path: Path) -> None:
    export_to(tmp_path, "coco", every_kind())
    masks = [each for each in coco_of(tmp_path)["annotations"] if each["area"] == 5000.0]
    assert [each["segmentation"] for each in masks] == [[[64, 48, 128, 48, 128, 144, 64, 144]]]


def test_coco_takes_the_users_category_ids(tmp_path: Path) -> None:
    export_to(tmp_path, "coco", every_kind(), category_ids={"heart": 40})
    assert {"id": 40, "name": "heart", "supercategory": ""} in coco_of(tmp_path)["categories"]


def test_yolo_has_an_empty_file_where_nothing_was_found(tmp_path: Path) -> None:
    export_to(tmp_path, "yolo", every_kind())
    files = files_of(tmp_path)
    assert files["labels/cam1/nothing.txt"] == b""
    assert files["labels/cam1/two.txt"].splitlines() == [
        b"0 0.150000 0.200000 0.100000 0.200000",
        b"2 0.150000 0.200000 0.100000 0.200000",
    ]
    assert "labels/failed.txt" not in files
    names = yaml.safe_load(files["data.yaml"])["names"]
    assert sorted(names) == list(range(len(names)))
    assert (names[0], names[2]) == ("star", "heart")


@pytest.mark.parametrize(("number", "columns"), [(2, 9), (3, 11), (4, 9)])
def test_yolo_has_the_lines_of_each_task(tmp_path: Path, number: int, columns: int) -> None:
    result = every_kind()[number]
    export_to(tmp_path, "yolo", [result], with_confidence=False)
    [line] = files_of(tmp_path)[f"labels/{result.document['name'][:-4]}.txt"].splitlines()
    assert len(line.split()) == columns
    assert all(0 <= float(each) <= 2 for each in line.split())


def test_yolo_adds_the_confidence_only_if_asked(tmp_path: Path) -> None:
    export_to(tmp_path, "yolo", [stored("a.jpg", detection())], with_confidence=True)
    assert files_of(tmp_path)["labels/a.txt"] == (
        b"0 0.150000 0.200000 0.100000 0.200000 0.900000\n"
    )


def test_yolo_says_what_it_left_out(tmp_path: Path) -> None:
    _, notes = export_to(tmp_path, "yolo", every_kind())
    assert any("another task" in text for text in notes)
    assert any("classes only" in text for text in notes)


def test_yolo_label_file_is_where_ultralytics_looks() -> None:
    assert label_path("cam1/a.jpg") == "labels/cam1/a.txt"
    assert label_path("images/a.jpg") == "images/labels/a.txt"


def test_parquet_has_types_and_both_tables(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    export_to(tmp_path, "parquet", every_kind())
    images = parquet.read_table(tmp_path / "images.parquet")
    detections = parquet.read_table(tmp_path / "detections.parquet")
    assert images.num_rows == 11
    assert str(images.schema.field("created_at").type) == "timestamp[us, tz=UTC]"
    assert str(detections.schema.field("confidence").type) == "double"
    ids = set(images["document_id"].to_pylist())
    assert set(detections["document_id"].to_pylist()) <= ids
    [fox] = [each for each in detections.to_pylist() if each["label"] == "fox"]
    assert fox["x_min"] is None


def test_parquet_without_images_has_its_columns(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    export_to(tmp_path, "parquet", [])
    assert "label" in parquet.read_table(tmp_path / "detections.parquet").column_names


def test_threshold_takes_faint_detections_too(tmp_path: Path) -> None:
    tally, _ = export_to(tmp_path, "csv", every_kind()[-1:], Selection(0.1))
    assert tally.detections == 2


def test_threshold_of_a_label_is_before_that_of_all(tmp_path: Path) -> None:
    selection = Selection(0.95, {"heart": 0.1})
    export_to(tmp_path, "csv", every_kind()[-1:], selection)
    assert [row["class_name"] for row in rows_of(tmp_path)] == ["heart"]


@pytest.mark.parametrize("name", ALL)
def test_killed_export_continues_byte_for_byte(tmp_path: Path, name: str) -> None:
    export_to(tmp_path / "whole", name, many(1000))
    command = [sys.executable, "-m", "tests.exports", str(tmp_path / "cut"), name, "1000", "750"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        process.kill()
        assert process.wait(PATIENCE_SECONDS) == -9
    cut = tmp_path / "cut"
    assert files_of(cut) != files_of(tmp_path / "whole")
    tally, _ = export_to(cut, name, many(1000), is_resumed=True)
    assert (tally.images, tally.detections) == (1000, 2000)
    assert files_of(cut) == files_of(tmp_path / "whole")


def test_existing_export_is_never_overwritten(tmp_path: Path) -> None:
    export_to(tmp_path, "csv", every_kind())
    before = files_of(tmp_path)
    with pytest.raises(ExportFolderError, match="is not empty"):
        export_to(tmp_path, "csv", [])
    with pytest.raises(ExportFolderError, match="no export that is not finished"):
        export_to(tmp_path, "csv", [], is_resumed=True)
    assert files_of(tmp_path) == before


def test_other_options_do_not_continue_an_export(tmp_path: Path) -> None:
    folder = ExportFolder(tmp_path)
    folder.begin(REQUEST)
    folder.close()
    with pytest.raises(ExportFolderError, match="other options"):
        ExportFolder(tmp_path).resume({"test": 2})


def streamed(name: str, results: Any) -> Any:
    keys = TemporaryKeys()
    images = exported_images(with_cursors(results), FileNames(keys), Selection())
    chosen = FORMATS[name]
    writer = chosen.writer(ExportOptions())
    if chosen.file:
        yield from stream_file(images, writer)
    else:
        yield from stream_zip(images, writer, is_written_at_once=chosen.is_written_at_once)
    keys.close()


@pytest.mark.parametrize("name", ALL)
def test_stream_has_the_same_files_as_the_folder(tmp_path: Path, name: str) -> None:
    export_to(tmp_path, name, every_kind())
    data = b"".join(streamed(name, every_kind()))
    if FORMATS[name].file:
        assert {FORMATS[name].file: data} == files_of(tmp_path)
    else:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            assert archive.testzip() is None
            assert {each: archive.read(each) for each in archive.namelist()} == files_of(tmp_path)


def peak_bytes(folder: Path, name: str, count: int) -> int:
    tracemalloc.start()
    try:
        export_to(folder, name, many(count))
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["csv", "coco"])
def test_export_of_more_images_needs_no_more_memory(tmp_path: Path, name: str) -> None:
    export_to(tmp_path / "warm", name, many(10))  # modules and caches
    few = peak_bytes(tmp_path / "few", name, 1_000)
    # Python's table of interned texts, which pathlib fills, may grow meanwhile: once, by 4 MB. The
    # documents would need 40 MB.
    assert peak_bytes(tmp_path / "many", name, 8_000) < few + 12 * 2**20
