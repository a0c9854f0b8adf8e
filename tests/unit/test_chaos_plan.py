"""The plan of a chaos run: uploads, jobs and faults."""

import pytest

from devtools.chaos.plan import (
    PROCESS_FAULTS,
    SERVICES,
    Fate,
    FaultKind,
    Kind,
    Plan,
    Upload,
    _replaced,
    make_plan,
)


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan(60, 1)


def test_same_seed_makes_the_same_plan() -> None:
    assert make_plan(300, 7) == make_plan(300, 7)
    assert make_plan(300, 7) != make_plan(300, 8)


def test_seed_draws_the_number_of_services_unless_it_is_given() -> None:
    few, many = SERVICES
    assert {make_plan(60, seed).services for seed in range(60)} == set(range(few, many + 1))
    assert make_plan(60, 1, services=2).services == 2


def test_every_service_is_struck() -> None:
    plan = make_plan(400, 9)
    struck = {fault.service for fault in plan.faults if fault.kind in PROCESS_FAULTS}
    assert struck == set(range(plan.services))


def test_messages_are_events_and_jobs(plan: Plan) -> None:
    events = sum(len(upload.deliveries) for upload in plan.uploads)
    assert plan.messages == events + sum(len(job.uploads) * job.copies for job in plan.jobs)


@pytest.mark.parametrize("seed", range(1, 6))
def test_short_plan_has_every_kind_fate_and_fault(seed: int) -> None:
    plan = make_plan(60, seed)
    assert len(plan.uploads) == 60
    assert {upload.kind for upload in plan.uploads} == set(Kind)
    assert {upload.fate for upload in plan.uploads} == set(Fate)
    assert {fault.kind for fault in plan.faults} == set(FaultKind)
    assert {1, 2, 10} <= {len(upload.deliveries) for upload in plan.uploads}
    assert any(max(upload.deliveries, default=0) > 10 for upload in plan.uploads)


def test_most_uploads_are_good_and_delivered_once(plan: Plan) -> None:
    ordinary = [u for u in plan.uploads if u.kind is Kind.GOOD and u.deliveries == (0,)]
    assert len(ordinary) > 30


@pytest.mark.parametrize("seed", range(1, 6))
def test_jobs_name_uploads_without_and_some_with_an_event(seed: int) -> None:
    plan = make_plan(400, seed)
    lost = {upload.index for upload in plan.uploads if not upload.deliveries}
    named = [index for job in plan.jobs for index in job.uploads]
    assert len(plan.jobs) == 10
    assert lost < set(named)
    assert len(named) == len(set(named))
    assert {job.copies for job in plan.jobs} == {1, 2}
    for job in plan.jobs:
        assert max(job.uploads) <= job.after
        assert {plan.uploads[index].fate for index in job.uploads} == {Fate.KEPT}
        assert job in plan.jobs_after(job.after)


def test_short_plan_loses_an_event() -> None:
    assert any(not upload.deliveries for upload in make_plan(60, 1).uploads)


@pytest.mark.parametrize("seed", range(1, 30))
def test_generations_of_one_object_follow_each_other_and_differ(seed: int) -> None:
    uploads = make_plan(400, seed).uploads
    assert [upload.index for upload in uploads] == list(range(400))
    replacing = [upload for upload in uploads if upload.replaces is not None]
    assert len({upload.name for upload in uploads}) == 400 - len(replacing)
    for new in replacing:
        old = uploads[new.index - 1]
        assert (old.index, old.name) == (new.replaces, new.name)
        assert old.fate in (Fate.REPLACED, Fate.REPLACED_AT_ONCE)


def test_empty_object_does_not_replace_an_empty_one() -> None:
    """The relay could not distinguish their notifications."""
    empty = [Upload(index, f"{index}.jpg", Kind.EMPTY, 0) for index in range(2)]
    assert [upload.kind for upload in _replaced(*empty)] == [Kind.GOOD, Kind.EMPTY]


def test_every_fault_strikes_before_the_last_uploads(plan: Plan) -> None:
    assert all(0 <= fault.after < 54 for fault in plan.faults)
    in_order = [fault for upload in plan.uploads for fault in plan.faults_after(upload.index)]
    assert in_order == list(plan.faults)


def test_network_faults_strike_calls_and_others_services(plan: Plan) -> None:
    for fault in plan.faults:
        assert (fault.calls > 0) == (fault.kind not in PROCESS_FAULTS)
        assert fault.service in range(plan.services)


def test_faults_can_be_left_out() -> None:
    plan = make_plan(60, 1, without=[FaultKind.STOP, FaultKind.STORAGE_429])
    assert {f.kind for f in plan.faults} == set(FaultKind) - {
        FaultKind.STOP,
        FaultKind.STORAGE_429,
    }
    assert not make_plan(60, 1, without=list(FaultKind)).faults
