"""Export a YOLO26 model to the OpenVINO directory that the service runs."""

import itertools
import random
import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from service.domain import ErrorCode, Task
from service.errors import BadImageError, ModelError
from service.export.accuracy import (
    MATCH_CONFIDENCE,
    MIN_MAP_CONFIDENCE,
    Agreement,
    ClassAgreement,
    agreement,
    class_agreement,
    mean_average_precision,
    predict_files,
    read_labels,
)
from service.export.canary import MIN_STORED_CONFIDENCE, write_canary
from service.export.drawings import draw
from service.export.renaming import apply_renames, sha256_of_renamed
from service.images.decode import decode, open_image
from service.inference.canary import CANARY, FALLBACK
from service.inference.detector import OPENVINO_METADATA
from service.inference.heads import task_of
from service.inference.identity import sha256_of_model
from service.inference.labels import advice_for_export, advice_for_weights, quote
from service.inference.ultralytics import (
    count_classes,
    load_yolo,
    sha256_of,
    stride_of,
    trained_image_size,
)
from service.truth import Labels, list_some, match_classes

# Bits of a stored weight. fp32 and fp16 models compute in float32.
PRECISIONS = {"fp32": 32, "fp16": 16, "int8": 8}
MIN_AGREEMENT = 0.9  # F1 of the detections. Models below it lost 1.7 to 3.9 points of mAP.
_MIN_MEAN_IOU = 0.95  # mean over the boxes that both models find
_MIN_MEAN_SHAPE = 0.9  # the same for their masks, keypoints or rotated boxes
_MAX_CONFIDENCE_GAP = 0.1  # mean difference of two classifiers' confidences
_MIN_DETECTIONS = 20  # detections of the float model. With fewer, the agreement proves little.
_MAX_IMAGES = 300  # more calibration images do not change the ranges of activations
_MIN_CALIBRATION_IMAGES = 10  # required only if some images cannot be read
_MAX_CANARY_IMAGES = 10  # because every start of the service runs them
_MAX_PIXELS = 2**30
_MAX_VERSION_CHARACTERS = 100
_SUFFIX = "_openvino_model"
_MIN_STRIDE = 32  # every model has at least this. Ultralytics rounds image sizes up to a multiple.


def export_openvino(
    model: Path,
    destination: Path | None = None,
    *,
    image_size: int | None = None,
    precision: str = "fp32",
    calibration: Path | None = None,
    labels: Labels | None = None,
    min_agreement: float = MIN_AGREEMENT,
    fallback: bool = True,
    canary: Path | None = None,
    renames: Sequence[str] = (),
    model_version: str | None = None,
) -> Path:
    """Export a model with dynamic shapes, a canary and, unless it classifies, its end-to-end head.

    Args:
        model: a `.pt` file or the directory of a float export. A directory needs neither torch nor
            ultralytics. If there is no file, ultralytics downloads official models (`yolo26n.pt`).
        destination: directory to write. By default it is `<stem>_openvino_model` or, for int8,
            `<stem>_int8_openvino_model`, beside the model.
        image_size: longer side of the model's input, in pixels. By default, the size that the
            weights were trained with, or that of the float export.
        precision: one of `PRECISIONS`.
        calibration: folder of images like those that the service will get. int8 needs it.
        labels: labelled images on which to measure the mAP of the model, and also of the float
            model if `precision` is int8. For the task detect only.
        min_agreement: smallest F1 of the int8 model's detections compared with those of the float
            model, in the calibration images. For a classifier, the smallest share of the images
            that get the same class. Below it, no int8 model is written.
        fallback: whether to write the float model into the int8 export.
        canary: folder of images for the canary, instead of the drawn images.
        renames: `OLD=NEW` for each label to replace. See `service.export.renaming.rename`.
        model_version: what you call this version of the model. Each document has it.

    Returns:
        The written directory. Its `metadata.yaml` contains the measurements.

    Raises:
        ModelError: the model cannot be loaded, downloaded, exported or quantised, a label cannot be
            stored, int8 agrees too little with float, the default directory is the model itself, or
            mAP cannot be measured for the model's task.
    """
    if model_version is not None:
        _check_model_version(model_version)
    if precision == "int8" and calibration is None:
        raise ModelError(
            "int8 needs --calibration: a folder of images like those that the service will get"
        )
    # Check all inputs before the long work begins.
    _choose_target(model, destination, precision)
    canary_images = _read_canary_images(canary)
    truth = read_labels(labels) if labels else None
    with tempfile.TemporaryDirectory() as scratch:
        float_export = Path(scratch) / "model"
        if (model / OPENVINO_METADATA).is_file():
            source = model
            _copy_export(model, float_export, image_size, precision, renames)
        else:
            source = _export_weights(model, float_export, image_size, precision, renames)
        target = _choose_target(source, destination, precision)
        metadata = read_metadata(float_export)
        if model_version is not None:
            _write_metadata(float_export, metadata, model_version=model_version)
        if labels and truth:
            _check_map_task(Task(metadata["task"]))
            match_classes(truth, metadata["names"].values(), file=labels.file)
        _add_canary(float_export, canary_images)
        written = float_export
        if calibration is not None and precision == "int8":
            written = Path(scratch) / "int8"
            size = max(metadata["imgsz"])
            calibration_images = find_calibration(calibration, image_size=size)
            _quantize(float_export, written, calibration_images, min_agreement)
            _add_canary(written, canary_images)
            if fallback:
                shutil.copytree(float_export, written / FALLBACK)
        if labels:
            _add_map(written, float_export, labels)
        _move_into_place(written, target)
    return target


