"""mAP on faulty labels: equal to that on clean labels, or explained by a note."""

import json
import shutil
from collections.abc import Callable
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from service.errors import ModelError
from service.export.accuracy import MIN_MAP_CONFIDENCE, MeanAveragePrecision, mean_average_precision
from service.inference.loading import load_detector
from service.settings import BUNDLED_MODEL
from service.truth import Labels, match_classes, read_truth
from tests.labelled import labelled_samples, write_drawn_samples

needs_pycocotools = [
    pytest.mark.ultralytics,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # pycocotools'
]
SHAPES = ["circle", "cross", "heart", "square", "star", "triangle"]


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples")
    write_drawn_samples(folder)
    return folder


def written(directory: Path, truth: Any, images: Path) -> Labels:
    file = directory / "labels.json"
    file.write_text(json.dumps(truth), encoding="utf-8")
    return Labels(file, images)


@pytest.fixture(scope="module")
def measure(
    samples: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., MeanAveragePrecision]:
    detector = load_detector(BUNDLED_MODEL, min_confidence=MIN_MAP_CONFIDENCE)

    def run(truth: Any, images: Path = samples) -> MeanAveragePrecision:
        labels = written(tmp_path_factory.mktemp("labels"), truth, images)
        return mean_average_precision(detector, labels)

    return run


@pytest.fixture(scope="module")
def clean(measure: Callable[..., MeanAveragePrecision]) -> MeanAveragePrecision:
    return measure(labelled_samples())


def category(truth: Any, name: str) -> Any:
    return next(entry for entry in truth["categories"] if entry["name"] == name)


def annotations_from_zero(truth: Any) -> None:
    for number, annotation in enumerate(truth["annotations"]):
        annotation["id"] = number


def annotations_of_one_id(truth: Any) -> None:
    for annotation in truth["annotations"]:
        annotation["id"] = 1


def annotations_without_ids(truth: Any) -> None:
    for annotation in truth["annotations"]:
        del annotation["id"]


def no_crowds_and_areas(truth: Any) -> None:
    for annotation in truth["annotations"]:
        del annotation["iscrowd"], annotation["area"]


def areas_that_are_no_areas(truth: Any) -> None:
    for annotation in truth["annotations"]:
        annotation["area"], annotation["iscrowd"] = -1, "0"


def numbers_that_are_text(truth: Any) -> None:
    for image in truth["images"]:
        image["width"], image["height"] = f"{image['width']}.0", str(image["height"])
    for annotation in truth["annotations"]:
        annotation["bbox"] = list(map(str, annotation["bbox"]))
        annotation["iscrowd"] = annotation["ignore"] = "false"


def ids_from_zero(truth: Any) -> None:
    annotations_from_zero(truth)
    for image in truth["images"]:
        image["id"] -= 1
    for entry in truth["categories"]:
        entry["id"] -= 7
    for annotation in truth["annotations"]:
        annotation["image_id"] -= 1
        annotation["category_id"] -= 7


def ids_that_are_text(truth: Any) -> None:
    for image in truth["images"]:
        image["id"] = str(image["id"])
    for entry in truth["categories"]:
        entry["id"] = float(entry["id"])


def group_that_repeats_a_class(truth: Any) -> None:
    truth["categories"].insert(0, {"id": 0, "name": "star", "supercategory": "none"})
    truth["categories"].append({"id": 99, "name": "star", "supercategory": "none"})


def group_of_its_own(truth: Any) -> None:
    truth["categories"].insert(0, {"id": 0, "name": "shapes", "supercategory": "none"})


QUIET = [
    annotations_from_zero,
    annotations_of_one_id,
    annotations_without_ids,
    no_crowds_and_areas,
    areas_that_are_no_areas,
    numbers_that_are_text,
    ids_from_zero,
    ids_that_are_text,
    group_that_repeats_a_class,
    group_of_its_own,
]


@pytest.mark.parametrize("change", QUIET, ids=lambda change: change.__name__)
class TestQuiet:
    pytestmark = needs_pycocotools

    def test_unusual_labels_are_measured_like_clean_ones(
        self,
        change: Callable[[Any], None],
        clean: MeanAveragePrecision,
        measure: Callable[..., MeanAveragePrecision],
    ) -> None:
        truth = labelled_samples()
        change(truth)
        assert clean.notes == ()
        assert clean.map50_95 > 0.85
        assert measure(truth) == clean


