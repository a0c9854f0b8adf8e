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
