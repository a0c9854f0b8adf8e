"""`yolo-batch detect`: the service's pipeline on local files."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from service.cli.commands import argument, command, option
from service.cli.options import json_lines_option
from service.cli.output import is_terminal, note, progress, say_json
from service.settings import BUNDLED_MODEL, Settings


@command(
    panel="Local",
    examples=[
        "yolo-batch detect photos --save annotated",
        "yolo-batch detect --json --model my_openvino_model a.jpg b.png > results.jsonl",
    ],
)
@argument(
    "paths",
    nargs=-1,
    required=True,
    type=click.Path(path_type=Path),
    help="Images, and folders of images at any depth.",
)
@json_lines_option("each image's document")
@option(
    "--save",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write a copy of each image with its detections drawn on it to this folder.",
)
@option(
    "--model",
    panel="Model",
    type=click.Path(path_type=Path),
    default=BUNDLED_MODEL,
    help="Directory of an exported model, or a file that ultralytics loads. By default the bundled "
    "model, which detects six drawn shapes.",
)
@option(
    "--device",
    panel="Model",
    default="cpu",
    show_default=True,
    shell_complete=lambda ctx, param, incomplete: ["cpu", "cuda:0"],
    help="cpu, or a GPU such as cuda:0.",
)
@option(
    "--min-confidence",
    panel="Model",
    default=0.25,
    show_default=True,
    type=click.FloatRange(0.001, 1),
    help="Leave out detections with a lower confidence.",
)
@option(
    "--batch-size",
    panel="Model",
    default=8,
    show_default=True,
    type=click.IntRange(1, 64),
    help="Maximum number of images in one batch.",
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
    """Detect objects in local images, without any cloud.

    An image that cannot be decoded also has a result: its row or document has the reason.

    These settings of the service apply, as environment variables: MAX_IMAGE_PIXELS,
    MAX_IMAGE_BYTES, MAX_BUFFERED_BYTES, MAX_BATCH_PIXELS, REDUCED_DECODE, IMAGE_SIZE,
    INFERENCE_STREAMS, STORE_CONFIDENCE.
    """
    from service.cli.report import say_results
    from service.inference.loading import load_detector, warm_up
    from service.operate.detect import annotated_name, detect_files, find_files, save_annotated

    settings = replace(
        Settings.from_env(), max_batch_size=batch_size, min_confidence=min_confidence
    )
    files = find_files(paths)
    if not files:
        raise click.ClickException(
            f"There are no files in {', '.join(map(str, paths))}: name images, or a folder of them."
        )
    if save:
        save.mkdir(parents=True, exist_ok=True)  # before the work: it may be read-only
    is_streaming = as_json and is_terminal(sys.stdout)
    with progress("Loading the model", is_shown=not is_streaming):
        detector = load_detector(
            model,
            device=device,
            image_size=settings.image_size,
            min_confidence=min(settings.store_confidence, min_confidence),
            streams=settings.inference_streams,
            max_batch_pixels=settings.max_batch_pixels,
        )
        warm_up(detector)
    documents: list[dict[str, Any]] = []
    try:
        with progress("Detecting", len(files), is_shown=not is_streaming) as bar:

            def receive(document: dict[str, Any]) -> None:
                documents.append(document)
                if as_json:
                    say_json(document)
                if save and document["status"] == "done":
                    source = Path(document["name"])
                    save_annotated(source, document, save / annotated_name(source, paths))
                bar.advance()

            detect_files(files, detector, settings, receive)
    finally:  # a file that cannot be read must not hide the results of other files
        if documents and not as_json:
            say_results(sorted(documents, key=lambda document: document["name"]))
    if save:
        note(f"Annotated images are in {save}")
