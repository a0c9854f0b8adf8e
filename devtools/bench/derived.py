"""What derived images cost: CPU time and bytes of each kind, compared with the image's inference.

    python -m devtools.bench.derived --model yolo26n_openvino_model path/to/photos

Each JPEG of the folder is decoded in a decoder process, and goes through the model. Then its images
are derived in a second visit to a decoder process, once for each row of the table. The CPU time is
that of this process and of the decoder processes, as the operating system counts it. The rounds
alternate between the rows. Every row but the first includes the second decode of the file. The
upload of the images is not included. Redaction, and crops, apply to every label.

The images are measured as they are, and enlarged to 12 megapixels.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

from devtools.bench.accounting import own_tree_seconds
from devtools.bench.decoders import enlarged
from service.deadline import NO_DEADLINE
from service.derived import (
    Crops,
    DeriveOptions,
    Normalized,
    NormalizedFormat,
    Redaction,
    RedactionMode,
)
from service.images.decoders import Decoders
from service.images.derive import DerivePlan
from service.inference.detector import Detector
from service.inference.loading import load_detector
from service.settings import BUNDLED_MODEL, Settings

_NOTHING = DeriveOptions(thumbnail_side=None)
ROWS = {
    "thumbnail": DeriveOptions(),
    "annotated": DeriveOptions(None, annotated=True),
    "crops": DeriveOptions(None, crops=Crops()),
    "redacted, blur": DeriveOptions(None, redaction=Redaction()),
    "redacted, mosaic": DeriveOptions(None, redaction=Redaction(mode=RedactionMode.MOSAIC)),
    "normalized, JPEG": DeriveOptions(None, normalized=Normalized()),
    "normalized, PNG": DeriveOptions(None, normalized=Normalized(format=NormalizedFormat.PNG)),
    "thumbnail and annotated": DeriveOptions(annotated=True),
    "everything": DeriveOptions(
        annotated=True, crops=Crops(), redaction=Redaction(), normalized=Normalized()
    ),
}
PLAIN = "decode and inference"
_CONFIDENCE = 0.25


@dataclass(frozen=True)
class Work:
    """The files, the decoders, the model, and the plan of each file without its options."""

    files: Sequence[bytes]
    decoders: Decoders
    detector: Detector
    plans: Sequence[DerivePlan]

    def plain(self) -> None:
        """Decode each file and run the model, as the service does without derived images."""
        for data in self.files:
            _detect(data, self.decoders, self.detector)

    def derive(self, options: DeriveOptions) -> int:
        """Make the derived images of each file. Return their bytes."""
        return sum(
            len(image.data)
            for data, plan in zip(self.files, self.plans, strict=True)
            for image in self.decoders.derive(data, _with(plan, options), deadline=NO_DEADLINE)
        )


def _with(plan: DerivePlan, options: DeriveOptions) -> DerivePlan:
    return DerivePlan(options, plan.image, plan.task, plan.detections, (), plan.classes)


def _detect(data: bytes, decoders: Decoders, detector: Detector) -> DerivePlan:
    image = decoders.decode(data, image_size=detector.info.image_size, deadline=NO_DEADLINE)
    [found] = detector.detect([image])
    return DerivePlan(_NOTHING, image.info, detector.info.task, found.detections, (), found.classes)


def measure(work: Work, rounds: int) -> list[list[str]]:
    """Return the rows of the table, in CPU-ms and bytes per image."""
    count = len(work.files)

    def cpu_ms(call: Callable[[], object]) -> float:
        started = own_tree_seconds()
        call()
        return (own_tree_seconds() - started) * 1000 / count

    work.plain()  # compiles the model for each input shape
    sizes = {name: work.derive(options) / count for name, options in ROWS.items()}
    plain: list[float] = []
    derived: dict[str, list[float]] = {name: [] for name in ROWS}
    for _ in range(rounds):
        plain.append(cpu_ms(work.plain))
        for name, options in ROWS.items():
            derived[name].append(cpu_ms(lambda chosen=options: work.derive(chosen)))  # type: ignore[misc]
    rows = [[PLAIN, f"{statistics.median(plain):.1f}", "1.00", ""]]
    for name, times in derived.items():
        ratio = statistics.median(a / b for a, b in zip(times, plain, strict=True))
        ms, kilobytes = statistics.median(times), sizes[name] / 1000
        rows.append([name, f"{ms:.1f}", f"{ratio:.2f}", f"{kilobytes:.0f}"])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="folder with JPEGs")
    parser.add_argument("--model", type=Path, default=BUNDLED_MODEL, help="exported model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=24, help="at most so many images")
    options = parser.parse_args()
    settings = Settings()
    detector = load_detector(options.model, min_confidence=_CONFIDENCE, streams=1)
    photos = [path.read_bytes() for path in sorted(options.folder.glob("*.jpg"))[: options.images]]
    decoders = Decoders(
        1,
        max_pixels=settings.max_image_pixels,
        max_decompressed_bytes=settings.max_image_bytes,
    )
    try:
        for title, files in (("as they are", photos), ("12 megapixels", [*map(enlarged, photos)])):
            plans = [_detect(data, decoders, detector) for data in files]
            objects = sum(len(plan.detections) for plan in plans) / len(plans)
            rows = measure(Work(files, decoders, detector, plans), options.rounds)
            print(
                f"\n{len(files)} images, {title}, {objects:.1f} detections per image, "
                f"{detector.info.name} ({detector.info.precision})\n"
            )
            headers = ["", "CPU-ms per image", "ratio", "kB per image"]
            print(tabulate(rows, headers, tablefmt="github", disable_numparse=True), flush=True)
    finally:
        decoders.close()


if __name__ == "__main__":
    main()
