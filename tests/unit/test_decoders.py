"""The pool of decoder processes: pixels, limits, failures, and the life of the processes."""

import errno
import gzip
import io
import json
import os
import resource
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from devtools.fuzz.corpus import CASES, MAX_PIXELS, Case
from service.deadline import NO_DEADLINE, Deadline
from service.domain import ErrorCode, ImageInfo
from service.errors import BadImageError, DecoderUnavailableError, ShuttingDownError, TooLateError
from service.images import decoder_process
from service.images import decoders as module
from service.images.crop import center_crop
from service.images.decode import decode as decode_in_process
from service.images.decoders import (
    BAD_IMAGE,
    COMMAND,
    EXITED,
    NEEDED_BYTES,
    NEEDS_MEMORY,
    PIXELS,
    PIXELS_HEADER,
    READY,
    DecodeLimits,
    Decoders,
)
from service.images.details import Details
from service.images.letterbox import shrink
from service.images.pixels import DecodedImage
from service.machine import cores
from service.settings import Settings
from tests import hostile_decoder
from tests.hostile_decoder import marked

PATIENCE_SECONDS = 60
MAX_BYTES = 2**25
ROOT = Path(__file__).parents[2]
LARGE_FILES = ("million", "4000x3000", "7000x7000", "8000x6000")  # test_corpus.py reads them
HEALTHY = [
    case
    for case in CASES.values()
    if all(end.startswith("done") for end in case.expected)
    and not any(word in case.name for word in LARGE_FILES)
]


def pool(
    count: int = 1,
    *,
    max_pixels: int = MAX_PIXELS,
    reduced: bool = True,
    limits: DecodeLimits = DecodeLimits(cpu_seconds=30, wall_seconds=PATIENCE_SECONDS),  # noqa: B008
    command: tuple[str, ...] = hostile_decoder.COMMAND,
) -> Any:
    return closing(
        Decoders(
            count,
            max_pixels=max_pixels,
            max_decompressed_bytes=MAX_BYTES,
            reduced=reduced,
            limits=limits,
            command=command,
        )
    )


@pytest.fixture(scope="module")
def decoders() -> Iterator[Decoders]:
    with pool(2, command=COMMAND) as opened:
        yield opened


@pytest.fixture
def hostile() -> Iterator[Decoders]:
    with pool() as opened:
        yield opened


def decode(
    decoders: Decoders,
    data: bytes,
    *,
    image_size: int = 640,
    content_encoding: str | None = None,
    deadline: Deadline = NO_DEADLINE,
) -> DecodedImage:
    return decoders.decode(
        data,
        image_size=image_size,
        content_encoding=content_encoding,
        deadline=deadline,
    )


