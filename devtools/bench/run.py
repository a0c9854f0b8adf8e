"""Runs `yolo-batch-dev bench`: measures one part after the other."""

import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from enum import Enum, auto
from importlib.util import find_spec
from pathlib import Path

from devtools.bench import curve, figures, startup, worker
from devtools.bench.accounting import on_cores
from devtools.bench.cloud import Cloud, running_cloud
from devtools.bench.errors import BenchError
from devtools.bench.figures import Goal, Section
from devtools.bench.load import Request
from devtools.bench.machine import Cores, choose_cores, header
from devtools.bench.prices import Prices
from devtools.bench.profile import run_profile
from devtools.bench.subjects import (
    NAIVE_COMMAND,
    PROFILED_COMMAND,
    Http,
    InProcess,
    Process,
    Server,
    Subject,
    image_requests,
    measure,
    service_settings,
)
from devtools.local_stack.processes import Processes
from devtools.local_stack.stack import SERVICE_COMMAND
from service.errors import BadImageError
from service.images.decode import decode
from service.operate.detect import find_files
from service.settings import Settings

_MAX_IMAGES = 200
_QUICK_IMAGES = 6
_MAX_PIXELS = 2**28
_SWEEP = (1, 2, 4, 8, 16, 32)
_QUICK_SWEEP = (1, 8)
_MEMORY_BATCH = 8
_START_CORES = 2  # the goal for cold starts is for two cores


class Part(Enum):
    """What can be measured."""

    TABLE = auto()
    SWEEP = auto()
    PROFILE = auto()
    PLOT = auto()
    COLD_START = auto()
    MEMORY = auto()


@dataclass(frozen=True)
class Options:
    """What to measure, and for how long."""

    images: Path
    model: Path
    weights: Path | None
    parts: frozenset[Part]
    prices: Prices
    rounds: int = 5
    cores: str | None = None
    plot: Path | None = None
    memory_images: int = 5000
    is_quick: bool = False

    @property
    def least_round_seconds(self) -> float:
        """Shortest round without HTTP, in seconds."""
        return 0.0 if self.is_quick else 4.0

    @property
    def least_round_images(self) -> int:
        """Fewest images in a round over HTTP."""
        return 1 if self.is_quick else 100


@dataclass(frozen=True)
class Report:
    """The result: machine and versions, and a section for each part."""

    header: Mapping[str, str]
    sections: Sequence[Section]

    def markdown(self) -> str:
        """Return the report as Markdown."""
        head = "\n".join(f"- {name}: {text}" for name, text in self.header.items())
        return "\n\n".join([head, *(section.markdown() for section in self.sections)])

    def as_json(self) -> str:
        """Return the report as JSON."""
        sections = {section.title: section.data for section in self.sections}
        return json.dumps({"header": dict(self.header), "sections": sections}, indent=2)


def run(options: Options, progress: Callable[[str], None]) -> Report:
    """Measure the parts one after the other.

    Raises:
        BenchError: something could not be measured.
        MissingRequirementsError: an emulator must be installed first.
    """
    if Part.PLOT in options.parts:
        curve.require_matplotlib()
    cores = choose_cores(options.cores)
    images, sizes = choose_images(options.images, progress, is_quick=options.is_quick)
    # Every process that starts from here on inherits these cores, unless it is pinned to others.
    with on_cores(cores.others), ExitStack() as cleanup:
        directory = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="yolo-bench-")))
        bench = _Bench(options, cores, images, directory, cleanup, progress)
        sections, goals = bench.sections()
        if goals:
            sections.append(figures.goals_section(goals))
        return Report(bench.header(sizes), sections)


def choose_images(
    source: Path, progress: Callable[[str], None], *, is_quick: bool
) -> tuple[list[Path], int]:
    """Return the images to measure with, and the number of their sizes.

    Takes an even sample of a large folder. Files that are not images are skipped and reported.

    Raises:
        BenchError: there is no image.
    """
    limit = _QUICK_IMAGES if is_quick else _MAX_IMAGES
    files = find_files([source])
    chosen: list[Path] = []
    sizes: set[tuple[int, int]] = set()
    for file in files[:: math.ceil(len(files) / limit) or 1]:
        try:
            info = decode(file.read_bytes(), max_pixels=_MAX_PIXELS).info
        except BadImageError as exc:
            progress(f"skipped {file}: {exc.message}")
            continue
        chosen.append(file)
        sizes.add((info.width, info.height))
    if not chosen:
        raise BenchError(f"There are no images in {source}")
    return chosen, len(sizes)


