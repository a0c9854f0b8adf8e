"""The fuzzer's checks in every test run: on its seeds, earlier findings and changed seeds."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from devtools.fuzz.targets import TARGETS

FOUND = Path(__file__).parent / "found"  # TARGET-*: inputs that once broke a promise
SEEDS = {name: list(target.seeds()) for name, target in TARGETS.items()}
MAX_CHANGES = 4

seeded = settings(
    max_examples=200,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.parametrize("name", TARGETS)
def test_targets_pass_on_seeds_and_earlier_findings(name: str) -> None:
    findings = [file.read_bytes() for file in sorted(FOUND.glob(f"{name}-*"))]
    for data in SEEDS[name] + findings:
        TARGETS[name].check(data)


@st.composite
def changed(draw: st.DrawFn, name: str) -> bytes:
    """Draw a seed with some bytes replaced, removed, inserted or cut off."""
    data = bytearray(draw(st.sampled_from(SEEDS[name])))
    for _ in range(draw(st.integers(1, MAX_CHANGES))):
        offset = draw(st.integers(0, len(data)))
        data[offset : offset + draw(st.integers(0, 8))] = draw(st.binary(max_size=8))
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data)


@pytest.mark.parametrize("name", TARGETS)
def test_targets_pass_on_changed_seeds(name: str) -> None:
    @seeded
    @given(changed(name))
    def check(data: bytes) -> None:
        TARGETS[name].check(data)

    check()
