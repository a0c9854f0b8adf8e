"""Change the core's source in small ways (mutants), and list the changes that no test detects.

    make mutants SEED=11 COUNT=300

The same seed and the same source give the same mutants. The tests must pass without a mutant.
Mutants are made in a copy of the working tree, one at a time. For each mutant, the tests of its
module run (`TESTS`), and `--out` gets a line of JSON. A second call continues where the first call
stopped. `--recheck` runs the survivors again, with slow tests too (`SLOW_TESTS`, `WIDER`).
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
# The tests of each module. Tests that fail soonest are first. The first matching pattern counts.
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
    "service/derived.py": ("derive",),
    "service/images/annotate.py": ("annotate",),
    "service/images/decoder_process.py": ("decoders", "derive_in_decoders"),
    "service/images/decoders.py": ("decoders", "derive_in_decoders"),
    "service/images/derive.py": ("derive", "render"),
    "service/images/redact.py": ("render",),
    "service/images/render.py": ("render",),
    "service/images/letterbox.py": ("images", "shapes", "imports", "bundled_model"),
    "service/images/jpeg.py": ("jpeg", "images", "orientation"),
    "service/images/webp.py": ("webp_memory", *IMAGE_TESTS),
    "service/images/*.py": IMAGE_TESTS,
}
SLOW_MODULES = "service/images/decoder"  # their tests start processes, so they run last
# Tests with hundreds of inputs. They run for survivors only.
SLOW_TESTS = ("cut_file", "flipped_bits", "shows_no_memory", "reads_or_refuses", "input_shapes")
# Further tests for survivors: every file of the corpus, or the emulators.
WIDER = {
    "service/images/*.py": ("corpus",),
    "service/gcp/firestore.py": ("tests/contract/test_store.py",),
}
LEFT_OUT = ("VariableReplacer", "VariableInserter")  # they need the names of variables
LIBRARIES = ("cv2", "flask", "google.cloud.firestore", "hypothesis", "imagecodecs", "simplejpeg")


class RemoveStatement(Operator):  # type: ignore[misc]  # cosmic-ray is published without types
    """Remove a statement that has only a side effect: a call, `x.y = z`, `x += y`, del, raise."""

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
    """A change in one module."""

    module: str
    operator: str
    occurrence: int
    line: int
    before: str
    after: str


@dataclass(frozen=True)
class Position:
    """A position in the source, and the variants of a change there. One variant is drawn."""

    module: str
    line: int
    column: int
    variants: tuple[tuple[str, int], ...]  # operator and occurrence


@cache
def operators() -> dict[str, Any]:
    named = {name: get_operator(name)() for name in operator_names() if not name.endswith(LEFT_OUT)}
    return {name.partition("/")[2]: operator for name, operator in sorted(named.items())} | {
        "RemoveStatement": RemoveStatement()
    }


def modules() -> list[str]:
    return sorted({str(p.relative_to(ROOT)) for pattern in TESTS for p in ROOT.glob(pattern)})


def positions(module: str, source: str) -> list[Position]:
    """List where a module can be changed. Variants of one kind at one position count once."""
    variants: dict[tuple[int, int, str], list[tuple[str, int]]] = {}
    nodes = list(ast_nodes(get_ast(source)))
    for name, operator in operators().items():
        spans = [span for node in nodes for span in operator.mutation_positions(node)]
        for occurrence, ((line, column), _) in enumerate(spans):
            key = line, column, name.partition("_")[0]
            variants.setdefault(key, []).append((name, occurrence))
    return [Position(module, *key[:2], tuple(same)) for key, same in sorted(variants.items())]


def draw_mutants(seed: int, count: int) -> list[Mutant]:
    """Draw mutants. Changes of annotations, and changes that are not valid Python, do not count."""
    sources = {module: (ROOT / module).read_text(encoding="utf-8") for module in modules()}
    all_positions = [
        position for module, source in sources.items() for position in positions(module, source)
    ]
    generator = random.Random(seed)
    generator.shuffle(all_positions)
    mutants: list[Mutant] = []
    for position in all_positions:
        name, occurrence = generator.choice(position.variants)
        source = sources[position.module]
        code = mutated(source, name, occurrence)
        if code is not None and _meaning(code) not in (None, _meaning(source)):
            before, after = _difference(source, code)
            mutants.append(Mutant(position.module, name, occurrence, position.line, before, after))
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
    """Return a module's syntax tree without annotations. None if it is not valid Python."""
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
    """Return the tests of the first pattern that matches a module."""
    return next((tests for pattern, tests in table.items() if Path(module).match(pattern)), ())


def run_tests(folder: Path, tests: Sequence[str], limit_seconds: float, *, wider: bool) -> str:
    """Run tests until the first failure. Return `killed`, `survived` or `timeout`.

    They run in a fork of this process, which has imported the libraries already. For many mutants,
    the import would take as long as the tests.
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
    """Kill processes that a mutant has left. A process in its own session may run for ever."""
    for link in Path("/proc").glob("[0-9]*/cwd"):
        with suppress(OSError):  # it has ended, or another user owns it
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
    # Modules that are imported already have plain asserts. That is not an error here.
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
        """Write a module with a new modification time, so that Python compiles it again."""
        path.write_text(code, encoding="utf-8")
        self._writes += 1
        os.utime(path, (self._writes, self._writes))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--out", type=Path, default=Path("mutants.jsonl"))
    parser.add_argument(
        "--limit-seconds", type=float, default=120.0, help="time limit for the tests of a mutant"
    )
    parser.add_argument(
        "--recheck", action="store_true", help="run survivors again, with more tests"
    )
    options = parser.parse_args()
    for library in LIBRARIES:
        importlib.import_module(library)
    text = options.out.read_text(encoding="utf-8") if options.out.exists() else ""
    done = {Mutant(**row["mutant"]): row["outcome"] for row in map(json.loads, text.splitlines())}
    if options.recheck:
        queue = [mutant for mutant, outcome in done.items() if outcome == "survived"]
    else:
        mutants = draw_mutants(options.seed, options.count)
        queue = [mutant for mutant in mutants if mutant not in done]
    queue.sort(key=lambda mutant: mutant.module.startswith(SLOW_MODULES))
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        runner = Runner(Path(folder), wider=options.recheck, limit_seconds=options.limit_seconds)
        for number, mutant in enumerate(queue, 1):
            started = time.monotonic()
            done[mutant] = runner.outcome(mutant)
            row = {"mutant": asdict(mutant), "outcome": done[mutant]}
            row["seconds"] = round(time.monotonic() - started, 1)
            with options.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            position = f"{mutant.module}:{mutant.line}"
            print(f"{number}/{len(queue)}", done[mutant], position, mutant.operator, flush=True)
    print(dict(Counter(done.values())))


if __name__ == "__main__":
    main()