def other_spelling(truth: Any) -> None:
    category(truth, "star")["name"] = "STAR_"


def a_class_in_two_categories(truth: Any) -> None:
    truth["categories"].append({"id": 99, "name": "star"})
    star = category(truth, "star")["id"]
    mine = [annotation for annotation in truth["annotations"] if annotation["category_id"] == star]
    mine[0]["category_id"] = 99


def objects_that_repeat(truth: Any) -> None:
    truth["annotations"] += [annotation | {"id": 1000} for annotation in truth["annotations"][:3]]


def boxes_of_no_area(truth: Any) -> None:
    first = truth["annotations"][0]
    truth["annotations"] += [first | {"bbox": [3, 3, 0, 9]}, first | {"bbox": [3, 3, 9, -1]}]


def objects_of_no_image(truth: Any) -> None:
    truth["annotations"].append(truth["annotations"][0] | {"image_id": 1000})


def objects_of_no_category(truth: Any) -> None:
    truth["annotations"].append(truth["annotations"][0] | {"category_id": 1000})


def objects_of_no_class(truth: Any) -> None:
    truth["categories"].append({"id": 99, "name": "hexagon"})
    truth["annotations"].append(truth["annotations"][0] | {"category_id": 99})


def annotations_without_boxes(truth: Any) -> None:
    first = truth["annotations"][0]
    boxes: list[Any] = [[], None, "1234", [1, 2, 3], [1, 2, "x", 4], [1, 2, float("nan"), 4], {}, 7]
    truth["annotations"] += [first | {"bbox": bbox} for bbox in boxes]
    truth["annotations"].append({key: first[key] for key in first if key != "bbox"})
    truth["annotations"].append("an object")


def boxes_in_the_first_pixel(truth: Any) -> None:
    truth["annotations"].append(truth["annotations"][0] | {"bbox": [0.1, 0.2, 0.3, 0.4]})


def boxes_that_cvat_rotates(truth: Any) -> None:
    for annotation in truth["annotations"][:3]:
        x, y, width, height = annotation["bbox"]
        middle = x + width / 2, y + height / 2
        annotation["bbox"] = [middle[0] - height / 2, middle[1] - width / 2, height, width]
        annotation["attributes"] = {"occluded": False, "rotation": 270.0}
    for annotation, rotation in zip(truth["annotations"][3:], (0.0, "left", None), strict=False):
        annotation["attributes"] = {"rotation": rotation}


def sizes_that_are_absent(truth: Any) -> None:
    del truth["images"][0]["width"]
    truth["images"][1]["height"] = "tall"
    truth["images"][2]["height"] = float("inf")


NOTED = [
    (annotations_without_boxes, "without a box of four numbers, left out: 10"),
    (boxes_in_the_first_pixel, "with a box within the first pixel, left out: 1"),
    (boxes_that_cvat_rotates, "measured as the upright boxes around them: 3"),
    (sizes_that_are_absent, "without a width and height in the labels: 3"),
    (other_spelling, "despite another spelling: 'STAR_' for 'star'"),
    (a_class_in_two_categories, "2 categories with objects have the name 'star'"),
    (objects_that_repeat, "that repeat another annotation, left out: 3"),
    (boxes_of_no_area, "with a box of no area, left out: 2"),
    (objects_of_no_image, "of images that the file does not list, left out: 1"),
    (objects_of_no_category, "of categories that the file does not list, left out: 1"),
    (objects_of_no_class, "The model has no class 'hexagon' (1 objects): left out of mAP"),
]


@pytest.mark.parametrize(("change", "note"), NOTED, ids=[change.__name__ for change, _ in NOTED])
class TestNoted:
    pytestmark = needs_pycocotools

    def test_corrected_and_omitted_labels_are_noted(
        self,
        change: Callable[[Any], None],
        note: str,
        clean: MeanAveragePrecision,
        measure: Callable[..., MeanAveragePrecision],
    ) -> None:
        truth = labelled_samples()
        change(truth)
        measured = measure(truth)
        assert astuple(measured)[:4] == pytest.approx(astuple(clean)[:4])
        [actual] = measured.notes
        assert note in actual


