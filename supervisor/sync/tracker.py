"""From hints to finished files: what is being looked at, written to, or waited for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice

import anyio
from anyio import to_thread

from supervisor.errors import JournalError
from supervisor.sync.backlog import Backlog, PathKey, Work
from supervisor.sync.examine import Examiner, Facts, Verdict, Watched, judge
from supervisor.sync.model import Tree
from supervisor.sync.watcher import Watcher

_log = logging.getLogger("supervisor.sync")

_BATCH = 500
# A rescan may take this share of the time, so that 100 000 files cost next to no CPU.
_RESCAN_SHARE = 1 / 200
# After hints the tree is looked at once more: what a race or an overflow has swallowed
# should not have to wait for the long interval.
_SETTLE_S = 2.0
_JOURNAL_RETRY_S = 5.0


@dataclass(slots=True)
class _Inbox:
    """Paths somebody has hinted at, with the time of the close when one was seen."""

    paths: dict[PathKey, float | None] = field(default_factory=dict)
    wake: anyio.Event = field(default_factory=anyio.Event)

    def put(self, key: PathKey, closed_at: float | None) -> None:
        self.paths[key] = closed_at if closed_at is not None else self.paths.get(key)
        self.wake.set()


class Tracker:
    """Finds the finished files of all trees and puts them into the backlog."""

    def __init__(
        self,
        examiners: dict[str, Examiner],
        backlog: Backlog,
        *,
        rescan_interval_s: float,
        changed: Callable[[], None],
        gone: Callable[[PathKey], None],
    ) -> None:
        self._examiners = examiners
        self._backlog = backlog
        self._interval_s = rescan_interval_s
        self._changed = changed
        self._gone = gone
        self._inbox = _Inbox()
        self._watched: dict[PathKey, Watched] = {}
        self._closed_at: dict[PathKey, float] = {}
        self._old: set[PathKey] = set()  # found by the first scan
        self._looking = 0
        self._scanned = False
        self._rescan = anyio.Event()
        self._settle_at: float | None = None
        self.final = False  # nobody writes any more: quiet periods and graces are over
        self._watchers = {
            name: Watcher(
                examiner.scanner,
                network=examiner.network,
                hint=self._hinter(examiner.tree),
                rescan=self.rescan,
            )
            for name, examiner in examiners.items()
        }

    async def run(self) -> None:
        """Watch, look and scan until cancelled."""
        async with anyio.create_task_group() as tasks:
            for watcher in self._watchers.values():
                tasks.start_soon(watcher.run)
            tasks.start_soon(self._look_forever)
            tasks.start_soon(self._scan_forever)

    @property
    def unfinished(self) -> int:
        """Files that are known to be new but not finished."""
        return len(self._inbox.paths) + self._looking + len(self._watched)

    @property
    def settled(self) -> bool:
        """Whether everything that is there was looked at; files with writers do not count."""
        waits = any(not w.writers for w in self._watched.values())
        return not (self._inbox.paths or self._looking or waits)

    def rescan(self) -> None:
        """Look at everything soon."""
        self._rescan.set()

    async def scan(self) -> None:
        """Look at everything now; returns when every new path is in the inbox.

        Raises:
            JournalError: the journal cannot be asked what is new.
        """
        for name, examiner in self._examiners.items():
            found = examiner.scanner.walk()
            while batch := await to_thread.run_sync(lambda: [*islice(found, _BATCH)]):  # noqa: B023
                for path in await to_thread.run_sync(examiner.news, batch):
                    key = PathKey(name, path)
                    if self._backlog.get(key) is None:
                        self._inbox.put(key, None)
                        if not self._scanned:
                            self._old.add(key)
            await to_thread.run_sync(self._watch_again, self._watchers[name])
        self._scanned = True

    def hurry(self) -> None:
        """Look at everything that is waited for at once."""
        for key in self._watched:
            self._inbox.put(key, None)

    def look_again(self, key: PathKey) -> None:
        """Look at one path again, at once."""
        self._inbox.put(key, None)

    def _hinter(self, tree: Tree) -> Callable[[Iterable[str], bool], None]:
        def hint(paths: Iterable[str], closed: bool) -> None:
            now = anyio.current_time()
            for path in paths:
                self._inbox.put(PathKey(tree.name, path), now if closed else None)
                self._settle_at = now + _SETTLE_S

        return hint

    @staticmethod
    def _watch_again(watcher: Watcher) -> None:
        try:
            watcher.watch_folders("")
        except OSError as exc:
            _log.debug("Cannot watch all folders: %s", exc)

    async def _scan_forever(self) -> None:
        while True:
            started = anyio.current_time()
            try:
                await self.scan()
            except JournalError as exc:
                _log.warning("%s", exc)
            took_s = anyio.current_time() - started
            await self._pause(max(self._interval_s, took_s / _RESCAN_SHARE), took_s)

    async def _pause(self, interval_s: float, took_s: float) -> None:
        """Sleep until the next scan: at the interval, after hints have settled, or on demand."""
        until = anyio.current_time() + interval_s
        self._rescan = anyio.Event()
        while (now := anyio.current_time()) < until and not self._rescan.is_set():
            if self._settle_at is not None and now >= self._settle_at + 10 * took_s:
                self._settle_at = None
                return
            with anyio.move_on_after(min(until - now, 1.0 if self._settle_at else until - now)):
                await self._rescan.wait()

    async def _look_forever(self) -> None:
        while True:
            await self._wait_for_paths()
            inbox, self._inbox = self._inbox, _Inbox()
            for name, examiner in self._examiners.items():
                paths = [key for key in inbox.paths if key.tree == name]
                self._looking = len(paths)
                for start in range(0, len(paths), _BATCH):
                    batch = paths[start : start + _BATCH]
                    await self._look_at(examiner, {key: inbox.paths[key] for key in batch})
                    self._looking -= len(batch)
            self._changed()

    async def _wait_for_paths(self) -> None:
        """Wait until a path was hinted at or one that is watched is due."""
        while not self._inbox.paths:
            look_at = min((w.look_at for w in self._watched.values()), default=None)
            now = anyio.current_time()
            if look_at is not None and look_at <= now:
                for key, watched in self._watched.items():
                    if watched.look_at <= now:
                        self._inbox.put(key, None)
                return
            wake = self._inbox.wake
            with anyio.move_on_after(None if look_at is None else look_at - now):
                await wake.wait()
        # A burst is looked at in one go; one thread call costs as much as many files.
        await anyio.sleep(0.002)

    async def _look_at(self, examiner: Examiner, keys: dict[PathKey, float | None]) -> None:
        try:
            facts = await to_thread.run_sync(examiner.look, [key.path for key in keys])
        except JournalError as exc:
            _log.warning("%s", exc)
            await anyio.sleep(_JOURNAL_RETRY_S)
            for key, closed_at in keys.items():
                self._inbox.put(key, closed_at)
            return
        now = anyio.current_time()
        for (key, closed_at), fact in zip(keys.items(), facts, strict=True):
            if closed_at is not None:
                self._closed_at[key] = closed_at
            self._apply(examiner.tree, key, fact, now)

    def _apply(self, tree: Tree, key: PathKey, fact: Facts, now: float) -> None:
        watched_before = self._watched.pop(key, None)
        verdict, watched = judge(fact, watched_before, now=now, final=self.final)
        if verdict is Verdict.WAIT and watched is not None:
            self._watched[key] = watched
            return
        closed_at = self._closed_at.pop(key, None)
        old = key in self._old
        self._old.discard(key)
        if verdict is Verdict.GONE:
            self._backlog.drop(key)
            self._gone(key)
        if verdict not in (Verdict.READY, Verdict.BROKEN) or fact.identity is None:
            return
        if closed_at is None and watched_before is not None:
            closed_at = now  # it was watched until nobody wrote: that was just now
        fault = fact.fault if verdict is Verdict.BROKEN else None
        self._backlog.add(Work(tree, key.path, fact.identity, closed_at, fault, old))
