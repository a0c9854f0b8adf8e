"""Any YOLO26 detection model to the OpenVINO directory that the service runs."""

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

from service.domain import ErrorCode
from service.errors import BadImageError, ModelError
from service.export.accuracy import (
    MIN_MAP_CONFIDENCE,
    Agreement,
    agreement,
    detect_files,
    mean_average_precision,
    read_labels,
)
from service.export.canary import MIN_STORED_CONFIDENCE, write_canary
from service.export.drawings import draw
from service.export.renaming import apply_renames, sha256_of_renamed
from service.export.truth import Labels, list_some, match_classes
from service.images.decode import decode, open_image
from service.inference.canary import CANARY, FALLBACK
from service.inference.detector import OPENVINO_METADATA
from service.inference.identity import sha256_of_model
from service.inference.labels import advice_for_export, advice_for_weights
from service.inference.ultralytics import (
    count_classes,
    load_yolo,
    sha256_of,
    stride_of,
    trained_image_size,
)

# Bits of a stored weight; arithmetic is float32 with fp32 and fp16.
PRECISIONS = {"fp32": 32, "fp16": 16, "int8": 8}
MIN_AGREEMENT = 0.9  # F1 of the detections; what stayed below cost 1.7 to 3.9 points of mAP
MIN_IOU = 0.95  # mean, of the boxes that both find
_MIN_DETECTIONS = 20  # of the float network: with fewer, agreement says little
_MAX_PICTURES = 300  # more change the ranges no more
_MIN_CALIBRATION = 10  # images, where others could not be read
_MAX_CANARY = 10  # pictures: every start runs them
_MAX_PIXELS = 2**30
_SUFFIX = "_openvino_model"
_STRIDE = 32  # the least of any network: ultralytics would round other sizes up


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
) -> Path:
    """Export a model with the end-to-end head and dynamic shapes, and a canary beside it.

    Args:
        model: a `.pt` file, or an exported float directory, which needs neither torch nor
            ultralytics; an official name that is no file (`yolo26n.pt`) is downloaded by
            ultralytics.
        destination: directory to write; by default `<stem>_openvino_model` or, with int8,
            `<stem>_int8_openvino_model` beside the model.
        image_size: longer side that the network will see, in pixels; by default the one that the
            weights were trained with, or an exported model's own.
        precision: one of `PRECISIONS`.
        calibration: folder of pictures like those to come; int8 needs it.
        labels: labelled pictures to measure mAP on, of the float network too.
        min_agreement: F1 with the float network's detections on the calibration pictures, under
            which no int8 model is written.
        fallback: whether the float model is packed beside the int8 one.
        canary: folder of pictures to pack as the canary, in place of the drawn ones.
        renames: `OLD=NEW` for each label to replace; see `service.export.renaming.rename`.

    Returns:
        The directory written; `metadata.yaml` in it has what was measured.

    Raises:
        ModelError: the model cannot be loaded, downloaded, exported or quantised, a label cannot be
            stored, int8 agrees too little with float, or the default directory is the model itself.
    """
    _check_size(image_size, _STRIDE)
    if precision == "int8" and calibration is None:
        raise ModelError("int8 needs --calibration: a folder of pictures like those to come")
    # What is wrong with any of these is said before the work begins.
    _target(model, destination, precision)
    pictures = _canary_pictures(canary)
    truth = read_labels(labels) if labels else None
    with tempfile.TemporaryDirectory() as scratch:
        floating = Path(scratch) / "model"
        if (model / OPENVINO_METADATA).is_file():
            source = model
            _take(model, floating, image_size, precision, renames)
        else:
            source = _from_weights(model, floating, image_size, precision, renames)
        target = _target(source, destination, precision)
        if labels and truth:
            match_classes(truth, read_metadata(floating)["names"].values(), file=labels.file)
        _add_canary(floating, pictures)
        written = floating
        if calibration is not None and precision == "int8":
            written = Path(scratch) / "int8"
            size = max(read_metadata(floating)["imgsz"])
            images = find_calibration(calibration, image_size=size)
            _quantize(floating, written, images, min_agreement)
            _add_canary(written, pictures)
            if fallback:
                shutil.copytree(floating, written / FALLBACK)
        if labels:
            _add_precision(written, floating, labels)
        _put(written, target)
    return target


