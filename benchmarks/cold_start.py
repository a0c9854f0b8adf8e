"""Cold start and memory of the service, beside those of the simplest alternative, in one run.

    python -m benchmarks.cold_start --weights yolo26n.pt --images FOLDER

Both run under gunicorn with one worker, in turn, on the same weights and the same pictures. Ours
reads each picture from the Cloud Storage emulator and commits its document to the Firestore
emulator; the alternative (benchmarks/naive_service.py) gets the picture in the request and answers
with its detections. Printed are medians over the runs:

- ready: process start to the first 200 of /health/ready (model loaded, a first inference done);
- first result: process start to the first picture stored (ours) or answered (alternative);
- peak memory: the worker's highest resident set after all pictures;
- CPU per picture: the worker's user and system time over all pictures but the first, delivered by
  8 clients at once. Needs Linux (/proc).
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import requests
from google.cloud import storage
from tabulate import tabulate

from service.detector.export import export_openvino
from service.local.processes import Processes, free_port
from service.local.stack import SERVICE_COMMAND, Stack, StackOptions

EVENT = {"ce-type": "google.cloud.storage.object.v1.finalized"}
CLIENTS = 8
NAIVE_COMMAND = (
    sys.executable, "-m", "gunicorn", "--workers", "1", "--threads", str(CLIENTS),
    "--timeout", "0", "benchmarks.naive_service:app",
)  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """One run of one service."""

    ready_s: float
    first_result_s: float
    peak_memory_mb: float
    cpu_ms_per_picture: float


def measure(
    command: tuple[str, ...], environment: dict[str, str], post: list[Callable[[str], None]]
) -> Measured:
    """Start a service, send it the pictures, and read the operating system's accounting."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as logs, Processes(Path(logs)) as processes:
        started = time.monotonic()
        child = processes.start(
            "service", (*command, "--bind", f"127.0.0.1:{port}"), {**os.environ, **environment}
        )
        child.wait_until(lambda: is_ready(url), timeout_seconds=120)
        ready = time.monotonic() - started
        post[0](url)
        first = time.monotonic() - started
        worker = worker_of(child.process.pid)
        cpu = cpu_seconds(worker)
        with ThreadPoolExecutor(CLIENTS) as clients:
            list(clients.map(lambda send: send(url), post[1:]))
        cpu = cpu_seconds(worker) - cpu
        return Measured(ready, first, peak_memory_mb(worker), cpu * 1000 / len(post[1:]))


def is_ready(url: str) -> bool:
    try:
        return requests.get(url + "/health/ready", timeout=5).status_code == 200
    except requests.RequestException:
        return False


def worker_of(master: int) -> int:
    return int(Path(f"/proc/{master}/task/{master}/children").read_text().split()[0])


def cpu_seconds(pid: int) -> float:
    """User and system time of a process: fields 14 and 15 of proc(5)'s stat."""
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


def peak_memory_mb(pid: int) -> float:
    """Highest resident set of a process: VmHWM of proc(5)'s status, in kB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


@contextmanager
def sink() -> Iterator[str]:
    """Acknowledge the stack's own deliveries: the benchmark sends its events itself."""

    class Acknowledge(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Acknowledge)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def send_event(stack: Stack, name: str, data: bytes) -> Callable[[str], None]:
    """Upload a picture; return what delivers its event."""
    blob = storage.Client().bucket(stack.bucket).blob(name)
    blob.upload_from_string(data, content_type="image/jpeg")
    event = {"bucket": stack.bucket, "name": name, "generation": str(blob.generation)}

    def send(url: str) -> None:
        requests.post(url, json=event, headers=EVENT, timeout=60).raise_for_status()

    return send


def send_picture(data: bytes) -> Callable[[str], None]:
    def send(url: str) -> None:
        requests.post(url, data=data, timeout=60).raise_for_status()

    return send


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--weights", type=Path, required=True, help="a YOLO26 .pt file")
    parser.add_argument("--images", type=Path, required=True, help="a folder of pictures")
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    pictures = [path.read_bytes() for path in sorted(arguments.images.iterdir())]
    ours: list[Measured] = []
    naive: list[Measured] = []
    with tempfile.TemporaryDirectory() as scratch:
        model = export_openvino(arguments.weights, Path(scratch) / "bench_openvino_model")
        with sink() as url, Stack(StackOptions(with_service=False, service_url=url)) as stack:
            os.environ.update(stack.environment)
            for run in range(arguments.runs):
                events = [
                    send_event(stack, f"{run}/{i}.jpg", data) for i, data in enumerate(pictures)
                ]
                ours.append(measure(SERVICE_COMMAND, {"MODEL_PATH": str(model)}, events))
                weights = {"WEIGHTS": str(arguments.weights.resolve())}
                naive.append(measure(NAIVE_COMMAND, weights, list(map(send_picture, pictures))))
    rows = []
    for field in fields(Measured):
        a = statistics.median(getattr(run, field.name) for run in ours)
        b = statistics.median(getattr(run, field.name) for run in naive)
        rows.append((field.name, f"{a:.1f}", f"{b:.1f}", f"{a / b:.2f}"))
    print(f"{len(pictures)} pictures, medians of {arguments.runs} runs")
    print(tabulate(rows, headers=("", "yolo-batch", "alternative", "ratio")))


if __name__ == "__main__":
    main()
