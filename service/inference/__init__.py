"""From pixels to detections: load a model, verify it, and run it behind a queue."""

import sys

# Makes openvino_telemetry unimportable. Otherwise `import openvino` would start a process that
# reports its use to Google Analytics.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