def read_metadata(directory: Path) -> dict[str, Any]:
    """What an export says of itself.

    Raises:
        ModelError: it cannot be read.
    """
    path = directory / OPENVINO_METADATA
    try:
        return dict(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, TypeError, ValueError, RecursionError) as exc:
        raise ModelError(f"{path} cannot be read: {exc}") from exc


def find_images(folder: Path) -> list[Path]:
    """List the pictures of a folder by name; of very many, some, drawn alike every time.

    What is a picture is told by its header: one that is damaged further on is listed.

    Raises:
        ModelError: there are none, or a file cannot be read.
    """
    pictures = sorted(itertools.islice(filter(_is_picture, _drawn(folder)), _MAX_PICTURES))
    if not pictures:
        raise ModelError(f"There are no pictures in {folder}")
    return pictures


@dataclass(frozen=True)
class Calibration:
    """Images to calibrate with; `skipped` says which others could not be read, and why."""

    images: list[Path]
    skipped: list[str]


def find_calibration(folder: Path, *, image_size: int) -> Calibration:
    """Find images that can be decoded, as `find_images` finds those with a header.

    What is no image is passed over. An image that is damaged is skipped, and another one is drawn.

    Args:
        folder: of the images.
        image_size: longer side that the network sees, in pixels: large JPEGs are decoded for it.

    Raises:
        ModelError: too few can be read.
    """
    images: list[Path] = []
    skipped: list[str] = []
    for path in _drawn(folder):
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
        if len(images) == _MAX_PICTURES:
            break
    if not images and not skipped:
        raise ModelError(f"There are no pictures in {folder}")
    if skipped and len(images) < _MIN_CALIBRATION:
        raise ModelError(
            f"Too few images in {folder} can be read: {len(images)}, and int8 needs at least "
            f"{_MIN_CALIBRATION}. Not read: {list_some(sorted(skipped))}"
        )
    return Calibration(sorted(images), sorted(skipped))


