"""`yolo-batch export`: a model for the service."""

import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import click

from service.cli.commands import argument, command, option
from service.cli.options import json_option
from service.cli.output import note, progress, say, say_json
from service.export.renaming import shared_labels

PRECISIONS = ("fp32", "fp16", "int8")
_FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)
_INT8 = "int8"
_ACCURACY = "Accuracy"
_NAMES = "Names"


@command(
    panel="Models",
    examples=[
        "yolo-batch export yolo26n.pt",
        "yolo-batch export yolo26n.pt --precision int8 --calibration photos",
    ],
)
@argument(
    "model",
    type=click.Path(path_type=Path),
    help="A .pt file, the name of an official model such as yolo26n.pt, which is downloaded, or "
    "the directory of an exported float model.",
)
@option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Directory to write. By default MODEL_openvino_model beside the model, or "
    "MODEL_int8_openvino_model.",
)
@option(
    "--image-size",
    type=click.IntRange(32, 4096),
    help="Longer side of the model's input in pixels, a multiple of 32. By default the size that "
    "the weights were trained with, or that of the exported model.",
)
@option(
    "--precision",
    default="fp32",
    show_default=True,
    type=click.Choice(PRECISIONS),
    help="fp16 halves the stored weights only. int8 makes the arithmetic faster too.",
)
@option(
    "--rename",
    "renames",
    panel=_NAMES,
    metavar="OLD=NEW",
    multiple=True,
    help="Give a class another label. OLD is a label (it may be empty) or '#' with a class id. "
    "Can be repeated.",
)
@option(
    "--model-version",
    panel=_NAMES,
    metavar="TEXT",
    help="What you call this version of the model, for example 2026-11. Each document has it.",
)
@option(
    "--canary",
    type=_FOLDER,
    help="Folder of at most 10 images that become the canary of the model, and a part of the "
    "export. By default, drawn images are used. Give a folder if the model detects nothing in "
    "them.",
)
@json_option(
    "directory, task, model_version, image_size, precision, sha256, labels, canary, quantization, "
    "accuracy"
)
@option(
    "--calibration",
    panel=_INT8,
    type=_FOLDER,
    help="Folder of 30 to 300 images like those that the service will get. int8 needs it.",
)
@option(
    "--min-agreement",
    panel=_INT8,
    default=0.9,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="Least F1 of the int8 model's detections against the float model's detections. For a "
    "classifier, the least share of images with the same class. Below it, nothing is written.",
)
@option(
    "--no-fallback",
    panel=_INT8,
    is_flag=True,
    help="Leave out the float model, which the service runs if the int8 model fails its canary.",
)
@option(
    "--data",
    panel=_ACCURACY,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Labels in COCO's format, to measure the mAP of boxes (task detect).",
)
@option(
    "--data-images",
    panel=_ACCURACY,
    type=_FOLDER,
    help="Folder of the labelled images. By default NAME beside instances_NAME.json, or the folder "
    "of the labels.",
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
    model_version: str | None,
    as_json: bool,
) -> None:
    """Export a YOLO26 model for the service: detect, segment, pose, obb or classify.

    Writes a directory for MODEL_PATH. A .pt file needs torch and ultralytics (the extra "export").
    The directory of an exported float model does not.
    """
    if precision == "int8" and not calibration:
        raise click.UsageError("--precision int8 needs --calibration: a folder of images")
    # ultralytics prints on standard output, which is for our JSON.
    with redirect_stdout(sys.stderr if as_json else sys.stdout), progress("Exporting"):
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
            model_version=model_version,
        )
    metadata = read_metadata(directory)
    show = note if as_json else say
    for line in (*_labels(metadata), *_figures(metadata)):
        show(line)
    if as_json:
        say_json(
            {
                "directory": str(directory),
                "task": metadata["task"],
                "model_version": metadata.get("model_version"),
                "image_size": max(metadata["imgsz"]),
                "precision": metadata["precision"],
                "sha256": metadata["sha256"],
                "labels": list(metadata["names"].values()),
                "canary": metadata["canary"],
                "quantization": metadata.get("quantization"),
                "accuracy": metadata.get("accuracy"),
            }
        )
        return
    say(f"Image size {max(metadata['imgsz'])} pixels{_origin(model, image_size)}")
    say(f"Exported to {directory}")


def _origin(model: Path, image_size: int | None) -> str:
    """Return where the image size comes from, if the user did not give it."""
    if image_size:
        return ""
    return ", from the export" if model.is_dir() else ", from the training of the weights"


def _labels(metadata: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each label that several classes share."""
    return [
        f"The classes {', '.join(map(str, ids))} share the label {label!r}: they are counted as one"
        for label, ids in shared_labels(metadata["names"]).items()
    ]


def _figures(metadata: Mapping[str, Any]) -> list[str]:
    """Return what was measured, as sentences."""
    from service.truth import list_some

    lines = []
    if quantization := metadata.get("quantization"):
        reached, threshold = quantization["agreement"], quantization["threshold"]
        if skipped := quantization.get("skipped"):
            lines.append(f"Skipped unreadable calibration images: {list_some(skipped)}")
        lines.append(
            f"int8 against float on {quantization['calibration_images']} calibration images: "
            + _agreement(metadata["task"], reached, threshold)
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
            "The model finds nothing with confidence in the drawn images, so its canary would "
            "notice few faults: give a few images of objects that it detects, with --canary"
        )
    return lines


def _agreement(task: str, reached: Mapping[str, Any], threshold: Mapping[str, Any]) -> str:
    """Return the agreement of an int8 model with its float model, as a part of a sentence."""
    if task == "classify":
        return (
            f"the same class for {reached['top1']:.3f} of them (at least {threshold['top1']:g}), "
            f"mean difference of the confidence {reached['confidence_gap']:.3f} "
            f"(at most {threshold['confidence_gap']:g})"
        )
    text = (
        f"{reached['detections']} detections, "
        f"F1 {reached['f1']:.3f} (at least {threshold['f1']:g}), "
        f"mean IoU {reached['iou']:.3f} (at least {threshold['iou']:g})"
    )
    name = {"segment": "IoU of masks", "pose": "similarity of keypoints (OKS)"}
    name["obb"] = "IoU of rotated boxes"
    if task in name:
        text += f", mean {name[task]} {reached['shape']:.3f} (at least {threshold['shape']:g})"
    return text
