"""Make the reference compute in float32, as the service does."""

from typing import Any

import openvino as ov
import pytest


@pytest.fixture(autouse=True)
def float32_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turn bfloat16 off in OpenVINO. Ultralytics has no option for it."""
    compile_model = ov.Core.compile_model

    def in_float32(
        core: ov.Core, model: Any, device_name: str = "CPU", config: Any = None
    ) -> ov.CompiledModel:
        exact = {**(config or {}), "INFERENCE_PRECISION_HINT": "f32"}
        return compile_model(core, model, device_name, exact)

    monkeypatch.setattr(ov.Core, "compile_model", in_float32)


class Table:
    """The largest differences from ultralytics, as rows of a Markdown table."""

    def __init__(self) -> None:
        """Begin without rows."""
        self._rows: list[tuple[str, str, int, Any]] = []
        self._distinct: dict[str, list[int]] = {}
        self._unsimplified: dict[str, float] = {}

    def add(self, task: str, runtime: str, images: int, worst: Any) -> None:
        """Add a row."""
        self._rows.append((str(task), runtime, images, worst))

    def add_unsimplified(self, runtime: str, worst: Any) -> None:
        """Add the IoU of masks before their polygons are simplified."""
        self._unsimplified[runtime] = worst.mask_iou

    def distinct_scores(self, task: str, count: int) -> None:
        """Add the number of distinct scores in one image."""
        self._distinct.setdefault(str(task), []).append(count)

    def lines(self) -> list[str]:
        """Return the table, or nothing if no test has added a row."""
        if not self._rows:
            return []
        return [
            "| task | runtime | images | compared | distinct scores an image | largest difference "
            "of a confidence | lowest IoU of a box | the task's own |",
            "|---|---|---|---|---|---|---|---|",
            *(self._line(*row) for row in self._rows),
        ]

    def _line(self, task: str, runtime: str, images: int, worst: Any) -> str:
        distinct = self._distinct.get(task)
        scores = f"{min(distinct)} to {max(distinct)}" if distinct else ""
        box = "" if task == "classify" else f"{worst.box_iou:.5f}"
        own = ""
        if worst.masks:
            own = f"{worst.masks} masks: lowest IoU {worst.mask_iou:.4f}"
            if task == "segment" and runtime in self._unsimplified:
                own += f", before simplification {self._unsimplified[runtime]:.4f}"
        elif worst.keypoints:
            own = f"{worst.keypoints} keypoints: largest distance {worst.keypoint_pixels:.4f} px"
        elif worst.angles:
            own = f"lowest IoU of rotated boxes {worst.rotated_iou:.5f}"
        elif task == "classify":
            own = "the 5 best classes in the same order"
        return (
            f"| {task} | {runtime} | {images} | {worst.detections} | {scores} | "
            f"{worst.confidence_gap:.6f} | {box} | {own} |"
        )


TABLE = Table()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table after the tests."""
    if lines := TABLE.lines():
        terminalreporter.section("parity with ultralytics")
        terminalreporter.write_line("\n".join(lines))
