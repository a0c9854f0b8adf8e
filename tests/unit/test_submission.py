"""The objects that the URIs of a submission name."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from service.domain import ImageRef, ObjectMetadata
from service.errors import StorageRefusedError
from service.object_metadata import RESULT_MARKER
from service.operate.submission import Submission, SubmissionError, look_up, read

NAMES = [
    "a.jpg",
    "b.jpg",
    "c.png",
    "cam1/",
    "cam1/a.jpg",
    "cam1/deep/b.jpg",
    "cam2/a.jpg",
    "no+te.jpg",
    "odd*.jpg",
    "odder.jpg",
    "new\nline.jpg",
    "sum#5",
]


class FakeObjects:
    """A bucket with these names, in pages of two. An object's generation is its index."""

    def __init__(self, names: Sequence[str] = NAMES) -> None:
        self.refs = [ImageRef("uploads", name, i) for i, name in enumerate(names, 1)]
        self.prefixes: list[str] = []

    def exists(self, ref: ImageRef) -> bool:
        return any(
            found.name == ref.name and ref.generation in (None, found.generation)
            for found in self.refs
        )

    def pages(self, bucket: str, prefix: str) -> Iterator[Sequence[ImageRef]]:
        self.prefixes.append(prefix)
        found = [ref for ref in self.refs if ref.name.startswith(prefix)]
        for start in range(0, len(found), 2):
            yield found[start : start + 2]


def submit(*uris: str, objects: FakeObjects | None = None) -> Submission:
    return look_up(read(uris), objects or FakeObjects())


def names(submission: Submission) -> list[str]:
    return [uri.removeprefix("gs://uploads/").rpartition("#")[0] for uri in submission.uris]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("[ab].jpg", []),
        ("?.jpg", ["a.jpg", "b.jpg"]),
        ("*.jpg", ["a.jpg", "b.jpg", "no+te.jpg", "odd*.jpg", "odder.jpg", "new\nline.jpg"]),
        ("cam*/*.jpg", ["cam1/a.jpg", "cam2/a.jpg"]),
        ("cam1/**", ["cam1/a.jpg", "cam1/deep/b.jpg"]),
        ("**/b.jpg", ["b.jpg", "cam1/deep/b.jpg"]),
        ("**.png", ["c.png"]),
        ("no+t?.jpg", ["no+te.jpg"]),
        ("sum*", ["sum#5"]),
    ],
)
def test_pattern_means_the_objects_that_match(pattern: str, expected: list[str]) -> None:
    if not expected:
        with pytest.raises(SubmissionError, match="name no object"):
            submit(f"gs://uploads/{pattern}")
        return
    submission = submit(f"gs://uploads/{pattern}")
    assert names(submission) == expected
    assert submission.matches == {f"gs://uploads/{pattern}": len(expected)}


def test_object_with_this_exact_name_precedes_a_pattern() -> None:
    submission = submit("gs://uploads/odd*.jpg")
    assert (submission.uris, submission.matches) == (["gs://uploads/odd*.jpg"], {})


class ListOnly(FakeObjects):
    """For an account that may list objects, but not read them."""

    def exists(self, ref: ImageRef) -> bool:
        raise StorageRefusedError("refused")


def test_pattern_is_listed_where_the_lookup_is_refused() -> None:
    objects = ListOnly()
    assert names(submit("gs://uploads/?.jpg", objects=objects)) == ["a.jpg", "b.jpg"]
    assert names(submit("gs://uploads/odd*.jpg", objects=objects)) == ["odd*.jpg"]
    with pytest.raises(StorageRefusedError):
        submit("gs://uploads/a.jpg", objects=objects)


def test_name_that_ends_like_a_generation_is_named() -> None:
    with pytest.raises(SubmissionError) as refused:
        submit("gs://uploads/sum#5", "gs://uploads/a.jpg#7")
    hint = " (for the object with this name, use gs://uploads/sum#5#12)"
    assert str(refused.value).endswith(f"\n  gs://uploads/sum#5{hint}\n  gs://uploads/a.jpg#7")


def test_pattern_lists_only_what_begins_like_it() -> None:
    objects = FakeObjects()
    submit("gs://uploads/cam1/de*/b.jpg", "gs://uploads/a.jpg", objects=objects)
    assert objects.prefixes == ["cam1/de"]


def test_pattern_leaves_out_what_the_service_made() -> None:
    objects = FakeObjects(["a/1.jpg", "a/2.jpg"])
    made = ObjectMetadata(custom={RESULT_MARKER: "true"})
    objects.refs[0] = replace(objects.refs[0], metadata=made)
    assert names(submit("gs://uploads/a/*.jpg", objects=objects)) == ["a/2.jpg"]


def test_uri_without_an_object_stops_the_submission() -> None:
    uris = [f"gs://uploads/{i}.jpg" for i in range(15)]
    with pytest.raises(SubmissionError) as refused:
        submit("gs://uploads/a.jpg", *uris, "gs://uploads/b.jpg#7", "gs://uploads/x*.jpg")
    sentence = str(refused.value)
    assert sentence.startswith("17 of 18 URIs name no object, so nothing is published (--no-check")
    assert "\n  gs://uploads/9.jpg\n  and 7 more" in sentence


def test_object_that_several_uris_mean_is_published_once() -> None:
    submission = submit("gs://uploads/cam1/*", "gs://uploads/cam?/a.jpg", "gs://uploads/cam1/*")
    assert names(submission) == ["cam1/a.jpg", "cam2/a.jpg"]


@pytest.mark.parametrize(
    ("uri", "sentence"),
    [
        ("uploads/a", "'uploads/a' is wrong"),
        ("gs://up*/a", "The bucket's name"),
        ("gs://uploads/cam1/", r"For the images in the folder, use gs://uploads/cam1/\*\*"),
        ("gs://uploads/gcloud/tmp/parallel_composite_uploads/x/1", "a part of a composite upload"),
    ],
    ids=["uri", "bucket", "folder", "part"],
)
def test_uri_that_no_job_can_have_is_refused(uri: str, sentence: str) -> None:
    with pytest.raises(SubmissionError, match=sentence):
        read(["gs://uploads/a.jpg", uri])


def test_nothing_to_submit_is_an_error() -> None:
    with pytest.raises(SubmissionError, match="There are no URIs"):
        read([])