def read_metadata(directory: Path) -> dict[str, Any]:
    """Return the content of an export's `metadata.yaml`.

    Raises:
        ModelError: the file cannot be read.
    """
    path = directory / OPENVINO_METADATA
    try:
        return dict(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, TypeError, ValueError, RecursionError) as exc:
        raise ModelError(f"{path} cannot be read: {exc}") from exc


def find_images(folder: Path) -> list[Path]:
    """Return the image files in a folder and its subfolders, sorted, 300 at most.

    A file counts as an image by its header, so its pixels may be damaged. If there are more than
    300 images, the selection is random, but the same each time.

    Raises:
        ModelError: there are no images, or a file cannot be read.
    """
    images = sorted(itertools.islice(filter(_is_image, _shuffled_files(folder)), _MAX_IMAGES))
    if not images:
        raise ModelError(f"There are no images in {folder}")
    return images


@dataclass(frozen=True)
class Calibration:
    """Calibration images, and the names of images that could not be read, with the reasons."""

    images: list[Path]
    skipped: list[str]


def find_calibration(folder: Path, *, image_size: int) -> Calibration:
    """Find up to 300 images that can be decoded in a folder and its subfolders.

    Files that are not images are ignored. A damaged image is skipped, and another image takes its
    place. The selection is random, but the same each time.

    Args:
        folder: contains the images.
        image_size: longer side of the model's input, in pixels. Larger JPEGs are decoded at a
            reduced scale.

    Raises:
        ModelError: there are too few readable images.
    """
    images: list[Path] = []
    skipped: list[str] = []
    for path in _shuffled_files(folder):
        try:
            decode(path.read_bytes(), max_pixels=_MAX_PIXELS, image_size=image_size)
        except BadImageError as exc:
            if exc.code != ErrorCode.UNSUPPORTED_MEDIA:
                skipped.append(f"{path.relative_to(folder)} ({exc})")
            continue
        except OSError as exc:
            skipped.append(f"{path.relative_to(folder)} ({exc.strerror})")
            continue
        images.append(path)
        if len(images) == _MAX_IMAGES:
            break
    if not images and not skipped:
        raise ModelError(f"There are no images in {folder}")
    if skipped and len(images) < _MIN_CALIBRATION_IMAGES:
        raise ModelError(
            f"Too few images in {folder} can be read: {len(images)}, and int8 needs at least "
            f"{_MIN_CALIBRATION_IMAGES}. Not read: {list_some(sorted(skipped))}"
        )
    return Calibration(sorted(images), sorted(skipped))


