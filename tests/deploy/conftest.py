"""Fixtures that several files share, because an apply takes long."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.deploy.standin import DEPLOYED, PATIENCE_SECONDS, Applied, Run, terraform


@pytest.fixture(scope="session")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a deployment of `DEPLOYED`. Tests that change it copy it first."""
    state = tmp_path_factory.mktemp("deployment")
    run = terraform("apply", "-auto-approve", variables=DEPLOYED, state=state)
    assert run.returncode == 0, run.output
    return state


@pytest.fixture(scope="session")
def applied(deployment: Path) -> Applied:
    """Return what the apply of `deployment` left."""
    return Applied(deployment)


@pytest.fixture(scope="session")
def tear_down(
    deployment: Path, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, tuple[Run, Path]]:
    """Tear down a deployment. Return the run and the folder after each step, by name.

    The steps are `refused`, a destroy of protected data, then `unprotected`, an apply, which also
    sets a TTL and removes an index, then `destroyed`.
    """
    unprotected = DEPLOYED | {"protect_data": False, "results_ttl_days": 30, "indexed_fields": []}
    steps: dict[str, tuple[Run, Path]] = {}
    before = deployment
    for name, command, variables in (
        ("refused", "destroy", DEPLOYED),
        ("unprotected", "apply", unprotected),
        ("destroyed", "destroy", unprotected),
    ):
        state = tmp_path_factory.mktemp(name) / "state"
        shutil.copytree(before, state, symlinks=True)
        steps[name] = terraform(command, "-auto-approve", variables=variables, state=state), state
        before = state
    return steps


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give these tests as long as the fake of the provider may take, with their fixtures."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.timeout(PATIENCE_SECONDS))
