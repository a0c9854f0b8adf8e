"""Conditions of IAM grants let through what they should, and nothing else."""

import pytest
from celpy.celparser import CELParseError
from celpy.evaluation import CELEvalError

from tests.deploy.conditions import allows


def test_condition_with_an_error_is_no_answer() -> None:
    with pytest.raises(CELParseError):
        allows('resource.name.startsWith("a"', name="a")
    with pytest.raises(CELEvalError):
        allows('resource.nmae == "a"', name="a")
    with pytest.raises(CELEvalError):
        allows('resuorce.name == "a"', name="a")


def test_condition_reads_name_type_and_service() -> None:
    expression = 'resource.type == "t" && resource.service == "s" && resource.name == "n"'
    assert allows(expression, name="n", kind="t", service="s")
    assert not allows(expression, name="n", kind="t", service="other")
