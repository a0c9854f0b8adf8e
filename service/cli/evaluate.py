"""`yolo-batch evaluate`: mAP of stored results, or of a model on a folder of images."""

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from service.cli.commands import argument, command, option
from service.cli.options import bucket_or_folder, json_option, page_options
from service.cli.output import Column, note, progress, say_json, say_table
from service.settings import BUNDLED_MODEL, Settings

if TYPE_CHECKING:
    from service.inference.average_precision import Estimate
    from service.operate.evaluate import Evaluation, Result

_MODEL = "Model"
_COLUMNS = (
    Column("label"),
    Column("images", is_number=True),
    Column("objects", is_number=True),
    Column("detections", is_number=True),
    Column("AP50-95", is_number=True),
    Column("95 % interval", is_number=True),
    Column("AP50", is_number=True),
    Column("95 % interval", is_number=True),
)


@command(
    panel="Models",
    examples=[
        "yolo-batch evaluate --labels labels.json gs://my-bucket/2026/ --page",
        "yolo-batch evaluate --labels labels.json --model my_openvino_model photos",
    ],
)
@argument(
    "path",
    callback=bucket_or_folder,
    help="gs://BUCKET or gs://BUCKET/PREFIX: stored results. Or a folder of images on which "
    "--model runs.",
)
@option(
    "--labels",
    required=True,
    type=click.Path(path_type=Path),
    help="Labelled images in COCO's format, for example an export of Label Studio or CVAT.",
)
@option(
    "--resamples",
    default=1000,
    show_default=True,
    type=click.IntRange(0, 100_000),
    help="How often the images are drawn again for the intervals. 0: no intervals.",
)
@json_option(
    "path, images, objects, map50_95, map50, labels, failed, unmatched_labels, ambiguous_labels, "
    "unmatched_results, unmatched_results_count, notes"
)
@option(
    "--model",
    panel=_MODEL,
    type=click.Path(path_type=Path),
    default=BUNDLED_MODEL,
    help="Model that runs on a folder. The default is the bundled model, which detects six drawn "
    "shapes.",
)
@option(
    "--min-confidence",
    panel=_MODEL,
    default=0.001,
    show_default=True,
    type=click.FloatRange(0.001, 1),
    help="Leave out detections of --model with a lower confidence. For a comparison with stored "
    "results, give their STORE_CONFIDENCE.",
)
@option("--device", panel=_MODEL, default="cpu", show_default=True, help="cpu, or a GPU.")
@page_options("a page with the values and their intervals", is_default=False)
def evaluate(
    path: tuple[str, str] | Path,
    labels: Path,
    resamples: int,
    as_json: bool,
    model: Path,
    min_confidence: float,
    device: str,
    page: bool,
    port: int,
) -> None:
    """Measure the mAP of stored results on labelled images.

    mAP is computed as in COCO's evaluation. Each value has a 95 % interval: the images are drawn
    again 1,000 times, with replacement.

    Images are found by their names. Names that Label Studio and CVAT have changed are found too.
    """
    from service.operate.evaluate import evaluate as measure
    from service.operate.evaluate import read_labels

    settings = Settings.from_env()
    truth = read_labels(labels)
    classes: list[str] | None = None
    if isinstance(path, Path):
        results, classes = _run(path, model, device, min_confidence, settings)
        where = str(path)
    else:
        results = _stored(path, settings)
        where = "gs://" + "/".join(path)
    evaluation = measure(truth, results, file=labels, labels=classes, resamples=resamples)
    report = {"path": where, "labels_file": labels.name} | _as_json(evaluation)
    if as_json:
        say_json(report)
    else:
        _say(evaluation)
    if page:
        from service.cli.report_page import serve_report

        serve_report("evaluate", report, port=port)


