"""The memory plan, and its comparison with the instance's memory."""

import logging
import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from service import memory
from service.derived import LARGEST_OPTIONS
from service.errors import ModelError
from service.images.decoders import BYTES_PER_PIXEL
from service.inference.loading import load_detector
from service.memory import MemoryPlan, fit_into_memory, plan_memory
from service.settings import BUNDLED_MODEL, Settings
from tests.task_models import write_model

SETTINGS = Settings()
DETECTOR = load_detector(BUNDLED_MODEL, streams=2)
MB = 10**6


@pytest.fixture
def instance(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(memory, "cores", lambda: 2)
    return monkeypatch


def given(instance: pytest.MonkeyPatch, available: int) -> Settings:
    instance.setattr(memory, "memory_bytes", lambda: available)
    return fit_into_memory(SETTINGS, DETECTOR)


def total(settings: Settings) -> int:
    return plan_memory(settings, DETECTOR).total


def test_total_is_the_sum_of_all_parts() -> None:
    parts = [field.name for field in fields(MemoryPlan)]
    plan = MemoryPlan(**{name: 10**number for number, name in enumerate(parts)})
    assert str(plan.total) == "1" * len(parts)
    assert all(name in str(plan) for name in parts)


@pytest.mark.parametrize(
    ("change", "part", "more"),
    [
        ({"max_buffered_bytes": SETTINGS.max_buffered_bytes + 5}, "buffered", 5),
        ({"max_image_pixels": SETTINGS.max_image_pixels + 1}, "large_file", BYTES_PER_PIXEL),
        ({"max_in_flight": SETTINGS.max_in_flight + 1}, "in_flight", 3 * 320 * 320),
    ],
    ids=["buffered", "pixels", "in-flight"],
)
def test_each_limit_is_part_of_the_plan(
    instance: pytest.MonkeyPatch, change: dict[str, Any], part: str, more: int
) -> None:
    before = plan_memory(SETTINGS, DETECTOR)
    after = plan_memory(replace(SETTINGS, **change), DETECTOR)
    assert getattr(after, part) - getattr(before, part) == more
    assert after.total - before.total == more


def test_largest_file_counts_wherever_it_may_be(instance: pytest.MonkeyPatch) -> None:
    larger = replace(SETTINGS, max_image_bytes=SETTINGS.max_image_bytes + 1)
    more = plan_memory(larger, DETECTOR).total - plan_memory(SETTINGS, DETECTOR).total
    assert more == 2 + 2  # shared memory of two decoders, and twice for a large file
    one = replace(SETTINGS, max_buffered_bytes=1)
    assert plan_memory(one, DETECTOR).buffered == SETTINGS.max_image_bytes


def test_derived_images_are_part_of_the_plan(instance: pytest.MonkeyPatch) -> None:
    """In the decoders' shared memory they take the place of pixels."""
    plain = plan_memory(SETTINGS, DETECTOR)
    derived = plan_memory(replace(SETTINGS, results_bucket="results"), DETECTOR)
    more = LARGEST_OPTIONS.max_output_bytes - 3 * 320 * 320
    assert derived.decoders - plain.decoders == 2 * more
    assert derived.derived == LARGEST_OPTIONS.max_output_bytes and plain.derived == 0
    assert derived.large_file == plain.large_file  # decoding needs more than rendering
    assert derived.total - plain.total == 2 * more + derived.derived
    small = replace(SETTINGS, max_image_pixels=10**6)
    with_bucket = plan_memory(replace(small, results_bucket="results"), DETECTOR)
    assert with_bucket.large_file > plan_memory(small, DETECTOR).large_file


@pytest.mark.parametrize(("task", "is_more"), [("segment", True), ("detect", False)])
def test_messages_of_large_results_are_part_of_the_plan(
    instance: pytest.MonkeyPatch, tmp_path: Path, task: str, is_more: bool
) -> None:
    row = [[0.0] * {"segment": 9, "detect": 6}[task]]
    detector = load_detector(write_model(tmp_path / task, task, row, image_size=320), streams=1)
    silent = plan_memory(SETTINGS, detector)
    published = plan_memory(replace(SETTINGS, results_topic="results"), detector)
    assert (published.in_flight > silent.in_flight) is is_more
    assert (published.in_flight == 5_000_000 * SETTINGS.max_in_flight) is is_more


def test_fewer_decoders_need_less_memory(instance: pytest.MonkeyPatch) -> None:
    one = plan_memory(replace(SETTINGS, decoders=1), DETECTOR)
    assert 2 * one.decoders == plan_memory(SETTINGS, DETECTOR).decoders
    assert one.base < plan_memory(SETTINGS, DETECTOR).base


def test_each_stream_adds_to_the_models_memory(instance: pytest.MonkeyPatch) -> None:
    one = plan_memory(SETTINGS, load_detector(BUNDLED_MODEL, streams=1)).model
    assert plan_memory(SETTINGS, DETECTOR).model > one > 7 * 20 * MB


def test_task_decides_on_the_models_memory(instance: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows: dict[str, Any] = {"detect": [[0.0] * 6], "segment": [[0.0] * 9], "classify": [1, 0, 0]}
    bytes_by_task = {}
    for task, row in rows.items():
        path = write_model(tmp_path / task, task, row, image_size=640)
        settings = replace(SETTINGS, model_path=path)
        bytes_by_task[task] = plan_memory(settings, load_detector(path, streams=1)).model
    assert bytes_by_task["segment"] > bytes_by_task["detect"] > bytes_by_task["classify"]


def test_other_runtimes_count_with_their_resident_memory(
    instance: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    instance.setattr(memory, "_resident_bytes", lambda: 1000 * MB)
    settings = replace(SETTINGS, model_path=tmp_path / "weights.pt")
    plan = plan_memory(settings, DETECTOR)
    assert plan.model + memory._BASE_BYTES == 1000 * MB


def test_settings_stay_where_memory_suffices(
    instance: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert given(instance, total(SETTINGS)) is SETTINGS
    assert caplog.records == []


def test_buffered_bytes_are_lowered_to_what_fits(
    instance: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    available = total(SETTINGS) - 50 * MB
    settings = given(instance, available)
    assert settings == replace(SETTINGS, max_buffered_bytes=SETTINGS.max_buffered_bytes - 50 * MB)
    assert total(settings) == available
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == "Lowered MAX_BUFFERED_BYTES to fit the memory"
    assert "buffered 117" in vars(record)["plan"]


def test_one_image_can_always_be_buffered(
    instance: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    missing = 300 * MB
    settings = given(instance, total(SETTINGS) - missing)
    assert settings.max_buffered_bytes == SETTINGS.max_image_bytes
    left = missing - (SETTINGS.max_buffered_bytes - SETTINGS.max_image_bytes)
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert f"{math.ceil(left / MB)} MB of memory are missing" in record.getMessage()
    assert "MAX_IMAGE_PIXELS" in record.getMessage()


def test_a_lower_limit_of_the_user_is_never_raised(instance: pytest.MonkeyPatch) -> None:
    instance.setattr(memory, "memory_bytes", lambda: total(SETTINGS) // 2)
    low = replace(SETTINGS, max_buffered_bytes=1000)
    assert fit_into_memory(low, DETECTOR).max_buffered_bytes == 1000


def test_model_that_does_not_fit_is_an_error(instance: pytest.MonkeyPatch) -> None:
    plan = plan_memory(SETTINGS, DETECTOR)
    with pytest.raises(ModelError, match="INFERENCE_STREAMS"):
        given(instance, plan.base + plan.model - 1)
    assert given(instance, plan.base + plan.model)
