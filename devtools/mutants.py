"""Change the core's source in small ways, and list the changes that no test notices.

    make mutants SEED=11 COUNT=300

The same seed and the same source give the same mutants. The tests have to pass without a mutant.
Mutants are made in a copy of the working tree, one at a time. Each one runs the tests of its module
(`TESTS`), and adds a line of JSON to `--out`. A second call goes on where the first one stopped.
`--recheck` runs the survivors again, with slow tests too (`SLOW_TESTS`, `WIDER`).
docs/evidence/mutants.md has the last result.
"""

import argparse
import ast
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Operator
from cosmic_ray.plugins import get_operator, operator_names
from parso.python.tree import Keyword

ROOT = Path(__file__).parents[1]
UNIT = "tests/unit/test_"
IMAGE_TESTS = ("images", "sample_depths", "orientation")
# The tests of each module, those that fail soonest first. The first pattern that fits counts.
TESTS = {
    "service/pipeline.py": ("pipeline",),
    "service/recorder.py": ("pipeline",),
    "service/events.py": ("events",),
    "service/deadline.py": ("deadline", "semaphore", "group_commit"),
    "service/health.py": ("health", "pipeline"),
    "service/concurrency/group_commit.py": ("group_commit", "pipeline"),
    "service/concurrency/semaphore.py": ("semaphore", "pipeline"),
    "service/concurrency/slots.py": ("slots", "pipeline"),
    "service/concurrency/workers.py": ("inference_queue", "group_commit", "workers", "pipeline"),
    "service/gcp/firestore.py": ("store_refusals", "vendor_errors"),
    "service/inference/queue.py": ("inference_queue", "pipeline"),
    "service/inference/model.py": ("pipeline",),
    "service/inference/openvino.py": ("openvino", "bundled_model"),
    "service/inference/canary.py": ("canary",),
    "service/inference/loading.py": ("canary", "openvino", "detect"),
    "service/images/decoder_process.py": ("decoders",),
    "service/images/decoders.py": ("decoders",),
    "service/images/letterbox.py": ("images", "shapes", "imports", "bundled_model"),
    "service/images/jpeg.py": ("jpeg", "images", "orientation"),
    "service/images/webp.py": ("webp_memory", *IMAGE_TESTS),
    "service/images/*.py": IMAGE_TESTS,
}
SLOW_MODULES = "service/images/decoder"  # each of their tests starts processes; they come last
# Tests that try hundreds of inputs: run for survivors alone.
SLOW_TESTS = ("cut_file", "flipped_bits", "shows_no_memory", "reads_or_refuses", "input_shapes")
# Run for survivors, too: every file of the corpus, or the emulators.
WIDER = {
    "service/images/*.py": ("corpus",),
    "service/gcp/firestore.py": ("tests/contract/test_store.py",),
}
LEFT_OUT = ("VariableReplacer", "VariableInserter")  # they need the names of variables
LIBRARIES = ("cv2", "flask", "google.cloud.firestore", "hypothesis", "imagecodecs", "simplejpeg")


class RemoveStatement(Operator):  # type: ignore[misc]  # cosmic-ray is published without types
    """Leave out a statement that only has an effect: a call, `x.y = z`, `x += y`, del, raise."""

    def mutation_positions(self, node: Any) -> Iterator[tuple[Any, Any]]:
        if node.type != "simple_stmt":
            return
        first = node.children[0]
        is_set = first.type == "expr_stmt" and (
            first.children[0].type in ("atom_expr", "power")
            or (first.children[1].type == "operator" and first.children[1].value != "=")
        )
        if is_set or first.type in ("atom_expr", "power", "del_stmt", "raise_stmt"):
            yield first.start_pos, first.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        first = node.children[0]
        node.children[0] = Keyword("pass", first.start_pos, first.get_first_leaf().prefix)
        return node

    @classmethod
    def examples(cls) -> tuple[()]:
        return ()


