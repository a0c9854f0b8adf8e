"""The benchmark of the decoders prints its table."""

import sys
from pathlib import Path

import pytest

from devtools.bench import decoders
from devtools.fuzz.corpus import saved


def test_decoders_benchmark_compares_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jpg").write_bytes(saved("JPEG"))
    monkeypatch.setattr(decoders, "LARGE", (400, 300))
    monkeypatch.setattr(sys, "argv", ["decoders", str(tmp_path), "--rounds", "1"])
    decoders.main()
    rows = [line for line in capsys.readouterr().out.splitlines() if "1 of 1" in line]
    assert len(rows) >= 2  # at a quarter, so small an image is not reduced by the service
