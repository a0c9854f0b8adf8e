"""File names of exports: safe and unique, whatever objects are called."""

import unicodedata
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain import ImageRef
from service.result_exports.folder import ExportFolder, ExportFolderError
from service.result_exports.names import FileNames

PLAIN = [
    "a.jpg",
    "cam1/2026/a.jpg",
    "ä/ö ü.png",
    "日本/東京.jpg",
    ".hidden.jpg",
    "no-suffix",
    "a b.jpg",
]
HOSTILE = [
    "../../etc/passwd",
    "/etc/passwd",
    "//host/share/a.jpg",
    "a/../../b.jpg",
    "a/./b.jpg",
    "a//b.jpg",
    "..",
    ".",
    "/",
    "...",
    " ",
    "C:\\Windows\\a.jpg",
    "c:a.jpg",
    "a\\..\\b.jpg",
    "nul\x00.jpg",
    "line\nfeed.jpg",
    "bell\x07.jpg",
    "\u202egpj.exe",
    "zero\u200bwidth.jpg",
    "CON",
    "con.jpg",
    "folder/LPT1.tar.gz",
    "COM¹.jpg",
    "aux .jpg",
    "dot./a.jpg",
    "blank /a.jpg",
    "ends.jpg.",
    "ends.jpg ",
    "x" * 300 + ".jpg",
    "é" * 200 + ".jpg",
    "x." + "y" * 300,
    "/".join(["z" * 200] * 7),
    'quote".jpg',
    "star*?.jpg",
    "pipe|<>.jpg",
    "cafe\u0301.jpg",
]
TWINS = [
    ("a.jpg", "A.JPG"),
    ("straße.jpg", "STRASSE.jpg"),
    ("caf\u00e9.jpg", "cafe\u0301.jpg"),
    ("a.jpg", "a.png"),
    ("a", "a/b.jpg"),
    ("a/b.jpg", "a"),
    ("A/b.jpg", "a"),
    ("\ufb01.jpg", "fi.jpg"),
]


class Keys:
    def __init__(self) -> None:
        self.keys: set[str] = set()

    def add(self, key: str) -> bool:
        is_new = key not in self.keys
        self.keys.add(key)
        return is_new

    def has(self, key: str) -> bool:
        return key in self.keys


def id_of(name: str) -> str:
    return ImageRef("uploads", name, 1).document_id


def paths_of(names: list[str]) -> list[str]:
    given = FileNames(Keys())
    return [given.path(name, id_of(name)) for name in names]


def check(paths: list[str]) -> None:
    """Check that files of these paths can be beside each other on every file system."""
    stems = [
        unicodedata.normalize("NFC", str(PurePosixPath(path).with_suffix(""))) for path in paths
    ]
    assert len({stem.casefold() for stem in stems}) == len(paths)
    folders = {str(each).casefold() for path in paths for each in PurePosixPath(path).parents}
    assert not folders & {path.casefold() for path in paths}
    for path in paths:
        assert not path.startswith("/")
        assert len(path.encode()) <= 1300
        for part in path.split("/"):
            assert part not in ("", ".", "..")
            assert len(part.encode()) <= 255
            assert part == part.strip(" ").rstrip(".")
            assert not set(part) & set('\\<>:"|?*\x00\n')
            assert part.isprintable()


@pytest.mark.parametrize("name", PLAIN)
def test_plain_name_is_the_path(name: str) -> None:
    assert paths_of([name]) == [name]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_name_gives_a_safe_path(name: str) -> None:
    [path] = paths_of([name])
    check([path])
    assert path != name
    assert id_of(name)[:10] in path


def test_all_names_together_have_paths_of_their_own() -> None:
    check(paths_of([*PLAIN, *HOSTILE]))
    check(paths_of([*HOSTILE, *PLAIN]))


@pytest.mark.parametrize("twins", TWINS)
def test_twins_have_different_paths(twins: tuple[str, str]) -> None:
    first, second = paths_of(list(twins))
    check([first, second])


def test_name_that_imitates_a_path_cannot_take_it() -> None:
    digits = id_of("A.jpg")[:10]
    names = ["a.jpg", f"A-{digits}.jpg", f"{digits}/A-{digits}.jpg", "A.jpg"]
    check(paths_of(names))


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=40), max_size=30, unique=True))
def test_any_names_give_safe_unique_paths(names: list[str]) -> None:
    paths = paths_of(names)
    assert paths == paths_of(names)
    for path in paths:
        assert ".." not in path.split("/")
        assert not path.startswith("/")
        assert "" not in path.split("/")
    assert len({path.casefold() for path in paths}) == len(paths)


@given(st.lists(st.sampled_from([*HOSTILE, *PLAIN, "a", "A", "a/b", "a.png", "a/B"]), unique=True))
def test_any_order_gives_safe_unique_paths(names: list[str]) -> None:
    check(paths_of(names))


def test_symbolic_link_does_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    folder = ExportFolder(tmp_path / "export")
    folder.begin({})
    (tmp_path / "outside").mkdir()
    (tmp_path / "export/images").symlink_to(tmp_path / "outside")
    with pytest.raises(ExportFolderError, match="not inside"):
        folder.image_target("images/a.jpg")
    (tmp_path / "export/detections.csv").symlink_to(tmp_path / "outside/file")
    with pytest.raises(ExportFolderError, match="not inside"):
        folder.append("detections.csv", b"x")
    folder.close()
    assert not any((tmp_path / "outside").iterdir())
