"""Run libFuzzer on one parser, for a number of runs, or until the parser breaks a promise.

libFuzzer ends its process. Therefore `python -m devtools.fuzz` starts one process for each parser.
"""

import argparse
import hashlib
import resource
import sys
from collections.abc import Iterable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["service", "devtools.fuzz.targets", "PIL", "json"]):
    from devtools.fuzz.targets import TARGETS

MAX_MB = 1024  # memory of the process
MAX_MAPPED_BYTES = 512 * 2**20  # more than at the start. Decoder processes have such a limit too.
MAX_SECONDS = 30  # for one input
MAX_BYTES = 64 * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=int, required=True)
    parser.add_argument("--seconds", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    options = parser.parse_args()
    target = TARGETS[options.target]
    inputs = options.folder / options.target
    write(inputs, target.seeds())
    limits = [f"-rss_limit_mb={MAX_MB}", f"-timeout={MAX_SECONDS}", f"-max_len={MAX_BYTES}"]
    limits += [
        f"-runs={options.runs}",
        f"-max_total_time={options.seconds}",
        f"-seed={options.seed}",
        "-len_control=0",
        "-print_final_stats=1",
    ]
    prefix = f"-artifact_prefix={options.folder}/{options.target}-"
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    mapped = pages * resource.getpagesize() + MAX_MAPPED_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (mapped, mapped))
    atheris.Setup([sys.argv[0], *limits, prefix, str(inputs)], target.check)
    atheris.Fuzz()


def write(folder: Path, seeds: Iterable[bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for data in seeds:
        (folder / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)


if __name__ == "__main__":
    main()
