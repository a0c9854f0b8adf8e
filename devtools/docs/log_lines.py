"""The reference of the service's log lines, from the logger calls in its source."""

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from devtools.docs.markdown import code, codes, table
from service.domain import Outcome

REPOSITORY = Path(__file__).parents[2]
_SEVERITIES = {
    "debug": "DEBUG",
    "info": "INFO",
    "warning": "WARNING",
    "error": "ERROR",
    "exception": "ERROR",
    "critical": "CRITICAL",
}
_SEVERITY_ORDER = ("CRITICAL", "ERROR", "WARNING", "INFO", "DEBUG")
# Fields that are computed at run time, by the expression in the source.
_COMPUTED = {"self._take_counts()": tuple(map(str, Outcome))}
_TRACE = "exc_info"  # the argument of a call, and the field below ERROR
_ERROR_TRACE = "stack_trace"


@dataclass(frozen=True)
class LogLine:
    """One call of a logger."""

    message: str  # a variable part is shown as `...`
    severities: tuple[str, ...]
    fields: tuple[str, ...]
    logger: str


def render() -> str:
    """Return a table of the lines, the most severe first."""
    rows = [
        (line.message, " or ".join(line.severities), codes(line.fields), code(line.logger))
        for line in log_lines()
    ]
    return table(("message", "severity", "fields", "logger"), rows)


def log_lines() -> list[LogLine]:
    """Return every log line of `service/`, the most severe first.

    Raises:
        ValueError: a call has a message, a severity or fields that cannot be read from the source.
    """
    lines: set[LogLine] = set()
    for path in sorted((REPOSITORY / "service").rglob("*.py")):
        module = path.relative_to(REPOSITORY)
        logger = ".".join(module.with_suffix("").parts)
        try:
            lines.update(lines_of(path.read_text(encoding="utf-8"), logger))
        except ValueError as exc:
            raise ValueError(f"{module}: {exc}") from exc
    return sorted(
        lines,
        key=lambda line: (_SEVERITY_ORDER.index(line.severities[0]), line.message, line.logger),
    )


def lines_of(source: str, logger: str) -> Iterator[LogLine]:
    """Yield the log lines of a module's source.

    Raises:
        ValueError: a call has a message, a severity or fields that cannot be read from the source.
    """
    tree = ast.parse(source)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    for call in ast.walk(tree):
        if (
            isinstance(call, ast.Call)
            and isinstance(call.func, ast.Attribute)
            and isinstance(call.func.value, ast.Name)
            and call.func.value.id == "logger"
            and call.func.attr in (*_SEVERITIES, "log")
        ):
            enclosing = [each for each in functions if call in set(ast.walk(each))]
            values = {key: node for each in enclosing for key, node in _assigned(each).items()}
            try:
                yield _line(call, call.func.attr, values, logger)
            except ValueError as exc:
                raise ValueError(f"line {call.lineno}: {exc}") from exc


def _line(call: ast.Call, method: str, values: Mapping[str, ast.expr], logger: str) -> LogLine:
    arguments = list(call.args)
    severities: tuple[str, ...] = (_SEVERITIES.get(method, ""),)
    if method == "log":
        severities = _levels(arguments.pop(0), values)
    message = arguments[0]
    if not isinstance(message, ast.Constant):
        raise ValueError("the message is not a literal")
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    fields = _fields(keywords["extra"], values) if "extra" in keywords else []
    if method == "exception" or _TRACE in keywords:
        fields.append(_ERROR_TRACE if severities[0] in ("ERROR", "CRITICAL") else _TRACE)
    text = re.sub(r"%[sd]", "...", str(message.value))
    return LogLine(text, severities, tuple(fields), logger)


def _levels(level: ast.expr, values: Mapping[str, ast.expr]) -> tuple[str, ...]:
    """Return the severities that an expression names, the most severe first."""
    if isinstance(level, ast.Name) and level.id in values:
        level = values[level.id]
    if isinstance(level, ast.IfExp):
        named = _levels(level.body, values) + _levels(level.orelse, values)
        return tuple(sorted(set(named), key=_SEVERITY_ORDER.index))
    if isinstance(level, ast.Attribute) and level.attr in _SEVERITY_ORDER:
        return (level.attr,)
    raise ValueError(f"no severity: {ast.unparse(level)}")


def _fields(extra: ast.expr, values: Mapping[str, ast.expr]) -> list[str]:
    """Return the names of a line's own fields."""
    if ast.unparse(extra) in _COMPUTED:
        return list(_COMPUTED[ast.unparse(extra)])
    if isinstance(extra, ast.Name) and extra.id in values:
        return _fields(values[extra.id], values)
    if isinstance(extra, ast.BinOp):
        return _fields(extra.left, values) + _fields(extra.right, values)
    if not isinstance(extra, ast.Dict):
        raise ValueError(f"no fields: {ast.unparse(extra)}")
    fields = []
    for key, value in zip(extra.keys, extra.values, strict=True):
        if isinstance(key, ast.Constant):
            fields.append(str(key.value))
        else:  # **more
            fields += _fields(value, values)
    return fields


def _assigned(function: ast.FunctionDef) -> dict[str, ast.expr]:
    """Return the expressions that a function assigns to its variables."""
    values = {}
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            values[node.targets[0].id] = node.value
        elif isinstance(node, ast.NamedExpr) and isinstance(node.target, ast.Name):
            values[node.target.id] = node.value
    return values
