"""Results that become ready while all committers are busy share a commit. Knows no store."""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Generic, TypeVar

from service.concurrency.workers import Waiting, Workers, in_time
from service.deadline import Deadline
from service.errors import TooLateError, TransientError

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
Committed = TypeVar("Committed")


class GroupCommit(Generic[Result, Committed]):
    """Commits results from many threads in groups. One result's error never fails another."""

    def __init__(
        self,
        commit: Callable[[Sequence[Result], Deadline], Sequence[Committed | Exception]],
        *,
        max_group_size: int = 100,
        committers: int = 2,
        watch: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        """Start the committers' threads.

        Args:
            commit: makes results final until a deadline, and returns one outcome for each in order:
                the result as it was recorded, or an error for its caller alone. A TransientError
                that it raises is the store's own: it fails the whole group. After any other error,
                each result of the group is committed alone. So it must be safe to call again.
            max_group_size: results in one commit at most.
            committers: commits at once.
            watch: entered for each group, to see a commit that hangs.
        """
        self._commit = commit
        self._workers: Workers[Result, Committed] = Workers(
            self._commit_group,
            take=lambda queue: list(islice(queue, max_group_size)),
            count=committers,
            name="committer",
            watch=watch,
        )

    def commit(self, result: Result, deadline: Deadline) -> Committed:
        """Queue a result, and wait until it is final.

        Args:
            result: to be recorded.
            deadline: the delivery's; the seconds reserved for the commit are used here.

        Returns:
            The result as it was recorded.

        Raises:
            TooLateError: the deadline passed first. The result may be recorded nevertheless.
            TransientError: the store failed.
            ShuttingDownError: the committers are closed.
            Exception: the result's own error.
        """
        return self._workers.call(result, deadline.for_commit())

    def close(self, *, timeout_seconds: float) -> None:
        """Refuse new results, and commit what waits. What is left when the time is up fails."""
        self._workers.close(timeout_seconds=timeout_seconds)

    def _commit_group(self, group: list[Waiting[Result, Committed]]) -> None:
        try:
            self._commit_together(group)
        except TransientError as exc:
            _fail(group, exc)
        except BaseException as exc:  # noqa: BLE001 - a Rust panic is no Exception
            logger.exception("A commit of %d failed", len(group))
            if len(group) == 1:
                _fail(group, exc)
            else:
                self._commit_each(group)

    def _commit_each(self, group: list[Waiting[Result, Committed]]) -> None:
        """Commit each result alone. Stop if the store fails, not to wait for a timeout each."""
        for waiting in group:
            try:
                self._commit_together([waiting])
            except TooLateError as exc:  # its own deadline
                waiting.fail(exc)
            except TransientError as exc:
                _fail(group, exc)
                return
            except BaseException as exc:  # noqa: BLE001 - likewise; the others go on
                logger.exception("A commit failed")
                _fail([waiting], exc)

    def _commit_together(self, group: list[Waiting[Result, Committed]]) -> None:
        """Commit results at once.

        The latest deadline bounds the commit: the earliest would let one late result cut short the
        commit of all. A caller whose own deadline is earlier stops waiting then.

        Raises:
            BaseException: whatever the store raises.
            RuntimeError: it returns a wrong number of outcomes.
        """
        group = in_time(group)
        if not group:
            return
        latest = Deadline(max(waiting.deadline.ends_at for waiting in group))
        outcomes = self._commit([waiting.item for waiting in group], latest)
        if len(outcomes) != len(group):
            raise RuntimeError(f"{len(group)} results were committed with {len(outcomes)} outcomes")
        for waiting, outcome in zip(group, outcomes, strict=True):
            if isinstance(outcome, Exception):
                waiting.fail(outcome)
            else:
                waiting.succeed(outcome)


def _fail(group: list[Waiting[Result, Committed]], error: BaseException) -> None:
    """Fail those that have no outcome yet."""
    if not isinstance(error, Exception):  # only these may be raised in a request's thread
        cause, error = error, RuntimeError(f"{type(error).__name__}: {error}")
        error.__cause__ = cause
    for waiting in group:
        waiting.fail(error)