def _shuffled_files(folder: Path) -> list[Path]:
    """Return all files in a folder and its subfolders in random order, the same each time."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return random.Random(0).sample(files, len(files))


def _is_image(path: Path) -> bool:
    try:
        open_image(path.read_bytes(), max_pixels=_MAX_PIXELS)
    except BadImageError:
        return False
    except OSError as exc:
        raise ModelError(f"{path} cannot be read: {exc.strerror}") from exc
    return True


def _choose_target(source: Path, destination: Path | None, precision: str) -> Path:
    """Return the directory to write. Only an explicit destination may be the source itself.

    Raises:
        ModelError: the directory must not be overwritten.
    """
    target = destination or _default_target(source, precision)
    if target.exists() and not (target / OPENVINO_METADATA).is_file():
        raise ModelError(
            f"{target} exists and is not an exported model: choose another directory with --output"
        )
    if not destination and target.resolve() == source.resolve():
        raise ModelError(
            f"The export would overwrite {source}: choose another directory with --output"
        )
    return target


def _move_into_place(written: Path, target: Path) -> None:
    """Move an export to the target. Remove an old export only when the new export is complete."""
    target = target.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that it is on the same file system, where renaming is atomic.
    with tempfile.TemporaryDirectory(prefix=f"{target.name}.", dir=target.parent) as scratch:
        new = Path(scratch) / "new"
        shutil.move(written, new)
        if target.exists():
            target.rename(Path(scratch) / "old")
        new.rename(target)


def _default_target(source: Path, precision: str) -> Path:
    """Return the directory beside the source that ultralytics would choose."""
    source = source if source.name else source.resolve()  # for the working directory, `.`
    stem = source.name.removesuffix(_SUFFIX) if source.is_dir() else source.stem
    return source.with_name(stem + ("_int8" if precision == "int8" else "") + _SUFFIX)


def _check_model_version(text: str) -> None:
    """Check that documents can store the text, and that people can read it there.

    Raises:
        ModelError: the text is empty, too long, or has characters that are not printable.
    """
    if not text or len(text) > _MAX_VERSION_CHARACTERS or not text.isprintable():
        raise ModelError(
            f"--model-version {quote(text)} is wrong: it must have 1 to {_MAX_VERSION_CHARACTERS} "
            "printable characters"
        )


def _check_map_task(task: Task) -> None:
    if task is not Task.DETECT:
        raise ModelError(
            f"--data measures the mAP of boxes, so it needs a model for {Task.DETECT}, not for "
            f"{task}. Leave --data out, and measure this model with ultralytics (`yolo val`)"
        )


def _check_size(image_size: int | None, stride: int) -> None:
    if image_size and image_size % stride:
        raise ModelError(f"The image size {image_size} is not a multiple of {stride}")


def _export_weights(
    weights: Path, directory: Path, image_size: int | None, precision: str, renames: Sequence[str]
) -> Path:
    """Export weights to the directory of a float model.

    Returns:
        The path of the weights, which ultralytics may have downloaded.

    Raises:
        ModelError: the weights cannot be loaded or exported, or a label cannot be stored.
    """
    model = load_yolo(weights)
    if isinstance(model.model, str | Path):
        raise ModelError(f"{weights} is an export already: export from its weights (.pt) instead")
    source = Path(getattr(model, "ckpt_path", None) or weights)
    labels, is_renamed = apply_renames(
        getattr(model.model, "names", None),
        renames,
        model=source.name,
        count=count_classes(model),
        advice=advice_for_weights(source),
    )
    _check_size(image_size, 1 if model.task == Task.CLASSIFY else stride_of(model))
    size = image_size or trained_image_size(model)
    float_precision = "fp32" if precision == "int8" else precision
    # Ultralytics writes beside the weights. Export a copy, to leave no files there.
    copy = directory.with_name(source.name)
    shutil.copyfile(source, copy)
    model = load_yolo(copy)
    model.model.names = labels
    try:
        written = _run_export(model, size, PRECISIONS[float_precision])
    except Exception as exc:  # noqa: BLE001 - ultralytics raises whatever its exporters raise
        raise ModelError(f"ultralytics cannot export {weights}: {exc}") from exc
    shutil.move(written, directory)
    metadata = read_metadata(directory)
    if metadata["task"] != Task.CLASSIFY and not metadata.get("end2end"):
        raise ModelError(f"{source.name} has no end-to-end head: only YOLO26 models have one")
    metadata.pop("date", None)  # so that exports of the same weights are identical
    metadata |= _model_identity(sha256_of(source), labels, is_renamed=is_renamed)
    _write_metadata(
        directory,
        metadata,
        # Replaces a description that contains paths of this machine.
        description=f"Exported from {source.name}",
        source=source.name,
        precision=float_precision,
        names=labels,  # the original labels, because ultralytics replaces ImageNet codes by names
    )
    return source


def _model_identity(
    weights_sha256: str, labels: Mapping[int, str], *, is_renamed: bool
) -> dict[str, str]:
    """Return the metadata that identify the model in documents."""
    if not is_renamed:
        return {"sha256": weights_sha256}
    return {
        "sha256": sha256_of_renamed(weights_sha256, labels),
        "weights_sha256": weights_sha256,
    }


def _run_export(model: Any, image_size: int, bits: int) -> Path:
    """Export an `ultralytics.YOLO` to OpenVINO, and return the directory that it wrote."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about code of ultralytics
        written = model.export(
            format="openvino",
            imgsz=image_size,
            dynamic=True,
            nms=False,  # keeps the end-to-end head
            quantize=bits,
            device="cpu",
            verbose=False,
        )
    return Path(written)


