"""From hints to finished files: what is being looked at, written to, or waited for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial

import anyio
from anyio import to_thread

from supervisor.errors import JournalError
from supervisor.sync.backlog import Backlog, PathKey, Work
from supervisor.sync.examine import Examiner, Facts, Verdict, Watched, judge
from supervisor.sync.model import Identity, Tree
from supervisor.sync.overflow import Overflow
from supervisor.sync.sweep import Sweep
from supervisor.sync.trees import LOGS
from supervisor.sync.watcher import Tell, Watcher

_log = logging.getLogger("supervisor.sync")

_BATCH = 500
_JOURNAL_RETRY_S = 5.0
# So many files are in memory at once, 3 MiB; the paths of the others wait on the disk.
_MOST = 4000


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
        set_apart: Callable[[PathKey, Identity], bool],
        tell: Tell,
    ) -> None:
        self._examiners = examiners
        self._backlog = backlog
        self._changed = changed
        self._gone = gone
        self._set_apart = set_apart
        self._inbox = _Inbox()
        self._watched: dict[PathKey, Watched] = {}
        self._closed_at: dict[PathKey, float] = {}
        self._old: set[PathKey] = set()  # there before this run began
        self._looking: set[PathKey] = set()
        self._overflow = Overflow()
        self._roomy = anyio.Event()
        self.final = False  # nobody writes any more: quiet periods and graces are over
        self._watchers: list[Watcher] = []
        self._sweeps: dict[str, Sweep] = {}
        for name, examiner in examiners.items():
            watcher = Watcher(
                examiner.scanner,
                hint=partial(self._hint, name),
                rescan=partial(self._sweep_again, name),
                tell=tell,
            )
            self._watchers.append(watcher)
            self._sweeps[name] = Sweep(
                examiner,
                watcher,
                self._overflow,
                interval_s=rescan_interval_s,
                news=partial(self._found, name),
            )

    async def run(self) -> None:
        """Watch, look and scan until cancelled."""
        with closing(self._overflow):
            async with anyio.create_task_group() as tasks:
                for watcher in self._watchers:
                    await tasks.start(watcher.run)
                for sweep in self._sweeps.values():
                    tasks.start_soon(sweep.run)
                tasks.start_soon(self._look_forever)
                tasks.start_soon(self._refill_forever)

    @property
    def unfinished(self) -> int:
        """Files that are known to be new but not finished, and not in the backlog."""
        unseen = self._inbox.paths.keys() | self._looking if self._inbox.paths else self._looking
        known = self._watched.keys()
        news = sum(
            k not in known and k.tree != LOGS and self._backlog.get(k) is None for k in unseen
        )
        return news + len(self.watched) + len(self._overflow)

    @property
    def spilled(self) -> int:
        """How many of them wait on the disk, as memory holds enough."""
        return len(self._overflow)

    @property
    def undecided(self) -> set[PathKey]:
        """What is not looked at yet, or will be finished by time; not what has writers."""
        waits = (key for key, watched in self._watched.items() if not watched.writers)
        return {*self._inbox.paths, *self._looking, *waits}

    @property
    def watched(self) -> Mapping[PathKey, Watched]:
        """The files that are not finished, and why.

        Logs grow as long as the pod runs: nobody waits for their end.
        """
        if LOGS not in self._sweeps:
            return self._watched
        return {key: w for key, w in self._watched.items() if key.tree != LOGS or not w.writers}

    def rescan(self) -> None:
        """Look at everything soon."""
        for sweep in self._sweeps.values():
            sweep.again()

    async def scan(self) -> None:
        """Look at everything now; returns when every new path is in the inbox.

        Raises:
            JournalError: the journal cannot be asked what is new.
        """
        for sweep in self._sweeps.values():
            await sweep.sweep()

    def hurry(self) -> None:
        """Look at everything that is waited for at once."""
        for key in self._watched:
            self._inbox.put(key, None)

    def look_again(self, key: PathKey) -> None:
        """Look at one path again, at once."""
        self._inbox.put(key, None)

    def _sweep_again(self, tree: str) -> None:
        self._sweeps[tree].again()

    async def _hint(self, tree: str, paths: Iterable[str], closed: bool) -> None:
        if not (paths := [*paths]):
            return
        self._sweeps[tree].touched()
        try:
            await self._admit(tree, paths, anyio.current_time() if closed else None)
        except JournalError as exc:
            _log.warning("%s", exc)  # the sweep finds them

    async def _found(self, tree: str, paths: list[str], old: bool) -> None:
        fresh = [path for path in paths if self._backlog.get(PathKey(tree, path)) is None]
        await self._admit(tree, fresh, old=old)

    async def _admit(
        self,
        tree: str,
        paths: Iterable[str],
        closed_at: float | None = None,
        *,
        old: bool = False,
    ) -> None:
        """Queue paths as far as there is room; the others wait on the disk.

        Raises:
            JournalError: they cannot.
        """
        room = 0 if self._overflow else self._room()
        late: list[str] = []
        for path in paths:
            key = PathKey(tree, path)
            if not self._knows(key):
                if room <= 0:
                    late.append(path)
                    continue
                room -= 1
                if old:
                    self._old.add(key)
            self._inbox.put(key, closed_at)
        if late:
            await to_thread.run_sync(partial(self._overflow.add, tree, late, old=old))

    def _knows(self, key: PathKey) -> bool:
        queues = (self._inbox.paths, self._looking, self._watched)
        return any(key in queue for queue in queues) or self._backlog.get(key) is not None

    def _room(self) -> int:
        """How many more files may be in memory; those that others hold open do not count."""
        timed = sum(not watched.writers for watched in self._watched.values())
        return _MOST - len(self._inbox.paths) - len(self._looking) - len(self._backlog) - timed

    def refill(self) -> None:
        """Bring back what waits on the disk, if there is room for it."""
        if self._overflow and self._room() >= _BATCH:
            self._roomy.set()

    async def _refill_forever(self) -> None:
        while True:
            await self._roomy.wait()
            self._roomy = anyio.Event()
            try:
                back = await to_thread.run_sync(self._overflow.take, _BATCH)
            except JournalError as exc:
                _log.warning("%s", exc)  # the sweep finds them again
                continue
            for key, old in back:
                self._inbox.put(key, None)
                if old:
                    self._old.add(key)
            self._overflow.settled(len(back))
            self._changed()

    async def _look_forever(self) -> None:
        while True:
            await self._wait_for_paths()
            inbox, self._inbox = self._inbox, _Inbox()
            self._looking = set(inbox.paths)
            for name, examiner in self._examiners.items():
                paths = [key for key in inbox.paths if key.tree == name]
                for start in range(0, len(paths), _BATCH):
                    batch = paths[start : start + _BATCH]
                    await self._look_at(examiner, {key: inbox.paths[key] for key in batch})
                    self._looking.difference_update(batch)
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
        closed = key in self._closed_at
        verdict, watched = judge(fact, watched_before, now=now, final=self.final, closed=closed)
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
        if self._set_apart(key, fact.identity):
            return
        if closed_at is None and watched_before is not None:
            closed_at = now  # it was watched until nobody wrote: that was just now
        fault = fact.fault if verdict is Verdict.BROKEN else None
        self._backlog.add(Work(tree, key.path, fact.identity, closed_at, fault, old))
