"""CPU seconds by stage."""

import time
from concurrent.futures import ThreadPoolExecutor

from service.stages import NO_CLOCK, StageClock


def burn(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def test_clock_counts_cpu_of_a_stage_and_not_what_it_waits() -> None:
    clock = StageClock()
    with clock.measure("work"):
        burn(0.05)
    with clock.measure("wait"):
        time.sleep(0.05)
    seconds = clock.seconds()
    assert seconds["work"] >= 0.05
    assert seconds["wait"] < seconds["work"]


def test_inner_stage_is_not_counted_for_the_outer_one() -> None:
    clock = StageClock()
    started = time.thread_time()
    with clock.measure("outer"):
        burn(0.02)
        for _ in range(3):
            with clock.measure("inner"):
                burn(0.02)
    spent = time.thread_time() - started
    seconds = clock.seconds()
    assert seconds["inner"] >= 0.06
    assert seconds["outer"] + seconds["inner"] <= spent


def test_stage_that_raises_is_counted() -> None:
    clock = StageClock()
    try:
        with clock.measure("work"):
            burn(0.01)
            raise ValueError
    except ValueError:
        pass
    assert clock.seconds()["work"] >= 0.01


def test_clock_adds_up_over_threads() -> None:
    clock = StageClock()

    def work(_: int) -> None:
        with clock.measure("work"):
            burn(0.01)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(8)))
    assert clock.seconds()["work"] >= 0.08


def test_no_clock_counts_nothing() -> None:
    with NO_CLOCK.measure("work"):
        burn(0.001)
    assert NO_CLOCK.seconds() == {}
