"""Commits results in groups. Results that become ready during a commit share the next commit."""

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
    """Commits results from many threads in groups. One result's fault never fails another."""

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
            commit: commits results before a deadline. It returns one outcome for each result, in
                order: the committed result, or an error for this result's caller. If it raises a
                TransientError, the store is at fault, and the whole group fails. After any other
                error, it is called again for each result alone. So it must be safe to repeat.
            max_group_size: how many results one commit may have.
            committers: how many commits run at once.
            watch: entered for each group, to detect a commit that hangs.
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
        """Queue a result, and wait until it is committed.

        Args:
            result: what to commit.
            deadline: the delivery's deadline. The seconds reserved for the commit are used here.

        Returns:
            The committed result.

        Raises:
            TooLateError: the deadline passed first. The result may be committed nevertheless.
            TransientError: the store failed.
            ShuttingDownError: the committers are closed.
            Exception: the outcome of this result.
        """
        return self._workers.call(result, deadline.for_commit())

    def close(self, *, timeout_seconds: float) -> None:
        """Accept no more results. Commit the waiting results. After the timeout, fail the rest."""
        self._workers.close(timeout_seconds=timeout_seconds)

    def _commit_group(self, group: list[Waiting[Result, Committed]]) -> None:
        try:
            self._commit_together(group)
        except TransientError as exc:
            _fail(group, exc)
        except BaseException as exc:  # noqa: BLE001 - a Rust library's panic is not an Exception
            logger.exception("A commit of %d results failed", len(group))
            if len(group) == 1:
                _fail(group, exc)
            else:
                self._commit_each(group)

    def _commit_each(self, group: list[Waiting[Result, Committed]]) -> None:
        """Commit each result alone. Stop if the store fails, to avoid a timeout for each."""
        for waiting in group:
            try:
                self._commit_together([waiting])
            except TooLateError as exc:  # this result's deadline
                waiting.fail(exc)
            except TransientError as exc:
                _fail(group, exc)
                return
            except BaseException as exc:  # noqa: BLE001 - as above. Continue with the next result.
                logger.exception("A commit failed")
                _fail([waiting], exc)

    def _commit_together(self, group: list[Waiting[Result, Committed]]) -> None:
        """Commit results in one commit.

        The commit's deadline is the latest of the group. With the earliest, one late result would
        cut short the commit of other results. Each caller still stops waiting at its own deadline.

        Raises:
            BaseException: what the store raises.
            RuntimeError: the store returned a wrong number of outcomes.
        """
        group = in_time(group)
        if not group:
            return
        latest = Deadline(max(waiting.deadline.ends_at for waiting in group))
        outcomes = self._commit([waiting.item for waiting in group], latest)
        if len(outcomes) != len(group):
            raise RuntimeError(
                f"A commit of {len(group)} results returned {len(outcomes)} outcomes"
            )
        for waiting, outcome in zip(group, outcomes, strict=True):
            if isinstance(outcome, Exception):
                waiting.fail(outcome)
            else:
                waiting.succeed(outcome)


def _fail(group: list[Waiting[Result, Committed]], error: BaseException) -> None:
    """Fail the results of the group that have no outcome yet."""
    if not isinstance(error, Exception):  # a request's thread must only raise Exceptions
        cause, error = error, RuntimeError(f"{type(error).__name__}: {error}")
        error.__cause__ = cause
    for waiting in group:
        waiting.fail(error)
