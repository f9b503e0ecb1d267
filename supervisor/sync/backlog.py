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


# Such files are read once, held in memory while they are sent, and go side by side.
SMALL_BYTES = 256 * 1024
SMALL_LANES = 8  # times [sync] concurrency
_STALE = 64  # entries of a heap that may be of no use any more
_HURRY_S = 0.5  # between two tries of a file while time runs out


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

    @property
    def small(self) -> bool:
        """Whether it goes in one of the lanes for small files."""
        return self.identity.size_bytes <= SMALL_BYTES


class Lanes:
    """How many files may be under way: some of any size, and many more small ones.

    A small file's time is the server's answer, not the line; lanes are what hides it.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = {True: 0, False: 0}

    def free(self, *, small: bool) -> bool:
        """Whether one more of that kind may start."""
        return self._used[small] < self._limit * (SMALL_LANES if small else 1)

    def enter(self, work: Work) -> None:
        """Count a file in."""
        self._used[work.small] += 1

    def leave(self, work: Work) -> None:
        """Count it out again."""
        self._used[work.small] -= 1


class Backlog:
    """Hands out what is due, oldest first; in a hurry everything is due, small first.

    One taker at a time.
    """

    def __init__(self, limit: int) -> None:
        """Have at most ``limit`` files under way, and as many times more small ones."""
        self._limit = limit
        self.lanes = Lanes(limit)
        self._works: dict[PathKey, Work] = {}
        self._heaps: dict[bool, list[tuple[float, int, int, Work]]] = {True: [], False: []}
        self._order = itertools.count()
        self._changed = anyio.Event()
        self._hurried = False

    def clear(self) -> None:
        """Begin anew: nothing waits and nothing is under way."""
        self.lanes = Lanes(self._limit)
        self._works.clear()
        for heap in self._heaps.values():
            heap.clear()

    def __len__(self) -> int:
        return len(self._works)

    def get(self, key: PathKey) -> Work | None:
        """Return the work on a path, if there is any."""
        return self._works.get(key)

    def works(self) -> list[Work]:
        """Return what waits or is under way."""
        return [*self._works.values()]

    def keys(self) -> set[PathKey]:
        """Name what waits or is under way."""
        return set(self._works)

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
        heap = self._heaps[work.small]
        if len(heap) > 2 * len(self._works) + _STALE:  # a file that is rewritten all the time
            heap[:] = [entry for entry in heap if self._waits(entry[3])]
            heapq.heapify(heap)
        size = work.identity.size_bytes if self._hurried else 0
        heapq.heappush(heap, (work.due_at, size, next(self._order), work))
        self._changed.set()

    def _waits(self, work: Work) -> bool:
        """Whether an entry of the heap still counts: it may be replaced or dropped since."""
        return self._works.get(work.key) is work and not work.taken

    async def take(self) -> Work:
        """Wait for a file that is due; give it back with ``finish`` or ``defer``."""
        while True:
            self._changed = anyio.Event()
            work = self._next()
            wait_s = None
            if work is not None:
                wait_s = work.due_at - anyio.current_time()
                if wait_s <= 0:
                    heapq.heappop(self._heaps[work.small])
                    work.taken = True
                    self.lanes.enter(work)
                    return work
            with anyio.move_on_after(wait_s):
                await self._changed.wait()

    def _next(self) -> Work | None:
        """Return the first of the files whose lane is free."""
        heads = []
        for small, heap in self._heaps.items():
            while heap and not self._waits(heap[0][3]):
                heapq.heappop(heap)
            if heap and self.lanes.free(small=small):
                heads.append(heap[0])
        return min(heads)[3] if heads else None

    def _leave(self, work: Work) -> None:
        self.lanes.leave(work)
        self._changed.set()

    def finish(self, work: Work) -> bool:
        """Drop a file that was dealt with; True when it must be looked at again."""
        self._leave(work)
        if self._works.get(work.key) is work:
            del self._works[work.key]
        return work.again

    def defer(self, work: Work, delay_s: float) -> None:
        """Queue a file again, later."""
        self._leave(work)
        work.taken = False
        work.due_at = anyio.current_time() + (min(delay_s, _HURRY_S) if self._hurried else delay_s)
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
        for heap in self._heaps.values():
            heap.clear()
        for work in waiting:
            work.due_at = 0.0
            self._push(work)
        self._hurried = stay