@dataclass(frozen=True)
class Mutant:
    """One change of one module."""

    module: str
    operator: str
    occurrence: int
    line: int
    before: str
    after: str


@dataclass(frozen=True)
class Place:
    """Where the variants of one kind of change can be made; one of them is drawn."""

    module: str
    line: int
    column: int
    variants: tuple[tuple[str, int], ...]  # operator and occurrence


@cache
def operators() -> dict[str, Any]:
    named = {name: get_operator(name)() for name in operator_names() if not name.endswith(LEFT_OUT)}
    return {name.partition("/")[2]: one for name, one in sorted(named.items())} | {
        "RemoveStatement": RemoveStatement()
    }


def modules() -> list[str]:
    return sorted({str(p.relative_to(ROOT)) for pattern in TESTS for p in ROOT.glob(pattern)})


def places(module: str, source: str) -> list[Place]:
    """List where a module can be changed. Variants of one kind at one place count once."""
    variants: dict[tuple[int, int, str], list[tuple[str, int]]] = {}
    nodes = list(ast_nodes(get_ast(source)))
    for name, operator in operators().items():
        found = [pos for node in nodes for pos in operator.mutation_positions(node)]
        for occurrence, ((line, column), _) in enumerate(found):
            key = line, column, name.partition("_")[0]
            variants.setdefault(key, []).append((name, occurrence))
    return [Place(module, *key[:2], tuple(same)) for key, same in sorted(variants.items())]


def drawn(seed: int, count: int) -> list[Mutant]:
    """Draw mutants. Changes of annotations, and those that are no Python, are no mutants."""
    sources = {module: (ROOT / module).read_text(encoding="utf-8") for module in modules()}
    all_places = [place for module, source in sources.items() for place in places(module, source)]
    chance = random.Random(seed)
    chance.shuffle(all_places)
    mutants: list[Mutant] = []
    for place in all_places:
        name, occurrence = chance.choice(place.variants)
        source = sources[place.module]
        code = mutated(source, name, occurrence)
        if code is not None and _meaning(code) not in (None, _meaning(source)):
            before, after = _difference(source, code)
            mutants.append(Mutant(place.module, name, occurrence, place.line, before, after))
        if len(mutants) == count:
            break
    return mutants


def mutated(source: str, operator: str, occurrence: int) -> str | None:
    try:
        code: str | None = mutate_code(source, operators()[operator], occurrence)
    except AttributeError:  # cosmic-ray's ExceptionReplacer, at a name with a dot
        return None
    return code


def _meaning(code: str) -> str | None:
    """Return a module's syntax tree without annotations; None if it is no Python."""
    try:
        tree = ast.parse(code)
    except SyntaxError:
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.FunctionDef):
            node.returns = None
        elif isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(None)
    return ast.dump(tree)


def _difference(source: str, code: str) -> tuple[str, str]:
    """Return the lines that differ, before and after."""
    old, new = source.splitlines(), code.splitlines()
    while old and new and old[0] == new[0]:
        del old[0], new[0]
    while old and new and old[-1] == new[-1]:
        del old[-1], new[-1]
    return "\n".join(old).strip(), "\n".join(new).strip()


def tests_of(module: str, *, wider: bool) -> tuple[str, ...]:
    names = _of(TESTS, module) + (_of(WIDER, module) if wider else ())
    return tuple(name if "/" in name else f"{UNIT}{name}.py" for name in names)


def _of(table: Mapping[str, tuple[str, ...]], module: str) -> tuple[str, ...]:
    """Return what the first pattern that fits a module names."""
    return next((tests for pattern, tests in table.items() if Path(module).match(pattern)), ())


