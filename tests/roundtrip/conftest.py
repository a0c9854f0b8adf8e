"""Runs the readers in the environments of the tools. Without an environment, a test is skipped."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from devtools.roundtrip import BUILD_COMMAND, python_of
from tests.fakes import PATIENCE_SECONDS

READERS = Path(__file__).parent / "readers"
Read = Callable[..., Any]


@pytest.fixture(scope="session")
def read_in() -> Callable[[str], Read]:
    """Return a function that runs a reader with the Python of an environment."""

    def reader(environment: str) -> Read:
        python = python_of(environment)
        if python is None:
            pytest.skip(f"NOT RUN: no environment {environment}. {BUILD_COMMAND} builds it.")

        def read(script: str, *arguments: Path) -> Any:
            command = [str(python), "-I", str(READERS / script), *map(str, arguments)]
            # Ten times: imports of a large tool on a busy machine.
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=10 * PATIENCE_SECONDS
            )
            assert done.returncode == 0, done.stderr[-4000:]
            return json.loads(done.stdout.splitlines()[-1])

        return read

    return reader
