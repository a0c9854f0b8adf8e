"""Count the lines of code that gunicorn imports from `service/`.

    python -m devtools.count_lines

Comments, docstrings and blank lines do not count.
"""

import ast
import io
import os
import subprocess
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).parents[1]
# What the server has imported when it is ready, with the default model and push authentication.
_MODULES = (
    "service.server.gunicorn_conf",
    "service.server.gunicorn_worker",
    "service.server.wsgi",
    "service.gcp.clients",
    "service.gcp.push_auth",
    "service.inference.openvino",
    "service.images.decoder_process",
)
_NO_CODE = (
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
)


def imported_files() -> list[Path]:
    """Return the package's files that a start of the server imports."""
    code = (
        f"import sys, {', '.join(_MODULES)}; "
        "print(*(m.__file__ for n, m in sys.modules.items() if n.split('.')[0] == 'service'))"
    )
    command = [sys.executable, "-c", code]
    path = {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | path, capture_output=True, text=True, check=True
    )
    return sorted(Path(name) for name in done.stdout.split())


def code_lines(source: str) -> int:
    """Return the number of lines with code. A docstring is not code."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            docstring = first.value if isinstance(first, ast.Expr) else None
            if isinstance(docstring, ast.Constant) and isinstance(docstring.value, str):
                lines.difference_update(range(docstring.lineno, (docstring.end_lineno or 0) + 1))
    return len(lines)


def main() -> None:
    """Print the count of each file, and the sum."""
    counts = {file: code_lines(file.read_text(encoding="utf-8")) for file in imported_files()}
    for file, count in sorted(counts.items(), key=lambda item: -item[1]):
        sys.stdout.write(f"{count:6} {file.relative_to(ROOT)}\n")
    sys.stdout.write(f"{sum(counts.values()):6} in {len(counts)} files\n")


if __name__ == "__main__":
    main()
