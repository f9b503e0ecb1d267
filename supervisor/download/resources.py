"""What all transfers of one engine share."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass

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

FIRST_CONNECTIONS = 4


@dataclass(slots=True)
class Resources:
    """Session, threads and limits; ``attempts`` are failures in a row without a new byte."""

    session: aiohttp.ClientSession
    threads: Executor
    hashers: Executor
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
    transfers: int = 0  # running now

    @property
    def first_connections(self) -> int:
        """How many to begin with: other files keep the network busy too."""
        return max(1, FIRST_CONNECTIONS // max(1, self.transfers))

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
            pool=self.pool,
            limiter=self.limiter,
            meter=meter,
        )
