"""From pixels to detections: the model, how it is loaded, and the queue in front of it."""

import sys

# `import openvino` would start a process that reports its use to Google Analytics.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # not importable
