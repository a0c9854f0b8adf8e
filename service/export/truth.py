"""Labelled images in COCO's format, read so that no fault in the file lowers mAP without a note.

Files from the field have ids that pycocotools takes for something else (0), that are there twice or
missing, categories that only group others, names that are spelled otherwise, and boxes that are
rotated, absent or have no area. Ids are not kept: everything gets a new one. What cannot be
measured is left out, and said.
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

_FIELDS = {"images": ("id", "file_name"), "annotations": (), "categories": ("id", "name")}
_MAX_NAMED = 5  # in one note


@dataclass(frozen=True)
class Labels:
    """Labelled images: a file in COCO's format, and the folder of its images."""

    file: Path
    image_folder: Path


@dataclass(frozen=True)
class LabelledImage:
    """One image; `size` is its width and height as the labels have them, None where they do not."""

    file: Path
    size: tuple[int, int] | None


@dataclass(frozen=True)
class LabelledObject:
    """One object: the index of its image, its category's name, and x, y, width, height in pixels.

    A crowd is ignored: missing it is not an error, and neither is a detection inside it.
    """

    image: int
    name: str
    bbox: tuple[float, float, float, float]
    is_crowd: bool


@dataclass(frozen=True)
class Truth:
    """What a file of labels says. `notes` are sentences about what was left out or put together."""

    images: tuple[LabelledImage, ...]
    objects: tuple[LabelledObject, ...]
    names: tuple[str, ...]  # of all categories, each once
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Classes:
    """Which of the model's labels each category is. `notes` are sentences about the others."""

    label_of: Mapping[str, str]
    notes: tuple[str, ...]


def read_truth(labels: Labels) -> Truth:
    """Read a file in COCO's format.

    Raises:
        ModelError: it is not such a file, it contradicts itself, or an image is not in its folder.
    """
    try:
        return _truth(labels, _read(labels.file))
    except RecursionError as exc:
        reason = "it is nested too deeply"
        raise ModelError(f"{labels.file} is not a COCO label file: {reason}") from exc
    except (OSError, ValueError) as exc:
        raise ModelError(f"{labels.file} is not a COCO label file: {exc}") from exc


def match_classes(truth: Truth, labels: Iterable[str], *, file: Path) -> Classes:
    """Find the model's label for each category: the same name, else the one spelled alike.

    Upper and lower case, blanks, hyphens and underscores make no difference, unless the model has
    two labels that differ in nothing else.

    Args:
        truth: what `file` says.
        labels: of the model.
        file: to name in an error.

    Raises:
        ModelError: no category with objects is a class of the model.
    """
    known = set(labels)
    alike: dict[str, set[str]] = defaultdict(set)
    for label in known:
        alike[_plain(label)].add(label)
    label_of = {}
    for name in truth.names:
        candidates = {name} if name in known else alike[_plain(name)]
        if len(candidates) == 1:
            [label_of[name]] = candidates
    counts = Counter(thing.name for thing in truth.objects)
    if not any(name in label_of for name in counts):
        raise ModelError(
            f"No category in {file} is a class of the model. The categories are "
            f"{list_some(map(repr, counts))}, and the model knows "
            f"{list_some(map(repr, sorted(known)))}"
        )
    spelled = [f"{name!r} for {label!r}" for name, label in label_of.items() if name != label]
    strange = [
        f"{name!r} ({count} objects)" for name, count in counts.items() if name not in label_of
    ]
    missing = sorted(known - set(label_of.values()))
    notes = []
    if spelled:
        notes.append(f"Classes matched despite another spelling: {list_some(spelled)}")
    if strange:
        notes.append(f"The model has no class {list_some(strange)}: left out of mAP")
    if missing:
        notes.append(
            f"The labels have no category for {len(missing)} of the model's classes, which are not "
            f"measured: {list_some(map(repr, missing))}"
        )
    return Classes(label_of, tuple(notes))


def list_some(texts: Iterable[str]) -> str:
    """Join texts by commas; of many, the first ones and how many more there are."""
    all_of_them = list(texts)
    more = len(all_of_them) - _MAX_NAMED
    return ", ".join(all_of_them[:_MAX_NAMED]) + (f" and {more} more" if more > 0 else "")


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "", unicodedata.normalize("NFKC", name).casefold())


def _read(file: Path) -> dict[str, list[dict[str, Any]]]:
    content = json.loads(file.read_text(encoding="utf-8-sig"))
    if not isinstance(content, dict):
        raise ValueError("it must have images, annotations and categories")  # noqa: TRY004
    for kind, fields in _FIELDS.items():
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
        file = labels.image_folder / str(image["file_name"])
        if not file.is_file():
            raise ModelError(
                f"{labels.file} names {file}, which does not exist. "
                "Give the images' folder with --data-images"
            )
        images.append(LabelledImage(file, _size(image)))
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
    used: dict[str, set[str]] = defaultdict(set)
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
            around = _rotated(bbox, entry)
            is_ignored = _is_set(entry.get("ignore"))
            is_crowd = _is_set(entry.get("iscrowd")) or is_ignored
            name = names[category]
            thing = LabelledObject(image, name, around, is_crowd)
            if thing in objects:
                left_out["that repeat another annotation"] += 1
                continue
            rotated += around != bbox
            ignored += is_ignored
            objects[thing] = None
            used[name].add(category)
    shares = [thing for thing in objects if _is_share(thing)]
    if len(shares) * 2 > len(objects):
        raise ValueError("the boxes are fractions of the image, not pixels")
    for thing in shares:
        left_out["with a box within the first pixel"] += 1
        del objects[thing]
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
        f"{len(ids)} categories have the name {name!r}, and objects: they were measured as one"
        for name, ids in used.items()
        if len(ids) > 1
    ]
    return tuple(objects), tuple(notes)


def _bbox(value: Any) -> tuple[float, float, float, float] | None:
    """Read x, y, width and height; None where they are not four finite numbers."""
    if not isinstance(value, list) or len(value) != 4:
        return None
    sides = [side for side in map(_number, value) if side is not None]
    if len(sides) != 4:
        return None
    x, y, width, height = sides
    return x, y, width, height


def _rotated(
    bbox: tuple[float, float, float, float], annotation: Mapping[str, Any]
) -> tuple[float, float, float, float]:
    """Return the upright box around one that CVAT rotates about its centre, in degrees."""
    attributes = annotation.get("attributes")
    degrees = _number(attributes.get("rotation") if isinstance(attributes, dict) else None)
    if not degrees or not degrees % 360:
        return bbox
    x, y, width, height = bbox
    cosine, sine = (abs(turn(math.radians(degrees))) for turn in (math.cos, math.sin))
    wide, high = width * cosine + height * sine, width * sine + height * cosine
    return x + (width - wide) / 2, y + (height - high) / 2, wide, high


def _is_share(thing: LabelledObject) -> bool:
    """Say whether a box lies in the first pixel, and a bit, as no box in pixels does."""
    x, y, width, height = thing.bbox
    return max(x + width, y + height) <= 1.1


def _is_set(flag: object) -> bool:
    return str(flag or 0).strip().casefold() not in ("", "0", "0.0", "false", "no")


def _number(value: Any) -> float | None:
    """Read a finite number, also one that is written as text; None for anything else."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _key(value: object) -> str:
    """Make ids comparable that are a number at one place and text at another."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _size(image: Mapping[str, Any]) -> tuple[int, int] | None:
    width, height = (int(_number(image.get(side)) or 0) for side in ("width", "height"))
    return (width, height) if width > 0 and height > 0 else None