def _drawn(folder: Path) -> list[Path]:
    """List the files of a folder in an order that looks random, and is always the same."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return random.Random(0).sample(files, len(files))


def _is_picture(path: Path) -> bool:
    try:
        open_image(path.read_bytes(), max_pixels=_MAX_PIXELS)
    except BadImageError:
        return False
    except OSError as exc:
        raise ModelError(f"{path} cannot be read: {exc.strerror}") from exc
    return True


def _target(source: Path, destination: Path | None, precision: str) -> Path:
    """Choose the directory to write; the model itself is one only for who names it."""
    target = destination or _default_target(source, precision)
    if target.exists() and not (target / OPENVINO_METADATA).is_file():
        raise ModelError(f"{target} exists and is not an exported model: name another --output")
    if not destination and target.resolve() == source.resolve():
        raise ModelError(f"The export would take the place of {source}: name another with --output")
    return target


def _put(written: Path, target: Path) -> None:
    """Move an export into place; what was there goes when the new one lies whole beside it."""
    target = target.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{target.name}.", dir=target.parent) as beside:
        new = Path(beside) / "new"
        shutil.move(written, new)
        if target.exists():
            target.rename(Path(beside) / "old")
        new.rename(target)


def _default_target(source: Path, precision: str) -> Path:
    """Name the directory as ultralytics does."""
    source = source if source.name else source.resolve()  # the working directory
    stem = source.name.removesuffix(_SUFFIX) if source.is_dir() else source.stem
    return source.with_name(stem + ("_int8" if precision == "int8" else "") + _SUFFIX)


def _check_size(image_size: int | None, stride: int) -> None:
    if image_size and image_size % stride:
        raise ModelError(f"The image size {image_size} is not a multiple of {stride}")


def _from_weights(
    weights: Path, directory: Path, image_size: int | None, precision: str, renames: Sequence[str]
) -> Path:
    """Export weights to a float directory; return where they are."""
    model = load_yolo(weights)
    if isinstance(model.model, str | Path):
        raise ModelError(f"{weights} is an export already: give the weights that it was made from")
    source = Path(getattr(model, "ckpt_path", None) or weights)
    labels, is_renamed = apply_renames(
        getattr(model.model, "names", None),
        renames,
        model=source.name,
        count=count_classes(model),
        advice=advice_for_weights(source),
    )
    _check_size(image_size, stride_of(model))
    size = image_size or trained_image_size(model)
    floating = "fp32" if precision == "int8" else precision
    # ultralytics writes beside the weights: work on a copy, so that nothing is left behind.
    copy = directory.with_name(source.name)
    shutil.copyfile(source, copy)
    model = load_yolo(copy)
    model.model.names = labels
    try:
        written = _export(model, size, PRECISIONS[floating])
    except Exception as exc:  # noqa: BLE001 - ultralytics raises whatever its exporters raise
        raise ModelError(f"ultralytics cannot export {weights}: {exc}") from exc
    shutil.move(written, directory)
    metadata = read_metadata(directory)
    if not metadata.get("end2end"):
        raise ModelError(f"{source.name} has no end-to-end head: only YOLO26 models have one")
    metadata.pop("date", None)  # the same weights make the same export
    metadata |= _model_identity(sha256_of(source), labels, is_renamed=is_renamed)
    _write_metadata(
        directory,
        metadata,
        # In place of what names this machine.
        description=f"Exported from {source.name}",
        source=source.name,
        precision=floating,
        names=labels,  # as they are written: ultralytics replaces codes of ImageNet's
    )
    return source


def _model_identity(weights: str, labels: Mapping[int, str], *, is_renamed: bool) -> dict[str, str]:
    """Make what names the model in documents: the weights, and with other labels these too."""
    if not is_renamed:
        return {"sha256": weights}
    return {"sha256": sha256_of_renamed(weights, labels), "weights_sha256": weights}


def _export(model: Any, image_size: int, bits: int) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's to ultralytics: nothing a user can act on
        written = model.export(
            format="openvino",
            imgsz=image_size,
            dynamic=True,
            nms=False,  # the end-to-end head: see UltralyticsDetector
            quantize=bits,
            device="cpu",
            verbose=False,
        )
    return Path(written)


def _take(
    model: Path, directory: Path, image_size: int | None, precision: str, renames: Sequence[str]
) -> None:
    """Copy an exported float model, with its weights in another precision where that is asked."""
    import openvino as ov

    from service.inference.openvino import count_classes

    metadata = read_metadata(model)
    for figures in ("accuracy", "quantization", CANARY):  # of the source, not of what is written
        metadata.pop(figures, None)
    has = metadata.get("precision")
    if has not in ("fp32", "fp16"):
        raise ModelError(f"{model} is no float model: its precision is {has}")
    if (has, precision) == ("fp16", "fp32"):
        raise ModelError(f"{model} has fp16 weights: export fp32 from the .pt file")
    networks = list(model.glob("*.xml"))
    if len(networks) != 1:
        raise ModelError(f"{model} must hold one .xml file; it holds {len(networks)}")
    _check_size(image_size, int(metadata.get("stride", _STRIDE)))
    network = ov.Core().read_model(networks[0])
    labels, is_renamed = apply_renames(
        metadata.get("names"),
        renames,
        model=model.name,
        count=count_classes(network),
        advice=advice_for_export(model, has),
    )
    metadata["names"] = labels
    if is_renamed:
        weights = metadata.get("weights_sha256") or sha256_of_model(model)
        metadata |= _model_identity(weights, labels, is_renamed=True)
    directory.mkdir()
    if (has, precision) == ("fp32", "fp16"):
        _save(network, directory / networks[0].name, fp16=True)
        metadata["precision"] = "fp16"
    else:
        for file in (networks[0], networks[0].with_suffix(".bin")):
            shutil.copyfile(file, directory / file.name)
    if image_size:
        metadata["imgsz"] = [image_size, image_size]
    _write_metadata(directory, metadata)


def _quantize(
    floating: Path, directory: Path, calibration: Calibration, min_agreement: float
) -> None:
    """Write the int8 model of a float one, if it agrees."""
    import openvino as ov

    from service.export.quantize import METHOD, quantize, version

    metadata, pictures = read_metadata(floating), calibration.images
    [file] = floating.glob("*.xml")
    network = quantize(
        ov.Core().read_model(file),
        pictures,
        image_size=max(metadata["imgsz"]),
        stride=int(metadata["stride"]),
    )
    directory.mkdir()
    _save(network, directory / file.name, fp16=False)
    _write_metadata(directory, metadata, precision="int8")
    theirs, ours = (
        detect_files(_load(path, MIN_MAP_CONFIDENCE), pictures) for path in (floating, directory)
    )
    reached = agreement(theirs, ours)
    _refuse(reached, len(pictures), min_agreement)
    _write_metadata(
        directory,
        metadata,
        precision="int8",
        quantization={
            "method": METHOD,
            "nncf": version(),
            "calibration_pictures": len(pictures),
            "skipped": calibration.skipped,
            "agreement": _rounded(asdict(reached)),
            "threshold": {"f1": min_agreement, "iou": MIN_IOU},
        },
    )


def _refuse(reached: Agreement, pictures: int, min_agreement: float) -> None:
    """Raise where an int8 model is not one to trust."""
    if reached.detections < _MIN_DETECTIONS:
        raise ModelError(
            f"The float model finds {reached.detections} objects in the {pictures} calibration "
            f"pictures, fewer than {_MIN_DETECTIONS}: whether int8 finds the same cannot be told. "
            "Give more pictures, of what the model is for"
        )
    if reached.f1 < min_agreement or reached.iou < MIN_IOU:
        raise ModelError(
            f"int8 agrees too little with float on the {pictures} calibration pictures, so nothing "
            f"was written: F1 of the detections {reached.f1:.3f} (at least {min_agreement:g}), "
            f"mean IoU of their boxes {reached.iou:.3f} (at least {MIN_IOU:g}), "
            f"{reached.detections} detections. More and other calibration pictures may help"
        )


def _canary_pictures(folder: Path | None) -> Mapping[str, bytes]:
    if folder is None:
        return draw()
    files = find_images(folder)
    if len(files) > _MAX_CANARY:
        raise ModelError(f"{folder} has more than {_MAX_CANARY} pictures, too many for a canary")
    pictures: dict[str, bytes] = {}
    for file in files:
        if file.name in pictures:
            raise ModelError(f"{folder} has two pictures of the name {file.name}")
        pictures[file.name] = file.read_bytes()
    return pictures


def _add_canary(directory: Path, pictures: Mapping[str, bytes]) -> None:
    compared = write_canary(directory, _load(directory, MIN_STORED_CONFIDENCE), pictures)
    metadata = read_metadata(directory)
    _write_metadata(directory, metadata, **{CANARY: {"detections_compared": compared}})


def _add_precision(directory: Path, floating: Path, labels: Labels) -> None:
    metadata = read_metadata(directory)
    accuracy: dict[str, Any] = {"labels": labels.file.name}
    for path in dict.fromkeys((floating, directory)):
        measured = mean_average_precision(_load(path, MIN_MAP_CONFIDENCE), labels)
        # The same for both: it is the images and the labels that they are about.
        accuracy |= {"images": measured.images, "objects": measured.objects}
        accuracy["notes"] = list(dict.fromkeys([*accuracy.get("notes", []), *measured.notes]))
        accuracy[read_metadata(path)["precision"]] = _rounded(
            {"map50_95": measured.map50_95, "map50": measured.map50}
        )
    _write_metadata(directory, metadata, accuracy=accuracy)


def _load(directory: Path, min_confidence: float) -> Any:
    from service.inference.openvino import OpenVINODetector

    return OpenVINODetector(directory, min_confidence=min_confidence)


def _save(network: Any, path: Path, *, fp16: bool) -> None:
    import openvino as ov

    ov.save_model(network, path, compress_to_fp16=fp16)


def _rounded(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: round(value, 4) if isinstance(value, float) else value
        for name, value in figures.items()
    }


def _write_metadata(directory: Path, metadata: Mapping[str, Any], **changes: Any) -> None:
    # In ASCII: of other characters, PyYAML writes some (U+0085) so that they are read as others.
    text = yaml.safe_dump(dict(metadata) | changes, sort_keys=False)
    (directory / OPENVINO_METADATA).write_text(text, encoding="utf-8")
