"""Between the sockets and the disk: bounded memory, bounded loss, no blocking of the loop.

Bytes come in two ways: on the event loop (``Receiver``), whose blocks are written by the
threads here, and on threads of their own (``Lane``), which write themselves.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Executor

import anyio

from supervisor.download.follow import Follower
from supervisor.download.ledger import MIB, Ledger
from supervisor.download.limits import BLOCK_BYTES, BufferPool, RateLimiter
from supervisor.download.meter import Meter
from supervisor.download.partial import PartFile
from supervisor.download.threads import Cores
from supervisor.download.watch import Stretch

CHECKPOINT_BYTES = 2 * MIB
# Half-full blocks of many connections go to the disk early rather than expose more.
BUFFERED_BYTES = 4 * MIB
SMALLEST_BLOCK_BYTES = 64 * 1024
OLD_BLOCK_S = 1.0
FLOWING_S = 1.0  # since the last byte


class Intake:
    """Takes the bytes of one file from its connections, and brings them safely to the disk."""

    def __init__(
        self,
        part: PartFile,
        follower: Follower,
        *,
        durable: bool,
        threads: Executor,
        cores: Cores,
        pool: BufferPool,
        limiter: RateLimiter,
        meter: Meter,
    ) -> None:
        self.pool = pool
        self.limiter = limiter
        self.ledger = Ledger(durable=durable)
        self.connections: set[Stretch] = set()  # everything that receives now
        self.error: BaseException | None = None
        self._part = part
        self._follower = follower
        self._threads = threads
        self._cores = cores
        self._meter = meter
        self._loop = asyncio.get_running_loop()
        self._metered = 0
        self._jobs: set[asyncio.Future[None]] = set()

    def block_bytes(self) -> int:
        """How much a lane may gather before it writes: all together ``BUFFERED_BYTES``."""
        share = BUFFERED_BYTES // max(1, len(self.connections))
        return max(SMALLEST_BLOCK_BYTES, min(BLOCK_BYTES, share))

    def flowing(self) -> bool:
        """Whether the server is sending on some connection right now."""
        now_s = time.monotonic()
        return any(not c.held and now_s - c.last_byte_s < FLOWING_S for c in self.connections)

    def count(self) -> None:
        """Tell the meter what has arrived since the last time."""
        fetched = self.ledger.fetched
        self._meter.add(fetched - self._metered)
        self._metered = fetched

    def submit(self, block: bytearray, offset: int, length: int) -> None:
        """Write a block in a thread; it returns to the pool by itself."""
        job = self._submit(lambda: self.write(offset, memoryview(block)[:length]))
        job.add_done_callback(lambda _: self.pool.give(block))

    def write(self, offset: int, data: memoryview) -> None:
        """Write bytes that have arrived, from any thread but the loop's; ``data`` is used up.

        Raises:
            OSError: noted in ``error`` as well.
            JournalError: likewise.
        """
        try:
            with self._cores.place():
                self._part.write(offset, data)
                self.ledger.written(len(data))
                self._follower.written(data)
        except BaseException as exc:
            self._broken(exc)
            raise
        while self.error is None and (covered := self.ledger.begin_sync(CHECKPOINT_BYTES)):
            self._checkpoint(covered)

    def tick(self) -> None:
        """Make safe what is there: a slow transfer must not lose more than a fast one."""
        self.count()
        if covered := self.ledger.begin_sync(1):
            self._submit(lambda: self._checkpoint(covered))

    async def drain(self) -> None:
        """Wait until every write has ended; must run before the file is closed."""
        with anyio.CancelScope(shield=True):
            while self._jobs:
                await asyncio.wait(set(self._jobs))
        self.count()

    def _submit(self, work: Callable[[], None]) -> asyncio.Future[None]:
        job = self._loop.run_in_executor(self._threads, work)
        self._jobs.add(job)

        def done(job: asyncio.Future[None]) -> None:
            self._jobs.discard(job)
            if not job.cancelled():
                job.exception()  # it was noted in ``error``

        job.add_done_callback(done)
        return job

    def _checkpoint(self, covered: int) -> None:
        try:
            self._part.checkpoint()
        except BaseException as exc:  # noqa: BLE001  (raised again by the transfer)
            self._broken(exc)
            covered = 0
        self.ledger.end_sync(covered)

    def _broken(self, error: BaseException) -> None:
        if self.error is None:
            self.error = error
        self._follower.stop()