def rescale(truth: Any, scale: float) -> None:
    """Write boxes in pixels times `scale`. From 1 up: in fractions of the image times `scale`."""
    sizes = {image["id"]: (image["width"], image["height"]) for image in truth["images"]}
    for annotation in truth["annotations"]:
        width, height = sizes[annotation["image_id"]] if scale < 1 else (1, 1)
        by = [scale / side for side in sizes[annotation["image_id"]]]
        factors = [by[0] * width, by[1] * height] * 2
        annotation["bbox"] = [
            side * factor for side, factor in zip(annotation["bbox"], factors, strict=True)
        ]
    if scale < 1:
        for image in truth["images"]:
            del image["width"], image["height"]


def percent(truth: Any) -> None:
    rescale(truth, 100)


def half_the_size(truth: Any) -> None:
    rescale(truth, 0.5)


def names_of_other_classes(truth: Any) -> None:
    names = [entry["name"] for entry in truth["categories"]]
    for entry, name in zip(truth["categories"], names[1:] + names[:1], strict=True):
        entry["name"] = name


MISFITS = [percent, half_the_size, names_of_other_classes]


class TestMeasured:
    pytestmark = needs_pycocotools

    def test_image_that_cannot_be_measured_is_noted(
        self, samples: Path, tmp_path: Path, measure: Callable[..., MeanAveragePrecision]
    ) -> None:
        for path in samples.iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes())
        (tmp_path / "shapes-02.jpg").write_bytes((tmp_path / "shapes-02.jpg").read_bytes()[:2000])
        truth = labelled_samples()
        turned = truth["images"][4]
        turned["width"], turned["height"] = 10, 20
        measured = measure(truth, tmp_path)
        without = labelled_samples()
        del without["images"][4], without["images"][1]
        ids = {image["id"] for image in without["images"]}
        without["annotations"] = [
            annotation for annotation in without["annotations"] if annotation["image_id"] in ids
        ]
        assert replace(measured, notes=()) == measure(without)
        assert measured.images == 10
        unreadable, resized = measured.notes
        assert "cannot be read, left out: 1: shapes-02.jpg (" in unreadable
        assert "another size than in the labels, left out: 1: shapes-05.jpg (" in resized
        assert "labelled 10x20" in resized

    def test_no_image_that_can_be_measured_is_an_error(
        self, measure: Callable[..., MeanAveragePrecision]
    ) -> None:
        truth = labelled_samples()
        for image in truth["images"]:
            image["width"] += 1
        with pytest.raises(ModelError, match="no object that can be measured.*another size"):
            measure(truth)

    def test_corners_instead_of_sizes_are_noted(
        self, measure: Callable[..., MeanAveragePrecision]
    ) -> None:
        truth = labelled_samples()
        for annotation in truth["annotations"]:
            x, y, width, height = annotation["bbox"]
            annotation["bbox"] = [x, y, x + width, y + height]
        warning, note = measure(truth).notes
        assert warning.startswith("WARNING: mAP50 is ")
        assert "reach beyond their image" in note

    @pytest.mark.parametrize("change", MISFITS, ids=lambda change: change.__name__)
    def test_labels_that_do_not_fit_the_images_are_noted(
        self, change: Callable[[Any], None], measure: Callable[..., MeanAveragePrecision]
    ) -> None:
        truth = labelled_samples()
        change(truth)
        measured = measure(truth)
        assert measured.map50 < 0.05
        assert measured.notes[0].startswith("WARNING: mAP50 is ")
        assert "probably do not fit the images" in measured.notes[0]

    @pytest.mark.parametrize("scale", [0.5, 100])
    def test_labels_of_another_scale_are_noted(
        self, scale: float, measure: Callable[..., MeanAveragePrecision]
    ) -> None:
        truth = labelled_samples()
        rescale(truth, scale)
        assert any("end before 60% of the width" in note for note in measure(truth).notes)

    @pytest.mark.parametrize("reach", [1, 1.001, 1.05])
    def test_boxes_as_fractions_are_an_error(
        self, reach: float, measure: Callable[..., MeanAveragePrecision]
    ) -> None:
        truth = labelled_samples()
        rescale(truth, 1)
        for number, annotation in enumerate(truth["annotations"]):
            if number % 3 == 0:
                annotation["bbox"][2] = reach - annotation["bbox"][0]
        with pytest.raises(ModelError, match="fractions of the image, not pixels"):
            measure(truth)

    def test_ignored_objects_count_like_crowds(
        self, measure: Callable[..., MeanAveragePrecision]
    ) -> None:
        crowds, ignored = labelled_samples(), labelled_samples()
        for number in range(0, len(crowds["annotations"]), 3):
            crowds["annotations"][number]["iscrowd"] = 1
            ignored["annotations"][number]["ignore"] = 1
        measured = measure(ignored)
        assert replace(measured, notes=()) == measure(crowds)
        [note] = measured.notes
        assert note.startswith("Objects marked `ignore`, measured like crowds: ")

    def test_image_that_cannot_be_opened_is_left_out(
        self, samples: Path, tmp_path: Path, measure: Callable[..., MeanAveragePrecision]
    ) -> None:
        shutil.copytree(samples, tmp_path, dirs_exist_ok=True)
        (tmp_path / "shapes-02.jpg").unlink()
        (tmp_path / "shapes-02.jpg").symlink_to("/proc/self/mem")
        measured = measure(labelled_samples(), tmp_path)
        assert measured.images == 11
        assert "shapes-02.jpg (The file cannot be opened: Input/output error.)" in measured.notes[0]

    @pytest.mark.parametrize("orientation", [1, 2, 3, 4, 6])
    def test_image_that_exif_rotates_is_noted(
        self,
        orientation: int,
        samples: Path,
        tmp_path: Path,
        measure: Callable[..., MeanAveragePrecision],
    ) -> None:
        shutil.copytree(samples, tmp_path, dirs_exist_ok=True)
        with Image.open(samples / "shapes-02.jpg") as image:
            exif = image.getexif()
            exif[0x112] = orientation
            image.save(tmp_path / "shapes-02.jpg", exif=exif, quality=95)
        measured = measure(labelled_samples(), tmp_path)
        if orientation == 1:
            assert measured.notes == ()
        elif orientation == 6:
            assert "another size than in the labels" in measured.notes[0]
        else:
            assert "rotated by their EXIF orientation: 1: shapes-02.jpg" in measured.notes[0]

    def test_labels_for_the_upright_image_are_proven_by_its_size(
        self, samples: Path, tmp_path: Path, measure: Callable[..., MeanAveragePrecision]
    ) -> None:
        shutil.copytree(samples, tmp_path, dirs_exist_ok=True)
        with Image.open(samples / "shapes-02.jpg") as image:
            assert image.width != image.height
            exif = image.getexif()
            exif[0x112] = 6
            turned = image.transpose(Image.Transpose.ROTATE_90)  # what 6 turns back
            turned.save(tmp_path / "shapes-02.jpg", exif=exif, quality=95)
        assert measure(labelled_samples(), tmp_path).notes == ()

    def test_class_without_labels_is_noted(
        self, measure: Callable[..., MeanAveragePrecision]
    ) -> None:
        truth = labelled_samples()
        star = category(truth, "star")
        truth["categories"].remove(star)
        truth["annotations"] = [
            annotation
            for annotation in truth["annotations"]
            if annotation["category_id"] != star["id"]
        ]
        [note] = measure(truth).notes
        assert "no category for 1 of the model's classes, which are not measured: 'star'" in note

    def test_labels_of_other_classes_are_an_error(
        self, measure: Callable[..., MeanAveragePrecision]
    ) -> None:
        truth = labelled_samples()
        for entry in truth["categories"]:
            entry["name"] += "?"
        with pytest.raises(ModelError, match="No category in .*The categories are .*'circle\\?'"):
            measure(truth)


