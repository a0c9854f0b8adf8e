"""Fuzz one parser, guided by coverage: `python -m tests.fuzz envelope --runs 100000`.

Needs the extra `fuzz` (atheris, libFuzzer for Python). It begins with the corpus, keeps what covers
more in a folder, and ends with `Done N runs`, or at the first input that breaks a promise, hangs
or takes too much memory: libFuzzer writes that as `crash-...`, `timeout-...` or `oom-...`. Such an
input goes to tests/fuzz/found, where the tests read it for ever.
"""

import argparse
import hashlib
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["service", "tests.fuzz.targets", "PIL", "json"]):
    from tests.fuzz.targets import TARGETS

MAX_MB = 1024  # of the process; the codecs' own process has its own bound
MAX_SECONDS = 30  # for one input
MAX_BYTES = 64 * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="folder of inputs; by default a fresh one")
    options = parser.parse_args()
    target = TARGETS[options.target]
    folder = options.keep or Path(tempfile.mkdtemp(prefix=f"fuzz-{options.target}-"))
    write(folder, target.seeds())
    print(f"Inputs are kept in {folder}", flush=True)
    limits = [f"-rss_limit_mb={MAX_MB}", f"-timeout={MAX_SECONDS}", f"-max_len={MAX_BYTES}"]
    limits += [
        f"-runs={options.runs}",
        f"-seed={options.seed}",
        "-len_control=0",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], *limits, f"-artifact_prefix={folder}/", str(folder)], target.check)
    atheris.Fuzz()


def write(folder: Path, seeds: Iterable[bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for data in seeds:
        (folder / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)


if __name__ == "__main__":
    main()
