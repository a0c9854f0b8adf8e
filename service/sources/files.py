"""Reads sources from a YAML file, and names the line of each fault."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import yaml

from service.errors import SourcesError
from service.sources.schema import Groups, Source, Sources, parse
from service.sources.wording import in_words

# How msgspec ends a message: the path of the fault, for example " - at `$.sources[1].zones[0]`".
# A fault of a key is "at `key` in `$.sources[1]`".
_PATH = re.compile(r" - at (?P<key>`key` in )?`(?P<path>\$[^`]*)`$")
# Messages of `service.sources.schema` about a rule or a group begin with the path of the fault.
_RULE_PATH = re.compile(r"(?P<path>(sources\[\d+\]\.)?(alerts\[\d+\]|derived\.redacted)\.\w+): ")
_STEP = re.compile(r"\.(\w+)|\[(\d+)\]")
_UNKNOWN_FIELD = re.compile(r"unknown field `(.+)`")
_LIST = "sources"
_GROUPS = "groups"


@dataclass(frozen=True)
class Fault:
    """What is wrong in a file, and in which line, counted from 1."""

    line: int
    message: str


class FaultyFileError(SourcesError):
    """A file of sources has faults. The message has one line for each."""

    def __init__(self, path: Path, faults: list[Fault]) -> None:
        """Take the file and its faults."""
        super().__init__("\n".join(f"{path}:{fault.line}: {fault.message}" for fault in faults))
        self.faults = faults


def load(path: Path) -> Sources:
    """Read a file of sources.

    Raises:
        FaultyFileError: it is not YAML, or has faults.
        OSError: it cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, yaml.SafeLoader)
        faults = list(_repeated_keys(root))
        plain = yaml.safe_load(text)
    except yaml.MarkedYAMLError as exc:
        line = exc.problem_mark.line + 1 if exc.problem_mark else 1
        raise FaultyFileError(path, [Fault(line, f"not valid YAML: {exc.problem or exc}")]) from exc
    except (yaml.YAMLError, ValueError, RecursionError) as exc:
        raise FaultyFileError(path, [Fault(1, f"the file is not valid YAML: {exc}")]) from exc
    except (LookupError, TypeError, AttributeError) as exc:  # of PyYAML, for example `!!bool foo`
        raise FaultyFileError(path, [Fault(1, "a value does not fit its YAML tag")]) from exc
    faults += _faults(plain, root)
    if faults:
        raise FaultyFileError(path, sorted(faults, key=lambda fault: fault.line))
    return parse(plain)


def _faults(plain: Any, root: yaml.Node | None) -> Iterator[Fault]:
    """Yield the first fault of each group and source, or else the first one of the whole file."""
    sources, groups = (
        plain.get(key) if isinstance(plain, dict) else None for key in (_LIST, _GROUPS)
    )
    group_faults = list(_group_faults(groups, root))
    yield from group_faults
    are_sound = not group_faults
    for index, source in enumerate(sources if isinstance(sources, list) else ()):
        try:
            msgspec.convert(source, Source)
        except msgspec.ValidationError as exc:
            are_sound = False
            yield _fault(str(exc), root, f".{_LIST}[{index}]")
    if not are_sound:
        return
    try:
        parse(plain)
    except SourcesError as exc:
        yield _repetition(str(exc), sources, root) or _fault(str(exc), root)


def _group_faults(groups: Any, root: yaml.Node | None) -> Iterator[Fault]:
    for name, labels in groups.items() if isinstance(groups, dict) else ():
        try:
            msgspec.convert({name: labels}, Groups)
        except msgspec.ValidationError as exc:
            match = _PATH.search(str(exc))
            is_key = match and match["key"]
            subject = f"a key of {_GROUPS}" if is_key else f"{_GROUPS}.{name}"
            message = in_words(_PATH.sub("", str(exc)), subject)
            yield Fault(_line(root, f"$.{_GROUPS}", str(name)), message)


def _repetition(message: str, sources: Any, root: yaml.Node | None) -> Fault | None:
    """Return the fault of the second source with the id or prefix of another source."""
    seen: dict[str, int] = {}
    for index, plain in enumerate(sources if isinstance(sources, list) else ()):
        source = msgspec.convert(plain, Source)
        path = f"$.{_LIST}[{index}]"
        for key in (f"id {source.id}", f"prefix {source.uri}"):
            if key in seen:
                text = f"the source in line {seen[key]} has the same {key}"
                return Fault(_line(root, path), text)
            seen[key] = _line(root, path)
    return None


def _fault(message: str, root: yaml.Node | None, prefix: str = "") -> Fault:
    """Return a fault with the line of msgspec's path. The path is inside of `prefix`."""
    path, of = "$", ""
    if match := _PATH.search(message):
        path, message = match["path"], message[: match.start()]
        of = "a key of " if match["key"] else ""
    if match := _RULE_PATH.match(message):
        path, message = f"{path}.{match['path']}", message[match.end() :]
    path = f"${prefix}{path[1:]}"
    field = _UNKNOWN_FIELD.search(message)
    line = _line(root, path, field[1] if field else None)
    return Fault(line, in_words(message, of + (path[2:] or "the file")))


def _line(root: yaml.Node | None, path: str, key: str | None = None) -> int:
    """Return the line of the node at a path, or of its key, counted from 1."""
    node, line = root, 1
    for name, index in [*_STEP.findall(path), *([(key, "")] if key else [])]:
        if node is None:
            break
        line = node.start_mark.line + 1
        if isinstance(node, yaml.MappingNode) and name:
            pairs = {pair[0].value: pair for pair in node.value}
            if name not in pairs:
                return line
            line, node = pairs[name][0].start_mark.line + 1, pairs[name][1]
        elif isinstance(node, yaml.SequenceNode) and index and int(index) < len(node.value):
            node = node.value[int(index)]
            line = node.start_mark.line + 1
        else:
            break
    return line


def _repeated_keys(root: yaml.Node | None) -> Iterator[Fault]:
    """Yield the keys that a mapping has twice: YAML's loader would silently take the last one."""
    nodes, visited = [root], set()
    while nodes:
        node = nodes.pop()
        # Aliases let a small file have an endless or a huge number of nodes.
        if not isinstance(node, yaml.CollectionNode) or id(node) in visited:
            continue
        visited.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            nodes += node.value
            continue
        seen = set()
        for key, value in node.value:
            nodes.append(value)
            if not isinstance(key, yaml.ScalarNode):
                continue  # the loader refuses it, with its line
            if key.value in seen:
                yield Fault(
                    key.start_mark.line + 1, f"the key {key.value} occurs twice in one mapping"
                )
            seen.add(key.value)
