"""Derived images through decoder processes: metadata, limits, hostile files and hostile replies."""

import gzip
import io
import os
import struct
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image, TiffImagePlugin

from devtools.fuzz.corpus import CASES, MAX_PIXELS, Case
from service.deadline import NO_DEADLINE, Deadline
from service.derived import (
    LARGEST_OPTIONS,
    Crops,
    DeriveOptions,
    Normalized,
    NormalizedFormat,
    Redaction,
)
from service.domain import (
    Box,
    DerivedImage,
    DerivedKind,
    Detection,
    ErrorCode,
    ImageInfo,
    Polygon,
    Task,
)
from service.errors import BadImageError, TooLateError
from service.images import decoder_process
from service.images import decoders as module
from service.images.decode import decode
from service.images.decoders import (
    BYTES_PER_PIXEL,
    COMMAND,
    OUTPUT_BYTES,
    OUTPUTS,
    PIXELS,
    DecodeLimits,
    Decoders,
    Request,
    needed_bytes,
)
from service.images.derive import DerivePlan
from service.images.render import render
from tests import hostile_decoder
from tests.hostile_decoder import marked

PATIENCE_SECONDS = 60
HEIC = Path(__file__).parents[1] / "data" / "heic"
WIDTH, HEIGHT = 96, 64
PERSON = Detection("person", 0, 0.9, Box(10.0, 10.0, 40.0, 60.0))
OPTIONS = DeriveOptions(
    annotated=True,
    crops=Crops(),
    redaction=Redaction(("nobody",)),
    normalized=Normalized(),
)
SECRET = b"SECRET-SERIAL-4711"


def pool(command: tuple[str, ...], **limits: float) -> closing[Decoders]:
    allowed = {"cpu_seconds": 30, "wall_seconds": PATIENCE_SECONDS} | limits
    return closing(
        Decoders(
            1,
            max_pixels=MAX_PIXELS,
            max_decompressed_bytes=2**25,
            limits=DecodeLimits(**allowed),  # type: ignore[arg-type]
            command=command,
        )
    )


@pytest.fixture(scope="module")
def decoders() -> Iterator[Decoders]:
    with pool(COMMAND) as opened:
        yield opened


@pytest.fixture
def hostile() -> Iterator[Decoders]:
    with pool(hostile_decoder.COMMAND) as opened:
        yield opened


def plan(
    *found: Detection,
    options: DeriveOptions = OPTIONS,
    size: tuple[int, int] = (WIDTH, HEIGHT),
) -> DerivePlan:
    return DerivePlan(options, ImageInfo(*size, "JPEG"), Task.DETECT, found)


def derive(decoders: Decoders, data: bytes, some: DerivePlan) -> tuple[DerivedImage, ...]:
    return decoders.derive(data, some, deadline=NO_DEADLINE)


def photo(kind: str = "JPEG", size: tuple[int, int] = (WIDTH, HEIGHT), **options: Any) -> bytes:
    buffer = io.BytesIO()
    if kind == "PNG":
        options["compress_level"] = 1
    Image.effect_noise(size, 80).convert("RGB").save(buffer, kind, **options)
    return buffer.getvalue()


def test_derived_images_are_those_of_this_process(decoders: Decoders) -> None:
    data = photo(size=(1300, 900))
    some = plan(PERSON, size=(1300, 900))
    pixels = decode(data, max_pixels=MAX_PIXELS, image_size=max(some.working_size)).pixels
    images = derive(decoders, data, some)
    assert [image.data for image in images[:-1]] == render(pixels, some)
    assert images == derive(decoders, data, some)
    assert [image.kind for image in images] == [
        DerivedKind.THUMBNAIL, DerivedKind.ANNOTATED, DerivedKind.REDACTED,
        DerivedKind.NORMALIZED, DerivedKind.CROP, DerivedKind.LABELS,
    ]  # fmt: skip
    for image in images[:-1]:
        with Image.open(io.BytesIO(image.data)) as opened:
            assert opened.size == (image.width, image.height)
            assert image.content_type == Image.MIME[str(opened.format)]
    assert images[-2].class_id == 0
    assert images[-1].content_type == "text/plain" and not any(image.uri for image in images)


