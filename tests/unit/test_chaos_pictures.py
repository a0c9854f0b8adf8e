"""The bytes of a chaos run, seen by the service's own decoder and model."""

from pathlib import Path

import numpy as np
import pytest

from service.chaos.pictures import (
    CODES,
    MAX_IMAGE_BYTES,
    Pictures,
    SceneError,
    find_alone,
    md5,
)
from service.chaos.plan import Kind, Plan, Upload
from service.detector import Detector, load_detector
from service.errors import BadImageError
from service.images import decode
from service.settings import BUNDLED_MODEL, Settings

KINDS = list(Kind)


@pytest.fixture(scope="module")
def uploads() -> list[Upload]:
    """Two of each kind, of the same scene."""
    return [Upload(i, f"{i}.jpg", KINDS[i % len(KINDS)], 1) for i in range(2 * len(KINDS))]


@pytest.fixture(scope="module")
def pictures(uploads: list[Upload]) -> Pictures:
    return Pictures(Plan(1, tuple(uploads), ()))


@pytest.fixture(scope="module")
def detector() -> Detector:
    return load_detector(BUNDLED_MODEL)


def test_uploads_of_one_scene_differ_in_bytes(pictures: Pictures, uploads: list[Upload]) -> None:
    contents = [pictures.content(upload) for upload in uploads if upload.kind is not Kind.EMPTY]
    assert len({md5(content) for content in contents}) == len(contents)
    assert contents == [pictures.content(u) for u in uploads if u.kind is not Kind.EMPTY]


def test_good_upload_has_the_pixels_of_its_scene(pictures: Pictures, uploads: list[Upload]) -> None:
    content = pictures.content(uploads[0])
    assert content != pictures.scenes[1]
    mine, scene = (decode(data, max_pixels=10**6).pixels for data in (content, pictures.scenes[1]))
    assert np.array_equal(mine, scene)


@pytest.mark.parametrize("kind", CODES)
def test_bad_upload_is_bad_in_the_way_that_the_audit_expects(
    kind: Kind, pictures: Pictures, uploads: list[Upload]
) -> None:
    content = pictures.content(uploads[KINDS.index(kind)])
    if kind is Kind.TOO_MANY_BYTES:
        assert len(content) > MAX_IMAGE_BYTES
        return
    with pytest.raises(BadImageError) as error:
        decode(content, max_pixels=Settings().max_image_pixels)
    assert error.value.code == CODES[kind]
    assert len(content) < MAX_IMAGE_BYTES


def test_pictures_are_found_apart(pictures: Pictures, detector: Detector, tmp_path: Path) -> None:
    first, second = find_alone(pictures.scenes, detector, tmp_path)
    assert first["detections"]
    assert first["detections"] != second["detections"]
    assert first["image"] == {"width": 480, "height": 360, "format": "JPEG"}


def test_pictures_that_look_the_same_are_refused(
    pictures: Pictures, detector: Detector, tmp_path: Path
) -> None:
    with pytest.raises(SceneError):
        find_alone([pictures.scenes[0]] * 2, detector, tmp_path)