# --- reading ----------------------------------------------------------------------------------

LABELLED: dict[str, Any] = {
    "images": [{"id": 1, "file_name": "a.jpg"}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 7, "bbox": [0, 0, 4, 5]}],
    "categories": [{"id": 7, "name": "circle"}],
}
ANNOTATION = LABELLED["annotations"][0]


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"images": [{"id": 1}]}, "one of the images has no 'file_name'"),
        ({"images": [{"file_name": "a.jpg"}]}, "one of the images has no 'id'"),
        ({"images": LABELLED["images"] * 2}, "two images have the id 1"),
        (
            {"images": [*LABELLED["images"], {"id": 2, "file_name": "a.jpg"}]},
            "two images have the file name a.jpg",
        ),
        ({"categories": [{"id": 7}]}, "one of the categories has no 'name'"),
        (
            {"categories": [*LABELLED["categories"], {"id": 7, "name": "star"}]},
            "two categories have the id 7",
        ),
        ({"annotations": [{"id": 1, "image_id": 1}]}, "1 without a box of four numbers"),
        ({"annotations": []}, "there are no annotations"),
        ({"annotations": [ANNOTATION | {"bbox": [1, 2]}]}, "1 without a box of four numbers"),
        ({"annotations": [ANNOTATION | {"bbox": [1, 2, None, 3]}]}, "1 without a box"),
        ({"annotations": [ANNOTATION | {"bbox": [0.1, 0.2, 0.3, 0.4]}]}, "fractions of the image"),
        ({"annotations": [ANNOTATION | {"image_id": 3}]}, "no annotation can be used"),
        ({"annotations": 3}, "there are no annotations"),
        ({"annotations": {"a": 1}}, "there are no annotations"),
        ({"images": [1]}, "one of the images has no 'id'"),
        ({"images": [{"id": 1, "file_name": "a" * 5000}]}, "too long"),
    ],
    ids=[
        "file",
        "image-id",
        "images",
        "files",
        "category",
        "categories",
        "annotation",
        "none",
        "box",
        "null",
        "shares",
        "images-of-none",
        "number",
        "mapping",
        "image",
        "long",
    ],
)
def test_incomplete_labels_are_explained(
    tmp_path: Path, changes: dict[str, Any], what: str
) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    with pytest.raises(ModelError, match=rf"labels\.json is not a COCO label file: .*{what}"):
        read_truth(written(tmp_path, LABELLED | changes, tmp_path))


