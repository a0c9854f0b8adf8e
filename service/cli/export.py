"""The command `yolo-batch export`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from service.export.renaming import shared_labels

PRECISIONS = ("fp32", "fp16", "int8")
_FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Directory to write; by default MODEL_openvino_model, with int8 "
    "MODEL_int8_openvino_model, beside the model.",
)
@click.option(
    "--image-size",
    type=click.IntRange(32, 4096),
    help="Longer side that the network sees, in pixels, a multiple of 32; "
    "by default the one that the weights were trained with, or an exported model's own.",
)
@click.option(
    "--precision",
    default="fp32",
    show_default=True,
    type=click.Choice(PRECISIONS),
    help="fp16 is of the stored weights alone; int8 of the arithmetic too.",
)
@click.option(
    "--calibration", type=_FOLDER, help="Folder of 30 to 300 pictures like those to come; for int8."
)
@click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Labels in COCO's format, to measure mAP on.",
)
@click.option(
    "--data-images",
    type=_FOLDER,
    help="Folder of the labelled pictures; by default NAME beside instances_NAME.json, "
    "or the labels' own folder.",
)
@click.option(
    "--min-agreement",
    default=0.9,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="F1 of int8's detections against float's, under which nothing is written.",
)
@click.option("--no-fallback", is_flag=True, help="Leave the float model out of an int8 export.")
@click.option(
    "--canary",
    type=_FOLDER,
    help="Folder of at most 10 pictures to pack as the canary, where the model knows nothing of "
    "the drawn ones. They become part of the export.",
)
@click.option(
    "--rename",
    "renames",
    metavar="OLD=NEW",
    multiple=True,
    help="Give a class another label. OLD is a label (it may be empty) or '#' with a class id. "
    "Can be repeated.",
)
def export(
    model: Path,
    output: Path | None,
    image_size: int | None,
    precision: str,
    calibration: Path | None,
    data: Path | None,
    data_images: Path | None,
    min_agreement: float,
    no_fallback: bool,
    canary: Path | None,
    renames: tuple[str, ...],
) -> None:
    """Turn a YOLO26 detection MODEL into the directory that the service runs.

    MODEL is a .pt file (an official name that is no file, such as yolo26n.pt, is downloaded
    first), or an exported float directory, which needs neither torch nor ultralytics.
    """
    from service.export.accuracy import find_labels
    from service.export.weights import export_openvino, read_metadata

    directory = export_openvino(
        model,
        output,
        image_size=image_size,
        precision=precision,
        calibration=calibration,
        labels=find_labels(data, data_images) if data else None,
        min_agreement=min_agreement,
        fallback=not no_fallback,
        canary=canary,
        renames=renames,
    )
    metadata = read_metadata(directory)
    for line in (*_labels(metadata), *_figures(metadata)):
        click.echo(line)
    click.echo(f"Image size {max(metadata['imgsz'])} pixels{_origin(model, image_size)}")
    click.echo(f"Exported to {directory}")


def _origin(model: Path, image_size: int | None) -> str:
    """Say where the image size comes from, when the user did not give it."""
    if image_size:
        return ""
    return ", as the model was exported" if model.is_dir() else ", as the weights were trained"


def _labels(metadata: Mapping[str, Any]) -> list[str]:
    """Say which classes share a label."""
    return [
        f"The classes {', '.join(map(str, ids))} share the label {label!r}: they are counted as one"
        for label, ids in shared_labels(metadata["names"]).items()
    ]


def _figures(metadata: Mapping[str, Any]) -> list[str]:
    """What was measured, in sentences."""
    from service.export.truth import list_some

    lines = []
    if quantization := metadata.get("quantization"):
        reached, threshold = quantization["agreement"], quantization["threshold"]
        if skipped := quantization.get("skipped"):
            lines.append(f"Calibration images that cannot be read, skipped: {list_some(skipped)}")
        lines.append(
            f"int8 against float on {quantization['calibration_images']} calibration pictures, "
            f"{reached['detections']} detections: "
            f"F1 {reached['f1']:.3f} (at least {threshold['f1']:g}), "
            f"mean IoU {reached['iou']:.3f} (at least {threshold['iou']:g})"
        )
    if accuracy := metadata.get("accuracy"):
        name = accuracy["labels"]
        lines.append(f"{name}: {accuracy['images']} images, {accuracy['objects']} objects")
        lines += [f"{name}: {note}" for note in accuracy["notes"]]
        for precision in filter(accuracy.get, PRECISIONS):
            measured = accuracy[precision]
            lines.append(
                f"{precision} on {name}: mAP50-95 {100 * measured['map50_95']:.2f}, "
                f"mAP50 {100 * measured['map50']:.2f}"
            )
    if not metadata["canary"]["detections_compared"]:
        lines.append(
            "The model is sure of nothing in the drawn pictures, so its canary would notice "
            "little: give a few pictures that it knows, with --canary"
        )
    return lines
