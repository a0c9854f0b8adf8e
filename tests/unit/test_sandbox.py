"""The decoder's process: the same pixels, limits, and what dies with what."""

import io
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from devtools.fuzz.corpus import CASES, bmp
from service.domain import ErrorCode, ImageInfo
from service.errors import BadImageError, DecoderBusyError
from service.images import sandbox
from service.images.decode import decode
from service.images.read import read

MIB = 2**20
PATIENCE_SECONDS = 60
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    sandbox.close()
    yield
    sandbox.close()


def gif(side: int = 64) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((side, side), 80).convert("RGB").quantize(16).save(buffer, "GIF")
    return buffer.getvalue()


def large_gif() -> bytes:
    """Of 27 MB of pixels."""
    buffer = io.BytesIO()
    Image.new("P", (3000, 3000)).save(buffer, "GIF")
    return buffer.getvalue()


def process_id() -> int:
    assert sandbox._process is not None
    return sandbox._process.pid


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def wait_until(is_so: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not is_so():
        assert time.monotonic() < end, "it never became so"
        time.sleep(0.01)


def slow_gif() -> bytes:
    """One that takes more CPU time than a file may: 20 million comments before the image."""
    comments = b"\x21\xfe\x01a\0" * 20_000_000
    header = b"GIF89a" + struct.pack("<HHBBB", 2, 2, 0x81, 0, 0) + bytes(12)
    return header + comments + b"\x2c" + struct.pack("<HHHHB", 0, 0, 2, 2, 0) + b"\2\0\x3b"


def test_read_gives_what_this_process_reads() -> None:
    data = gif()
    found = sandbox.read(data, max_pixels=10**7, max_bytes=256 * MIB)
    expected = read(data, max_pixels=10**7, image_size=None)
    assert found is not None
    assert np.array_equal(found.pixels, expected.pixels)
    assert found.info == expected.info
    assert found.pixels.flags.writeable


def test_read_at_a_size_gives_what_this_process_reads() -> None:
    data = cv2.imencode(".jpg", np.full((64, 128, 3), 90, np.uint8))[1].tobytes()
    found = sandbox.read(data, max_pixels=10**7, image_size=64, max_bytes=256 * MIB)
    expected = read(data, max_pixels=10**7, image_size=64)
    assert found is not None and found.pixels.shape == (32, 64, 3)
    assert np.array_equal(found.pixels, expected.pixels)
    assert found.info == expected.info == ImageInfo(128, 64, "JPEG")


def test_read_of_a_bad_file_says_why_and_the_process_goes_on() -> None:
    with pytest.raises(BadImageError) as here:
        read(b"GIF89a", max_pixels=10**7, image_size=None)
    with pytest.raises(BadImageError) as there:
        sandbox.read(b"GIF89a", max_pixels=10**7, max_bytes=256 * MIB)
    assert (there.value.code, there.value.message) == (here.value.code, here.value.message)
    before = process_id()
    assert sandbox.read(gif(), max_pixels=10**7, max_bytes=256 * MIB) is not None
    assert process_id() == before


def test_read_over_its_memory_is_none_and_within_it_a_picture() -> None:
    data = large_gif()
    assert sandbox.read(data, max_pixels=10**7, max_bytes=20 * MIB) is None
    assert sandbox.read(data, max_pixels=10**7, max_bytes=400 * MIB) is not None


def test_read_over_its_cpu_time_is_none_and_the_process_goes_on() -> None:
    assert (
        sandbox.read(slow_gif(), max_pixels=10**7, max_bytes=256 * MIB, max_cpu_seconds=1) is None
    )
    before = process_id()
    assert sandbox.read(gif(), max_pixels=10**7, max_bytes=256 * MIB) is not None
    assert process_id() == before


def test_decode_over_its_limits_is_corrupt_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.images.decode._SANDBOX_BYTES", 0)
    monkeypatch.setattr("service.images.decode._SANDBOX_BYTES_PER_PIXEL", 1)
    with pytest.raises(BadImageError) as raised:
        decode(large_gif(), max_pixels=50_000_000)
    assert raised.value.code is ErrorCode.CORRUPT_IMAGE


def killed_while_it_decodes(
    victim: Callable[[], int], number: int = signal.SIGKILL
) -> type[BaseException] | None:
    """Decode something slow, kill what `victim` names, and say what decoding raised."""
    wait_until(lambda: not (sandbox._process and children_of(process_id())))  # of a file before
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(decode, slow_gif(), max_pixels=1000)
        wait_until(lambda: sandbox._process and children_of(process_id()))
        os.kill(victim(), number)
        error = answer.exception(PATIENCE_SECONDS)
    return type(error) if error else None


@pytest.mark.parametrize(
    "victim", [process_id, lambda: children_of(process_id())[0]], ids=["process", "fork"]
)
def test_decode_whose_process_is_killed_is_busy_and_the_next_one_works(
    victim: Callable[[], int],
) -> None:
    assert killed_while_it_decodes(victim) is DecoderBusyError
    assert decode(gif(), max_pixels=10_000).info.format == "GIF"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2], ids=str)
def test_decode_that_is_ended_from_outside_is_busy(number: int) -> None:
    """Its reply may have begun: what follows in the pipe could be taken for pixels."""
    assert killed_while_it_decodes(lambda: children_of(process_id())[0], number) is DecoderBusyError
    assert decode(gif(), max_pixels=10_000).info.format == "GIF"


