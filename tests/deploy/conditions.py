"""Evaluates IAM conditions as Google does: with CEL, the Common Expression Language.

https://cloud.google.com/iam/docs/conditions-attribute-reference has the attributes of a resource.
"""

import celpy
from celpy.adapter import json_to_cel


def allows(expression: str, *, name: str, kind: str = "", service: str = "") -> bool:
    """Return whether a condition lets a role apply to a resource.

    Args:
        expression: of the condition, as Terraform passes it to Google.
        name: the full name, for example `projects/_/buckets/uploads/objects/smoke/1.jpg`.
        kind: `resource.type`, for example `storage.googleapis.com/Object`.
        service: `resource.service`, for example `storage.googleapis.com`.

    Raises:
        celpy.CELParseError: the expression is malformed.
        celpy.CELEvalError: it cannot be evaluated, for example because an attribute is unknown.
    """
    environment = celpy.Environment()
    program = environment.program(environment.compile(expression))
    resource = {"name": name, "type": kind, "service": service}
    return bool(program.evaluate({"resource": json_to_cel(resource)}))