class _Bench:
    """The parts of a run, and what they share. Emulators start when the first part needs them."""

    def __init__(
        self,
        options: Options,
        cores: Cores,
        images: Sequence[Path],
        directory: Path,
        cleanup: ExitStack,
        progress: Callable[[str], None],
    ) -> None:
        self._options = options
        self._cores = cores
        self._images = images
        self._directory = directory
        self._cleanup = cleanup
        self._progress = progress
        self._batch_size = Settings.from_env().max_batch_size
        with Process(cores.others) as helper:
            self._model = options.model
            if options.model.suffix == ".pt":
                progress(f"exporting {options.model} as a float model")
                self._model = helper.call(worker.export_own, options.model, directory)
            self._info = helper.call(worker.describe, self._model)
        self._weights = self._alternative_weights()
        (directory / "logs").mkdir()
        self._processes = cleanup.enter_context(Processes(directory / "logs"))
        self._generator = cleanup.enter_context(Process(cores.others))
        self._cloud_or_none: Cloud | None = None
        self._events: list[Request] = []

    def header(self, sizes: int) -> dict[str, str]:
        """Return machine, versions, model and images, one line each."""
        drawn = f"{len(self._images)} of {sizes} sizes, from {self._options.images.resolve().name}/"
        rounds = f"{self._rounds}, interleaved; batches of {self._batch_size}"
        return header(self._info, self._cores, {"images": drawn, "rounds": rounds})

    def sections(self) -> tuple[list[Section], list[Goal]]:
        """Measure the requested parts in a fixed order."""
        measurers: list[tuple[Part, Callable[[], tuple[Section, list[Goal]]]]] = [
            (Part.TABLE, self._table),
            (Part.SWEEP, self._sweep),
            *([(Part.SWEEP, self._sweep_on_all_cores)] if self._has_other_cores else []),
            (Part.PROFILE, self._profile),
            (Part.PLOT, self._plot),
            (Part.COLD_START, self._cold_start),
            (Part.MEMORY, self._memory),
        ]
        sections: list[Section] = []
        goals: list[Goal] = []
        for part, measurer in measurers:
            if part in self._options.parts:
                self._progress(part.name.lower().replace("_", " "))
                section, more = measurer()
                sections.append(section)
                goals += more
        return sections, goals

    def _table(self) -> tuple[Section, list[Goal]]:
        with ExitStack() as cleanup:
            subjects: list[Subject] = [
                self._in_process(cleanup, figures.MODEL, "model", self._model, self._batch_size),
                self._in_process(cleanup, figures.ENGINE, "engine", self._model, self._batch_size),
                self._service(cleanup)[1],
            ]
            if self._weights:
                subjects += self._alternatives(cleanup, self._weights)
            measured = measure(subjects, self._rounds, self._progress)
        return figures.main_section(measured), figures.speed_goals(measured)

    def _alternatives(self, cleanup: ExitStack, weights: Path) -> list[Subject]:
        size = self._batch_size
        self._progress("exporting the alternative's own OpenVINO model")
        with Process(self._cores.others) as helper:
            exported = helper.call(worker.export_alternative, weights, self._directory)
        return [
            self._naive(cleanup, weights),
            self._in_process(cleanup, figures.LOOP, "predict", weights, 1),
            self._in_process(cleanup, figures.BATCHES, "predict", weights, size),
            self._in_process(cleanup, figures.OPENVINO_LOOP, "predict", exported, 1),
            self._in_process(cleanup, figures.OPENVINO_BATCHES, "predict", exported, size),
        ]

    def _sweep(self) -> tuple[Section, list[Goal]]:
        return self._sweep_on(self._cores.service), []

    def _sweep_on_all_cores(self) -> tuple[Section, list[Goal]]:
        return self._sweep_on(self._cores.usable), []

    def _sweep_on(self, cores: frozenset[int]) -> Section:
        sizes = _QUICK_SWEEP if self._options.is_quick else _SWEEP
        with ExitStack() as cleanup:
            subjects = [
                self._in_process(cleanup, str(size), "engine", self._model, size, cores=cores)
                for size in sizes
            ]
            measured = measure(subjects, self._rounds, self._progress)
        return figures.sweep_section(measured, len(cores))

    def _profile(self) -> tuple[Section, list[Goal]]:
        with ExitStack() as cleanup:
            server, subject = self._service(cleanup, PROFILED_COMMAND)
            return run_profile(server, subject, self._rounds), []

    def _plot(self) -> tuple[Section, list[Goal]]:
        prices, quick = self._options.prices, self._options.is_quick
        with ExitStack() as cleanup:
            server, subject = self._service(cleanup)
            saturation = subject.round().images_per_second
            rates = [saturation * part for part in (curve.QUICK_LOADS if quick else curve.LOADS)]
            seconds = 2.0 if quick else 15.0
            self._upload(curve.needed_requests(max(rates), seconds))
            points = curve.measure_curve(
                server, self._generator, self._events, rates,
                seconds=seconds, prices=prices,
                before=self._cloud.forget, after=self._cloud.check_results,
            )  # fmt: skip
        levels: list[curve.Level] = []
        if self._weights:
            with ExitStack() as cleanup:
                busy = self._naive(cleanup, self._weights).round()
                levels.append(curve.level_of(figures.NAIVE, busy, prices))
        if self._options.plot:
            title = f"{self._info['name']} {self._info['precision']}, {self._cores}"
            curve.draw(points, levels, title, self._options.plot)
            self._progress(f"plot written to {self._options.plot}")
        return curve.curve_section(points, levels, prices), []

    def _cold_start(self) -> tuple[Section, list[Goal]]:
        cores = frozenset(sorted(self._cores.usable)[-_START_CORES:])
        events = self._upload(len(self._images))
        own = service_settings(self._model, self._batch_size)
        ours: list[startup.Start] = []
        naive: list[startup.Start] = []
        # The first start of each service warms the page cache and does not count.
        warming = 0 if self._options.is_quick else 1
        for number in range(1 - warming, self._rounds + 1):
            self._cloud.forget()
            ours.append(
                self._start(SERVICE_COMMAND, own, events, cores, precision=self._info["precision"])
            )
            self._cloud.check_results(len(events))
            if self._weights:
                settings = {"WEIGHTS": str(self._weights)}
                requests = image_requests(self._images, len(self._images))
                naive.append(self._start(NAIVE_COMMAND, settings, requests, cores))
            self._progress(f"start {number}/{self._rounds}")
        return startup.start_section(ours[warming:], naive[warming:], len(cores))

    def _start(
        self,
        command: Sequence[str],
        settings: Mapping[str, str],
        requests: Sequence[Request],
        cores: frozenset[int],
        *,
        precision: str | None = None,
    ) -> startup.Start:
        return startup.measure_start(
            self._processes, self._generator, command, settings, requests, cores,
            precision=precision,
        )  # fmt: skip

    def _memory(self) -> tuple[Section, list[Goal]]:
        with ExitStack() as cleanup:
            server, subject = self._service(cleanup, MAX_BATCH_SIZE=str(_MEMORY_BATCH))
            images = 3 * len(self._images) if self._options.is_quick else (
                self._options.memory_images
            )  # fmt: skip
            levels = startup.measure_memory(server, subject, images, self._progress)
            return startup.memory_section(levels, server.peak_memory_mb, _MEMORY_BATCH)

    @property
    def _has_other_cores(self) -> bool:
        return self._cores.service != self._cores.usable

    @property
    def _rounds(self) -> int:
        return 1 if self._options.is_quick else self._options.rounds

    @property
    def _round_images(self) -> int:
        """Images in a round over HTTP: all of them, repeated to reach the minimum."""
        count = len(self._images)
        return count * math.ceil(self._options.least_round_images / count)

    @property
    def _cloud(self) -> Cloud:
        if self._cloud_or_none is None:
            self._progress("starting the emulators")
            self._cloud_or_none = self._cleanup.enter_context(running_cloud())
        return self._cloud_or_none

    def _upload(self, count: int) -> list[Request]:
        """Return `count` events, uploading more images if needed."""
        missing = count - len(self._events)
        if missing > 0:
            self._events += self._cloud.upload(self._images, missing)
        return self._events[:count]

    def _in_process(
        self,
        cleanup: ExitStack,
        name: str,
        kind: str,
        model: Path,
        batch_size: int,
        *,
        cores: frozenset[int] | None = None,
    ) -> InProcess:
        process = cleanup.enter_context(Process(cores or self._cores.service))
        task = worker.Task(kind, model, self._images, batch_size)
        return InProcess(name, process, task, least_seconds=self._options.least_round_seconds)

    def _service(
        self, cleanup: ExitStack, command: Sequence[str] = SERVICE_COMMAND, **settings: str
    ) -> tuple[Server, Http]:
        events = self._upload(self._round_images)
        server = self._server(
            cleanup, command, service_settings(self._model, self._batch_size) | settings
        )
        server.check_model(self._info["precision"])
        subject = Http(
            figures.SERVICE, server, self._generator, events,
            before=self._cloud.forget, after=lambda: self._cloud.check_results(len(events)),
        )  # fmt: skip
        return server, subject

    def _naive(self, cleanup: ExitStack, weights: Path) -> Http:
        server = self._server(cleanup, NAIVE_COMMAND, {"WEIGHTS": str(weights)})
        requests = image_requests(self._images, self._round_images)
        return Http(figures.NAIVE, server, self._generator, requests)

    def _server(
        self, cleanup: ExitStack, command: Sequence[str], settings: Mapping[str, str]
    ) -> Server:
        server = Server(self._processes, command, settings, self._cores.service)
        cleanup.callback(self._processes.stop, server.child, grace_seconds=10)
        return server

    def _alternative_weights(self) -> Path | None:
        """Weights for the alternatives, if they can be measured."""
        weights = self._options.weights
        if weights is None and self._options.model.suffix == ".pt":
            weights = self._options.model
        if weights is None:
            self._progress("no --weights: the alternatives are not measured")
            return None
        if find_spec("ultralytics") is None:
            self._progress("ultralytics is not installed: the alternatives are not measured")
            return None
        if not weights.is_file():
            raise BenchError(f"There are no weights at {weights}")
        return weights.resolve()