def _copy_export(
    model: Path, directory: Path, image_size: int | None, precision: str, renames: Sequence[str]
) -> None:
    """Copy a float export. Convert fp32 weights to fp16 if `precision` is fp16.

    Raises:
        ModelError: the export is not a float model, does not fit the arguments, or a label cannot
            be stored.
    """
    import openvino as ov

    from service.inference.openvino import count_classes

    metadata = read_metadata(model)
    task_of(metadata.get("task"), model=model)
    for measured in ("accuracy", "quantization", CANARY):  # measurements of the source
        metadata.pop(measured, None)
    source_precision = metadata.get("precision")
    if source_precision not in ("fp32", "fp16"):
        raise ModelError(
            f"{model} is not a float model, its precision is {source_precision}: export from its "
            "weights or from its float model"
        )
    if (source_precision, precision) == ("fp16", "fp32"):
        raise ModelError(f"{model} has fp16 weights: export fp32 from the .pt file")
    xml_files = list(model.glob("*.xml"))
    if len(xml_files) != 1:
        raise ModelError(f"{model} must contain one .xml file, but contains {len(xml_files)}")
    _check_size(image_size, int(metadata.get("stride", _MIN_STRIDE)))
    loaded = ov.Core().read_model(xml_files[0])
    labels, is_renamed = apply_renames(
        metadata.get("names"),
        renames,
        model=model.name,
        count=count_classes(loaded),
        advice=advice_for_export(model, source_precision),
    )
    metadata["names"] = labels
    if is_renamed:
        weights_sha256 = metadata.get("weights_sha256") or sha256_of_model(model)
        metadata |= _model_identity(weights_sha256, labels, is_renamed=True)
    directory.mkdir()
    if (source_precision, precision) == ("fp32", "fp16"):
        _save(loaded, directory / xml_files[0].name, fp16=True)
        metadata["precision"] = "fp16"
    else:
        for file in (xml_files[0], xml_files[0].with_suffix(".bin")):
            shutil.copyfile(file, directory / file.name)
    if image_size:
        metadata["imgsz"] = [image_size, image_size]
    _write_metadata(directory, metadata)


def _quantize(
    float_export: Path, directory: Path, calibration: Calibration, min_agreement: float
) -> None:
    """Quantise a float export to int8, and check that the two models agree.

    Raises:
        ModelError: quantisation failed, or the models agree too little.
    """
    import openvino as ov

    from service.export.quantize import METHOD, nncf_version, quantize

    metadata, images = read_metadata(float_export), calibration.images
    [file] = float_export.glob("*.xml")
    task = Task(metadata["task"])
    quantized = quantize(
        ov.Core().read_model(file),
        images,
        task=task,
        image_size=max(metadata["imgsz"]),
        stride=int(metadata["stride"]),
    )
    directory.mkdir()
    _save(quantized, directory / file.name, fp16=False)
    _write_metadata(directory, metadata, precision="int8")
    reference, other = (
        predict_files(_load(path, MATCH_CONFIDENCE), images) for path in (float_export, directory)
    )
    measured: Agreement | ClassAgreement
    if task is Task.CLASSIFY:
        measured = class_agreement(reference, other)
        threshold = {"top1": min_agreement, "confidence_gap": _MAX_CONFIDENCE_GAP}
        _check_class_agreement(measured, min_agreement)
    else:
        measured = agreement(reference, other)
        threshold = {"f1": min_agreement, "iou": _MIN_MEAN_IOU, "shape": _MIN_MEAN_SHAPE}
        _check_agreement(measured, len(images), min_agreement)
    _write_metadata(
        directory,
        metadata,
        precision="int8",
        quantization={
            "method": METHOD,
            "nncf": nncf_version(),
            "calibration_images": len(images),
            "skipped": calibration.skipped,
            "agreement": _round(asdict(measured)),
            "threshold": threshold,
        },
    )


