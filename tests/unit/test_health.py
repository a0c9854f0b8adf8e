"""Health detects hanging work and a model that always fails, and is not confused by a pause."""

from contextlib import ExitStack, suppress

import pytest

from service.errors import BadImageError, DecoderUnavailableError, DetectorError, TooLateError
from service.health import Health

HANG = 300.0
PERIOD = 60.0  # seconds between probes


class Clock:
    """A monotonic clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("service.health.time", clock)
    return clock


@pytest.fixture
def health(clock: Clock) -> Health:
    return Health(hang_timeout_seconds=HANG, max_failures=3, max_probe_seconds=PERIOD)


def probe_for(health: Health, clock: Clock, seconds: float) -> str | None:
    problem = None
    for _ in range(int(seconds / PERIOD)):
        clock.now += PERIOD
        problem = health.probe()
    return problem


def fail(health: Health, document_id: str, error: Exception | None = None) -> None:
    with suppress(DetectorError, TooLateError), health.model_call(document_id):
        raise error or DetectorError("The model failed.")


def test_work_that_lasts_longer_than_the_timeout_hangs(health: Health, clock: Clock) -> None:
    with health.work():
        assert probe_for(health, clock, HANG) is None
        assert probe_for(health, clock, PERIOD) == "Work has hung for more than 300 s."
    assert health.probe() is None


def test_much_work_in_a_row_is_no_hang(health: Health, clock: Clock) -> None:
    for _ in range(100):
        with health.work():
            assert probe_for(health, clock, HANG) is None


def test_the_oldest_work_counts(health: Health, clock: Clock) -> None:
    with ExitStack() as works:
        works.enter_context(health.work())
        assert probe_for(health, clock, HANG) is None
        works.enter_context(health.work())
        assert probe_for(health, clock, PERIOD)
        works.pop_all().close()
    assert health.probe() is None


def test_work_started_between_probes_counts_from_its_start(health: Health, clock: Clock) -> None:
    probe_for(health, clock, PERIOD)
    clock.now += PERIOD - 1
    with health.work():
        clock.now += 1
        assert health.probe() is None
        assert probe_for(health, clock, HANG - PERIOD) is None
        clock.now += PERIOD - 1
        assert health.probe() is None
        clock.now += 1.5
        assert health.probe()


@pytest.mark.parametrize("pause", [HANG + 1, 3600.0, 1e6])
def test_a_stopped_process_does_not_hang_when_it_resumes(
    health: Health, clock: Clock, pause: float
) -> None:
    with health.work():
        probe_for(health, clock, PERIOD)
        clock.now += pause
        assert health.probe() is None
        assert probe_for(health, clock, HANG - 2 * PERIOD) is None
        assert probe_for(health, clock, PERIOD)  # it still hangs after the pause


def test_work_started_after_a_pause_hangs_a_probe_later(health: Health, clock: Clock) -> None:
    clock.now += 3600
    with health.work():
        assert probe_for(health, clock, HANG + PERIOD) is None
        assert probe_for(health, clock, PERIOD)


def test_more_probes_do_not_make_time_pass_faster(health: Health, clock: Clock) -> None:
    with health.work():
        for _ in range(int(HANG)):
            clock.now += 1
            assert [health.probe() for _ in range(3)] == [None] * 3
        clock.now += 1
        assert health.probe()


def test_a_model_that_fails_on_different_images_is_unhealthy(health: Health) -> None:
    fail(health, "a")
    fail(health, "b")
    assert health.probe() is None
    fail(health, "c")
    fail(health, "d")
    assert health.probe() == "The model failed on 3 different images in a row."


def test_one_image_that_always_fails_is_healthy(health: Health) -> None:
    for _ in range(50):
        fail(health, "a")
    assert health.probe() is None


def test_a_success_forgives_earlier_failures(health: Health) -> None:
    for name in "abc":
        fail(health, name)
    with health.model_call("d"):
        pass
    assert health.probe() is None


@pytest.mark.parametrize(
    ("last", "is_healthy"),
    [(DecoderUnavailableError("No memory."), False), (BadImageError.corrupt("Damaged."), True)],
    ids=["no decoder", "bad file"],
)
def test_decoders_that_fail_on_different_images_are_unhealthy(
    health: Health, last: Exception, is_healthy: bool
) -> None:
    for name, error in {
        "a": DecoderUnavailableError("a"),
        "b": DecoderUnavailableError("b"),
        "c": last,
    }.items():
        with pytest.raises(type(error)), health.decoder_call(name):
            raise error
    assert health.probe() == (
        None if is_healthy else "The decoders failed on 3 different images in a row."
    )


def test_errors_that_are_not_the_models_do_not_count(health: Health) -> None:
    for name in "abc":
        with pytest.raises(TooLateError), health.model_call(name):
            raise TooLateError
    assert health.probe() is None