def run_tests(folder: Path, tests: Sequence[str], limit_seconds: float, *, wider: bool) -> str:
    """Run tests until the first one fails; return `killed`, `survived` or `timeout`.

    In a fork of this process, which has imported the libraries: half of the time of many mutants.
    """
    process = os.fork()
    if not process:
        try:
            os._exit(_tests_in_fork(folder, tests, wider=wider))
        finally:
            os._exit(1)
    until = time.monotonic() + limit_seconds
    while time.monotonic() < until:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return "killed" if status else "survived"
        time.sleep(0.02)
    os.killpg(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return "timeout"


def _kill_all_in(folder: Path) -> None:
    """End what a mutant left behind: a process in a session of its own may run for ever."""
    for link in Path("/proc").glob("[0-9]*/cwd"):
        with suppress(OSError):  # it has ended, or is another user's
            if link.readlink() == folder:
                os.kill(int(link.parent.name), signal.SIGKILL)


def _tests_in_fork(folder: Path, tests: Sequence[str], *, wider: bool) -> int:
    os.setsid()
    os.chdir(folder)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(null, descriptor)
    for name in [n for n in sys.modules if n.partition(".")[0] in ("devtools", "service", "tests")]:
        del sys.modules[name]
    sys.path[:] = [str(folder), *(entry for entry in sys.path if Path(entry) != ROOT)]
    os.environ["PYTHONPATH"] = str(folder)
    # That what is imported already has plain asserts is no error.
    options = [
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        "-W",
        "ignore::pytest.PytestAssertRewriteWarning",
    ]
    if not wider:
        options += ["-k", f"not ({' or '.join(SLOW_TESTS)})"]
    return int(pytest.main([*options, *tests]))


class Runner:
    """Makes mutants in a copy of the working tree, and runs their tests there."""

    def __init__(self, folder: Path, *, wider: bool, limit_seconds: float) -> None:
        self._folder = folder
        self._limit_seconds = limit_seconds
        self._wider = wider
        self._writes = 0
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, stdout=-1, check=True).stdout
        for name in filter(None, listed.decode().split("\0")):
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, folder / name)

    def outcome(self, mutant: Mutant) -> str:
        tests = tests_of(mutant.module, wider=self._wider)
        path = self._folder / mutant.module
        source = path.read_text(encoding="utf-8")
        code = mutated(source, mutant.operator, mutant.occurrence)
        if code is None or _difference(source, code) != (mutant.before, mutant.after):
            raise SystemExit(f"{mutant.module} has changed since its mutants were drawn")
        try:
            self._write(path, code)
            return run_tests(self._folder, tests, self._limit_seconds, wider=self._wider)
        finally:
            self._write(path, source)
            _kill_all_in(self._folder)

    def _write(self, path: Path, code: str) -> None:
        """Write a module with a time of its own: by it Python tells compiled files that are old."""
        path.write_text(code, encoding="utf-8")
        self._writes += 1
        os.utime(path, (self._writes, self._writes))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--out", type=Path, default=Path("mutants.jsonl"))
    parser.add_argument("--limit-seconds", type=float, default=120.0, help="of one mutant's tests")
    parser.add_argument("--recheck", action="store_true", help="survivors, by more tests")
    options = parser.parse_args()
    for library in LIBRARIES:
        importlib.import_module(library)
    text = options.out.read_text(encoding="utf-8") if options.out.exists() else ""
    done = {Mutant(**row["mutant"]): row["outcome"] for row in map(json.loads, text.splitlines())}
    if options.recheck:
        queue = [mutant for mutant, outcome in done.items() if outcome == "survived"]
    else:
        queue = [one for one in drawn(options.seed, options.count) if one not in done]
    queue.sort(key=lambda mutant: mutant.module.startswith(SLOW_MODULES))
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        runner = Runner(Path(folder), wider=options.recheck, limit_seconds=options.limit_seconds)
        for number, mutant in enumerate(queue, 1):
            began = time.monotonic()
            done[mutant] = runner.outcome(mutant)
            row = {"mutant": asdict(mutant), "outcome": done[mutant]}
            row["seconds"] = round(time.monotonic() - began, 1)
            with options.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            place = f"{mutant.module}:{mutant.line}"
            print(f"{number}/{len(queue)}", done[mutant], place, mutant.operator, flush=True)
    print(dict(Counter(done.values())))


if __name__ == "__main__":
    main()