def _stored(path: tuple[str, str], settings: Settings) -> "Iterator[Result]":
    """Yield the stored results of a prefix."""
    from service.gcp.clients import build_reader
    from service.operate.evaluate import stored_results

    bucket, prefix = path
    with progress("Reading results") as bar:
        results = stored_results(build_reader(settings).results(bucket, prefix), prefix)
        for count, result in enumerate(results, 1):
            bar.describe(f"Reading results: {count:,}")
            yield result


def _run(
    folder: Path, model: Path, device: str, min_confidence: float, settings: Settings
) -> "tuple[Iterator[Result], list[str]]":
    """Run a model on a folder. Return the results, and the labels of the model's classes."""
    from service.inference.loading import load_detector, warm_up
    from service.operate.detect import detect_files, find_files
    from service.operate.evaluate import file_results

    files = find_files([folder])
    if not files:
        raise click.ClickException(f"There are no files in {folder}")
    settings = replace(settings, min_confidence=min_confidence, store_confidence=min_confidence)
    with progress("Loading the model"):
        detector = load_detector(
            model,
            device=device,
            image_size=settings.image_size,
            min_confidence=min_confidence,
            streams=settings.inference_streams,
            max_batch_pixels=settings.max_batch_pixels,
        )
        warm_up(detector)
    documents: list[dict[str, Any]] = []
    with progress("Detecting", len(files)) as bar:

        def receive(document: dict[str, Any]) -> None:
            documents.append(document)
            bar.advance()

        detect_files(files, detector, settings, receive)
    # The order of the images must not depend on which one was ready first.
    documents.sort(key=lambda document: str(document["name"]))
    return file_results(documents, folder), list(detector.labels.values())


def _as_json(evaluation: "Evaluation") -> dict[str, Any]:
    precision = evaluation.figures
    return {
        "images": evaluation.images,
        "objects": evaluation.objects,
        "map50_95": asdict(precision.map50_95),
        "map50": asdict(precision.map50),
        "labels": [{"label": label, **asdict(row)} for label, row in precision.labels.items()],
        "failed": list(evaluation.failed),
        "unmatched_labels": list(evaluation.unmatched_labels),
        "ambiguous_labels": list(evaluation.ambiguous),
        "unmatched_results": list(evaluation.unmatched_results),
        "unmatched_results_count": evaluation.unmatched_count,
        "notes": list(evaluation.notes),
    }


def _say(evaluation: "Evaluation") -> None:
    """Print the table, and a line for each thing that was left out."""
    precision = evaluation.figures
    labels = precision.labels.values()
    rows = [
        (
            label,
            f"{row.images:,}",
            f"{row.objects:,}",
            f"{row.detections:,}",
            *_cells(row.ap50_95),
            *_cells(row.ap50),
        )
        for label, row in precision.labels.items()
    ]
    total = (
        "all (mAP)",
        f"{evaluation.images:,}",
        f"{sum(row.objects for row in labels):,}",
        f"{sum(row.detections for row in labels):,}",
        *_cells(precision.map50_95),
        *_cells(precision.map50),
    )
    say_table(_COLUMNS, [total, *rows])
    for line in _lines(evaluation):
        note(line)


def _lines(evaluation: "Evaluation") -> Iterator[str]:
    from service.truth import list_some

    for names, text in (
        (evaluation.failed, "Failed images, measured like images without detections"),
        (evaluation.unmatched_labels, "Labelled images without a result, left out"),
        (evaluation.ambiguous, "Labelled images that fit several results, left out"),
    ):
        if names:
            yield f"{text}: {len(names)}: {list_some(names)}"
    if evaluation.unmatched_count:
        count, some = evaluation.unmatched_count, list_some(evaluation.unmatched_results)
        yield f"Results without labels, left out: {count:,}, for example {some}"
    yield from evaluation.notes


def _cells(estimate: "Estimate") -> tuple[str, str]:
    """Return a value and its interval, in percent."""
    if estimate.low is None or estimate.high is None:
        return f"{100 * estimate.value:.2f}", "-"
    return (
        f"{100 * estimate.value:.2f}",
        f"{100 * estimate.low:.1f} to {100 * estimate.high:.1f}",
    )
