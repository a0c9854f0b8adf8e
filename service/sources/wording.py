"""msgspec's messages about sources, in the words of a person who writes YAML."""

import re
from collections.abc import Callable, Iterable, Mapping

from service.derived import NormalizedFormat, RedactionMode
from service.domain import Severity
from service.sources.schema import Anchor, Mode

_KINDS = {
    "str": "text",
    "float": "a number",
    "int": "a number",
    "bool": "true or false",
    "array": "a list",
    "object": "a mapping",
    "null": "empty",
}
_LIMITS = {"<=": "at most", ">=": "at least", "<": "less than", ">": "more than"}
_FORMS = {
    "bucket": "the name of a bucket, without gs://",
    "between": 'two local times, for example "22:00-06:00"',
}
_NAME = "1 to 63 lower-case letters, digits or hyphens"  # the form of all other patterns
_CHOICES: Mapping[str, Iterable[str]] = {
    "redacted.mode": RedactionMode,  # before the mode of a zone
    "mode": Mode,
    "anchor": Anchor,
    "model": ("default",),
    "severity": Severity,
    "format": NormalizedFormat,
}


def in_words(message: str, subject: str) -> str:
    """Return what is wrong as a sentence, or the message with its subject if it is not known.

    Args:
        message: msgspec's message, without the path at its end.
        subject: what is wrong, for example `sources[1].min_confidence`.
    """
    for pattern, words in _WORDS.items():
        if match := re.fullmatch(pattern, message):
            return words(match, subject)
    return f"{message} ({subject})"


def _kinds(text: str) -> str:
    return " or ".join(_KINDS.get(kind, kind) for kind in text.split(" | "))


def _length(match: re.Match[str], subject: str) -> str:
    if match[2] == ">=" and match[3] == "1":
        return f"{subject} must not be empty"
    unit = "characters" if match[1] == "str" else "elements"
    return f"{subject} must have {_LIMITS[match[2]]} {match[3]} {unit}"


def _choice(match: re.Match[str], subject: str) -> str:
    choices = next(_CHOICES[name] for name in _CHOICES if f".{subject}".endswith(f".{name}"))
    return f"{subject} must be {' or '.join(choices)}, not {match[1]}"


_WORDS: Mapping[str, Callable[[re.Match[str], str], str]] = {
    r"Object contains unknown field `(.+)`": lambda match, subject: (
        f"unknown field `{match[1]}` in {subject}"
    ),
    r"Object missing required field `(.+)`": lambda match, subject: (
        f"{subject} lacks the field `{match[1]}`"
    ),
    r"Expected `\w+` ([<>]=?) (-?[\d.]+)": lambda match, subject: (
        f"{subject} must be {_LIMITS[match[1]]} {float(match[2]):.15g}"
    ),
    r"Expected `(\w+)` of length ([<>]=?) (\d+)": _length,
    r"Expected `array` of length (\d+), got (\d+)": lambda match, subject: (
        f"{subject} must have {match[1]} elements, not {match[2]}"
    ),
    r"Expected `str` matching regex .+ud800.+": lambda match, subject: (
        f"{subject} must be valid Unicode"
    ),
    r"Expected `str` matching regex .+": lambda match, subject: (
        f"{subject} must be {_FORMS.get(subject.rpartition('.')[2], _NAME)}"
    ),
    r"Expected `int( \| null)?`, got `float`": lambda match, subject: (
        f"{subject} must be a whole number"
    ),
    r"Expected `(.+)`, got `(.+)`": lambda match, subject: (
        f"{subject} must be {_kinds(match[1])}, not {_kinds(match[2])}"
    ),
    r"Invalid enum value '(.*)'": _choice,
}
