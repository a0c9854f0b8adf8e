"""The files of a chaos run, read by the service's own decoder and model."""

from pathlib import Path

import numpy as np
import pytest

from devtools.chaos.images import (
    CODES,
    MAX_IMAGE_BYTES,
    Images,
    SceneError,
    detect_alone,
    md5,
)
from devtools.chaos.plan import Kind, Plan, Upload, make_plan
from devtools.chaos.poison import poison_of
from service.errors import BadImageError
from service.images.decode import decode, open_image
from service.inference.detector import Detector
from service.inference.loading import load_detector
from service.settings import BUNDLED_MODEL, Settings

KINDS = list(Kind)
SCENES = {"JPEG": 1, "GIF": 5, "TIFF": 11, "WEBP": 17}  # a scene of each format


def make_uploads(scene: int) -> list[Upload]:
    """Return two uploads of each kind, all of the same scene."""
    return [Upload(i, f"{i}.jpg", KINDS[i % len(KINDS)], scene) for i in range(2 * len(KINDS))]


@pytest.fixture(scope="module", params=SCENES.values(), ids=list(SCENES))
def uploads(request: pytest.FixtureRequest) -> list[Upload]:
    return make_uploads(request.param)


@pytest.fixture(scope="module")
def images() -> Images:
    return Images(Plan(1, 3, tuple(make_uploads(max(SCENES.values()))), ()))


@pytest.fixture(scope="module")
def detector() -> Detector:
    return load_detector(BUNDLED_MODEL)


def test_uploads_of_one_scene_differ_in_bytes(images: Images, uploads: list[Upload]) -> None:
    contents = [images.content(upload) for upload in uploads if upload.kind is not Kind.EMPTY]
    assert len({md5(content) for content in contents}) == len(contents)
    assert contents == [images.content(u) for u in uploads if u.kind is not Kind.EMPTY]


def test_good_upload_has_the_pixels_of_its_scene(images: Images, uploads: list[Upload]) -> None:
    content, scene = images.content(uploads[0]), images.scenes[uploads[0].scene]
    assert content != scene
    uploaded, drawn = (decode(data, max_pixels=10**6).pixels for data in (content, scene))
    assert np.array_equal(uploaded, drawn)
    assert len(content) < MAX_IMAGE_BYTES


@pytest.mark.parametrize("kind", [kind for kind in CODES if not kind.poison])
def test_bad_upload_fails_with_the_code_that_the_audit_expects(
    kind: Kind, images: Images, uploads: list[Upload]
) -> None:
    content = images.content(uploads[KINDS.index(kind)])
    if kind is Kind.TOO_MANY_BYTES:
        assert len(content) > MAX_IMAGE_BYTES
        return
    with pytest.raises(BadImageError) as error:
        decode(content, max_pixels=Settings().max_image_pixels)
    assert error.value.code == CODES[kind]
    assert len(content) < MAX_IMAGE_BYTES


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind.poison])
def test_poisonous_upload_is_a_good_image_with_a_mark(
    kind: Kind, images: Images, uploads: list[Upload]
) -> None:
    content = images.content(uploads[KINDS.index(kind)])
    assert poison_of(content) is kind.poison
    assert decode(content, max_pixels=10**6)
    assert poison_of(images.content(uploads[0])) is None


def test_every_drawn_image_has_its_own_detections(
    images: Images, detector: Detector, tmp_path: Path
) -> None:
    documents = detect_alone(images.scenes, detector, tmp_path)
    assert all(document["detections"] for document in documents)
    assert documents[0]["image"] == {"width": 480, "height": 360, "format": "JPEG"}
    assert {documents[scene]["image"]["format"] for scene in SCENES.values()} == set(SCENES)


def test_equal_images_are_an_error(images: Images, detector: Detector, tmp_path: Path) -> None:
    with pytest.raises(SceneError):
        detect_alone([images.scenes[0]] * 2, detector, tmp_path)


def test_images_that_the_audit_cannot_distinguish_are_an_error(
    images: Images, detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("devtools.chaos.images.is_same_image", lambda reference, fields: True)
    with pytest.raises(SceneError):
        detect_alone(images.scenes[:2], detector, tmp_path)


def test_every_format_is_among_the_images_of_a_short_run() -> None:
    scenes = Images(make_plan(60, 1)).scenes
    assert max(map(len, scenes)) < MAX_IMAGE_BYTES
    formats = [open_image(scene, max_pixels=10**6).info.format for scene in scenes]
    assert {name: formats.count(name) for name in SCENES} == {
        "JPEG": 50,
        "GIF": 4,
        "TIFF": 3,
        "WEBP": 3,
    }
