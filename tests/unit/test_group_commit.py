"""Group commit: results share commits, and one result's fault never fails another."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.concurrency.group_commit import GroupCommit
from service.deadline import NO_DEADLINE, Deadline
from service.errors import FirestoreUnavailableError, ShuttingDownError, TooLateError
from tests.fakes import PATIENCE_SECONDS, Gate, in_thread
from tests.loglines import logged_by


class Panic(BaseException):
    """Like PanicException of pyo3."""


class Store:
    """A store that records the committed groups, with a gate before each commit."""

    def __init__(self) -> None:
        self.gate = Gate()
        self.groups: list[list[str]] = []
        self.deadlines: list[Deadline] = []
        self.errors: dict[str, BaseException] = {}  # by result: the error of a group with it
        self.outcomes: dict[str, str | Exception] = {}
        self.missing = 0  # how many outcomes are missing for groups of two or more

    def commit(self, results: Sequence[str], deadline: Deadline) -> list[str | Exception]:
        self.groups.append(list(results))
        self.deadlines.append(deadline)
        self.gate.enter()
        for result in results:
            if result in self.errors:
                raise self.errors[result]
        outcomes = [self.outcomes.get(result, f"{result} recorded") for result in results]
        return outcomes[: len(outcomes) - self.missing * (len(outcomes) > 1)]


@pytest.fixture
def store() -> Iterator[Store]:
    store = Store()
    yield store
    store.gate.open()


def one_committer(
    commit: Callable[[Sequence[str], Deadline], Sequence[str | Exception]],
) -> GroupCommit[str, str]:
    """One committer, so that results which wait during a commit share the next one."""
    return GroupCommit(commit, committers=1)


def soon() -> Deadline:
    return Deadline.after(PATIENCE_SECONDS)


def start(
    commits: GroupCommit[str, str], result: str, deadline: Deadline | None = None
) -> "Future[str]":
    """Start a thread that commits. Return when the result waits or is in a group."""
    before = len(commits._workers._unsettled)
    future = in_thread(lambda: commits.commit(result, deadline or soon()))
    while not future.done() and len(commits._workers._unsettled) == before:
        threading.Event().wait(0.001)
    return future


def behind(
    store: Store, commits: GroupCommit[str, str], results: Iterable[str]
) -> "list[Future[str]]":
    """Queue results in this order while "first" is committed. The caller opens the gate."""
    store.gate.close()
    first = start(commits, "first")
    store.gate.wait_for_arrivals()
    return [first, *(start(commits, result) for result in results)]


def outcome(future: "Future[str]") -> str | BaseException:
    return future.exception(PATIENCE_SECONDS) or future.result()


def test_a_result_alone_is_committed_at_once(store: Store) -> None:
    assert one_committer(store.commit).commit("a", soon()) == "a recorded"


def test_results_ready_during_a_commit_share_the_next_one(store: Store) -> None:
    futures = behind(store, one_committer(store.commit), "abc")
    store.gate.open()
    assert [outcome(f) for f in futures] == [f"{r} recorded" for r in ["first", *"abc"]]
    assert store.groups == [["first"], ["a", "b", "c"]]


def test_a_group_has_a_maximum_size(store: Store) -> None:
    futures = behind(store, GroupCommit(store.commit, max_group_size=2, committers=1), "abc")
    store.gate.open()
    assert len([outcome(future) for future in futures]) == 4
    assert store.groups == [["first"], ["a", "b"], ["c"]]


def test_a_second_committer_does_not_wait_for_the_first(store: Store) -> None:
    commits = GroupCommit(store.commit, committers=2)
    [first] = behind(store, commits, [])
    store.gate.close(after=1)
    assert commits.commit("a", soon()) == "a recorded"
    assert not first.done()
    store.gate.open()
    assert outcome(first) == "first recorded"


def test_an_error_as_an_outcome_is_for_its_caller_alone(store: Store) -> None:
    store.outcomes["b"] = error = ValueError("refused")
    futures = behind(store, one_committer(store.commit), "abc")
    store.gate.open()
    assert [outcome(f) for f in futures[1:]] == ["a recorded", error, "c recorded"]


@pytest.mark.parametrize("raised", [ValueError("bad"), TimeoutError(), MemoryError(), Panic("x")])
def test_only_the_result_that_breaks_a_commit_fails(store: Store, raised: BaseException) -> None:
    store.errors["b"] = raised
    commits = one_committer(store.commit)
    futures = behind(store, commits, "abc")
    store.gate.open()
    _, a, b, c = map(outcome, futures)
    assert (a, c) == ("a recorded", "c recorded")
    assert isinstance(b, Exception) and raised in (b, b.__cause__)
    assert commits.commit("d", soon()) == "d recorded"  # the committer continues


def test_a_result_that_breaks_its_own_commit_is_committed_once(store: Store) -> None:
    store.errors["a"] = error = ValueError("bad")
    commits = one_committer(store.commit)
    with pytest.raises(ValueError, match="bad") as raised:
        commits.commit("a", soon())
    assert raised.value is error
    assert store.groups == [["a"]]


def test_an_unexpected_commit_error_is_logged_with_its_trace(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    store.errors["b"] = error = ValueError("bad")
    futures = behind(store, one_committer(store.commit), "ab")
    store.gate.open()
    assert outcome(futures[2]) is error
    lines = logged_by(caplog, "service.concurrency.group_commit")
    assert [line.getMessage() for line in lines] == [
        "A commit of 2 results failed",
        "A commit failed",
    ]
    assert all(line.exc_info and line.exc_info[1] is error for line in lines)


def test_a_wrong_number_of_outcomes_is_never_guessed_at(store: Store) -> None:
    store.missing = 1
    futures = behind(store, one_committer(store.commit), "abc")
    store.gate.open()
    assert [outcome(f) for f in futures[1:]] == ["a recorded", "b recorded", "c recorded"]
    assert store.groups[1:] == [["a", "b", "c"], ["a"], ["b"], ["c"]]


def test_a_result_without_an_outcome_fails(store: Store) -> None:
    commits: GroupCommit[str, str] = GroupCommit(lambda results, deadline: [])
    with pytest.raises(RuntimeError, match="0 outcomes"):
        commits.commit("a", soon())


def test_an_outage_fails_the_group_after_one_commit(store: Store) -> None:
    store.errors["b"] = error = FirestoreUnavailableError("Firestore is unavailable.")
    futures = behind(store, one_committer(store.commit), "abc")
    store.gate.open()
    assert [outcome(f) for f in futures[1:]] == [error] * 3
    assert len(store.groups) == 2


def test_an_outage_while_results_go_alone_ends_at_once(store: Store) -> None:
    groups: list[Sequence[str]] = []

    def commit(results: Sequence[str], deadline: Deadline) -> Sequence[str | Exception]:
        groups.append(results)
        store.gate.enter()
        if len(results) > 1:
            raise ValueError
        if results == ["b"]:
            raise FirestoreUnavailableError("Firestore is unavailable.")
        return results

    futures = behind(store, one_committer(commit), "abcd")
    store.gate.open()
    _, a, b, c, d = map(outcome, futures)
    assert a == "a"
    assert b is c is d and isinstance(b, FirestoreUnavailableError)
    assert groups[1:] == [["a", "b", "c", "d"], ["a"], ["b"]]


def test_one_late_result_alone_does_not_end_the_others(store: Store) -> None:
    store.errors["a"] = TooLateError()

    def commit(results: Sequence[str], deadline: Deadline) -> Sequence[str | Exception]:
        if len(results) > 1:
            raise ValueError
        return store.commit(results, deadline)

    futures = behind(store, one_committer(commit), "ab")
    store.gate.open()
    _, a, b = map(outcome, futures)
    assert isinstance(a, TooLateError)
    assert b == "b recorded"


def test_the_latest_deadline_bounds_a_group(store: Store) -> None:
    commits = one_committer(store.commit)
    [first] = behind(store, commits, [])
    times = [time.monotonic() + PATIENCE_SECONDS * n for n in (1, 3, 2)]
    futures = [start(commits, f"{end}", Deadline(end, commit_seconds=1)) for end in times]
    store.gate.open()
    assert outcome(first) == "first recorded"
    assert [outcome(future) for future in futures] == [f"{end} recorded" for end in times]
    assert store.deadlines[1] == Deadline(times[1])


def test_the_seconds_reserved_for_the_commit_are_used(store: Store) -> None:
    deadline = Deadline.after(PATIENCE_SECONDS, commit_seconds=2 * PATIENCE_SECONDS)
    assert one_committer(store.commit).commit("a", deadline) == "a recorded"
    assert store.deadlines == [deadline.for_commit()]


def test_a_caller_leaves_at_its_deadline_and_its_group_goes_on(store: Store) -> None:
    commits = one_committer(store.commit)
    store.gate.close()
    late = start(commits, "late", Deadline.after(0.01))
    assert isinstance(outcome(late), TooLateError)
    next_one = start(commits, "a")
    store.gate.open()
    assert outcome(next_one) == "a recorded"


def test_a_result_whose_deadline_passed_is_not_committed(store: Store) -> None:
    commits = one_committer(store.commit)
    futures = behind(store, commits, [])
    late = start(commits, "late", Deadline.after(0.01))
    assert isinstance(outcome(late), TooLateError)
    store.gate.open()
    assert outcome(futures[0]) == "first recorded"
    assert commits.commit("a", NO_DEADLINE) == "a recorded"
    assert store.groups == [["first"], ["a"]]


def test_close_commits_what_waits_and_refuses_the_rest(store: Store) -> None:
    commits = one_committer(store.commit)
    futures = behind(store, commits, "ab")
    closing = in_thread(lambda: commits.close(timeout_seconds=PATIENCE_SECONDS))
    while not commits._workers._is_closed:
        threading.Event().wait(0.001)
    with pytest.raises(ShuttingDownError):
        commits.commit("c", soon())
    store.gate.open()
    assert [outcome(f) for f in futures] == ["first recorded", "a recorded", "b recorded"]
    closing.result(PATIENCE_SECONDS)


def test_close_without_time_leaves_nobody_waiting(store: Store) -> None:
    commits = one_committer(store.commit)
    futures = behind(store, commits, "ab")
    commits.close(timeout_seconds=0)
    assert [type(outcome(future)) for future in futures] == [ShuttingDownError] * 3
    store.gate.open()
    commits.close(timeout_seconds=PATIENCE_SECONDS)
    assert store.groups == [["first"]]


KINDS = ("good", "refused", "breaks", "late")


@settings(max_examples=60, deadline=None)
@given(
    kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=24),
    committers=st.integers(1, 3),
    max_group_size=st.integers(1, 5),
)
def test_every_caller_gets_exactly_its_own_outcome(
    kinds: list[str], committers: int, max_group_size: int
) -> None:
    recorded: list[str] = []

    def commit(results: Sequence[str], deadline: Deadline) -> list[str | Exception]:
        if broken := [result for result in results if "breaks" in result]:
            raise ValueError(broken[0])
        recorded.extend(result for result in results if "good" in result)
        return [ValueError(result) if "refused" in result else result for result in results]

    commits: GroupCommit[str, str] = GroupCommit(
        commit, committers=committers, max_group_size=max_group_size
    )
    results = [f"{kind} {number}" for number, kind in enumerate(kinds)]
    together = threading.Barrier(len(results))

    def call(result: str) -> str | type[Exception]:
        together.wait(PATIENCE_SECONDS)
        try:
            return commits.commit(result, Deadline.after(0) if "late" in result else soon())
        except TooLateError:
            return TooLateError
        except ValueError as exc:
            return str(exc)

    expected: Callable[[str], object] = lambda r: TooLateError if "late" in r else r  # noqa: E731
    with ThreadPoolExecutor(len(results)) as callers:
        assert list(callers.map(call, results)) == [expected(result) for result in results]
    commits.close(timeout_seconds=PATIENCE_SECONDS)
    assert sorted(recorded) == sorted(result for result in results if "good" in result)
