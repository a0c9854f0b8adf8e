"""How much an image adds to Cloud Logging. The test prints the figures of the documentation."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from service import logs
from service.deadline import NO_DEADLINE
from service.domain import Event
from tests.fakes import FakeDetector, FakeStorage, FakeStore, bmp_image, pipeline_of
from tests.loglines import configure

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "logs-and-metrics.md"
IMAGES = 100
TRACE_ID = "105445aa7843bc8bf206b12000100000"
# What Cloud Run adds to each line: https://cloud.google.com/logging/docs/reference/v2/rest/v2/LogEntry
ADDED = {
    "insertId": "65f0a1b2000c8d1e2f3a4b5c",
    "labels": {"instanceId": "00a1b2c3" * 26},
    "logName": "projects/my-project-1/logs/run.googleapis.com%2Fstdout",
    "receiveTimestamp": "2026-11-30T13:00:00.223456789Z",
    "resource": {
        "type": "cloud_run_revision",
        "labels": {
            "configuration_name": "yolo-batch",
            "location": "europe-west1",
            "project_id": "my-project-1",
            "revision_name": "yolo-batch-00012-abc",
            "service_name": "yolo-batch",
        },
    },
    "severity": "INFO",
    "timestamp": "2026-11-30T13:00:00.123456Z",
}
TRACE = {
    "spanId": "1234567890123456789",
    "trace": f"projects/my-project-1/traces/{TRACE_ID}",
    "traceSampled": True,
}
REQUEST = (
    ADDED
    | TRACE
    | {
        "logName": "projects/my-project-1/logs/run.googleapis.com%2Frequests",
        "httpRequest": {
            "latency": "0.131287000s",
            "protocol": "HTTP/1.1",
            "remoteIp": "66.102.6.200",
            "requestMethod": "POST",
            "requestSize": "2901",
            "requestUrl": "https://yolo-batch-123456789012.europe-west1.run.app/",
            "responseSize": "382",
            "serverIp": "216.239.36.53",
            "status": 204,
            "userAgent": "APIs-Google; (+https://developers.google.com/webmasters/APIs-Google.html)",
        },
    }
)


def entry(line: str) -> dict[str, Any]:
    """Return the LogEntry of a line. Cloud Logging moves the special fields out of the payload."""
    fields = json.loads(line)
    trace = fields.pop("logging.googleapis.com/trace", None)
    del fields["severity"], fields["time"]
    return ADDED | (TRACE if trace else {}) | {"jsonPayload": fields}


def size(value: Any) -> int:
    return len(json.dumps(value, separators=(",", ":")).encode())


def test_documented_bytes_are_those_of_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    configure("INFO")
    storage, store = FakeStorage(), FakeStore()
    pipeline = pipeline_of(storage, store, FakeDetector())
    for number in range(IMAGES):
        logs.set_trace(f"{TRACE_ID}/1;o=1", "my-project-1")
        pipeline.handle(Event(storage.put(f"cam/{number:05}.bmp", bmp_image())), NO_DEADLINE)
    pipeline.stop()
    pipeline.close()
    logs.set_trace(None, None)
    entries = [entry(line) for line in capsys.readouterr().out.splitlines()]
    assert len(entries) == IMAGES + 1  # the last line has the last outcome
    own, request = sum(map(size, entries)) / IMAGES, size(REQUEST)
    payload = sum(size(each["jsonPayload"]) for each in entries) / IMAGES
    with capsys.disabled():
        print(f"\nrequest {request} B, own lines {own:.0f} B, of which payload {payload:.0f} B")
    found = re.findall(r"\| ([\d,]+) \|$", PAGE.read_text(), re.MULTILINE)
    documented = [int(number.replace(",", "")) for number in found]
    # The duration of a commit has one to five characters.
    assert documented == [pytest.approx(request, abs=0), pytest.approx(own, abs=5)]
