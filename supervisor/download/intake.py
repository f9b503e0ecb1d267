"""Between the sockets and the disk: bounded memory, bounded loss, no blocking of the loop.

``exposed`` counts bytes that have arrived and that a crash would lose: in a block, on the
way to the disk, or (with fsync) written but not yet synced. It never passes 8 MiB a file:
then the connections wait for the disk, which would be the limit anyway.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

import anyio

from supervisor.download.limits import BufferPool, RateLimiter
from supervisor.download.meter import Meter
from supervisor.download.partial import PartFile
from supervisor.download.receive import Receiver

T = TypeVar("T")

MIB = 1024 * 1024
EXPOSED_LIMIT_BYTES = 8 * MIB
CHECKPOINT_BYTES = 2 * MIB
# Half-full blocks of many connections go to the disk early rather than expose more.
BUFFERED_BYTES = 4 * MIB
OLD_BLOCK_S = 1.0


class Intake:
    """Takes bytes from the receivers of one file and brings them safely to its part file."""

    def __init__(
        self,
        part: PartFile,
        *,
        durable: bool,
        threads: Executor,
        pool: BufferPool,
        limiter: RateLimiter,
        meter: Meter,
    ) -> None:
        self.pool = pool
        self.limiter = limiter
        self.receivers: set[Receiver] = set()
        self.error: BaseException | None = None
        self.moved = anyio.Event()  # replaced whenever a write has ended
        self._part = part
        self._durable = durable
        self._threads = threads
        self._meter = meter
        self._loop = asyncio.get_running_loop()
        self._exposed = 0
        self._buffered = 0
        self._unsynced = 0
        self._syncing = False
        self._jobs: set[asyncio.Future[None]] = set()

    def join(self, receiver: Receiver) -> None:
        """A connection begins."""
        self.receivers.add(receiver)
        if self.allowance() <= 0:
            receiver.hold("disk")

    def leave(self, receiver: Receiver) -> None:
        """A connection has ended."""
        self.receivers.discard(receiver)

    def allowance(self) -> int:
        """Bytes that may still arrive before the disk has caught up."""
        return EXPOSED_LIMIT_BYTES - self._exposed

    def received(self, receiver: Receiver, count: int) -> None:
        """Account for bytes that have just arrived."""
        self._exposed += count
        self._buffered += count
        self._meter.add(count)
        if (delay_s := self.limiter.charge(count)) > 0.001:
            receiver.throttle(delay_s)
        if self._buffered >= BUFFERED_BYTES:
            max(self.receivers, key=lambda other: other.fill).flush()
        if self.allowance() <= 0:
            for other in self.receivers:
                other.hold("disk")

    def submit(self, block: bytearray, offset: int, length: int) -> None:
        """Write a block in a thread; it returns to the pool by itself."""
        self._buffered -= length

        def work() -> None:
            self._part.write(offset, memoryview(block)[:length])

        def ended(failed: bool) -> None:
            self.pool.give(block)
            if failed:
                return
            if self._durable:
                self._unsynced += length
                self._sync(at_least=CHECKPOINT_BYTES)
            else:
                self._safe(length)

        self._spawn(work, ended)

    def tick(self) -> None:
        """Push what has been lying around: a slow transfer must not lose more than a fast."""
        now_s = self._loop.time()
        for receiver in list(self.receivers):
            if receiver.fill and now_s - receiver.fill_since_s > OLD_BLOCK_S:
                receiver.flush()
        self._sync(at_least=1)

    async def drain(self) -> None:
        """Wait until every write has ended; must run before the file is closed."""
        with anyio.CancelScope(shield=True):
            while self._jobs:
                await asyncio.wait(set(self._jobs))

    def _sync(self, at_least: int) -> None:
        if self._syncing or not self._durable or self._unsynced < at_least:
            return
        self._syncing = True
        covered = self._unsynced

        def ended(failed: bool) -> None:
            self._syncing = False
            if not failed:
                self._unsynced -= covered
                self._safe(covered)
                self._sync(at_least=CHECKPOINT_BYTES)

        self._spawn(self._part.checkpoint, ended)

    def _safe(self, count: int) -> None:
        before, self._exposed = self.allowance(), self._exposed - count
        if before <= 0 < self.allowance():
            for receiver in self.receivers:
                receiver.unhold("disk")

    def _spawn(self, work: Callable[[], None], ended: Callable[[bool], None]) -> None:
        job = self._loop.run_in_executor(self._threads, work)
        self._jobs.add(job)

        def done(job: asyncio.Future[None]) -> None:
            self._jobs.discard(job)
            error = None if job.cancelled() else job.exception()
            if error is not None and self.error is None:
                self.error = error
            ended(error is not None)
            moved, self.moved = self.moved, anyio.Event()
            moved.set()

        job.add_done_callback(done)


async def in_thread(threads: Executor, work: Callable[[], T]) -> T:
    """Run ``work`` to its end, also when cancelled: it uses a file that will be closed."""
    job = asyncio.get_running_loop().run_in_executor(threads, work)
    with anyio.CancelScope(shield=True):
        await asyncio.wait([job])
    return job.result()