def test_derived_images_are_upright(decoders: Decoders) -> None:
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[:, : WIDTH // 2] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the left side is the top
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", exif=exif)
    [thumbnail] = derive(
        decoders, buffer.getvalue(), plan(options=DeriveOptions(), size=(HEIGHT, WIDTH))
    )
    with Image.open(io.BytesIO(thumbnail.data)) as opened:
        found = np.asarray(opened)
    assert found.shape == (WIDTH, HEIGHT, 3)
    assert found[:40].min() > 200 and found[-40:].max() < 50


def test_content_encoding_is_undone_for_derived_images(decoders: Decoders) -> None:
    data = photo()
    images = decoders.derive(
        gzip.compress(data), plan(PERSON), content_encoding="gzip", deadline=NO_DEADLINE
    )
    assert images == derive(decoders, data, plan(PERSON))


def test_plan_of_many_polygons_is_no_problem(decoders: Decoders) -> None:
    rings = tuple(Polygon(tuple(float(n % 60) for n in range(2000))) for _ in range(20))
    masked = replace(PERSON, polygons=rings)
    some = plan(*[masked] * 5, options=DeriveOptions(annotated=True))
    assert len(some.to_bytes()) > 2**20
    assert len(derive(decoders, photo(), some)) == 2


# --- metadata ----------------------------------------------------------------------------------


def exif_with_gps_and_thumbnail() -> bytes:
    """An EXIF block (TIFF 6.0): serial number, GPS position, and a thumbnail in the second IFD."""
    thumbnail = photo(size=(32, 24))
    entries = [(0xA431, 2, SECRET + b"\0")]  # BodySerialNumber
    extra = SECRET + b"\0"
    gps_at = 8 + 2 + 2 * 12 + 4 + len(extra)
    gps = struct.pack("<HHHI4s", 1, 1, 2, 2, b"S\0\0\0") + bytes(4)
    second_at = gps_at + len(gps)
    data_at = second_at + 2 + 2 * 12 + 4
    second = struct.pack("<HHHIIHHIII", 2, 513, 4, 1, data_at, 514, 4, 1, len(thumbnail), 0)
    tag, kind, value = entries[0]
    first = struct.pack(
        "<HHHIIHHIII", 2, tag, kind, len(value), 8 + 2 + 2 * 12 + 4, 0x8825, 4, 1, gps_at, second_at
    )
    header = b"Exif\0\0II*\0" + struct.pack("<I", 8)
    return header + first + extra + gps + second + thumbnail


def with_metadata(kind: str) -> bytes:
    if kind == "HEIC":
        return (HEIC / "rotated.heic").read_bytes()
    exif = exif_with_gps_and_thumbnail()
    profile = b"\0" * 36 + b"acsp" + SECRET + bytes(100)
    if kind == "TIFF":
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        tags[270] = SECRET.decode()  # ImageDescription
        tags[305] = SECRET.decode()  # Software
        thumbnail = Image.new("RGB", (32, 24))
        return photo(kind, tiffinfo=tags, save_all=True, append_images=[thumbnail])
    options: dict[str, Any] = {"exif": exif, "icc_profile": profile}
    if kind == "JPEG":
        options["comment"] = SECRET
    return photo(kind, **options)


def parts_of(data: bytes) -> set[str]:
    """Return the chunks of a PNG, or the segments of a JPEG before its pixels."""
    found, at = set(), 8
    if data.startswith(b"\x89PNG"):
        while at < len(data):
            found.add(data[at + 4 : at + 8].decode())
            at += 12 + int.from_bytes(data[at : at + 4])
        return found
    at = 2
    while data[at + 1] != 0xDA:
        found.add(f"{data[at + 1]:02X}")
        at += 2 + int.from_bytes(data[at + 2 : at + 4])
    return found


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "HEIC"])
@pytest.mark.parametrize("normalized", NormalizedFormat)
def test_nothing_of_the_files_metadata_is_kept(
    decoders: Decoders, kind: str, normalized: NormalizedFormat
) -> None:
    data = with_metadata(kind)
    assert SECRET in data or kind == "HEIC"
    info = decode(data, max_pixels=MAX_PIXELS).info
    options = replace(OPTIONS, normalized=Normalized(format=normalized))
    some = DerivePlan(options, info, Task.DETECT, (PERSON,))
    images = derive(decoders, data, some)
    assert len(images) == 6
    for image in images[:-1]:
        # JFIF, quantisation tables, baseline frame, Huffman tables. In a PNG, pixels alone.
        assert parts_of(image.data) <= {"E0", "DB", "C0", "C4", "IHDR", "IDAT", "IEND"}
        assert SECRET not in image.data
        with Image.open(io.BytesIO(image.data)) as opened:
            assert not opened.getexif() and "icc_profile" not in opened.info


