"""Read labelled images in COCO's format. A note reports each fault that would lower mAP.

Real label files contain ids that pycocotools misreads (0), duplicate and missing ids,
categories that only group other categories, names in another spelling, and boxes that are rotated,
missing or empty. So new ids replace the file's ids. Labels that cannot be measured are left out,
and a note reports how many.
"""

import json
import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.errors import ModelError

_REQUIRED = {"images": ("id", "file_name"), "annotations": (), "categories": ("id", "name")}
_MAX_LISTED = 5  # in one note


@dataclass(frozen=True)
class Labels:
    """A label file in COCO's format, and the folder of its images.

    Without a folder, nobody needs the images: only their names are read.
    """

    file: Path
    image_folder: Path | None = None


@dataclass(frozen=True)
class LabelledImage:
    """One image.

    Attributes:
        file: its file. It need not exist if the labels were read without a folder.
        size: its (width, height) in pixels, or None if the labels do not state them.
        name: `file_name` in the label file.
        uri: `uri` in the label file, which exports of this project have, or None.
    """

    file: Path
    size: tuple[int, int] | None
    name: str = ""
    uri: str | None = None


@dataclass(frozen=True)
class LabelledObject:
    """One labelled object.

    Attributes:
        image: index of its image.
        name: name of its category.
        bbox: x and y of the upper left corner, width, height, in pixels.
        is_crowd: whether it is a group of objects. Then neither a missing detection nor a detection
            in it counts as an error.
    """

    image: int
    name: str
    bbox: tuple[float, float, float, float]
    is_crowd: bool


@dataclass(frozen=True)
class Truth:
    """The content of a label file.

    Attributes:
        images: all images.
        objects: the objects that can be measured.
        names: names of all categories, without duplicates.
        notes: sentences about labels that were left out or corrected.
    """

    images: tuple[LabelledImage, ...]
    objects: tuple[LabelledObject, ...]
    names: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Classes:
    """The model's label of each category that it knows, and notes about the other categories."""

    label_of: Mapping[str, str]
    notes: tuple[str, ...]


def read_truth(labels: Labels) -> Truth:
    """Read a label file in COCO's format.

    Raises:
        ModelError: the file is malformed or contradicts itself, or an image is missing.
    """
    try:
        return _truth(labels, _read(labels.file))
    except RecursionError as exc:
        reason = "it is nested too deeply"
        raise ModelError(f"{labels.file} is not a COCO label file: {reason}") from exc
    except (OSError, ValueError) as exc:
        raise ModelError(f"{labels.file} is not a COCO label file: {exc}") from exc


def match_classes(truth: Truth, labels: Iterable[str], *, file: Path) -> Classes:
    """Find the model's label for each category: the same name, or the name in another spelling.

    Spellings may differ in case, spaces, hyphens and underscores, unless two labels of the model
    differ only in these.

    Args:
        truth: the content of `file`.
        labels: the model's labels.
        file: the label file, for error messages.

    Raises:
        ModelError: no category with objects is a class of the model.
    """
    known = set(labels)
    by_spelling: dict[str, set[str]] = defaultdict(set)
    for label in known:
        by_spelling[normalize(label)].add(label)
    label_of = {}
    for name in truth.names:
        candidates = {name} if name in known else by_spelling[normalize(name)]
        if len(candidates) == 1:
            [label_of[name]] = candidates
    counts = Counter(labelled.name for labelled in truth.objects)
    if not any(name in label_of for name in counts):
        raise ModelError(
            f"No category in {file} is a class of the model. The categories are "
            f"{list_some(map(repr, counts))}, and the model knows "
            f"{list_some(map(repr, sorted(known)))}"
        )
    respelled = [f"{name!r} for {label!r}" for name, label in label_of.items() if name != label]
    unknown = [
        f"{name!r} ({count} objects)" for name, count in counts.items() if name not in label_of
    ]
    unlabelled = sorted(known - set(label_of.values()))
    notes = []
    if respelled:
        notes.append(f"Classes matched despite another spelling: {list_some(respelled)}")
    if unknown:
        notes.append(f"The model has no class {list_some(unknown)}: left out of mAP")
    if unlabelled:
        notes.append(
            f"The labels have no category for {len(unlabelled)} of the model's classes, which are "
            f"not measured: {list_some(map(repr, unlabelled))}"
        )
    return Classes(label_of, tuple(notes))


def list_some(texts: Iterable[str]) -> str:
    """Join texts with commas. After the first five, add the number of remaining texts."""
    items = list(texts)
    more = len(items) - _MAX_LISTED
    return ", ".join(items[:_MAX_LISTED]) + (f" and {more} more" if more > 0 else "")


def normalize(name: str) -> str:
    """Return a name without what two spellings of it may differ in."""
    return re.sub(r"[\s_-]+", "", unicodedata.normalize("NFKC", name).casefold())


def _read(file: Path) -> dict[str, list[dict[str, Any]]]:
    """Read the JSON, and check that its three lists and their required fields exist.

    Raises:
        ValueError: something is missing. The message completes "FILE is not a COCO label file:".
    """
    content = json.loads(file.read_text(encoding="utf-8-sig"))
    if not isinstance(content, dict):
        raise ValueError("it must have images, annotations and categories")  # noqa: TRY004
    for kind, fields in _REQUIRED.items():
        entries = content.get(kind)
        if not entries or not isinstance(entries, list):
            raise ValueError(f"there are no {kind}")
        for entry in entries:
            for field in fields:
                if not isinstance(entry, dict) or entry.get(field) is None:
                    raise ValueError(f"one of the {kind} has no {field!r}")
    return content


