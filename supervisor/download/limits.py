"""Limits that all transfers of one engine share: bandwidth, connections per host, buffers."""

from __future__ import annotations

import heapq
import threading
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio

BLOCK_BYTES = 1024 * 1024
BUFFER_BLOCKS = 64


class RateLimiter:
    """A token bucket that is charged after the fact: what has arrived has arrived."""

    BURST_S = 0.1

    def __init__(
        self, bytes_per_s: float | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.bytes_per_s = bytes_per_s
        self._clock = clock
        self._tokens = 0.0
        self._at_s = clock()
        self._lock = threading.Lock()

    def charge(self, count: int) -> float:
        """Take ``count`` bytes; return the seconds to wait before reading on. Any thread."""
        rate = self.bytes_per_s
        if rate is None:
            return 0.0
        with self._lock:
            now_s = self._clock()
            earned = self._tokens + (now_s - self._at_s) * rate
            self._tokens, self._at_s = min(earned, rate * self.BURST_S) - count, now_s
            return max(0.0, -self._tokens / rate)

    def step(self, wanted: int) -> int:
        """At most how many bytes to read in one go, so that a low limit stays smooth."""
        if self.bytes_per_s is None:
            return wanted
        return min(wanted, max(4096, int(self.bytes_per_s / 20)))


class HostGate:
    """At most ``per_host`` connections to a host; the urgent are served first.

    A host that turns some away gets as many as it keeps; every few seconds a quarter more is
    tried.
    """

    PATIENCE_S = 5.0

    def __init__(self, per_host: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_host = per_host
        self._clock = clock
        self._kept: dict[str, tuple[int, float]] = {}  # how many a host keeps, and since when
        self._open: Counter[str] = Counter()
        self._waiting: dict[str, list[tuple[int, int, anyio.Event]]] = {}
        self._sequence = 0

    @asynccontextmanager
    async def slot(self, host: str, priority: int) -> AsyncIterator[None]:
        """Hold one connection; a lower ``priority`` goes first, equals in order."""
        await self.acquire(host, priority)
        try:
            yield
        finally:
            self.release(host)

    async def acquire(self, host: str, priority: int) -> None:
        """Wait for a connection; see ``slot``."""
        if not self._waiting.get(host) and self._open[host] < self.most(host):
            self._open[host] += 1
            return
        self._sequence += 1
        event = anyio.Event()
        heapq.heappush(self._waiting.setdefault(host, []), (priority, self._sequence, event))
        self._hand_out(host)
        try:
            await event.wait()
        except BaseException:
            if event.is_set():
                self.release(host)
            else:
                self._withdraw(host, event)
            raise

    def _withdraw(self, host: str, event: anyio.Event) -> None:
        queue = self._waiting[host]
        queue[:] = [entry for entry in queue if entry[2] is not event]
        heapq.heapify(queue)

    def release(self, host: str) -> None:
        """Give a connection back."""
        self._open[host] -= 1
        self._hand_out(host)
        if not self._open[host]:
            del self._open[host]
            self._waiting.pop(host, None)

    def _hand_out(self, host: str) -> None:
        queue = self._waiting.get(host)
        while queue and self._open[host] < self.most(host):
            heapq.heappop(queue)[2].set()
            self._open[host] += 1

    def most(self, host: str) -> int:
        """How many connections the host may have now."""
        if host not in self._kept:
            return self.per_host
        kept, since_s = self._kept[host]
        kept += int((self._clock() - since_s) / self.PATIENCE_S) * max(1, kept // 4)
        if kept >= self.per_host:
            del self._kept[host]
        return min(kept, self.per_host)

    def turned_away(self, host: str) -> None:
        """The host has refused one, which was given back, while it served others."""
        kept = min(self.most(host), self._open[host]) - bool(self._waiting.get(host))
        self._kept[host] = max(1, kept), self._clock()


class BufferPool:
    """Reusable blocks of memory, bounded: what bounds the engine's memory."""

    def __init__(self, blocks: int = BUFFER_BLOCKS) -> None:
        self._free: list[bytearray] = []
        self._blocks = self._unmade = blocks
        self._waiting: deque[Callable[[bytearray], None]] = deque()

    @property
    def held_bytes(self) -> int:
        """Memory of the blocks that exist, in use or not."""
        return (self._blocks - self._unmade) * BLOCK_BYTES

    def take(self) -> bytearray | None:
        """A block, or None when all are in use."""
        if self._free:
            return self._free.pop()
        if self._unmade:
            self._unmade -= 1
            return bytearray(BLOCK_BYTES)
        return None

    def when_free(self, callback: Callable[[bytearray], None]) -> None:
        """Hand the next free block to ``callback``."""
        self._waiting.append(callback)

    def forget(self, callback: Callable[[bytearray], None]) -> None:
        """The caller no longer waits."""
        if callback in self._waiting:
            self._waiting.remove(callback)

    def give(self, block: bytearray) -> None:
        """Return a block."""
        if self._waiting:
            self._waiting.popleft()(block)
        else:
            self._free.append(block)

    def shrink(self) -> None:
        """Free the memory of blocks that nobody uses: an idle pod needs none."""
        self._unmade += len(self._free)
        self._free.clear()