def _check_agreement(measured: Agreement, images: int, min_agreement: float) -> None:
    """Check that an int8 model detects what its float model detects.

    Raises:
        ModelError: the models agree too little, or the images show too few objects.
    """
    if measured.detections < _MIN_DETECTIONS:
        raise ModelError(
            f"The float model finds {measured.detections} objects in the {images} calibration "
            f"images, fewer than {_MIN_DETECTIONS}: too few to compare int8 with it. Add images of "
            "objects that the model detects"
        )
    if (
        measured.f1 < min_agreement
        or measured.iou < _MIN_MEAN_IOU
        or measured.shape < _MIN_MEAN_SHAPE
    ):
        raise ModelError(
            f"int8 agrees too little with float on the {images} calibration images, so nothing "
            f"was written: F1 of the detections {measured.f1:.3f} (at least {min_agreement:g}), "
            f"mean IoU of their boxes {measured.iou:.3f} (at least {_MIN_MEAN_IOU:g}), mean "
            f"similarity of their masks, keypoints or rotated boxes {measured.shape:.3f} (at least "
            f"{_MIN_MEAN_SHAPE:g}), {measured.detections} detections. More or different "
            "calibration images may help"
        )


def _check_class_agreement(measured: ClassAgreement, min_agreement: float) -> None:
    """Check that an int8 classifier returns what its float model returns.

    Raises:
        ModelError: the models agree too little, or there are too few images.
    """
    if measured.images < _MIN_DETECTIONS:
        raise ModelError(
            f"There are {measured.images} calibration images, fewer than {_MIN_DETECTIONS}: too "
            "few to compare an int8 classifier with its float model"
        )
    if measured.top1 < min_agreement or measured.confidence_gap > _MAX_CONFIDENCE_GAP:
        raise ModelError(
            f"int8 agrees too little with float on the {measured.images} calibration images, so "
            f"nothing was written: the same class for {measured.top1:.3f} of the images (at least "
            f"{min_agreement:g}), mean difference of the confidence {measured.confidence_gap:.3f} "
            f"(at most {_MAX_CONFIDENCE_GAP:g}). More or different calibration images may help"
        )


def _read_canary_images(folder: Path | None) -> Mapping[str, bytes]:
    """Return the files in a folder by name, or the drawn images if there is no folder.

    Raises:
        ModelError: there are no images, too many, or two with the same name.
    """
    if folder is None:
        return draw()
    files = find_images(folder)
    if len(files) > _MAX_CANARY_IMAGES:
        raise ModelError(
            f"{folder} has more than {_MAX_CANARY_IMAGES} images, too many for a canary"
        )
    images: dict[str, bytes] = {}
    for file in files:
        if file.name in images:
            raise ModelError(f"{folder} has two images with the name {file.name}")
        images[file.name] = file.read_bytes()
    return images


def _add_canary(directory: Path, images: Mapping[str, bytes]) -> None:
    compared = write_canary(directory, _load(directory, MIN_STORED_CONFIDENCE), images)
    metadata = read_metadata(directory)
    _write_metadata(directory, metadata, **{CANARY: {"detections_compared": compared}})


def _add_map(directory: Path, float_export: Path, labels: Labels) -> None:
    """Measure the mAP of an export and of its float model, and write it into the metadata."""
    metadata = read_metadata(directory)
    accuracy: dict[str, Any] = {"labels": labels.file.name}
    for path in dict.fromkeys((float_export, directory)):  # one path if there is no int8 model
        measured = mean_average_precision(_load(path, MIN_MAP_CONFIDENCE), labels)
        # The counts and notes describe images and labels, so they are the same for both models.
        accuracy |= {"images": measured.images, "objects": measured.objects}
        accuracy["notes"] = list(dict.fromkeys([*accuracy.get("notes", []), *measured.notes]))
        accuracy[read_metadata(path)["precision"]] = _round(
            {"map50_95": measured.map50_95, "map50": measured.map50}
        )
    _write_metadata(directory, metadata, accuracy=accuracy)


def _load(directory: Path, min_confidence: float) -> Any:
    from service.inference.openvino import OpenVINODetector

    return OpenVINODetector(directory, min_confidence=min_confidence)


def _save(model: Any, path: Path, *, fp16: bool) -> None:
    import openvino as ov

    ov.save_model(model, path, compress_to_fp16=fp16)


def _round(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: round(value, 4) if isinstance(value, float) else value
        for name, value in figures.items()
    }


def _write_metadata(directory: Path, metadata: Mapping[str, Any], **changes: Any) -> None:
    # As ASCII, because PyYAML reads some other characters (U+0085) differently than it wrote them.
    text = yaml.safe_dump(dict(metadata) | changes, sort_keys=False)
    (directory / OPENVINO_METADATA).write_text(text, encoding="utf-8")
