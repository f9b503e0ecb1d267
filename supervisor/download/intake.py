"""Between the sockets and the disk: bounded memory, bounded loss, no blocking of the loop.

Bytes come in two ways: on the event loop (``Receiver``), whose blocks are written by the
threads here, and on threads of their own (``Lane``), which write themselves.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

import anyio

from supervisor.download.ledger import MIB, Ledger
from supervisor.download.limits import BLOCK_BYTES, BufferPool, RateLimiter
from supervisor.download.meter import Meter
from supervisor.download.partial import PartFile
from supervisor.download.receive import Receiver
from supervisor.download.watch import Stretch

T = TypeVar("T")

CHECKPOINT_BYTES = 2 * MIB
# Half-full blocks of many connections go to the disk early rather than expose more.
BUFFERED_BYTES = 4 * MIB
SMALLEST_BLOCK_BYTES = 64 * 1024
OLD_BLOCK_S = 1.0
_NEVER = 1 << 62


class Intake:
    """Takes the bytes of one file from its connections, and brings them safely to the disk."""

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
        self.ledger = Ledger(durable=durable, on_room=self._call_unhold)
        self.receivers: set[Receiver] = set()
        self.lanes: set[Stretch] = set()
        self.error: BaseException | None = None
        self._moved = anyio.Event()  # replaced whenever it was set
        self._awaited = 0  # the end of the prefix that somebody waits for
        self._part = part
        self._threads = threads
        self._meter = meter
        self._loop = asyncio.get_running_loop()
        self._metered = 0
        self._buffered = 0
        self._jobs: set[asyncio.Future[None]] = set()
        self._syncs = 0
        self._counting = threading.Lock()
        self._draining = False

    @property
    def connections(self) -> list[Stretch]:
        """Everything that receives now."""
        return [*self.receivers, *self.lanes]

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
        return self.ledger.left()

    def block_bytes(self) -> int:
        """How much a lane may gather before it writes: all together ``BUFFERED_BYTES``."""
        share = BUFFERED_BYTES // max(1, len(self.receivers) + len(self.lanes))
        return max(SMALLEST_BLOCK_BYTES, min(BLOCK_BYTES, share))

    def received(self, receiver: Receiver, count: int) -> None:
        """Account for bytes that have just arrived on the event loop."""
        self.ledger.arrived(count)
        self._buffered += count
        self.count()
        if (delay_s := self.limiter.charge(count)) > 0.001:
            receiver.throttle(delay_s)
        if self._buffered >= BUFFERED_BYTES:
            max(self.receivers, key=lambda other: other.fill).flush()
        if self.allowance() <= 0:
            for other in self.receivers:
                other.hold("disk")

    def count(self) -> None:
        """Tell the meter what has arrived since the last time."""
        fetched = self.ledger.fetched
        self._meter.add(fetched - self._metered)
        self._metered = fetched

    def submit(self, block: bytearray, offset: int, length: int) -> None:
        """Write a block in a thread; it returns to the pool by itself."""
        self._buffered -= length
        job = self._loop.run_in_executor(
            self._threads, self.write, offset, memoryview(block)[:length]
        )
        self._jobs.add(job)

        def done(job: asyncio.Future[None]) -> None:
            self._jobs.discard(job)
            self.pool.give(block)
            if not job.cancelled():
                job.exception()  # ``write`` has noted it

        job.add_done_callback(done)

    def write(self, offset: int, data: memoryview) -> None:
        """Write bytes that have arrived, from any thread but the loop's.

        Raises:
            OSError: noted in ``error`` as well.
            JournalError: likewise.
        """
        try:
            self._part.write(offset, data)
        except BaseException as exc:
            self._broken(exc)
            raise
        self.ledger.written(len(data))
        self._sync(at_least=CHECKPOINT_BYTES)
        if self._part.prefix_end() >= self._awaited:
            self._awaited = _NEVER
            self._loop.call_soon_threadsafe(self._move)

    def tick(self) -> None:
        """Push what has been lying around: a slow transfer must not lose more than a fast."""
        self.count()
        now_s = self._loop.time()
        for receiver in list(self.receivers):
            if receiver.fill and now_s - receiver.fill_since_s > OLD_BLOCK_S:
                receiver.flush()
        self._sync(at_least=1)

    async def prefix_beyond(self, position: int) -> None:
        """Wait until the contiguous prefix ends at ``position`` or later, or an error came."""
        while True:
            moved, self._awaited = self._moved, position
            if self._part.prefix_end() >= position or self.error is not None:
                return
            await moved.wait()

    async def drain(self) -> None:
        """Wait until every write has ended; must run before the file is closed."""
        with anyio.CancelScope(shield=True):
            while self._jobs:
                await asyncio.wait(set(self._jobs))
            self._draining = True
            while True:
                moved = self._moved
                if not self._syncs:
                    break
                await moved.wait()
        self.count()

    def _sync(self, at_least: int) -> None:
        if not (covered := self.ledger.begin_sync(at_least)):
            return
        with self._counting:
            self._syncs += 1
        self._threads.submit(self._run_sync, covered)

    def _run_sync(self, covered: int) -> None:
        try:
            self._part.checkpoint()
        except BaseException as exc:  # noqa: BLE001  (raised again by the transfer)
            self._broken(exc)
            covered = 0
        self.ledger.end_sync(covered)
        if covered:
            self._sync(at_least=CHECKPOINT_BYTES)
        with self._counting:
            self._syncs -= 1
        if self._draining:
            self._loop.call_soon_threadsafe(self._move)

    def _broken(self, error: BaseException) -> None:
        if self.error is None:
            self.error = error
        self._loop.call_soon_threadsafe(self._move)

    def _move(self) -> None:
        moved, self._moved = self._moved, anyio.Event()
        moved.set()

    def _call_unhold(self) -> None:
        if self.receivers:
            self._loop.call_soon_threadsafe(self._unhold)

    def _unhold(self) -> None:
        if self.allowance() > 0:
            for receiver in self.receivers:
                receiver.unhold("disk")


async def in_thread(threads: Executor, work: Callable[[], T]) -> T:
    """Run ``work`` to its end, also when cancelled: it uses a file that will be closed."""
    job = asyncio.get_running_loop().run_in_executor(threads, work)
    with anyio.CancelScope(shield=True):
        await asyncio.wait([job])
    return job.result()
