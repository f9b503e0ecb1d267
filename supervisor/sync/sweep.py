"""Looking through a whole tree, again and again: the truth behind the hints."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator
from itertools import islice

import anyio
from anyio import to_thread

from supervisor.errors import JournalError
from supervisor.sync.examine import Examiner
from supervisor.sync.overflow import Overflow
from supervisor.sync.scan import Found
from supervisor.sync.watcher import Watcher

_log = logging.getLogger("supervisor.sync")

_BATCH = 500
# A sweep may take this share of the time, so that 100 000 files cost next to no CPU.
_SHARE = 1 / 200
# Where hints are missing it is swept more often: nothing else finds new files there.
_BLIND_PAUSE_S = 3.0
_BLIND_SHARE = 1 / 20
# After hints the tree is looked at once more: what a race has swallowed should not have to
# wait for the long interval.
_SETTLE_S = 2.0

# Takes new paths relative to the root, and whether they were there when this run began.
News = Callable[[list[str], bool], Awaitable[None]]


class Sweep:
    """Sweeps one tree at the pace that its size and its hints ask for."""

    def __init__(
        self,
        examiner: Examiner,
        watcher: Watcher,
        overflow: Overflow,
        *,
        interval_s: float,
        news: News,
    ) -> None:
        self._examiner = examiner
        self._watcher = watcher
        self._overflow = overflow
        self._interval_s = interval_s
        self._news = news
        self._asked = anyio.Event()
        self._touched = anyio.Event()
        self._first = True

    async def run(self) -> None:
        """Sweep until cancelled."""
        while True:
            # New events before the sweep begins: what is asked for meanwhile is not forgotten.
            self._asked, self._touched = anyio.Event(), anyio.Event()
            started = anyio.current_time()
            try:
                await self.sweep()
            except JournalError as exc:
                _log.warning("%s", exc)
            await self._pause(anyio.current_time() - started)

    def again(self) -> None:
        """Sweep once more, at once when no sweep is under way, else right after it."""
        self._asked.set()

    def touched(self) -> None:
        """Note that something has changed in the tree."""
        self._touched.set()

    async def sweep(self) -> None:
        """Look at everything; returns when every new path is queued.

        Raises:
            JournalError: the journal cannot be asked what is new.
        """
        self._overflow.sweeping(self._examiner.tree.name)
        await to_thread.run_sync(self._examiner.probe)
        found = self._examiner.scanner.walk("", self._watcher.cover)
        while (news := await to_thread.run_sync(self._step, found)) is not None:
            if news:
                await self._news(news, self._first)
        await to_thread.run_sync(self._overflow.swept, self._examiner.tree.name)
        self._watcher.covered()
        self._first = False

    def _step(self, found: Iterator[Found]) -> list[str] | None:
        """Return the new ones of the next files, None when there are no more."""
        batch = [*islice(found, _BATCH)]
        return self._examiner.news(batch) if batch else None

    async def _pause(self, took_s: float) -> None:
        """Sleep until the interval is over, or hints have settled, or somebody asks."""
        ended = anyio.current_time()
        blind = self._watcher.blind or self._examiner.network
        quiet_s = took_s / _SHARE
        pause_s = max(_BLIND_PAUSE_S, took_s / _BLIND_SHARE) if blind else quiet_s
        with anyio.move_on_after(max(pause_s, 0 if blind else self._interval_s)):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._when_asked, tasks.cancel_scope)
                await self._touched.wait()
                await anyio.sleep_until(max(anyio.current_time() + _SETTLE_S, ended + quiet_s))
                tasks.cancel_scope.cancel()

    async def _when_asked(self, scope: anyio.CancelScope) -> None:
        await self._asked.wait()
        scope.cancel()
