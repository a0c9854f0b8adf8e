"""Speed of the ultralytics detector on a GPU, and the share of the time that the GPU works.

    python -m devtools.bench.gpu --model yolo26n.pt --images FOLDER --device 0

Uses a TensorRT engine beside the weights, as the service does. `--device cpu` checks that the
benchmark itself works. For each batch size it prints medians over rounds:

- formed: images in a batch that the service's queue formed, all of one input shape;
- end to end: images per second through the service's pipeline, from JPEG bytes in memory to
  detections, with four batches in flight;
- CPU ms: CPU time per image, of the process and its decoders;
- GPU ms: time per image from the upload of a batch to its detections, between CUDA events. It
  includes the time in which the GPU waits for the CPU to launch a kernel;
- GPU share: GPU time divided by the wall time of the round. Near 100 %, only a faster GPU or model
  helps. Far below 100 %, the GPU waits for the CPU;
- model: images per second of full batches of the most frequent input shape, ready in pinned memory.
  It is the upper limit of "end to end".
"""

import argparse
import json
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from devtools.bench.accounting import own_tree_seconds
from devtools.bench.engine import Engine
from service.images.decode import decode
from service.images.letterbox import shrink
from service.inference.ultralytics import UltralyticsDetector
from service.settings import Settings

BATCH_SIZES = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class Measured:
    """One round of one batch size. The module's docstring explains the fields."""

    formed: float
    end_to_end_per_s: float
    cpu_ms: float
    gpu_ms: float
    gpu_share: float
    model_per_s: float


class TimedDetector(UltralyticsDetector):
    """Measures the time of each batch on the device."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        # One function for each batch. Call it when the batch is done.
        self.elapsed_ms: list[Callable[[], float]] = []
        super().__init__(*arguments, **options)

    def infer(self, batch: torch.Tensor) -> list[torch.Tensor]:
        if batch.is_pinned():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            outputs = super().infer(batch)
            end.record()
            self.elapsed_ms.append(lambda: float(start.elapsed_time(end)))
            return outputs
        started = time.perf_counter()
        outputs = super().infer(batch)
        elapsed = (time.perf_counter() - started) * 1000
        self.elapsed_ms.append(lambda: elapsed)
        return outputs


def measure(
    detector: TimedDetector, images: Sequence[bytes], batch_size: int, count: int
) -> Measured:
    in_flight = max(4 * batch_size, 2 * (os.cpu_count() or 1))
    settings = replace(Settings(), max_batch_size=batch_size, max_in_flight=in_flight)
    started = Engine(detector, settings, lambda number: images[number % len(images)])
    with closing(started) as engine:
        engine.run(in_flight)  # starts every decoder
        engine.documents.batches.clear()
        detector.elapsed_ms = []
        wall, cpu = time.perf_counter(), own_tree_seconds()
        engine.run(count)
        wall, cpu = time.perf_counter() - wall, own_tree_seconds() - cpu
    gpu_ms = sum(elapsed() for elapsed in detector.elapsed_ms)
    return Measured(
        formed=count / sum(1 / size for size in engine.documents.batches),
        end_to_end_per_s=count / wall,
        cpu_ms=cpu * 1000 / count,
        gpu_ms=gpu_ms / count,
        gpu_share=gpu_ms / (wall * 1000),
        model_per_s=model_per_second(detector, images, batch_size, count),
    )


def model_per_second(
    detector: UltralyticsDetector, images: Sequence[bytes], batch_size: int, count: int
) -> float:
    decoded = (decode(data, max_pixels=10**9).pixels for data in images[:100])
    shapes = (shrink(pixels, image_size=detector.info.image_size).shape for pixels in decoded)
    counts = Counter(detector.input_shape(width, height) for height, width, _ in shapes)
    [(input_shape, _)] = counts.most_common(1)
    on_cuda = detector.backend.device.type == "cuda"
    batch = torch.zeros((batch_size, *input_shape, 3), dtype=torch.uint8, pin_memory=on_cuda)
    batches = max(count // batch_size, 1)
    with torch.inference_mode():
        detector.infer(batch)[0].cpu()
        started = time.perf_counter()
        for _ in range(batches):
            outputs = detector.infer(batch)
        outputs[0].cpu()  # waits for all batches
    return batches * batch_size / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="a .pt, .engine or .onnx file")
    parser.add_argument("--images", type=Path, required=True, help="a folder of images")
    parser.add_argument("--device", default="0", help="device as ultralytics names it, or cpu")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=BATCH_SIZES)
    parser.add_argument("--count", type=int, default=4000, help="images in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--channels-last", action="store_true", help="memory layout of .pt weights")
    parser.add_argument(
        "--cudnn-benchmark", action="store_true", help="let cuDNN choose by measuring"
    )
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.backends.cudnn.benchmark = arguments.cudnn_benchmark
    images = [path.read_bytes() for path in sorted(arguments.images.iterdir()) if path.is_file()]
    detector = TimedDetector(
        arguments.model, device=arguments.device, image_size=arguments.image_size
    )
    if arguments.channels_last:
        detector.backend.model.to(memory_format=torch.channels_last)
    rounds: dict[int, list[Measured]] = {size: [] for size in arguments.batch_sizes}
    for number in range(arguments.rounds + 1):
        for size, measured in rounds.items():
            result = measure(detector, images, size, arguments.count)
            if number:  # the first round warms up
                measured.append(result)
    medians = {
        size: {
            field.name: statistics.median(getattr(each, field.name) for each in measured)
            for field in fields(Measured)
        }
        for size, measured in rounds.items()
    }
    device = detector.backend.device
    about = {
        "date": datetime.now(UTC).date().isoformat(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "model": asdict(detector.info),
        "channels_last": arguments.channels_last,
        "cudnn_benchmark": arguments.cudnn_benchmark,
        "files": len(images),
        "images_a_round": arguments.count,
        "rounds": arguments.rounds,
    }
    if arguments.json:
        print(json.dumps({"about": about, "batch_sizes": medians}, indent=2))
        return
    print("\n".join(f"{name}: {value}" for name, value in about.items()))
    formats = (".1f", ".0f", ".2f", ".2f", ".0%", ".0f")
    headers = ("batch", "formed", "end to end/s", "CPU ms", "GPU ms", "GPU share", "model/s")
    table = [
        (size, *(format(v, f) for v, f in zip(row.values(), formats, strict=True)))
        for size, row in medians.items()
    ]
    print(tabulate(table, headers=headers))


if __name__ == "__main__":
    main()
