"""The simulation of docs/explanation/scaling.md: what holds for every load, and known limits."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from devtools.cli.main import main
from devtools.simulation.assumptions import CPU, GPU, Instance, Platform, Push, table
from devtools.simulation.check import Calibration, Load, simulate
from devtools.simulation.model import Result, Simulation
from devtools.simulation.report import burst, poisson, quantiles, steady, steady_table

PAGE = Path("docs/explanation/scaling.md")
PUSH = Push()
ONE = Platform(max_instances=1, min_instances=1)
#: Without randomness and start, to compare with arithmetic.
PLAIN = replace(CPU, spread=0.0, start_seconds=0.0, start_cpu_seconds=0.0)


def run(
    arrivals: Sequence[float],
    instance: Instance = CPU,
    platform: Platform | None = None,
    push: Push = PUSH,
    until: float = math.inf,
) -> Result:
    return Simulation(arrivals, instance, platform or Platform(), push).run(until)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


@pytest.mark.parametrize("until", [5.0, 60.0, math.inf])
@pytest.mark.parametrize("instance", [CPU, GPU], ids=["cpu", "gpu"])
def test_each_upload_is_done_dead_or_left(instance: Instance, until: float) -> None:
    push = replace(PUSH, attempts=3)
    arrivals = [index / 1000 for index in range(5000)]
    result = run(arrivals, instance, Platform(max_instances=1), push, until)
    assert result.done == len(result.latencies) == len(set(result.arrived))
    assert result.done + result.dead + result.left == len(arrivals)
    assert min(result.done, result.dead, result.left) >= 0
    if until == math.inf:
        assert result.left == 0


def test_a_seed_gives_the_same_run() -> None:
    arrivals = poisson(50, 2000, seed=1)
    first, second = (Simulation(arrivals, CPU, Platform(), PUSH, seed=7).run() for _ in range(2))
    other = Simulation(arrivals, CPU, Platform(), PUSH, seed=8).run()
    assert first == second
    assert first.latencies != other.latencies


def test_a_single_image_takes_its_own_time() -> None:
    result = run([1.0], PLAIN, ONE)
    expected = PUSH.delivery_seconds + (CPU.cpu_ms + CPU.wait_ms) / 1000
    assert result.latencies[0] == pytest.approx(expected)


def test_a_cold_start_adds_the_start_time() -> None:
    cold = run([1.0], replace(PLAIN, start_seconds=5.0))
    warm = run([1.0], PLAIN, ONE)
    assert cold.latencies[0] - warm.latencies[0] == pytest.approx(5.0)


def test_low_load_adds_little_to_the_time_of_an_image() -> None:
    result = run(poisson(5, 2000, seed=3), PLAIN, ONE)
    alone = PUSH.delivery_seconds + (CPU.cpu_ms + CPU.wait_ms) / 1000
    assert quantiles(result.latencies)[0] == pytest.approx(alone, rel=0.02)
    assert mean(result.latencies) < 1.1 * alone


def test_littles_law_holds_at_a_constant_rate() -> None:
    rate, seconds = 60.0, 400.0
    result = run(poisson(rate, int(rate * seconds), seed=5), CPU, Platform(min_instances=3))
    settled = [sample for sample in result.samples if 100 < sample.elapsed < seconds - 10]
    # A sample counts an upload from its first delivery on, after delivery_seconds.
    time = mean([s for a, s in zip(result.arrived, result.latencies, strict=True) if a > 100])
    waiting = mean([sample.waiting for sample in settled])
    assert waiting == pytest.approx(rate * (time - PUSH.delivery_seconds), rel=0.1)


@pytest.mark.parametrize("instances", [1, 2, 5])
def test_instances_bound_the_throughput(instances: int) -> None:
    result = run([0.0] * 10_000, CPU, Platform(max_instances=instances, min_instances=instances))
    capacity = instances * CPU.vcpu * 1000 / CPU.cpu_ms
    assert result.max_instances == instances
    assert 0.85 * capacity < result.done / result.ended < 1.02 * capacity


def test_one_python_process_bounds_the_throughput() -> None:
    instance = replace(CPU, vcpu=8, slots=32)
    result = run([0.0] * 5000, instance, ONE)
    assert result.done / result.ended < 1.02 * 1000 / CPU.serial_ms < 8 * 1000 / CPU.cpu_ms


def test_batches_of_a_gpu_raise_the_throughput() -> None:
    gpu = replace(GPU, serial_ms=0.0, cpu_ms=1.0, image_ms=2.0, batch_ms=30.0)
    rates = [
        result.done / result.ended
        for batch in (1, 32)
        for result in (run([0.0] * 5000, replace(gpu, batch=batch), ONE),)
    ]
    assert rates[0] < 1000 / 32 * 1.02
    assert 5 * rates[0] < rates[1] < 1000 / 2


def test_more_instances_never_drain_a_burst_later() -> None:
    drained = [
        burst(20_000, limit, CPU, Platform(), PUSH, seed=26).drained for limit in (1, 2, 5, 20, 80)
    ]
    assert drained == sorted(drained, reverse=True)
    assert drained[0] > 5 * drained[-1]


def test_no_more_instances_than_allowed() -> None:
    result = run([0.0] * 5000, CPU, Platform(max_instances=3))
    assert result.max_instances == 3
    assert max(sample.instances for sample in result.samples) == 3


def test_an_idle_instance_is_removed() -> None:
    instance = replace(CPU, idle_seconds=60.0)
    result = run([0.0, 0.1, 200.0], instance, Platform())
    assert {sample.instances for sample in result.samples if 100 < sample.elapsed < 190} == {0}
    kept = run([0.0, 0.1, 200.0], instance, Platform(min_instances=1))
    assert {sample.instances for sample in kept.samples} == {1}


def test_a_full_queue_of_cloud_run_is_rejected_and_retried() -> None:
    result = run([0.0] * 5000, CPU, ONE)
    assert result.rejected > 0
    assert result.deliveries == result.done + result.rejected == 5000 + result.rejected


def test_messages_become_dead_letters_after_their_attempts() -> None:
    # An image takes longer than its deadline, so every delivery fails.
    slow, push = replace(PLAIN, wait_ms=20_000.0), replace(PUSH, deadline_seconds=5.0, attempts=4)
    result = run([0.0, 1.0], slow, ONE, push)
    assert (result.done, result.dead, result.deliveries) == (0, 2, 8)
    # Back-off of 10, 20 and 40 s between four deliveries of 5 s each.
    assert result.ended > 10 + 20 + 40 + 4 * 5


def test_the_push_window_starts_small() -> None:
    def in_flight_share(push: Push) -> float:
        return run([0.0] * 400, CPU, Platform(max_instances=20, min_instances=20), push).ended

    assert in_flight_share(PUSH) > in_flight_share(replace(PUSH, first_window=400))


def test_full_window_grows_while_responses_are_fast() -> None:
    small = replace(PUSH, full_window=8)
    never = replace(small, slow_seconds=0)  # no response is as fast as that
    platform = Platform(max_instances=20, min_instances=20)
    growing, full = (run([0.0] * 3000, PLAIN, platform, push) for push in (small, never))
    assert max(growing.latencies) < max(full.latencies)


def test_only_busy_time_is_billed_without_a_gpu() -> None:
    result = run([0.0, 100.0], PLAIN, ONE)
    each = (CPU.cpu_ms + CPU.wait_ms) / 1000
    assert result.billed_seconds == pytest.approx(2 * each)
    idle = run([0.0, 100.0], replace(PLAIN, is_billed_idle=True, idle_seconds=600.0), ONE)
    assert idle.billed_seconds == pytest.approx(100 + PUSH.delivery_seconds + each + 600)


def test_cost_of_a_million_is_the_billed_time() -> None:
    row = steady(100, CPU, Platform(max_instances=100), PUSH, seconds=200, seed=26)
    # At least the CPU time, at most the CPU time at half of the target, with the fee per request.
    least = CPU.cpu_ms / 1000 * (0.000024 + 0.0000025) * 1e6 + 0.40
    assert least < row.usd_per_million < 2 / 0.6 * least


def test_calibration_gives_the_measured_capacity_and_latency() -> None:
    single = Load([float(i) for i in range(10)], [0.050] * 10, 20.0)
    saturated = Load([0.0] * 100, [i / 40 for i in range(1, 101)], 20.0)
    instance = Calibration.of([single], [saturated]).instance(cores=2)
    burst_load = simulate(Load([0.0] * 400, [1.0] * 400, 20.0), instance, seed=1)
    assert burst_load.per_second == pytest.approx(saturated.per_second, rel=0.1)
    alone = simulate(Load([0.0], [1.0], 20.0), instance, seed=1)
    assert alone.latencies[0] == pytest.approx(0.050, rel=0.1)


def test_page_has_the_assumptions_and_their_sources() -> None:
    assert table() in PAGE.read_text(encoding="utf-8")


def test_page_has_a_row_that_the_command_prints() -> None:
    row = steady(10, CPU, Platform(max_instances=10_000), PUSH, seconds=300, seed=26)
    assert steady_table([row]).splitlines()[-1] in PAGE.read_text(encoding="utf-8")


def test_command_takes_own_figures(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ["simulate", "--rates", "5", "--burst", "50", "--seconds", "20"]
    arguments += ["--set", "cpu_ms=100", "--set", "gpu.image_ms=3", "--plots", str(tmp_path)]
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 0
    assert capsys.readouterr().out.count("a burst of 50 uploads") == 2
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "scaling-burst.png",
        "scaling-steady.png",
    ]


@pytest.mark.parametrize(
    "wrong",
    ["--set=speed=3", "--set=cpu_ms=fast", "--set=cpu_ms", "--set=name=5", "--set=gpu.target=1"]
    + ["--set=cpu_ms=nan", "--set=cpu_ms=-5", "--set=vcpu=inf", "--set=slots=0", "--set=slots=0.5"]
    + [
        "--set=evaluation_seconds=0",
        "--seconds=nan",
        "--seconds=inf",
        "--rates=0,1",
        "--rates=nan",
    ],
)
def test_command_refuses_what_cannot_be_simulated(wrong: str) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["simulate", "--rates", "1", "--burst", "1", "--seconds", "10", wrong])
    assert exit_.value.code == 2


def test_directory_is_created_before_the_simulation(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    arguments = ["simulate", "--rates", "1", "--burst", "1", "--seconds", "10"]
    with pytest.raises(SystemExit) as exit_:
        main([*arguments, "--plots", str(tmp_path / "file" / "plots")])
    assert exit_.value.code
    assert "images/s" not in capsys.readouterr().err


def test_message_can_be_delivered_more_than_255_times() -> None:
    push = replace(PUSH, attempts=300, longest_backoff_seconds=10)
    result = run([0.0], CPU, Platform(max_instances=0), push)
    assert (result.dead, result.rejected) == (1, 300)
