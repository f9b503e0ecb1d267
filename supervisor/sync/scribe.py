"""One transaction for many: whoever waits for the journal shares the next commit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import anyio
from anyio import to_thread

from supervisor.errors import JournalError
from supervisor.sync.ledger import Ledger

P = TypeVar("P")
T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _Job:
    read: Callable[[], Any]
    write: Callable[[Any], Any]
    value: Any = None
    error: Exception | None = None
    done: bool = False


class Scribe:
    """Runs jobs that write to the journal, in as few thread calls and commits as possible.

    A thread call and a commit for each of 2 000 small files cost more than sending them.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._jobs: list[_Job] = []
        self._turn = anyio.Lock()

    async def do(self, read: Callable[[], P], write: Callable[[P], T]) -> T:
        """Call ``write(read())`` in a thread; it returns when that is committed.

        ``read`` may be slow and runs before the journal is taken. One job's failure is its
        own, but of what was written together all counts or nothing.

        Raises:
            JournalError: nothing was written.
        """
        job = _Job(read, write)
        self._jobs.append(job)
        async with self._turn:
            if not job.done:
                jobs, self._jobs = self._jobs, []
                await to_thread.run_sync(self._run, jobs)
        if job.error is not None:
            raise job.error
        return cast("T", job.value)

    def _run(self, jobs: list[_Job]) -> None:
        for job in jobs:
            try:
                job.value = job.read()
            except Exception as exc:  # noqa: BLE001 (raised where the job is waited for)
                job.error = exc
        try:
            with self._ledger.together():
                for job in jobs:
                    if job.error is None:
                        self._write(job)
        except JournalError as exc:
            for job in jobs:
                job.error = job.error or exc
        for job in jobs:
            job.done = True

    @staticmethod
    def _write(job: _Job) -> None:
        try:
            job.value = job.write(job.value)
        except JournalError:
            raise
        except Exception as exc:  # noqa: BLE001 (raised where the job is waited for)
            job.error = exc
