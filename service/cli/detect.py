"""`yolo-batch detect`: the service's pipeline on local files."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from service.settings import BUNDLED_MODEL, Settings


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--model",
    type=click.Path(path_type=Path),
    default=BUNDLED_MODEL,
    help="Exported directory, or a file that ultralytics loads.",
)
@click.option("--device", default="cpu", show_default=True, help="cpu, or a GPU such as 0.")
@click.option("--min-confidence", default=0.25, show_default=True, type=click.FloatRange(0.001, 1))
@click.option("--batch-size", default=8, show_default=True, type=click.IntRange(1, 64))
@click.option("--json", "as_json", is_flag=True, help="One JSON document a line.")
@click.option(
    "--save",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for annotated images.",
)
def detect(
    paths: tuple[Path, ...],
    model: Path,
    device: str,
    min_confidence: float,
    batch_size: int,
    as_json: bool,
    save: Path | None,
) -> None:
    """Detect on local files and folders, without any cloud.

    The limits are the service's environment variables: MAX_IMAGE_PIXELS, MAX_IMAGE_BYTES,
    MAX_BUFFERED_BYTES, MAX_BATCH_PIXELS, REDUCED_DECODE, IMAGE_SIZE, INFERENCE_STREAMS.
    """
    from service.cli.report import table
    from service.inference.loading import load_detector, warm_up
    from service.operate.detect import annotated_name, detect_files, find_files, save_annotated

    settings = replace(Settings.from_env(), max_batch_size=batch_size)
    files = find_files(paths)
    if not files:
        raise click.ClickException("There are no files in " + ", ".join(map(str, paths)))
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

    def receive(document: dict[str, Any]) -> None:
        documents.append(document)
        if as_json:
            click.echo(json.dumps(document, ensure_ascii=False))
        if save and document["status"] == "done":
            source = Path(document["name"])
            save_annotated(source, document, save / annotated_name(source, paths))

    try:
        detect_files(files, detector, settings, receive)
    finally:  # what was detected is shown, even when some file could not be
        if not as_json:
            click.echo(table(sorted(documents, key=lambda document: document["name"])))
    if save:
        click.echo(f"Annotated images are in {save}", err=True)
