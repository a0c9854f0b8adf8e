"""Fuzz the parsers, guided by coverage: `make fuzz`, or `python -m devtools.fuzz envelope`.

Needs the extra `fuzz` (atheris, libFuzzer for Python). The fuzzer starts with the corpus, keeps
inputs that cover more code in a folder, and prints how often each parser ran. A run ends when its
parser breaks a promise, hangs or uses too much memory. libFuzzer then writes the input as
`TARGET-crash-...`, `-timeout-...` or `-oom-...`. Copy it to tests/fuzz/found, where every test run
reads it.
"""

import argparse
import importlib.util
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from devtools.fuzz.targets import TARGETS

TAIL_LINES = 20  # how many log lines are printed if a promise was broken


@dataclass(frozen=True)
class Summary:
    """The result of a run, from the last lines of libFuzzer's log."""

    target: str
    executions: int
    peak_mb: int
    is_good: bool

    def __str__(self) -> str:
        broken = "no promise broken" if self.is_good else "a promise broken"
        return f"{self.target}: {self.executions:,} executions, {broken}, peak {self.peak_mb} MB"


def summary(target: str, log: str, code: int) -> Summary:
    """Read libFuzzer's log and exit code. A run without executions is not good."""
    stats = dict(re.findall(r"^stat::(\w+): +(\d+)$", log, re.M))
    executions = int(stats.get("number_of_executed_units", 0))
    is_good = code == 0 and executions > 0
    return Summary(target, executions, int(stats.get("peak_rss_mb", 0)), is_good)


def fuzz(target: str, folder: Path, options: argparse.Namespace) -> Summary:
    """Fuzz one parser in a process of its own. Print the end of the log if a promise was broken."""
    command = [sys.executable, "-m", "devtools.fuzz.libfuzzer", target, str(folder)]
    for name in ("runs", "seconds", "seed"):
        command += [f"--{name}", str(getattr(options, name))]
    path = folder / f"{target}.log"
    with path.open("wb") as log:
        done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False)
    text = path.read_text(encoding="utf-8", errors="replace")
    result = summary(target, text, done.returncode)
    if not result.is_good:
        print(*text.splitlines()[-TAIL_LINES:], sep="\n", file=sys.stderr)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "targets",
        nargs="*",
        metavar="TARGET",
        help=f"parsers to fuzz: {', '.join(TARGETS)} (default: all)",
    )
    parser.add_argument("--runs", type=int, default=100_000, help="executions of each parser")
    parser.add_argument(
        "--seconds", type=int, default=0, help="time limit for each parser (0: none)"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--keep", type=Path, help="folder for inputs and logs (default: a new folder)"
    )
    options = parser.parse_args()
    if unknown := set(options.targets) - set(TARGETS):
        parser.error(f"there is no {', '.join(sorted(unknown))}, only {', '.join(TARGETS)}")
    if importlib.util.find_spec("atheris") is None:
        parser.exit(1, "atheris is missing: pip install -e './devtools[fuzz]', or make fuzz\n")
    folder = options.keep or Path(tempfile.mkdtemp(prefix="fuzz-"))
    folder.mkdir(parents=True, exist_ok=True)
    print(f"Inputs and logs are kept in {folder}", flush=True)
    results = []
    for target in options.targets or TARGETS:
        results.append(fuzz(target, folder, options))
        print(results[-1], flush=True)
    sys.exit(not all(result.is_good for result in results))


if __name__ == "__main__":
    main()
