"""Evaluates IAM conditions as Google does: with CEL, the Common Expression Language."""

import celpy
from celpy.adapter import json_to_cel


def allows(expression: str, name: str) -> bool:
    """Return whether a condition lets a role apply to a resource.

    Args:
        expression: of the condition, as Terraform passes it to Google.
        name: the full name, for example `projects/_/buckets/uploads/objects/smoke/1.jpg`. A
            condition may use no other attribute.

    Raises:
        celpy.CELParseError: the expression is malformed.
        celpy.CELEvalError: it cannot be evaluated, for example because an attribute is unknown.
    """
    environment = celpy.Environment()
    program = environment.program(environment.compile(expression))
    return bool(program.evaluate({"resource": json_to_cel({"name": name})}))
