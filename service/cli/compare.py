"""`yolo-batch compare`: two models, or stored results and a model, image by image."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from service.cli.commands import argument, command, option
from service.cli.options import bucket_or_folder, page_options
from service.cli.output import Column, note, progress, say, say_table
from service.settings import Settings

if TYPE_CHECKING:
    from service.domain import ModelInfo
    from service.gallery.report import ReportImages
    from service.images.decoders import Decoders
    from service.inference.detector import Detector
    from service.operate.compare import Image, Report

_STORED = "stored"
_TOTALS = (
    Column("label"),
    Column("kept", is_number=True),
    Column("moved", is_number=True),
    Column("lost", is_number=True),
    Column("gained", is_number=True),
    Column("F1", is_number=True),
)
_WORST = (Column("image"), *_TOTALS[1:], Column("disagreement", is_number=True))


@command(
    panel="Models",
    examples=[
        "yolo-batch compare yolo26n_openvino_model yolo26n_int8_openvino_model photos",
        "yolo-batch compare stored yolo26s_openvino_model gs://my-bucket/2026/",
    ],
)
@argument(
    "model_a",
    help="Directory of an exported model, or a file that ultralytics loads. `stored`: the results "
    "in Firestore.",
)
@argument("model_b", type=click.Path(path_type=Path), help="The model to compare with MODEL_A.")
@argument(
    "path",
    callback=bucket_or_folder,
    help="Folder of images. With `stored`: gs://BUCKET or gs://BUCKET/PREFIX.",
)
@option(
    "--min-confidence",
    default=0.25,
    show_default=True,
    type=click.FloatRange(0.001, 1),
    help="Detections with a lower confidence do not count.",
)
@option(
    "--limit",
    default=1000,
    show_default=True,
    type=click.IntRange(1),
    help="Compare at most this many images.",
)
@option("--device", default="cpu", show_default=True, help="cpu, or a GPU such as cuda:0.")
@option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the report to this file, as one JSON object.",
)
@option(
    "--worst",
    default=10,
    show_default=True,
    type=click.IntRange(0),
    help="Print this many images: those with the largest disagreement.",
)
@page_options("a page with the images and both models' boxes", is_default=True)
def compare(
    model_a: str,
    model_b: Path,
    path: tuple[str, str] | Path,
    min_confidence: float,
    limit: int,
    device: str,
    json_file: Path | None,
    worst: int,
    page: bool,
    port: int,
) -> None:
    """Show where two models disagree: which objects are lost, gained or moved.

    MODEL_B is compared with MODEL_A: an object that only MODEL_A finds is lost. Nothing is written
    to Firestore or Cloud Storage. With `stored`, the images are downloaded, and only MODEL_B runs.

    Both models run on each image, one after the other, so their CPU times are comparable.
    """
    from service.images.decoders import build_decoders
    from service.operate.compare import as_json, compare_models

    settings = Settings.from_env()
    _check_arguments(model_a, path)
    a = None if model_a == _STORED else _load(Path(model_a), device, min_confidence, settings)
    b = _load(model_b, device, min_confidence, settings)
    images, total = _images(path, settings)
    decoders = build_decoders(settings)
    try:
        with progress("Comparing", total and min(total, limit)) as bar:
            report = compare_models(
                a,
                b,
                images,
                decoders,
                min_confidence=min_confidence,
                limit=limit,
                progressed=bar.advance,
            )
        where = str(path) if isinstance(path, Path) else "gs://" + "/".join(path)
        content = as_json(report, where)
        _say(report, worst)
        if json_file:
            json_file.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
        if page:
            from service.cli.report_page import serve_report

            serve_report("compare", content, port=port, images=_shown(report, decoders, settings))
    finally:
        decoders.close()


def _check_arguments(model_a: str, path: tuple[str, str] | Path) -> None:
    """Check that stored results are compared on a bucket, and two models on a folder.

    Raises:
        click.UsageError: they are not.
    """
    is_folder = isinstance(path, Path)
    if model_a == _STORED and is_folder:
        raise click.UsageError("`stored` needs gs://BUCKET/[PREFIX], not a folder")
    if model_a != _STORED and not is_folder:
        raise click.UsageError(
            "two models are compared on a folder of images. For stored results, MODEL_A is `stored`"
        )


def _load(path: Path, device: str, min_confidence: float, settings: Settings) -> "Detector":
    """Load a model. It also returns the faint detections that the service records."""
    from service.inference.loading import load_detector, warm_up

    with progress(f"Loading {path.name}"):
        detector = load_detector(
            path,
            device=device,
            image_size=settings.image_size,
            min_confidence=min(settings.store_confidence, min_confidence),
            streams=settings.inference_streams,
            max_batch_pixels=settings.max_batch_pixels,
        )
        warm_up(detector)
    return detector


def _images(
    path: tuple[str, str] | Path, settings: Settings
) -> "tuple[Iterable[Image], int | None]":
    """Return the images, and their number if it is known."""
    from service.operate.compare import folder_images, stored_images

    if isinstance(path, Path):
        images = folder_images(path, settings.max_image_bytes)
        return images, len(images)
    from service.gcp.clients import build_reader, build_storage

    documents = build_reader(settings).results(*path)
    return stored_images(documents, build_storage(settings), path[1]), None


def _shown(report: "Report", decoders: "Decoders", settings: Settings) -> "ReportImages":
    """Return the images of the page. For stored results, the rules of the gallery apply."""
    from service.gallery.build import build_images
    from service.gallery.report import StoredImages
    from service.operate.compare import FileImages

    if report.a:
        return FileImages(report, decoders)
    refs = [item.image.stored.ref for item in report.images if item.image.stored]
    return StoredImages(
        build_images(settings), [(ref.document_id, ref.generation or 0) for ref in refs]
    )


def _say(report: "Report", worst: int) -> None:
    summary = report.summary
    rows = [("all", *_counts(summary.total))]
    rows += [(label, *_counts(total)) for label, total in sorted(summary.by_label.items())]
    say_table(_TOTALS, rows)
    shown = [item for item in report.images if item.comparison.disagreement > 0][:worst]
    if shown:
        say()
        say_table(
            _WORST,
            [
                (
                    item.image.name,
                    *_counts(item.comparison.total()),
                    f"{item.comparison.disagreement:.2f}",
                )
                for item in shown
            ],
        )
    for line in _lines(report):
        note(line)


def _counts(total: Any) -> tuple[str, ...]:
    return (
        f"{total.kept:,}",
        f"{total.moved:,}",
        f"{total.lost:,}",
        f"{total.gained:,}",
        f"{total.f1:.3f}",
    )


def _model_line(side: str, info: "ModelInfo", cpu_ms: float | None) -> str:
    name = f"{side} is {info.name} ({info.precision}, {info.image_size} pixels)"
    return f"{name}: {cpu_ms or 0:.1f} CPU-ms an image (median, without decoding)"


def _lines(report: "Report") -> Iterable[str]:
    """Yield sentences about the models, their speed, and what was not compared."""
    from service.truth import list_some

    summary = report.summary
    yield f"The models disagree in {summary.changed:,} of {summary.images:,} images"
    if report.a:
        yield _model_line("A", report.a, report.a_ms)
    else:
        yield "A is the stored results of " + list_some(report.stored_models)
        if report.recorded_ms is not None:
            yield f"The service recorded {report.recorded_ms:.1f} ms an image (median wall time)"
    yield _model_line("B", report.b, report.b_ms)
    if report.a == report.b:
        yield "Both are the same model"
    if report.skipped:
        names = (f"{name} ({reason})" for name, reason in report.skipped)
        yield f"Images that were not compared: {len(report.skipped)}: {list_some(names)}"
    if report.is_limited:
        yield f"There are more images: only {len(report.images):,} were compared (--limit)"
