"""The work that is measured without HTTP. These functions run in a process of their own."""

import os
import shutil
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from devtools.bench.accounting import own_tree_seconds
from devtools.bench.errors import BenchError
from devtools.bench.figures import Round
from service.settings import Settings

if TYPE_CHECKING:
    from service.inference.detector import Detector

Work = Callable[[], int]  # processes the images once, and returns their number

_work: Work | None = None


@dataclass(frozen=True)
class Task:
    """The work of a process."""

    kind: str  # a key of `_KINDS`
    model: Path
    images: Sequence[Path]
    batch_size: int


def load(task: Task) -> None:
    """Prepare for `measure`: load the model, and run one pass that compiles every input shape."""
    global _work  # this process does nothing else
    _work = _KINDS[task.kind](task)
    _work()


def measure(least_seconds: float) -> Round:
    """Repeat all images for at least `least_seconds`.

    Raises:
        BenchError: `load` was not called.
    """
    if _work is None:
        raise BenchError("No work was loaded into this process")
    images, start, cpu = 0, time.monotonic(), own_tree_seconds()
    while True:
        images += _work()
        if time.monotonic() - start >= least_seconds:
            return Round(images, time.monotonic() - start, own_tree_seconds() - cpu)


def describe(model: Path) -> dict[str, Any]:
    """Return the fields of the model's `ModelInfo`."""
    return asdict(_detector(_settings(model)).info)


def export_own(weights: Path, directory: Path) -> Path:
    """Export weights as a float model, in the form that the service runs."""
    from service.export.weights import export_openvino

    return export_openvino(weights, directory / f"{weights.stem}_openvino_model")


def export_alternative(weights: Path, directory: Path) -> Path:
    """Export weights with ultralytics' defaults: `YOLO(weights).export(format="openvino")`.

    Raises:
        BenchError: the export failed.
    """
    (directory / "alternative").mkdir()
    copy = directory / "alternative" / weights.name  # the export is written beside it
    shutil.copyfile(weights, copy)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about ultralytics' code
        try:
            return Path(load_yolo(copy).export(format="openvino", device="cpu", verbose=False))
        except Exception as exc:  # noqa: BLE001 - ultralytics raises whatever its exporters raise
            raise BenchError(f"ultralytics cannot export {weights} for OpenVINO: {exc}") from exc


def _model(task: Task) -> Work:
    """Run the detector alone, on decoded and resized images."""
    from service.images.decode import decode
    from service.images.letterbox import shrink

    detector = _detector(_settings(task.model))
    size = detector.info.image_size
    decoded = (decode(path.read_bytes(), max_pixels=2**30) for path in task.images)
    small = [replace(image, pixels=shrink(image.pixels, image_size=size)) for image in decoded]
    small.sort(key=lambda image: image.pixels.shape)  # full batches of equal shapes
    threads = ThreadPoolExecutor(detector.runners)

    def work() -> int:
        batches = _chunks(small, task.batch_size)
        list(threads.map(lambda batch: list(detector.detect(batch)), batches))
        return len(small)

    return work


def _engine(task: Task) -> Work:
    """Run the pipeline without HTTP, Storage and Firestore: files in, documents out."""
    from devtools.bench.engine import Engine

    settings = replace(_settings(task.model), max_batch_size=task.batch_size)
    images = task.images
    # The decoder processes end with this process.
    engine = Engine(_detector(settings), settings, lambda number: images[number])

    def work() -> int:
        engine.run(len(images))
        return len(images)

    return work


def _predict(task: Task) -> Work:
    """Call `YOLO.predict` for each image, or for each list of `batch_size` images."""
    model = load_yolo(task.model)
    files = [str(path) for path in task.images]

    def work() -> int:
        for batch in _chunks(files, task.batch_size):
            source = batch if task.batch_size > 1 else batch[0]
            model.predict(source, batch=task.batch_size, device="cpu", verbose=False)
        return len(files)

    work()
    use_own_cores()
    return work


def use_own_cores() -> None:
    """Limit torch to this process's cores. By default ultralytics uses all cores of the machine."""
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))


def load_yolo(path: Path) -> Any:
    """Load an `ultralytics.YOLO` that prints little, installs nothing and reports no usage."""
    os.environ["YOLO_VERBOSE"] = "false"  # ultralytics reads both variables at its import
    os.environ["YOLO_AUTOINSTALL"] = "False"
    from ultralytics import YOLO
    from ultralytics.utils.events import events

    events.enabled = False
    return YOLO(str(path), task="detect")


def _settings(model: Path) -> Settings:
    """Return the service's settings with this model."""
    return replace(Settings.from_env(), model_path=model, device="cpu")


def _detector(settings: Settings) -> "Detector":
    """Load the model as the service does, canary included.

    Raises:
        BenchError: the model failed, so the service would run its fallback.
    """
    from service.inference.loading import load_model

    verified = load_model(settings)
    if verified.fallback:
        raise BenchError(f"The model does not run: {verified.fallback}")
    return verified.detector


def _chunks(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[i : i + size] for i in range(0, len(items), size)]


_KINDS: dict[str, Callable[[Task], Work]] = {
    "model": _model,
    "engine": _engine,
    "predict": _predict,
}