def test_files_of_the_metadata_test_have_metadata() -> None:
    """Otherwise the test before proves nothing."""
    with Image.open(io.BytesIO(with_metadata("JPEG"))) as opened:
        exif = opened.getexif()
        assert exif.get_ifd(0x8825) == {1: "S"} and exif.get_ifd(ExifTags.IFD.IFD1)[513]
    with Image.open(io.BytesIO(with_metadata("PNG"))) as opened:
        assert opened.getexif() and opened.info["icc_profile"]
    assert b"Exif" in with_metadata("HEIC")


# --- hostile files and plans -------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Corrupt EXIF:UserWarning")
def test_any_file_of_the_corpus_is_derived_or_refused(decoders: Decoders) -> None:
    """A file that can be decoded gives its images. Any other raises what decoding it raises."""

    def outcome(case: Case) -> str:
        data = case.make()
        try:
            info = decoders.decode(data, image_size=64, deadline=NO_DEADLINE).info
        except BadImageError as exc:
            try:
                derive(decoders, data, plan())
            except BadImageError as again:
                return "" if again.code in (exc.code, ErrorCode.CORRUPT_IMAGE) else again.code
            return "derived"
        box = Box(0.0, 0.0, info.width / 2, float(info.height))
        some = DerivePlan(OPTIONS, info, Task.DETECT, (replace(PERSON, box=box),))
        return "" if len(derive(decoders, data, some)) == 6 else "incomplete"

    small = [case for case in CASES.values() if len(case.make()) < 100_000]
    chosen = [case for case in small if "x" not in case.name][::8]
    assert len(chosen) > 20
    assert {case.name: result for case in chosen if (result := outcome(case))} == {}


def test_file_of_another_size_than_planned_is_refused(decoders: Decoders) -> None:
    with pytest.raises(BadImageError, match="another size"):
        derive(decoders, photo(size=(64, 96)), plan(PERSON))


@pytest.mark.parametrize("what", ["segfault", "exit", "spin", "hang", "bloat"])
def test_file_that_fails_in_its_second_visit_fails_alone(what: str) -> None:
    limits = {"cpu_seconds": 1} if what == "spin" else {}
    limits |= {"wall_seconds": 2} if what == "hang" else {}
    with pool(hostile_decoder.COMMAND, **limits) as decoders:
        with pytest.raises(BadImageError) as raised:
            derive(decoders, marked(photo(), what), plan(PERSON))
        assert raised.value.code is ErrorCode.CORRUPT_IMAGE
        assert len(derive(decoders, photo(), plan(PERSON))) == 6


def test_deadline_ends_the_second_visit(hostile: Decoders) -> None:
    with pytest.raises(TooLateError):
        hostile.derive(marked(photo(), "hang"), plan(), deadline=Deadline.after(1))
    assert len(derive(hostile, photo(), plan(PERSON))) == 6


def test_second_visit_gets_more_memory_if_it_needs_it(hostile: Decoders) -> None:
    assert len(derive(hostile, marked(photo(), "large"), plan(PERSON))) == 6


def reply_of(*lengths: int) -> bytes:
    return OUTPUTS + b"".join(map(OUTPUT_BYTES.pack, lengths))


LIES = {
    "no image": OUTPUTS,
    "more images than planned": reply_of(*[10] * 6),
    "images without their bytes": reply_of(10, 10, 10, 10),
    "more bytes than are allowed": reply_of(2**32 - 1, 1, 1, 1),
    "many images": reply_of(*[0] * 900),
    "empty images": reply_of(0, 0, 0, 0, 0),
    "a length that is cut off": OUTPUTS + b"\1\2\3",
    "pixels": PIXELS + bytes(100),
}


@pytest.mark.parametrize("lie", LIES)
def test_invalid_reply_to_a_plan_is_rejected(lie: str, hostile: Decoders) -> None:
    with pytest.raises(BadImageError, match="decoder fail"):
        derive(hostile, marked(photo(), LIES[lie]), plan(PERSON))
    assert len(derive(hostile, photo(), plan(PERSON))) == 6


@given(st.binary(max_size=60), st.binary(max_size=200))
def test_any_reply_is_read_within_the_limits_or_rejected(body: bytes, shared: bytes) -> None:
    some = plan(PERSON, options=DeriveOptions(crops=Crops()))
    memory = os.memfd_create("fuzz")
    try:
        os.pwrite(memory, b"\xff\xd8\xff" + shared, 0)
        images, total = module._read_outputs(some, body, memory)
    except (ValueError, struct.error):
        return
    finally:
        os.close(memory)
    assert 1 <= len(images) <= 2 and total == sum(len(image.data) for image in images)
    assert total <= some.options.max_output_bytes


def test_derived_images_in_reply_to_a_decode_are_rejected(hostile: Decoders) -> None:
    with pytest.raises(BadImageError, match="decoder fail"):
        hostile.decode(marked(photo(), reply_of(10)), image_size=64, deadline=NO_DEADLINE)


