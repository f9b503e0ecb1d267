"""What all transfers of one engine share."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field

import aiohttp

from supervisor.core.retry import Backoff
from supervisor.download.follow import Follower
from supervisor.download.intake import Intake
from supervisor.download.lane import Lanes
from supervisor.download.limits import BufferPool, HostGate, RateLimiter
from supervisor.download.meter import Meter
from supervisor.download.partial import PartFile
from supervisor.download.request import DownloadRequest
from supervisor.download.segments import SMALLEST_PIECE_BYTES
from supervisor.download.threads import Cores

FIRST_CONNECTIONS = 2


@dataclass(slots=True)
class Resources:
    """Session, threads and limits; ``attempts`` are failures in a row without progress."""

    session: aiohttp.ClientSession
    threads: Executor
    hashers: Executor
    cores: Cores
    lanes: Lanes
    gate: HostGate
    limiter: RateLimiter
    pool: BufferPool
    backoff: Backoff
    connections: int
    stall_timeout_s: float
    fsync: bool
    drop_cache: bool
    attempts: int
    transfers: int = 0  # running now, of small files too
    _many: set[Meter] = field(default_factory=set)  # of files with more connections than one
    _ended_bytes: int = 0

    @contextmanager
    def sharing(self, meter: Meter) -> Iterator[None]:
        """While a file may have several connections."""
        self._many.add(meter)
        try:
            yield
        finally:
            self._many.discard(meter)
            self._ended_bytes += meter.fetched

    @property
    def fetched(self) -> int:
        """Bytes of all such files, ever: what one takes from another is no gain."""
        return self._ended_bytes + sum(meter.fetched for meter in self._many)

    @property
    def first_connections(self) -> int:
        """How many a file begins with: other files keep the network busy too."""
        return min(self.connections, max(1, FIRST_CONNECTIONS // max(1, self.transfers)))

    @property
    def most_connections(self) -> int:
        """How many a file may have now: all together what one host gets."""
        return min(self.connections, max(1, self.gate.per_host // max(1, len(self._many))))

    def priority(self, request: DownloadRequest, *, first: bool) -> int:
        """Who gets a connection: urgent files, required ones, then one for every file."""
        if request.urgent:
            return 0
        return (1 if request.required else 3) + (0 if first else 1)

    def intake(self, part: PartFile, follower: Follower, meter: Meter, size_bytes: int) -> Intake:
        """The way to the disk for one file."""
        return Intake(
            part,
            follower,
            durable=self.fsync and size_bytes > SMALLEST_PIECE_BYTES,
            threads=self.threads,
            cores=self.cores,
            pool=self.pool,
            limiter=self.limiter,
            meter=meter,
        )