def test_decode_that_hangs_is_ended_by_its_own_clock_and_the_next_one_works() -> None:
    """The alarm is set off by the test, which would wait long for it."""

    def victim() -> int:
        return children_of(process_id())[0]

    assert killed_while_it_decodes(victim, signal.SIGALRM) is DecoderBusyError
    assert decode(gif(), max_pixels=10_000).info.format == "GIF"


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS], ids=str)
def test_decode_that_crashes_is_corrupt_image_and_the_process_goes_on(number: int) -> None:
    decode(gif(), max_pixels=10_000)
    before = process_id()
    assert killed_while_it_decodes(lambda: children_of(before)[0], number) is BadImageError
    assert decode(gif(), max_pixels=10_000).info.format == "GIF"
    assert process_id() == before


def test_decode_whose_idle_process_was_killed_is_busy_once() -> None:
    decode(gif(), max_pixels=10_000)
    os.kill(process_id(), signal.SIGKILL)
    with pytest.raises(DecoderBusyError):
        decode(gif(), max_pixels=10_000)
    assert decode(gif(), max_pixels=10_000).info.format == "GIF"


def test_decode_without_a_process_to_start_is_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_fork(*_: object, **__: object) -> None:
        raise BlockingIOError("Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", no_fork)
    with pytest.raises(DecoderBusyError) as raised:
        decode(gif(), max_pixels=10_000)
    assert raised.value.retry_after_seconds > 0


def test_decode_of_many_threads_shares_one_process() -> None:
    files = [gif(side) for side in range(10, 60)]
    with ThreadPoolExecutor(8) as pool:
        shapes = [p.pixels.shape for p in pool.map(lambda d: decode(d, max_pixels=10_000), files)]
    assert shapes == [(side, side, 3) for side in range(10, 60)]


def test_close_ends_the_process_and_the_next_file_starts_another() -> None:
    decode(gif(), max_pixels=10_000)
    before = process_id()
    sandbox.close()
    assert not is_running(before)
    decode(gif(), max_pixels=10_000)
    assert process_id() != before


OWNER = """
import sys
from service.images import sandbox
data = sys.stdin.buffer.read()
sandbox._started()
print(sandbox._process.pid, flush=True)
sandbox.read(data, max_pixels=10**7, max_bytes=2**28, max_cpu_seconds=3)
"""


@pytest.mark.parametrize("length", [3, 60], ids=["request", "file"])
def test_process_whose_owner_was_killed_in_mid_request_says_nothing(length: int) -> None:
    request = sandbox._REQUEST.pack(2**28, 3, 10**7, 0, 10_000) + bytes(100)
    command = sandbox.COMMAND
    done = subprocess.run(
        command, input=request[:length], capture_output=True, timeout=PATIENCE_SECONDS, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_process_that_cannot_reply_to_its_killed_owner_says_nothing() -> None:
    request = sandbox._REQUEST.pack(2**28, 3, 10**7, 0, 9) + b"no figure"
    command = sandbox.COMMAND
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout and process.stderr and process.stdin
        process.stdout.close()
        process.stdin.write(request)
        process.stdin.close()
        assert process.stderr.read() == b""


def test_process_and_its_fork_end_with_a_killed_owner() -> None:
    command = [sys.executable, "-c", OWNER]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as owner:
        assert owner.stdin and owner.stdout
        owner.stdin.write(slow_gif())
        owner.stdin.close()
        process = int(owner.stdout.readline())
        wait_until(lambda: children_of(process))
        fork = children_of(process)[0]
        owner.kill()
    wait_until(lambda: not is_running(process) and not is_running(fork))


def test_fork_of_the_owner_gets_a_process_of_its_own() -> None:
    code = (
        "import os, sys; from service.images import sandbox; data = sys.stdin.buffer.read(); "
        "sandbox.read(data, max_pixels=10**7, max_bytes=2**28); first = sandbox._process.pid; "
        "child = os.fork(); "
        "shape = sandbox.read(data, max_pixels=10**7, max_bytes=2**28).pixels.shape; "
        "assert (sandbox._process.pid == first) == bool(child); "
        "sandbox.close(); child or os._exit(0); print(shape, os.waitpid(child, 0)[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, input=gif(), capture_output=True, check=False,
        timeout=PATIENCE_SECONDS,
    )  # fmt: skip
    assert done.stdout.split() == [b"(64,", b"64,", b"3)", b"0"], done.stderr


def test_process_has_no_threads_as_it_forks() -> None:
    decode(gif(), max_pixels=10_000)
    assert len(list(Path(f"/proc/{process_id()}/task").iterdir())) == 1


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "AVIF", "JPEG 2000", "WebP, animated"])
def test_decode_of_a_risky_format_uses_the_process(kind: str) -> None:
    decode(CASES[kind].make(), max_pixels=20_000)
    assert sandbox._process is not None


@pytest.mark.parametrize(("bits", "compression"), [(8, 1), (4, 2)], ids=["RLE8", "RLE4"])
def test_decode_of_a_bitmap_in_run_lengths_uses_the_process(bits: int, compression: int) -> None:
    palette = bytes(4 * 2**bits)
    rows = b"\x08\x00\x00\x00" * 8 + b"\x00\x01"
    picture = bmp(
        8, 8, bits=bits, compression=compression, body=palette + rows, offset=54 + len(palette)
    )
    with suppress(BadImageError):
        decode(picture, max_pixels=10_000)
    assert sandbox._process is not None


@pytest.mark.parametrize(
    "kind", ["JPEG", "progressive JPEG", "PNG", "PNG, animated", "WebP", "BMP", "PPM"]
)
def test_decode_of_an_ordinary_format_uses_none(kind: str) -> None:
    decode(CASES[kind].make(), max_pixels=10_000)
    assert sandbox._process is None
