"""Labelled images and their results, although Label Studio and CVAT change the names."""

from pathlib import Path

import pytest

from service.operate.image_names import basename_key, keys, match_images, short_name, stored_name
from service.truth import LabelledImage

PREFIX = "2026/"
NAMES = [
    "2026/cam1/0001.jpg",
    "2026/cam2/0001.jpg",
    "2026/cam2/yard.jpg",
    "2026/my photo (1).jpg",
    "2026/deadbeef-x.jpg",
    "2026/gar\u00e7on.jpg",
]
RESULTS = [stored_name("uploads", name, 7, PREFIX) for name in NAMES]


def match(*names: str, uri: str | None = None) -> list[str | None]:
    """Return the name of each image's result, `?` for an ambiguous image, or None."""
    images = [LabelledImage(Path(name), None, name, uri) for name in names]
    matches = match_images(images, RESULTS)
    return [
        "?"
        if index in matches.ambiguous
        else RESULTS[matches.result_of[index]].short
        if index in matches.result_of
        else None
        for index in range(len(images))
    ]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("2026/cam1/0001.jpg", "cam1/0001.jpg"),
        ("cam1/0001.jpg", "cam1/0001.jpg"),
        ("./cam1/0001.jpg", "cam1/0001.jpg"),
        ("cam1\\0001.jpg", "cam1/0001.jpg"),
        ("yard.jpg", "cam2/yard.jpg"),
        ("gs://uploads/2026/cam2/0001.jpg", "cam2/0001.jpg"),
        ("train/cam2/0001.jpg", "cam2/0001.jpg"),  # CVAT: the subset's folder
        ("images/ab12cd34-yard.jpg", "cam2/yard.jpg"),  # Label Studio: an upload
        ("upload/7/ab12cd34-yard.jpg", "cam2/yard.jpg"),
        ("images/ab12cd34__yard.jpg", "cam2/yard.jpg"),  # Label Studio: a download
        ("images/ab12cd34__12ab34cd-yard.jpg", "cam2/yard.jpg"),
        ("images/ab12cd34-my_photo_1.jpg", "my photo (1).jpg"),
        ("/data/local-files/?d=photos/2026/cam1/0001.jpg", "cam1/0001.jpg"),
        ("/data/local-files/?d=photos%2Fcam2%2F0001.jpg", "cam2/0001.jpg"),
        ("/data/upload/7/ab12cd34-yard.jpg", "cam2/yard.jpg"),
        (
            "/tasks/3/resolve/?fileuri=Z3M6Ly91cGxvYWRzLzIwMjYvY2FtMi95YXJkLmpwZw==",
            "cam2/yard.jpg",
        ),
        ("deadbeef-x.jpg", "deadbeef-x.jpg"),  # the name itself begins like a hash
        ("images/ab12cd34-deadbeef-x.jpg", "deadbeef-x.jpg"),
        ("garc\u0327on.jpg", "gar\u00e7on.jpg"),
    ],
)
def test_names_of_label_tools_find_their_result(name: str, expected: str) -> None:
    assert match(name) == [expected]


@pytest.mark.parametrize("name", ["0001.jpg", "images/ab12cd34-0001.jpg"])
def test_name_that_fits_several_results_is_ambiguous(name: str) -> None:
    assert match(name) == ["?"]


@pytest.mark.parametrize("name", ["cam3/0001.jpg", "other.jpg", "cam1/0001.png", "", "/", "?d="])
def test_name_that_fits_no_result_has_none(name: str) -> None:
    assert match(name) == [None]


def test_two_images_of_one_result_are_ambiguous() -> None:
    assert match("yard.jpg", "cam2/yard.jpg", "cam1/0001.jpg") == ["?", "?", "cam1/0001.jpg"]


def test_uri_of_an_export_decides() -> None:
    assert match("0001.jpg", uri="gs://uploads/2026/cam2/0001.jpg") == ["cam2/0001.jpg"]


def test_paths_of_an_export_are_found() -> None:
    """Two images of one name, but for the suffix: the second has a part of its document's id."""
    exported = RESULTS[3].exported[1]
    assert exported.startswith("2026/my photo (1)-")
    assert match(exported, "images/ab12cd34-" + basename_key(exported)) == ["?", "?"]
    assert match(exported) == ["my photo (1).jpg"]
    assert match("images/ab12cd34-" + basename_key(exported)) == ["my photo (1).jpg"]


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("", "2026/cam1/0001.jpg"),
        ("2026", "cam1/0001.jpg"),
        ("2026/", "cam1/0001.jpg"),
        ("2026/cam", "cam1/0001.jpg"),
        ("2026/cam1/0001.jpg", "0001.jpg"),
        ("20", "2026/cam1/0001.jpg"),
    ],
)
def test_name_below_a_prefix_has_whole_folders(prefix: str, expected: str) -> None:
    assert short_name("2026/cam1/0001.jpg", prefix) == expected


def test_keys_cover_every_spelling() -> None:
    image = LabelledImage(Path(), None, "images/ab12cd34-my_photo_1.jpg")
    assert basename_key("2026/my photo (1).jpg") in keys(image)
