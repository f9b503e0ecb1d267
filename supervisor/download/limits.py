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
    """At most ``per_host`` connections to a host; the urgent are served first."""

    def __init__(self, per_host: int) -> None:
        self.per_host = per_host
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
        if self._open[host] < self.per_host:
            self._open[host] += 1
            return
        self._sequence += 1
        event = anyio.Event()
        heapq.heappush(self._waiting.setdefault(host, []), (priority, self._sequence, event))
        try:
            await event.wait()  # the slot is handed over by ``release``
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
        queue = self._waiting.get(host)
        if queue:
            heapq.heappop(queue)[2].set()
            return
        self._open[host] -= 1
        if not self._open[host]:
            del self._open[host]
            self._waiting.pop(host, None)


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