@pytest.mark.parametrize(
    "text",
    ["[]", "", "{", "7", "\x00", "[" * 200_000],
    ids=["list", "empty", "open", "number", "nul", "deep"],
)
def test_file_without_labels_is_rejected(tmp_path: Path, text: str) -> None:
    (tmp_path / "labels.json").write_text(text, encoding="utf-8")
    with pytest.raises(ModelError, match="not a COCO label file") as caught:
        read_truth(Labels(tmp_path / "labels.json", tmp_path))
    assert "Error(" not in str(caught.value)


def test_labelled_image_that_is_absent_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"names .*a\.jpg, which does not exist"):
        read_truth(written(tmp_path, LABELLED, tmp_path))


@pytest.mark.parametrize(
    ("name", "labels", "label"),
    [
        ("traffic light", ["traffic light"], "traffic light"),
        ("traffic_light", ["traffic light"], "traffic light"),
        ("Traffic-Light", ["traffic light"], "traffic light"),
        ("trafficlight", ["traffic light"], "traffic light"),
        ("Piéton".encode().decode(), ["PIE\u0301TON"], "PIE\u0301TON"),
        ("car", ["Car", "car"], "car"),
        ("CAR", ["Car", "car"], None),
        ("lamp", ["traffic light"], None),
    ],
)
def test_label_in_another_spelling_is_found(
    tmp_path: Path, name: str, labels: list[str], label: str | None
) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    categories = [{"id": 7, "name": name}, {"id": 8, "name": "other"}]
    second = ANNOTATION | {"category_id": 8}
    content = LABELLED | {"categories": categories, "annotations": [ANNOTATION, second]}
    truth = read_truth(written(tmp_path, content, tmp_path))
    classes = match_classes(truth, [*labels, "other"], file=tmp_path / "labels.json")
    assert classes.label_of.get(name) == label
