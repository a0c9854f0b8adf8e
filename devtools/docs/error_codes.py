"""The reference of error codes, outcomes, exceptions and image formats."""

import ast
import inspect
import textwrap

from devtools.docs.markdown import code, codes, first_paragraph, table
from service import errors
from service.domain import ErrorCode, Outcome
from service.images.formats import FORMATS

# Exceptions that are not returned as an error response, and what they lead to.
_ELSEWHERE = {
    errors.SettingsError: "the process does not start",
    errors.CredentialsError: "the process does not start",
    errors.ModelError: "the process does not start",
    errors.SourcesError: "`yolo-batch sources` fails, and the service uses the last good sources",
    errors.StoredResultError: "`yolo-batch sources preview` counts the document as unreadable",
    errors.FaintBytesError: "`yolo-batch sources preview` counts the document as unreadable",
    errors.ResultObjectError: "`yolo-batch results` prints the document as it is in Firestore",
    errors.SmokeError: "`yolo-batch smoke` fails",
    errors.BadImageError: "204, after the image is recorded as failed",
    errors.DocumentKeptError: "204, the document stays",
    errors.NotAnImageError: "204, nothing is recorded",
    errors.ObjectGoneError: "204, nothing is recorded",
}


def describe() -> str:
    """Return a table of the codes that a failed or parked document can have."""
    rows = [(code(each), each.description, each.remedy) for each in ErrorCode]
    return table(("`error.code`", "meaning", "what to do"), rows)


def formats() -> str:
    """Return the names of the formats that are decoded."""
    return codes(FORMATS)


def outcomes() -> str:
    """Return a table of the outcomes. The meanings are the comments in the code."""
    meanings = _comments(Outcome)
    return table(("outcome", "meaning"), [(code(each), meanings[each.name]) for each in Outcome])


def internal_errors() -> str:
    """Return a table of the service's exceptions, and what each leads to."""
    from devtools.docs.http_contract import respond

    rows = []
    for error in all_errors():
        if error in _ELSEWHERE:
            effect = _ELSEWHERE[error]
        else:
            response = respond(error)
            effect = str(response.status_code)
        rows.append((code(error.__name__), effect, first_paragraph(error.__doc__)))
    return table(("exception", "leads to", "meaning"), rows)


def all_errors() -> list[type[errors.YoloBatchError]]:
    """Return every exception of the service, except the base classes."""
    bases = (errors.YoloBatchError, errors.TransientError)
    return [
        value
        for value in vars(errors).values()
        if isinstance(value, type)
        and issubclass(value, errors.YoloBatchError)
        and value not in bases
    ]


def request_errors() -> list[type[errors.YoloBatchError]]:
    """Return the exceptions that decide the status of a response."""
    return [error for error in all_errors() if error not in _ELSEWHERE]


def _comments(enum: type) -> dict[str, str]:
    """Return the comment at the end of each member's line, by the name of the member."""
    source = textwrap.dedent(inspect.getsource(enum))
    lines = source.splitlines()
    comments = {}
    [definition] = ast.parse(source).body
    assert isinstance(definition, ast.ClassDef)
    for node in definition.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            comment = lines[node.lineno - 1].partition("#")[2].strip()
            comments[node.targets[0].id] = comment[:1].upper() + comment[1:]
    return comments
