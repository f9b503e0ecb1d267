"""What holds uploads back: a closed gate, a bandwidth cap, a memory bound, one key's pace."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from supervisor.core.retry import Backoff

_LEAST_PIECE_BYTES = 16 * 1024


class Gate:
    """Closed for everybody while the target as a whole refuses; opens by itself."""

    def __init__(self, backoff: Backoff) -> None:
        self._backoff = backoff
        self._failures = 0
        self._open_at = -1.0
        self._wake = anyio.Event()

    @property
    def closed(self) -> bool:
        """Whether the target has refused since its last success."""
        return self._failures > 0

    def refuse(self, retry_after_s: float | None = None) -> float:
        """Close the gate; returns for how many seconds.

        A refusal while it is closed already (uploads that were on their way) does not
        double the delay again.
        """
        now = anyio.current_time()
        if now < self._open_at:
            return self._open_at - now
        delay_s = max(self._backoff.delay_s(self._failures), retry_after_s or 0.0)
        self._failures += 1
        self._open_at = now + delay_s
        return delay_s

    def succeed(self) -> None:
        """Open the gate for everybody."""
        self._failures = 0
        self.hurry()

    def hurry(self) -> None:
        """Let the next one try at once."""
        self._open_at = -1.0
        self._wake.set()
        self._wake = anyio.Event()

    async def wait(self) -> None:
        """Wait until somebody may try again."""
        while (wait_s := self._open_at - anyio.current_time()) > 0:
            wake = self._wake
            with anyio.move_on_after(wait_s):
                await wake.wait()


class RateLimiter:
    """Caps bytes a second over all uploads; None lets everything through."""

    def __init__(self, rate_bytes_per_s: int | None) -> None:
        self._rate = rate_bytes_per_s
        self._free_at = 0.0

    def piece_bytes(self, most_bytes: int) -> int:
        """How much to send at once, so that a slow line trickles instead of stopping."""
        if self._rate is None:
            return most_bytes
        return max(_LEAST_PIECE_BYTES, min(most_bytes, self._rate // 8))

    async def spend(self, size_bytes: int) -> None:
        """Wait for the turn of so many bytes."""
        if self._rate is None:
            return
        now = anyio.current_time()
        start = max(now, self._free_at)
        self._free_at = start + size_bytes / self._rate
        await anyio.sleep(start - now)


class ByteBudget:
    """Bounds the bytes that are in memory at once; whoever asks first is served first."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._used = 0
        self._turn = anyio.Lock()
        self._freed = anyio.Event()

    @asynccontextmanager
    async def hold(self, size_bytes: int) -> AsyncIterator[None]:
        """Hold so many bytes (at most the limit, so that one of any size gets through)."""
        size_bytes = min(size_bytes, self._limit)
        async with self._turn:
            while self._used + size_bytes > self._limit:
                await self._freed.wait()
            self._used += size_bytes
        try:
            yield
        finally:
            self._used -= size_bytes
            self._freed.set()
            self._freed = anyio.Event()


class KeyPace:
    """Keeps writes to one key apart; R2 refuses more than one a second (429)."""

    def __init__(self, interval_s: float = 1.0, remember: int = 4096) -> None:
        self._interval_s = interval_s
        self._remember = remember
        self._next: OrderedDict[str, float] = OrderedDict()

    async def wait(self, key: str) -> None:
        """Wait until the key may be written."""
        now = anyio.current_time()
        at = max(now, self._next.pop(key, now))
        self._next[key] = at + self._interval_s
        if len(self._next) > self._remember:
            self._next.popitem(last=False)
        await anyio.sleep(at - now)
