"""How a batch is best laid on the cores: CPU and wall time of one picture, by way of inferring.

    python -m devtools.bench.lanes --model yolo26n_int8_openvino_model --cores 0,1

Each way runs in a process of its own on the given cores: one request of many pictures, one request
of one picture on all cores, or lanes (one picture and one core each, as the detector does). All
ways compile the same network for one frame; printed is the best of several rounds.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openvino as ov
from tabulate import tabulate

from service.inference.openvino import with_preprocessing

HEIGHT, WIDTH = 480, 640
PICTURES = 64
ROUNDS = 5


def one_request(network: Path, batch: int) -> Callable[[], None]:
    """Infer with one synchronous request of `batch` pictures, as ultralytics does."""
    request = compiled(network, batch, {"PERFORMANCE_HINT": "LATENCY"}).create_infer_request()
    pictures = np.random.default_rng(0).integers(0, 256, (batch, HEIGHT, WIDTH, 3), np.uint8)

    def infer() -> None:
        for _ in range(PICTURES // batch):
            request.infer([pictures], share_inputs=True)

    return infer


def lanes(network: Path, count: int) -> Callable[[], None]:
    """Infer one picture a lane at a time."""
    options: dict[str, object] = {"NUM_STREAMS": count, "INFERENCE_NUM_THREADS": count}
    model = compiled(network, 1, options)
    picture = np.random.default_rng(0).integers(0, 256, (1, HEIGHT, WIDTH, 3), np.uint8)
    _ = ov.Tensor(picture).data  # see service.inference.openvino
    requests = [model.create_infer_request() for _ in range(count)]
    threads = ThreadPoolExecutor(count)

    def work(request: ov.InferRequest) -> None:
        for _ in range(PICTURES // count):
            request.infer([picture], share_inputs=True)

    return lambda: list(threads.map(work, requests)).clear()


def compiled(network: Path, batch: int, options: dict[str, object]) -> ov.CompiledModel:
    core = ov.Core()
    model = with_preprocessing(core.read_model(network))
    model.reshape([batch, HEIGHT, WIDTH, 3])
    return core.compile_model(model, "CPU", options | {"INFERENCE_PRECISION_HINT": ov.Type.f32})


WAYS: dict[str, Callable[[Path, int], Callable[[], None]]] = {
    "one request of 8 pictures": lambda network, cores: one_request(network, 8),
    "one request of 1 picture": lambda network, cores: one_request(network, 1),
    "lanes": lanes,
}


def measure(network: Path, way: str) -> None:
    """Print CPU and wall milliseconds of a picture."""
    infer = WAYS[way](network, len(os.sched_getaffinity(0)))
    infer()
    rounds = []
    for _ in range(ROUNDS):
        cpu, wall = time.process_time(), time.monotonic()
        infer()
        rounds.append(((time.process_time() - cpu), (time.monotonic() - wall)))
    best = [1000 * min(column) / PICTURES for column in zip(*rounds, strict=True)]
    print(f"{best[0]:.1f} {best[1]:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="an exported directory")
    parser.add_argument("--cores", default="0,1", help="which cores, separated by commas")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    [network] = arguments.model.glob("*.xml")
    if arguments.way:
        measure(network, arguments.way)
        return
    rows = []
    for cores in (arguments.cores.split(",")[:1], arguments.cores.split(",")):
        for way in WAYS:
            command = [sys.executable, "-m", "devtools.bench.lanes", "--model", arguments.model]
            done = subprocess.run(
                ["taskset", "-c", ",".join(cores), *command, "--way", way],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            rows.append((len(cores), way, *done.stdout.split()))
    headers = ("cores", "way", "CPU ms", "wall ms")
    print(tabulate(rows, headers=headers, tablefmt="github", floatfmt=".1f"))


if __name__ == "__main__":
    main()
