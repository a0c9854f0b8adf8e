"""DuckDB reads the Parquet files."""

from pathlib import Path

import duckdb
import pytest

from tests.roundtrip.samples import damaged, detect, empty, every_sample, export_to, image_of


def test_duckdb_reads_the_same_detections(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    export = export_to(tmp_path, "parquet", every_sample())
    with duckdb.connect() as database:
        images = dict(
            database.execute(
                "SELECT document_id, status FROM read_parquet(?)",
                [str(export.folder / "images.parquet")],
            ).fetchall()
        )
        found = database.execute(
            "SELECT label, confidence FROM read_parquet(?) WHERE document_id = ?",
            [str(export.folder / "detections.parquet"), detect().id],
        ).fetchall()
    assert set(images) == {item.id for item in every_sample()}
    assert (images[damaged().id], images[empty().id]) == ("failed", "done")
    result = image_of(detect()).result
    assert result
    assert found == [(item.label, item.confidence) for item in result.detections]
