"""The benchmarks of derived images: what they cost, and what a redaction misses."""

import json
from pathlib import Path

import pytest
from PIL import Image

from devtools.bench import derived, missed
from devtools.bench.missed import Coverage, coverage, report
from service.derived import Redaction
from service.domain import Box, Detection, ImageInfo
from service.settings import BUNDLED_MODEL
from service.truth import LabelledObject

INFO = ImageInfo(200, 100, "JPEG")
LEFT_HALF = Detection("person", 0, 0.06, Box(0.0, 0.0, 50.0, 100.0))


def labelled(x: float, width: float) -> LabelledObject:
    return LabelledObject(0, "person", (x, 0.0, width, 100.0), False)


def test_coverage_is_the_share_of_the_labelled_box() -> None:
    redaction = Redaction(("person",), margin=0)
    objects = [labelled(0, 50), labelled(0, 100), labelled(150, 50), labelled(190, 5)]
    found = coverage(INFO, [LEFT_HALF], objects, redaction)
    assert [round(item.share, 1) for item in found] == [1.0, 0.5, 0.0, 0.0]
    assert [item.size for item in found] == ["medium", "large", "medium", "small"]
    assert coverage(INFO, [LEFT_HALF], objects, Redaction(("car",)))[0].share == 0


def test_report_counts_what_is_covered_too_little() -> None:
    text = report([Coverage(0.0, "small"), Coverage(0.6, "small"), Coverage(1.0, "large")])
    rows = {line.split("|")[1].strip(): line for line in text.splitlines()}
    assert "1 (50%)" in rows["small"] and "2 (100%)" in rows["small"]
    assert "0 (0%)" in rows["large"] and "- " in rows["medium"] and "1 (33%)" in rows["all"]


def test_commands_run_on_photos_and_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.effect_noise((320, 240), 80).convert("RGB").save(tmp_path / "1.jpg")
    monkeypatch.setattr(derived, "enlarged", lambda data: data)
    arguments = [str(tmp_path), "--rounds", "1"]
    monkeypatch.setattr("sys.argv", ["derived", *arguments])
    derived.main()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    names = [line.split("|")[1].strip() for line in lines]
    assert names == 2 * ["", derived.PLAIN, *derived.ROWS]

    label = {"image_id": 1, "category_id": 1, "bbox": [10, 10, 90, 90], "area": 8100, "iscrowd": 0}
    labels = tmp_path / "labels.json"
    labels.write_text(
        json.dumps(
            {
                "images": [{"id": 1, "file_name": "1.jpg", "width": 320, "height": 240}],
                "annotations": [label],
                "categories": [{"id": 1, "name": "circle"}],
            }
        )
    )
    command = ["missed", "circle", "--model", str(BUNDLED_MODEL), "--data", str(labels)]
    monkeypatch.setattr("sys.argv", command)
    missed.main()
    assert "| all " in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["missed", "lion", *command[2:]])
    with pytest.raises(SystemExit):
        missed.main()
    assert "no object has the label 'lion'" in capsys.readouterr().err