def jpeg(colour: int = 90, size: tuple[int, int] = (96, 64)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (colour, 255 - colour, colour // 2)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def photo(size: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise(size, 80).convert("RGB").save(buffer, "JPEG", quality=50)
    return buffer.getvalue()


def record(decoders: Decoders, data: bytes, **options: Any) -> BadImageError:
    with pytest.raises(BadImageError) as raised:
        decode(decoders, data, **options)
    return raised.value


def children_of(pid: int) -> list[int]:
    try:
        return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def decoders_of(pool: Decoders) -> list[int]:
    return children_of(pool._root.pid)


def is_running(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def wait_until(is_so: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not is_so():
        assert time.monotonic() < end, "the condition did not become true"
        time.sleep(0.01)


def is_hanging(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/comm").read_text() == "hanging\n"
    except (FileNotFoundError, ProcessLookupError):
        return False


# --- the same pixels ---------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Corrupt EXIF:UserWarning")
@pytest.mark.parametrize("case", HEALTHY, ids=lambda case: case.name)
def test_file_decodes_as_in_this_process(case: Case, decoders: Decoders) -> None:
    data = case.make()
    expected = decode_in_process(data, max_pixels=MAX_PIXELS, image_size=64)
    found = decode(decoders, data, image_size=64)
    assert np.array_equal(found.pixels, shrink(expected.pixels, image_size=64))
    assert found.info == expected.info
    assert found.pixels.flags.writeable


@pytest.mark.parametrize("reduced", [True, False])
def test_scale_is_reduced_only_where_it_may_be(reduced: bool) -> None:
    data = photo((1300, 900))
    expected = decode_in_process(
        data, max_pixels=MAX_PIXELS, image_size=320 if reduced else None
    ).pixels
    with pool(reduced=reduced) as decoders:
        found = decode(decoders, data, image_size=320)
    assert np.array_equal(found.pixels, shrink(expected, image_size=320))
    assert found.info == ImageInfo(1300, 900, "JPEG")


@pytest.mark.parametrize("size", [(1300, 900), (300, 900), (40, 30), (1, 1)])
def test_crop_is_made_of_the_image_in_full(size: tuple[int, int], decoders: Decoders) -> None:
    data = photo(size)
    expected = decode_in_process(data, max_pixels=MAX_PIXELS).pixels
    found = decoders.decode(data, image_size=224, crop=True, deadline=NO_DEADLINE)
    assert np.array_equal(found.pixels, center_crop(expected, size=224))
    assert found.info == ImageInfo(*size, "JPEG")


def test_many_callers_each_get_their_own_pixels() -> None:
    sizes = [(8 + n % 57, 8 + n % 41) for n in range(400)]
    with pool(3) as decoders, ThreadPoolExecutor(32) as callers:

        def mismatch(n: int) -> str:
            data = jpeg(n % 256, sizes[n])
            data = marked(data, "segfault") if n % 50 == 7 else data
            data = b"no image" * n if n % 10 == 3 else data
            try:
                found = decode(decoders, data)
            except BadImageError as exc:
                return "" if n % 50 == 7 or n % 10 == 3 else str(exc)
            expected = decode_in_process(
                jpeg(n % 256, sizes[n]), max_pixels=MAX_PIXELS, image_size=640
            )
            return "" if np.array_equal(found.pixels, expected.pixels) else f"pixels of {n}"

        assert not [text for text in callers.map(mismatch, range(len(sizes))) if text]


def test_library_output_is_not_read_as_a_reply(hostile: Decoders) -> None:
    assert decode(hostile, marked(jpeg(), "print")).info.format == "JPEG"


# --- Content-Encoding --------------------------------------------------------------------------


def deflated_raw(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


ENCODED: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "X-GZIP": gzip.compress,
    "deflate": zlib.compress,
    " deflate ": deflated_raw,
    "deflate, gzip": lambda data: gzip.compress(zlib.compress(data)),
    "gzip, ": gzip.compress,
    "gzip, Identity": gzip.compress,
    "identity": bytes,
    "": bytes,
}


@pytest.mark.parametrize("encoding", ENCODED, ids=repr)
def test_content_encoding_is_undone(decoders: Decoders, encoding: str) -> None:
    data = ENCODED[encoding](jpeg())
    assert decode(decoders, data, content_encoding=encoding).info == ImageInfo(96, 64, "JPEG")


def test_gzip_of_several_members_is_undone(decoders: Decoders) -> None:
    data = jpeg()
    members = gzip.compress(data[:100]) + gzip.compress(data[100:]) + b"padding"
    assert decode(decoders, members, content_encoding="gzip").info.format == "JPEG"


@pytest.mark.parametrize("keep", [slice(0, -20), slice(5, None)], ids=["cut short", "no header"])
def test_bytes_not_in_their_encoding_are_corrupt(decoders: Decoders, keep: slice) -> None:
    error = record(decoders, gzip.compress(jpeg())[keep], content_encoding="gzip")
    assert error.code is ErrorCode.CORRUPT_IMAGE
    assert error.message == "The object's bytes do not match its Content-Encoding."


def test_too_many_decompressed_bytes_are_too_large(decoders: Decoders) -> None:
    exact = jpeg() + bytes(MAX_BYTES - len(jpeg()))
    assert decode(decoders, gzip.compress(exact), content_encoding="gzip").info.width == 96
    error = record(decoders, gzip.compress(exact + b"\0"), content_encoding="gzip")
    assert error.code is ErrorCode.IMAGE_TOO_LARGE
    assert str(MAX_BYTES) in error.message


def test_empty_object_is_empty_in_any_encoding(decoders: Decoders) -> None:
    assert record(decoders, b"", content_encoding="gzip").code is ErrorCode.EMPTY_OBJECT
    assert record(decoders, b"").code is ErrorCode.EMPTY_OBJECT


# --- a file that fails -------------------------------------------------------------------------

SENTENCES = {
    "segfault": "The file crashed its decoder (SIGSEGV).",
    "abort": "The file crashed its decoder (SIGABRT).",
    "exit": "The file made its decoder exit.",
    "spin": "Decoding the file took more than 1 s of CPU time.",
    "hang": "Decoding the file took more than 2 s.",
    "bloat": "Decoding the file needs more memory than its number of pixels allows.",
}


@pytest.mark.parametrize("what", SENTENCES)
def test_failing_file_gets_its_record_and_the_next_decodes(what: str) -> None:
    cpu, wall = (1 if what == "spin" else 30), (2 if what == "hang" else PATIENCE_SECONDS)
    with pool(limits=DecodeLimits(cpu, wall)) as decoders:
        error = record(decoders, marked(jpeg(), what))
        assert (error.code, error.message) == (ErrorCode.CORRUPT_IMAGE, SENTENCES[what])
        assert decode(decoders, jpeg()).info.format == "JPEG"
        wait_until(lambda: len(decoders_of(decoders)) == 1)


def test_defect_in_a_decoder_reaches_error_reporting(capfd: pytest.CaptureFixture[str]) -> None:
    code = "from service.images import decoder_process as p; p.main(lambda data, request: {}[0])"
    with pool(command=(sys.executable, "-P", "-c", code)) as decoders:
        record(decoders, jpeg())
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert {line["message"] for line in lines} == {"A decoder failed"}
    assert all(line["stack_trace"].endswith("KeyError: 0") for line in lines)


def test_damaged_exif_tags_are_not_logged(capfd: pytest.CaptureFixture[str]) -> None:
    tags = b"".join(struct.pack("<HHII", tag, 2, 2**31, 8) for tag in range(1, 500))
    stream = io.BytesIO()
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 499) + tags + bytes(4)
    Image.new("RGB", (96, 64)).save(stream, "JPEG", exif=exif)
    with pool(command=COMMAND) as decoders:
        decode(decoders, stream.getvalue())
    assert not capfd.readouterr().err


def test_crash_by_an_earlier_file_is_not_blamed_on_the_next(hostile: Decoders) -> None:
    assert decode(hostile, marked(jpeg(), "corrupt memory")).info.format == "JPEG"
    [corrupted] = decoders_of(hostile)
    assert decode(hostile, jpeg()).info.format == "JPEG"
    assert not is_running(corrupted)


@pytest.mark.parametrize("what", ["segfault", "exit"])
def test_crash_of_a_used_decoder_is_retried_in_a_new_one(what: str, hostile: Decoders) -> None:
    decode(hostile, jpeg())
    assert record(hostile, marked(jpeg(), what)).message == SENTENCES[what]
    assert decode(hostile, jpeg()).info.format == "JPEG"


def test_failing_file_does_not_stop_other_decoders() -> None:
    with pool(2) as decoders, ThreadPoolExecutor(2) as callers:
        slow = callers.submit(lambda: [decode(decoders, marked(jpeg(), "slow")) for _ in range(20)])
        for _ in range(5):
            record(decoders, marked(jpeg(), "segfault"))
        assert len(slow.result(PATIENCE_SECONDS)) == 20


@pytest.mark.parametrize("data", [b"GIF89a", photo((96, 64))[:-500]], ids=["header", "pixels"])
def test_bad_file_is_explained_and_keeps_its_decoder(hostile: Decoders, data: bytes) -> None:
    decode(hostile, jpeg())
    before = decoders_of(hostile)
    with pytest.raises(BadImageError) as here:
        decode_in_process(data, max_pixels=10**7, image_size=None)
    there = record(hostile, data)
    assert (there.code, there.message) == (here.value.code, here.value.message)
    assert decode(hostile, jpeg()).info.format == "JPEG"
    assert decoders_of(hostile) == before


def test_decoder_is_replaced_after_so_many_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_FILES", 3)
    seen: Counter[int] = Counter()
    with pool() as decoders:
        for _ in range(7):
            wait_until(lambda: len(decoders_of(decoders)) == 1)
            seen.update(decoders_of(decoders))
            decode(decoders, jpeg())
    assert sorted(seen.values()) == [1, 3, 3]


# --- memory ------------------------------------------------------------------------------------


def test_file_that_needs_more_memory_gets_a_new_decoder(hostile: Decoders) -> None:
    decode(hostile, jpeg())
    before = decoders_of(hostile)
    assert decode(hostile, marked(jpeg(), "large")).info.format == "JPEG"
    assert not {*before} & {*decoders_of(hostile)}


def test_wait_for_more_memory_ends_at_the_deadline() -> None:
    with pool(2) as decoders, ThreadPoolExecutor(1) as callers:
        wait = decoders._large_slot.acquire(1, NO_DEADLINE)
        with wait, pytest.raises(TooLateError):
            decode(decoders, marked(jpeg(), "large"), deadline=Deadline.after(2))
        later = callers.submit(decode, decoders, marked(jpeg(), "large"))
        assert later.result(PATIENCE_SECONDS).info.format == "JPEG"


def test_needed_memory_is_known_before_decoding() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (200, 100)).save(buffer, "PNG")
    data = buffer.getvalue()
    needed = 200 * 100 * module.BYTES_PER_PIXEL + 2 * len(data)
    request = module.Request(
        length=len(data),
        content_encoding="",
        image_size=64,
        reduced=True,
        crop=False,
        max_pixels=MAX_PIXELS,
        max_decompressed_bytes=MAX_BYTES,
        memory_bytes=needed,
        cpu_seconds=1,
    )
    assert decoder_process.decode(data, request).info == ImageInfo(200, 100, "PNG")
    with pytest.raises(decoder_process.NeedsMemoryError) as raised:
        decoder_process.decode(data, replace(request, memory_bytes=needed - 1))
    assert raised.value.needed_bytes == needed


def test_large_image_is_decoded_with_more_memory() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (4000, 3500)).save(buffer, "PNG")
    with pool() as decoders:
        assert decode(decoders, buffer.getvalue()).info == ImageInfo(4000, 3500, "PNG")


def test_file_that_is_larger_than_its_memory_gets_its_record() -> None:
    limits = DecodeLimits(30, PATIENCE_SECONDS, small_bytes=2**24)
    with pool(limits=limits, command=COMMAND) as decoders:
        error = record(decoders, b"GIF89a" + bytes(2**25))
        assert error.code is ErrorCode.CORRUPT_IMAGE
        assert decode(decoders, jpeg()).info.format == "JPEG"


@pytest.mark.parametrize("is_bad", [True, False], ids=["bad", "good"])
def test_large_file_does_not_stay_in_memory(is_bad: bool, hostile: Decoders) -> None:
    if is_bad:
        record(hostile, b"GIF89a" + bytes(2**24))
    else:
        decode(hostile, jpeg() + bytes(2**24))
    [idle] = hostile._idle
    assert os.fstat(idle.memory_fds[0]).st_size == 0


def test_file_that_does_not_fit_into_memory_is_unavailable(hostile: Decoders) -> None:
    decode(hostile, jpeg())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(DecoderUnavailableError):
            decode(hostile, jpeg(91))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert decode(hostile, jpeg()).info.format == "JPEG"


def test_pixels_that_do_not_fit_are_unavailable(hostile: Decoders) -> None:
    """The reply must never contain pixels of the previous image."""
    decode(hostile, jpeg())
    with pytest.raises(DecoderUnavailableError):
        decode(hostile, marked(jpeg(91), "file size limit"))
    assert decode(hostile, jpeg()).info.format == "JPEG"


def test_without_memory_for_pixels_is_unavailable(
    hostile: Decoders, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: object) -> None:
        raise MemoryError

    decode(hostile, jpeg())
    with monkeypatch.context() as patch:
        patch.setattr(np, "empty", no_memory)
        with pytest.raises(DecoderUnavailableError):
            decode(hostile, jpeg())
    assert decode(hostile, jpeg()).info.format == "JPEG"


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a plain count


def test_failed_creation_of_a_decoder_leaks_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    memfd_create = os.memfd_create

    def no_second(name: str) -> int:
        if name == "pixels":
            raise OSError(errno.EMFILE, "Too many open files")
        return memfd_create(name)

    before = descriptors()
    monkeypatch.setattr(os, "memfd_create", no_second)
    with pytest.raises(OSError, match="Too many open files"):
        module._Decoder.create()
    assert descriptors() == before


def test_memory_of_a_large_file_does_not_stay_with_its_decoder(hostile: Decoders) -> None:
    decode(hostile, photo((2300, 1700)) + bytes(module._KEPT_BYTES), image_size=2300)
    [idle] = hostile._idle
    assert [os.fstat(memory).st_size for memory in idle.memory_fds] == [0, 0]
    assert module._KEPT_BYTES <= 2**23


def test_error_reading_the_file_is_unavailable(hostile: Decoders) -> None:
    with pytest.raises(DecoderUnavailableError):
        decode(hostile, marked(jpeg(), "read error"))
    assert decode(hostile, jpeg()).info.format == "JPEG"


def test_without_descriptors_is_unavailable_and_leaks_none() -> None:
    with pool() as decoders:
        decode(decoders, jpeg())
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a plain count
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        os.kill(decoders_of(decoders)[0], signal.SIGKILL)
        wait_until(lambda: not decoders_of(decoders))
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            with pytest.raises(DecoderUnavailableError):
                decode(decoders, jpeg())
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert decode(decoders, jpeg()).info.format == "JPEG"
        assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208 - as above


# --- deadlines ---------------------------------------------------------------------------------


def test_deadline_ends_decoding(hostile: Decoders) -> None:
    decode(hostile, jpeg())
    [before] = decoders_of(hostile)
    with pytest.raises(TooLateError):
        decode(hostile, marked(jpeg(), "hang"), deadline=Deadline.after(1))
    assert not is_running(before)
    assert decode(hostile, jpeg()).info.format == "JPEG"


def test_past_deadline_starts_no_decoding(hostile: Decoders) -> None:
    decode(hostile, jpeg())
    before = decoders_of(hostile)
    with pytest.raises(TooLateError):
        decode(hostile, marked(jpeg(), "segfault"), deadline=Deadline.after(-1))
    assert decoders_of(hostile) == before
    assert decode(hostile, jpeg()).info.format == "JPEG"


def test_wait_for_a_decoder_ends_at_the_deadline(hostile: Decoders) -> None:
    with hostile._slots.acquire(1, NO_DEADLINE), pytest.raises(TooLateError):
        decode(hostile, jpeg(), deadline=Deadline.after(0.1))
    assert decode(hostile, jpeg()).info.format == "JPEG"


def test_decoders_serve_first_come_first_served(hostile: Decoders) -> None:
    order: list[int] = []

    def wait(number: int) -> None:
        with hostile._slots.acquire(1, NO_DEADLINE):
            order.append(number)

    threads = [threading.Thread(target=wait, args=(number,)) for number in range(10)]
    with hostile._slots.acquire(1, NO_DEADLINE):
        for number, thread in enumerate(threads, 1):
            thread.start()
            wait_until(partial(lambda n: len(hostile._slots._waiting) == n, number))
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    assert order == [*range(10)]


def test_time_while_the_service_is_frozen_does_not_count() -> None:
    """Both processes are stopped, as in a frozen container, for longer than the wall time limit."""
    code = (
        "import sys; from service.deadline import NO_DEADLINE; "
        "from service.images.decoders import Decoders, DecodeLimits; "
        "d = Decoders(1, max_pixels=10**6, max_decompressed_bytes=10**6, "
        f"limits=DecodeLimits(30, 3.5), command={hostile_decoder.COMMAND!r}); "
        "data = sys.stdin.buffer.read(); decode = lambda data: d.decode(data, image_size=64, "
        "deadline=NO_DEADLINE); decode(data); "
        "print(d._root.pid, flush=True); "
        "print(decode(data + b'HOSTILE:nap').info.format); d.close()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as owner:
        assert owner.stdin and owner.stdout
        owner.stdin.write(jpeg())
        owner.stdin.close()
        [decoder] = children_of(int(owner.stdout.readline()))
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for pid in (decoder, owner.pid):
                os.kill(pid, number)
            time.sleep(5 * (number == signal.SIGSTOP))
        assert owner.stdout.read() == b"JPEG\n"


@pytest.mark.parametrize(("seconds", "is_warned"), [("10", True), ("600", False)])
def test_start_warns_of_a_deadline_too_short_to_decode(
    seconds: str, is_warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings.from_env({"ACK_DEADLINE_SECONDS": seconds})
    with closing(module.build_decoders(settings)):
        assert ("leaves little time to decode" in caplog.text) == is_warned


@pytest.mark.parametrize(("environ", "count"), [({}, cores()), ({"DECODERS": "3"}, 3)])
def test_one_decoder_for_each_core_unless_set(environ: dict[str, str], count: int) -> None:
    with closing(module.build_decoders(Settings.from_env(environ))) as decoders:
        wait_until(lambda: len(decoders_of(decoders)) == count)


def test_limits_end_before_the_deliverys_work_time() -> None:
    assert DecodeLimits.within(570) == DecodeLimits(30, 100.0)
    assert DecodeLimits.within(30) == DecodeLimits(10, 22.5)
    assert DecodeLimits.within(2) == DecodeLimits(1, 1.5)


# --- killed from outside -----------------------------------------------------------------------


def killed_while_it_decodes(decoders: Decoders, victim: Callable[[], int], number: int) -> object:
    """Kill the process `victim` while a file hangs its decoder. Return the type of the error."""
    decode(decoders, jpeg())
    [decoder] = decoders_of(decoders)
    with ThreadPoolExecutor(1) as caller:
        error = caller.submit(decode, decoders, marked(jpeg(), "hang"))
        wait_until(lambda: is_hanging(decoder))
        os.kill(victim(), number)
        return type(error.exception(PATIENCE_SECONDS))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1], ids=str)
def test_decoder_killed_from_outside_is_unavailable(hostile: Decoders, number: int) -> None:
    raised = killed_while_it_decodes(hostile, lambda: decoders_of(hostile)[0], number)
    assert raised is DecoderUnavailableError
    assert decode(hostile, jpeg()).info.format == "JPEG"


def test_root_killed_while_decoding_is_unavailable_once(hostile: Decoders) -> None:
    first = hostile._root.pid
    raised = killed_while_it_decodes(hostile, lambda: first, signal.SIGKILL)
    assert raised is DecoderUnavailableError
    assert decode(hostile, jpeg()).info.format == "JPEG"
    assert hostile._root.pid != first


@pytest.mark.parametrize("is_root", [True, False], ids=["root", "decoder"])
def test_killed_idle_process_fails_no_file(hostile: Decoders, is_root: bool) -> None:
    decode(hostile, jpeg())
    [decoder] = decoders_of(hostile)
    root = hostile._root.pid
    os.kill(root if is_root else decoder, signal.SIGKILL)
    wait_until(lambda: not is_running(decoder) and decoder not in children_of(root))
    for _ in range(3):
        assert decode(hostile, jpeg()).info.format == "JPEG"


def test_root_that_cannot_be_started_again_is_started_later(
    hostile: Decoders, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: object, **__: object) -> None:
        raise BlockingIOError

    decode(hostile, jpeg())
    [decoder] = decoders_of(hostile)
    hostile._root.kill()
    wait_until(lambda: not is_running(decoder))
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", no_memory)
        for _ in range(3):
            with pytest.raises(DecoderUnavailableError):
                decode(hostile, jpeg())
    assert decode(hostile, jpeg()).info.format == "JPEG"


def test_root_that_hangs_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_START_SECONDS", 0.5)
    monkeypatch.setattr(module, "_EXIT_SECONDS", 0.1)
    hang = "import time; time.sleep(1000)"
    with (
        pool(command=(sys.executable, "-c", hang)) as decoders,
        pytest.raises(DecoderUnavailableError),
    ):
        decode(decoders, jpeg())


def test_killed_decoder_closes_only_its_own_files() -> None:
    decoder, theirs = module._Decoder.create()
    theirs.close()
    numbers = decoder.memory_fds
    decoder.close()
    others = [os.memfd_create("other") for _ in range(8)]
    assert {*others} & {*numbers}  # the numbers are used again
    decoder.kill()
    for other in others:
        os.fstat(other)
        os.close(other)


def test_root_that_does_not_start_is_unavailable() -> None:
    with (
        pool(command=(sys.executable, "-c", "raise SystemExit")) as decoders,
        pytest.raises(DecoderUnavailableError),
    ):
        decode(decoders, jpeg())


def test_root_survives_a_failed_fork() -> None:
    """The service notices the closed socket, and requests another decoder."""
    once = (
        "import os; from service.images.decoder_process import main; fork = os.fork\n"
        "def no_memory():\n"
        "    os.fork = fork\n"
        "    raise BlockingIOError\n"
        "os.fork = no_memory\n"
        "main()"
    )
    with pool(command=(sys.executable, "-P", "-c", once)) as decoders:
        root = decoders._root.pid
        found = decode(decoders, jpeg(), deadline=Deadline.after(PATIENCE_SECONDS))
        assert found.info.format == "JPEG"
        assert decoders._root.pid == root


def test_root_that_is_slow_to_start_is_not_the_files_fault() -> None:
    start = "from service.images.decoder_process import main; main()"
    slow = f"import time; time.sleep(3); {start}"  # longer than the wall time of a file
    limits = DecodeLimits(30, 2)
    with pool(limits=limits, command=(sys.executable, "-P", "-c", slow)) as decoders:
        with pytest.raises(TooLateError):
            decode(decoders, jpeg(), deadline=Deadline.after(0.1))
        assert decode(decoders, jpeg()).info.format == "JPEG"


# --- the end -----------------------------------------------------------------------------------


def test_close_stops_all_processes_and_files_in_flight() -> None:
    with pool(2) as decoders, ThreadPoolExecutor(3) as callers:
        hanging = [callers.submit(decode, decoders, marked(jpeg(), "hang")) for _ in range(3)]
        wait_until(lambda: [is_hanging(pid) for pid in decoders_of(decoders)] == [True, True])
        processes = [decoders._root.pid, *decoders_of(decoders)]
        decoders.close()
        errors = Counter(type(future.exception(PATIENCE_SECONDS)) for future in hanging)
        assert errors == {DecoderUnavailableError: 2, ShuttingDownError: 1}
        assert not any(map(is_running, processes))
        with pytest.raises(ShuttingDownError):
            decode(decoders, jpeg())


def test_close_kills_a_root_that_does_not_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_EXIT_SECONDS", 0.1)
    with pool(command=(sys.executable, "-c", "import signal; signal.pause()")) as decoders:
        root = decoders._root
    assert root.returncode == -signal.SIGKILL


def test_close_frees_all_descriptors() -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a plain count
    with pool(3) as decoders:
        decode(decoders, jpeg())
        record(decoders, marked(jpeg(), "segfault"))
        record(decoders, marked(jpeg(), b"lie"))
        decode(decoders, jpeg())
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208 - as above


def test_nothing_outlives_a_killed_service() -> None:
    code = (
        "import sys; from service.deadline import NO_DEADLINE; "
        "from service.images.decoders import Decoders; "
        "d = Decoders(2, max_pixels=10**6, max_decompressed_bytes=10**6, "
        f"command={hostile_decoder.COMMAND!r}); print(d._root.pid, flush=True); "
        "d.decode(sys.stdin.buffer.read(), image_size=64, "
        "deadline=NO_DEADLINE)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as owner:
        assert owner.stdin and owner.stdout
        owner.stdin.write(marked(jpeg(), "hang"))
        owner.stdin.close()
        root = int(owner.stdout.readline())
        wait_until(lambda: any(map(is_hanging, children_of(root))))
        wait_until(lambda: len(children_of(root)) == 2)
        processes = [root, *children_of(root)]
        owner.kill()
    wait_until(lambda: not any(map(is_running, processes)))


def test_root_has_no_threads(decoders: Decoders) -> None:
    decode(decoders, jpeg())
    assert len(os.listdir(f"/proc/{decoders._root.pid}/task")) == 1  # noqa: PTH208 - a plain count


def test_decoder_has_no_other_decoders_descriptors(decoders: Decoders) -> None:
    wait_until(lambda: len(decoders_of(decoders)) == 2)
    decode(decoders, jpeg())
    for pid in decoders_of(decoders):
        sockets = [
            link
            for fd in Path(f"/proc/{pid}/fd").iterdir()
            if "socket:" in (link := str(fd.readlink()))
        ]
        assert len(sockets) == 1


def test_decoder_is_killed_first_where_memory_is_short(decoders: Decoders) -> None:
    decode(decoders, jpeg())
    for pid in decoders_of(decoders):
        assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "1000\n"


# --- a decoder that was taken over -------------------------------------------------------------


def pixels_reply(
    height: int, width: int, full: tuple[int, int], details: bytes = b'{"format":"JPEG"}'
) -> bytes:
    return PIXELS + PIXELS_HEADER.pack(height, width, *full) + details


def small_reply(details: bytes) -> bytes:
    return pixels_reply(64, 96, (64, 96), details)


def with_detail(name: str, value: str) -> bytes:
    return small_reply(f'{{"format":"JPEG","{name}":{value}}}'.encode())


LIES = {
    "larger than the image": pixels_reply(64, 96, (32, 48)),
    "larger than the model's image": pixels_reply(641, 641, (700, 700)),
    "of more pixels than are allowed": pixels_reply(4, 4, (2**16, 2**16)),
    "empty": pixels_reply(0, 0, (64, 96)),
    "without its pixels": pixels_reply(64, 96, (64, 96)),
    "without details": small_reply(b""),
    "of no format": small_reply(b"{}"),
    "of a format with a line feed": small_reply(b'{"format":"JPEG\\n"}'),
    "cut short": PIXELS + b"\1",
    "of no code": BAD_IMAGE + b"nonsense The file is bad.",
    "of a code that is not of the bytes": BAD_IMAGE + b"unreadable_object The file is bad.",
    "of a long format": small_reply(b'{"format":"%b"}' % (b"J" * 4000)),
    "of nothing": BAD_IMAGE,
    "of an unknown kind": b"?",
    "ready again": READY,
    "of no place": with_detail("latitude", "NaN"),
    "of a long camera": with_detail("make", '"%s"' % ("x" * 3000)),
    "memory without a number": NEEDS_MEMORY,
    "an end without its status": EXITED,
    "code": b"\x80\x04cos\nsystem\n",
}


@pytest.mark.parametrize("lie", LIES)
def test_invalid_reply_is_rejected(hostile: Decoders, lie: str) -> None:
    assert record(hostile, marked(jpeg(), LIES[lie])).code is ErrorCode.CORRUPT_IMAGE
    assert decode(hostile, jpeg()).info.format == "JPEG"


HONEST = {
    "local_time": '"2026-07-01T14:30:05.25"',
    "utc_offset_seconds": "-50400",
    "make": '"%s"' % ("é" * 100),
    "latitude": "-90",
    "longitude": "180.0",
}
LYING_DETAILS = (
    ("latitude", "NaN"), ("latitude", "1e999"), ("latitude", "90.1"), ("latitude", '"1"'),
    ("longitude", "-Infinity"), ("longitude", "-181"), ("longitude", "true"),
    ("make", '"%s"' % ("x" * 101)), ("model", '""'), ("serial", '"a\\u0000b"'),
    ("make", '"\\ud800"'), ("model", '["x"]'), ("serial", '"\\u001b[31m"'),
    ("local_time", '"2026-07-01T14:30:05Z"'), ("local_time", '"0000-00-00T00:00:00"'),
    ("local_time", "17"), ("utc_offset_seconds", "50401"), ("utc_offset_seconds", "1.5"),
    ("pixels", "1"), ("camera", "[" * 3000),
)  # fmt: skip


@pytest.mark.parametrize(("name", "value"), LYING_DETAILS)
def test_invalid_capture_in_a_reply_is_rejected(name: str, value: str) -> None:
    with pytest.raises(ValueError, match="details|control"):
        Details.from_bytes(with_detail(name, value)[1 + PIXELS_HEADER.size :])


@pytest.mark.parametrize("name", HONEST)
def test_capture_in_a_reply_is_read_at_its_limits(name: str) -> None:
    details = with_detail(name, HONEST[name])[1 + PIXELS_HEADER.size :]
    assert getattr(Details.from_bytes(details), name) is not None


@pytest.mark.parametrize("shape", [(64, 96), (96, 96), (224, 223)])
def test_reply_that_is_not_the_crop_is_rejected(
    hostile: Decoders, shape: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    data = marked(jpeg(), pixels_reply(*shape, (900, 900)))
    with pytest.raises(BadImageError) as raised:
        hostile.decode(data, image_size=224, crop=True, deadline=NO_DEADLINE)
    assert raised.value.code is ErrorCode.CORRUPT_IMAGE
    assert f"{shape[1]}x{shape[0]} pixels of" in caplog.text  # not for another reason


def test_memory_that_a_decoder_requests_is_bounded(hostile: Decoders) -> None:
    error = record(hostile, marked(jpeg(), NEEDS_MEMORY + NEEDED_BYTES.pack(2**63)))
    assert error.message == SENTENCES["bloat"]


def test_invalid_utf8_in_a_message_is_replaced(hostile: Decoders) -> None:
    error = record(hostile, marked(jpeg(), BAD_IMAGE + b"corrupt_image \xed\xa0\x80 is bad"))
    assert error.message.encode().endswith(b" is bad")