def test_image_of_another_format_is_rejected(hostile: Decoders) -> None:
    """A decoder that a file controls must not put a page into the bucket as an image."""
    page = hostile_decoder.MARK + b"derived:<html><script>"
    with pytest.raises(BadImageError, match="decoder fail"):
        derive(hostile, photo() + page, plan(options=DeriveOptions()))
    image = hostile_decoder.MARK + b"derived:\xff\xd8\xffanything"
    [thumbnail] = derive(hostile, photo() + image, plan(options=DeriveOptions()))
    assert thumbnail.content_type == "image/jpeg" and thumbnail.kind is DerivedKind.THUMBNAIL


@pytest.mark.parametrize(("extra", "is_read"), [(0, True), (1, False)])
def test_bytes_beyond_the_limit_are_rejected(hostile: Decoders, extra: int, is_read: bool) -> None:
    some = plan(options=DeriveOptions())
    made = b"\xff\xd8\xff".ljust(some.options.max_output_bytes + extra, b"x")
    data = photo() + hostile_decoder.MARK + b"derived:" + made
    if is_read:
        assert derive(hostile, data, some)[0].data == made
    else:
        with pytest.raises(BadImageError, match="decoder fail"):
            derive(hostile, data, some)


def test_fewer_crops_are_no_lie(decoders: Decoders) -> None:
    whole = replace(PERSON, box=Box(0.0, 0.0, 1300.0, 900.0))
    some = plan(*[whole] * 20, options=DeriveOptions(crops=Crops()), size=(1300, 900))
    images = derive(decoders, photo(size=(1300, 900)), some)
    assert 1 < len(images) < 21
    assert sum(len(image.data) for image in images) <= some.options.max_output_bytes


# --- memory ------------------------------------------------------------------------------------


def request(some: DerivePlan, **fields: int) -> Request:
    given = {"length": 10, "memory_bytes": 2**27, "cpu_seconds": 1} | fields
    return Request(
        content_encoding="",
        image_size=max(some.working_size),
        reduced=True,
        crop=False,
        max_pixels=MAX_PIXELS,
        max_decompressed_bytes=2**25,
        plan_length=len(some.to_bytes()),
        render_bytes=some.render_bytes,
        **given,
    )


def test_large_image_needs_no_more_memory_than_its_decoding() -> None:
    size = (8000, 6000)
    some = plan(options=LARGEST_OPTIONS, size=size)
    pixels = size[0] * size[1]
    needed = needed_bytes(pixels, 10, request(some))
    assert needed == BYTES_PER_PIXEL * pixels + 2 * 10 + 3 * len(some.to_bytes())
    small = needed_bytes(1000, 10, request(plan(options=LARGEST_OPTIONS, size=(100, 10))))
    assert small > LARGEST_OPTIONS.max_output_bytes


@pytest.mark.parametrize(("size", "kind"), [((2000, 2000), "PNG"), ((4000, 3000), "JPEG")], ids=str)
def test_largest_options_fit_into_the_needed_memory(size: tuple[int, int], kind: str) -> None:
    """The decoder's limit is what `needed_bytes` returns, so the plan must work within it."""
    ring = Polygon((0.0, 0.0, 2000.0, 0.0, 2000.0, 2000.0))
    found = replace(PERSON, box=Box(0.0, 0.0, 1500.0, 1500.0), polygons=(ring,))
    options = replace(LARGEST_OPTIONS, normalized=Normalized(4_000_000, NormalizedFormat.PNG))
    some = plan(*[found] * 10, options=options, size=size)
    with pool(COMMAND, small_bytes=2**24) as decoders:
        assert len(derive(decoders, photo(kind, size), some)) == 4 + 10 + 1


def test_large_derived_images_do_not_stay_in_memory(
    decoders: Decoders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_KEPT_BYTES", 1000)
    derive(decoders, photo(), plan(PERSON))
    [idle] = decoders._idle
    assert [os.fstat(memory).st_size for memory in idle.memory_fds] == [0, 0]


def test_memory_that_runs_out_while_rendering_is_requested() -> None:
    some = plan(PERSON)
    decoded = decode(photo(), max_pixels=MAX_PIXELS)

    def fail(*_: object) -> None:
        raise MemoryError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.images.render.render", fail)
        with pytest.raises(decoder_process.NeedsMemoryError) as raised:
            decoder_process._derive(decoded, some.to_bytes(), 10, request(some))
    assert raised.value.needed_bytes == needed_bytes(WIDTH * HEIGHT, 10, request(some))
