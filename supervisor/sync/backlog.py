"""The files that wait for their upload, each at most once."""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass
from typing import NamedTuple

import anyio

from supervisor.sync.model import Identity, Tree


class PathKey(NamedTuple):
    """Names a file in memory: its tree and its path below the root."""

    tree: str
    path: str


@dataclass(slots=True, eq=False)
class Work:
    """A finished file.

    Times are the event loop's; ``closed_at`` None: nobody saw when. ``old``: it was there
    before this run began, so that the target may have it.
    """

    tree: Tree
    path: str
    identity: Identity
    closed_at: float | None = None
    fault: str | None = None  # why it goes to incomplete/
    old: bool = False
    attempts: int = 0
    due_at: float = 0.0
    taken: bool = False
    again: bool = False  # it changed while it was under way

    @property
    def key(self) -> PathKey:
        """The name in memory."""
        return PathKey(self.tree.name, self.path)


class Backlog:
    """Hands out what is due, oldest first; in a hurry everything is due, small first."""

    def __init__(self) -> None:
        self._works: dict[PathKey, Work] = {}
        self._heap: list[tuple[float, int, int, Work]] = []
        self._order = itertools.count()
        self._changed = anyio.Event()
        self._hurried = False

    def __len__(self) -> int:
        return len(self._works)

    def get(self, key: PathKey) -> Work | None:
        """Return the work on a path, if there is any."""
        return self._works.get(key)

    def add(self, work: Work) -> None:
        """Queue a file; one that is queued already is brought up to date."""
        known = self._works.get(work.key)
        if known is not None and known.taken:
            known.again = known.again or known.identity != work.identity
            return
        if known is not None and known.identity == work.identity:
            return
        self._works[work.key] = work
        self._push(work)

    def _push(self, work: Work) -> None:
        due_at = 0.0 if self._hurried else work.due_at
        size = work.identity.size_bytes if self._hurried else 0
        heapq.heappush(self._heap, (due_at, size, next(self._order), work))
        self._changed.set()
        self._changed = anyio.Event()

    async def take(self) -> Work:
        """Wait for a file that is due; give it back with ``finish`` or ``defer``."""
        while True:
            changed = self._changed
            if not self._heap:
                await changed.wait()
                continue
            due_at, _, _, work = self._heap[0]
            if self._works.get(work.key) is not work or work.taken:
                heapq.heappop(self._heap)  # replaced or dropped meanwhile
                continue
            wait_s = due_at - anyio.current_time()
            if wait_s <= 0:
                heapq.heappop(self._heap)
                work.taken = True
                return work
            with anyio.move_on_after(wait_s):
                await changed.wait()

    def finish(self, work: Work) -> bool:
        """Drop a file that was dealt with; True when it must be looked at again."""
        if self._works.get(work.key) is work:
            del self._works[work.key]
        return work.again

    def defer(self, work: Work, delay_s: float) -> None:
        """Queue a file again, later."""
        work.taken = False
        work.due_at = anyio.current_time() + delay_s
        if self._works.get(work.key) is work:
            self._push(work)

    def drop(self, key: PathKey) -> None:
        """Forget a path that is gone, unless it is under way."""
        work = self._works.get(key)
        if work is not None and not work.taken:
            del self._works[key]

    def hurry(self, *, stay: bool = False) -> None:
        """Make everything due now, small and old first; ``stay`` keeps it so from now on."""
        self._hurried = True
        waiting = [w for w in self._works.values() if not w.taken]
        waiting.sort(key=lambda w: w.identity.mtime_ns)
        self._heap.clear()
        for work in waiting:
            self._push(work)
        self._hurried = stay