def _truth(labels: Labels, content: Mapping[str, Any]) -> Truth:
    index_of: dict[str, int] = {}
    images: list[LabelledImage] = []
    for image in content["images"]:
        if index_of.setdefault(_key(image["id"]), len(images)) != len(images):
            raise ValueError(f"two images have the id {image['id']}")
        name, uri = str(image["file_name"]), image.get("uri")
        file = (labels.image_folder or Path()) / name
        if labels.image_folder and not _is_file(file):
            raise ModelError(
                f"{labels.file} names {file}, which does not exist. "
                "Give the images' folder with --data-images"
            )
        images.append(LabelledImage(file, _size(image), name, uri if _is_text(uri) else None))
    repeated = [file for file, times in Counter(i.file for i in images).items() if times > 1]
    if repeated:
        raise ValueError(f"two images have the file name {repeated[0].name}")
    names: dict[str, str] = {}
    for category in content["categories"]:
        name = str(category["name"])
        if names.setdefault(_key(category["id"]), name) != name:
            raise ValueError(f"two categories have the id {category['id']}")
    objects, notes = _objects(content["annotations"], index_of, names)
    return Truth(tuple(images), objects, tuple(dict.fromkeys(names.values())), notes)


def _objects(
    annotations: Sequence[Any], images: Mapping[str, int], names: Mapping[str, str]
) -> tuple[tuple[LabelledObject, ...], tuple[str, ...]]:
    objects: dict[LabelledObject, None] = {}
    left_out: Counter[str] = Counter()
    ids_of: dict[str, set[str]] = defaultdict(set)  # by a category's name, if it has objects
    rotated = ignored = 0
    for annotation in annotations:
        entry = annotation if isinstance(annotation, dict) else {}
        bbox = _bbox(entry.get("bbox"))
        image, category = images.get(_key(entry.get("image_id"))), _key(entry.get("category_id"))
        if bbox is None:
            left_out["without a box of four numbers"] += 1
        elif image is None:
            left_out["of images that the file does not list"] += 1
        elif category not in names:
            left_out["of categories that the file does not list"] += 1
        elif bbox[2] <= 0 or bbox[3] <= 0:
            left_out["with a box of no area"] += 1
        else:
            upright_box = _enclose_rotated(bbox, entry)
            is_ignored = _is_set(entry.get("ignore"))
            is_crowd = _is_set(entry.get("iscrowd")) or is_ignored
            name = names[category]
            labelled = LabelledObject(image, name, upright_box, is_crowd)
            if labelled in objects:
                left_out["that repeat another annotation"] += 1
                continue
            rotated += upright_box != bbox
            ignored += is_ignored
            objects[labelled] = None
            ids_of[name].add(category)
    in_first_pixel = [labelled for labelled in objects if _is_in_first_pixel(labelled)]
    if len(in_first_pixel) * 2 > len(objects):
        raise ValueError("the boxes are fractions of the image, not pixels")
    for labelled in in_first_pixel:
        left_out["with a box within the first pixel"] += 1
        del objects[labelled]
    if not objects:
        raise ValueError(
            "no annotation can be used: "
            + "; ".join(f"{count} {why}" for why, count in left_out.items())
        )
    notes = [f"Annotations {why}, left out: {count}" for why, count in left_out.items()]
    if rotated:
        notes.append(f"Rotated boxes, measured as the upright boxes around them: {rotated}")
    if ignored:
        notes.append(f"Objects marked `ignore`, measured like crowds: {ignored}")
    notes += [
        f"{len(ids)} categories with objects have the name {name!r}: they were measured as one"
        for name, ids in ids_of.items()
        if len(ids) > 1
    ]
    return tuple(objects), tuple(notes)


def _bbox(value: Any) -> tuple[float, float, float, float] | None:
    """Return x, y, width and height, or None if the value is not four finite numbers."""
    if not isinstance(value, list) or len(value) != 4:
        return None
    sides = [side for side in map(_number, value) if side is not None]
    if len(sides) != 4:
        return None
    x, y, width, height = sides
    return x, y, width, height


def _enclose_rotated(
    bbox: tuple[float, float, float, float], annotation: Mapping[str, Any]
) -> tuple[float, float, float, float]:
    """Return the smallest upright box around a box that CVAT has rotated about its centre.

    CVAT exports the box before its rotation, and the rotation in degrees as an attribute.
    """
    attributes = annotation.get("attributes")
    degrees = _number(attributes.get("rotation") if isinstance(attributes, dict) else None)
    if not degrees or not degrees % 360:
        return bbox
    x, y, width, height = bbox
    radians = math.radians(degrees)
    cosine, sine = abs(math.cos(radians)), abs(math.sin(radians))
    new_width, new_height = width * cosine + height * sine, width * sine + height * cosine
    return x + (width - new_width) / 2, y + (height - new_height) / 2, new_width, new_height


def _is_in_first_pixel(labelled: LabelledObject) -> bool:
    """Whether a box ends in the first pixel, so that it is probably in fractions of the image."""
    x, y, width, height = labelled.bbox
    return max(x + width, y + height) <= 1.1


def _is_set(flag: object) -> bool:
    return str(flag or 0).strip().casefold() not in ("", "0", "0.0", "false", "no")


def _number(value: Any) -> float | None:
    """Return a finite number, which may be written as text, or None for any other value."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _key(value: object) -> str:
    """Return an id as text, because files write the same id as a number and as text."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _is_file(file: Path) -> bool:
    try:
        return file.is_file()
    except ValueError:  # a NUL in its name
        return False


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _size(image: Mapping[str, Any]) -> tuple[int, int] | None:
    width, height = (int(_number(image.get(side)) or 0) for side in ("width", "height"))
    return (width, height) if width > 0 and height > 0 else None
