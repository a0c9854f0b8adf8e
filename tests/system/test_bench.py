"""`yolo-batch-dev bench`, end to end. The figures are not checked: the machine may be busy."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from devtools.bench import figures
from devtools.bench.profile import BETWEEN, HTTP, STAGES
from devtools.demo_model.shapes import Scene

_BENCH_SECONDS = 1200

Samples = list[tuple[Path, Scene]]

pytestmark = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="the benchmark needs Linux"
)


def run_bench(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    command = [Path(sys.executable).with_name("yolo-batch-dev"), "bench", "--quick", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=_BENCH_SECONDS, check=False
    )


@pytest.mark.timeout(_BENCH_SECONDS + 120)  # six services start, one after the other
def test_quick_bench_measures_every_part_on_the_bundled_model(
    samples: Samples, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib", reason="extra bench is not installed")
    (tmp_path / "images").mkdir()
    for file, _ in samples[:3]:
        (tmp_path / "images" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "images" / "text.jpg").write_text("not an image")
    done = run_bench(
        tmp_path / "images", "--table", "--sweep", "--profile", "--cold-start", "--memory",
        "--plot", tmp_path / "plot.png", "--json", tmp_path / "bench.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "text.jpg" in done.stderr  # skipped and reported
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")

    report = json.loads((tmp_path / "bench.json").read_text())
    assert report["header"]["images"].startswith("3 of ")
    sections = report["sections"]
    assert all(f"### {title}" in done.stdout for title in sections)
    table = sections["Speed and CPU time"]
    assert [row["name"] for row in table] == [figures.MODEL, figures.ENGINE, figures.SERVICE]
    assert all(row["cpu_ms_per_image"]["median"] > 0 for row in table)
    sweeps = [name for name in sections if name.startswith("Engine by batch size")]
    assert all(len(sections[name]["rows"]) == 2 for name in sweeps)
    assert len(sweeps) == (2 if len(os.sched_getaffinity(0)) > 1 else 1)

    profile = sections["CPU time of the whole service by stage"]
    assert list(profile["cpu_ms_per_image"]) == [*STAGES, HTTP, BETWEEN]
    assert profile["cpu_ms_per_image"]["inference"] > 0
    assert sections["Throughput, latency and cost by load"]["points"][0]["served_per_second"] > 0
    start = sections["Cold start and memory"]["yolo-batch"][0]
    assert 0 < start["ready_seconds"] < start["first_result_seconds"]
    assert sections["Memory over many images"]["levels"][-1]["images"] >= 9
    assert len(sections["Goals"]) == 5


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--cores", "4096"], "this process may use only the cores"),
        (["--prices", __file__], "is not a price table"),
        (["/proc/self/cmdline"], "There are no images in"),
    ],
    ids=["cores", "prices", "images"],
)
def test_failed_measurement_is_reported_in_one_sentence(
    arguments: list[str], sentence: str
) -> None:
    done = run_bench(*arguments)
    assert done.returncode == 1
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
