"""What `allows` does with a faulty condition. test_module.py evaluates those of the module."""

import pytest
from celpy.celparser import CELParseError
from celpy.evaluation import CELEvalError

from tests.deploy.conditions import allows


def test_condition_with_an_error_raises() -> None:
    with pytest.raises(CELParseError):
        allows('resource.name.startsWith("a"', "a")
    with pytest.raises(CELEvalError):
        allows('resource.nmae == "a"', "a")
    with pytest.raises(CELEvalError):
        allows('resuorce.name == "a"', "a")
