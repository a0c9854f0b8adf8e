"""A picture whose decoder's process was killed, as where memory is short, is given back, not lost.

Nobody can tell the kernel which process to end for want of memory, so the test ends it.
"""

import array
import fcntl
import os
import signal
import termios
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from devtools.fuzz.corpus import CASES
from devtools.local_stack.stack import Stack
from service.domain import ImageRef
from tests.fakes import PATIENCE_SECONDS, wait_until
from tests.processes import children_of, decoders_of
from tests.system.conftest import Service, document, put_aside

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux' /proc")


def decoder_of(service: Service) -> int:
    """The process that decodes for the service's only worker."""
    [worker] = children_of(service.child.process.pid)
    [decoder] = decoders_of(worker)
    return decoder


def is_dead(pid: int) -> bool:
    """Whether it has ended, waited for or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def has_been_asked(pid: int) -> bool:
    """Whether something waits in the process's standard input."""
    count = array.array("i", [0])
    with Path(f"/proc/{pid}/fd/0").open("rb", buffering=0) as pipe:
        fcntl.ioctl(pipe, termios.FIONREAD, count)
    return count[0] > 0


def post_while_killed_at_rest(service: Service, ref: ImageRef) -> tuple[int, str | None]:
    decoder = decoder_of(service)
    os.kill(decoder, signal.SIGKILL)
    wait_until(lambda: is_dead(decoder), "the decoder does not end")
    answer = service.post(ref, timeout=PATIENCE_SECONDS)
    return answer.status_code, answer.headers.get("Retry-After")


def post_while_killed_at_work(service: Service, ref: ImageRef) -> tuple[int, str | None]:
    decoder = decoder_of(service)
    os.kill(decoder, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as caller:
        posted = caller.submit(service.post, ref, timeout=PATIENCE_SECONDS)
        try:
            wait_until(lambda: has_been_asked(decoder), "nobody asks the decoder")
        finally:
            os.kill(decoder, signal.SIGKILL)
        answer = posted.result()
    return answer.status_code, answer.headers.get("Retry-After")


def test_picture_whose_decoder_was_killed_is_given_back_and_then_done(
    start_service: Callable[..., Service], stack: Stack
) -> None:
    data = CASES["LZW TIFF"].make()
    first, second, third = (put_aside(stack, f"busy/{i}.tif", data) for i in range(3))
    service = start_service()
    assert service.post(first, timeout=PATIENCE_SECONDS).status_code == 204
    for ref, post in ((second, post_while_killed_at_rest), (third, post_while_killed_at_work)):
        status, retry_after = post(service, ref)
        assert (status, int(retry_after or 0) > 0) == (503, True)
        assert document(ref) is None
        assert service.post(ref, timeout=PATIENCE_SECONDS).status_code == 204
        found = document(ref)
        assert found is not None
        assert found["status"] == "done"
    given_back = [line for line in service.log() if line.get("status") == 503]
    assert len(given_back) == 2
    assert all("no memory to decode" in line["reason"] for line in given_back)
