"""The gallery at the end of the demo, at a real terminal."""

import os
import pty
import re
import signal
import subprocess
from pathlib import Path

import requests

from tests.fakes import PATIENCE_SECONDS
from tests.system.conftest import CLI_SECONDS, PATIENT, YOLO_BATCH_DEV


def read_until(terminal: int, pattern: str) -> re.Match[str]:
    """Read what a program writes to a terminal until the pattern is in it.

    Raises:
        OSError: the program has ended.
    """
    text = ""
    while not (match := re.search(pattern, text)):
        text += os.read(terminal, 4096).decode(errors="replace")
    return match


def test_demo_offers_the_gallery_at_a_terminal(tmp_path: Path) -> None:
    terminal, end = pty.openpty()
    opener = tmp_path / "browser"
    opener.write_text('#!/bin/sh\necho "$1" > "$0.opened"\n')
    opener.chmod(0o755)
    with subprocess.Popen(
        [YOLO_BATCH_DEV, "demo"],
        stdin=end,
        stdout=end,
        stderr=end,
        cwd=tmp_path,
        env=os.environ | PATIENT | {"BROWSER": f"{opener} %s"},
        start_new_session=True,
    ) as demo:
        os.close(end)
        try:
            read_until(terminal, "Press Enter")
            os.write(terminal, b"\n")
            address = read_until(terminal, r"(http://127\.0\.0\.1:\d+/\?token=\S+)\s")[1]
            with requests.Session() as browser:
                assert browser.get(address, timeout=PATIENCE_SECONDS).status_code == 200
                page = browser.get(
                    address.partition("?")[0] + "api/results", timeout=PATIENCE_SECONDS
                )
                image = browser.get(
                    address.partition("/?")[0] + page.json()["results"][0]["thumbnail"],
                    timeout=PATIENCE_SECONDS,
                )
            assert (len(page.json()["results"]), image.status_code) == (12, 200)
            demo.send_signal(signal.SIGINT)
            assert demo.wait(CLI_SECONDS) == 0
        finally:
            demo.kill()
            os.close(terminal)
    assert (tmp_path / "browser.opened").read_text().strip() == address
