"""The download engine: many connections a file, resumable at any byte, verified on the way.

Importing this loads aiohttp; do it after ComfyUI has been launched.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import anyio

from supervisor.core.retry import Backoff
from supervisor.download.attempts import Sources, Tries, place
from supervisor.download.files import BusyError
from supervisor.download.lane import LANES, Lanes
from supervisor.download.limits import BufferPool, HostGate, RateLimiter
from supervisor.download.meter import Meter
from supervisor.download.partial import Identity, PartFile
from supervisor.download.request import (
    DownloadRequest,
    ProgressCallback,
    Resolved,
    Resolver,
    TransferResult,
)
from supervisor.download.resources import Resources
from supervisor.download.segments import SMALLEST_PIECE_BYTES
from supervisor.download.simple import BUSY_POLL_S, SimpleDownloader
from supervisor.download.small import first_trip, receive_small
from supervisor.download.storage import disk_errors, existing_file
from supervisor.download.threads import Cores, in_thread
from supervisor.download.transfer import Transfer
from supervisor.download.transport import (
    NoRangeError,
    RemoteChangedError,
    open_session,
    tls_context,
)
from supervisor.download.trip import Larger
from supervisor.download.verify import MalformedFileError
from supervisor.errors import (
    ChecksumMismatchError,
    PermanentTransferError,
    TransientTransferError,
)

WRITERS = 4


class SegmentedDownloader:
    """Implements ``Downloader``; use as an async context manager, on one event loop."""

    def __init__(
        self,
        *,
        connections: int = 16,
        per_host: int = 32,
        rate_limit_bytes_per_s: float | None = None,
        stall_timeout_s: float = 300.0,
        fsync: bool = True,
        drop_cache: bool = False,
        attempts: int = 5,
        backoff: Backoff | None = None,
        thread_nice: int = 0,
        ca_file: Path | None = None,
        lanes: int = LANES,
    ) -> None:
        """Set the limits.

        ``connections`` per file and ``per_host`` at most; ``drop_cache`` keeps downloaded
        bytes out of the page cache; ``attempts`` counts failures in a row without a new
        byte before ``fetch`` raises; ``thread_nice`` lowers the CPU share of hashing and
        writing on small machines; ``lanes`` pieces at a time are received by threads, all
        others on the event loop.
        """
        self._connections = connections
        self._per_host = per_host
        self._rate = rate_limit_bytes_per_s
        self._stall_timeout_s = stall_timeout_s
        self._fsync = fsync
        self._drop_cache = drop_cache
        self._attempts = attempts
        self._backoff = backoff or Backoff(initial_s=0.5, max_s=30.0)
        self._thread_nice = thread_nice
        self._ca_file = ca_file
        self._lanes = lanes
        self._stack = AsyncExitStack()
        self._resources: Resources | None = None

    async def __aenter__(self) -> Self:
        tls = await tls_context(self._ca_file)
        session = await self._stack.enter_async_context(open_session(tls))
        lanes = Lanes(
            self._threads("download-lane", max(1, self._lanes)),
            count=self._lanes,
            tls=tls,
            timeout_s=self._stall_timeout_s,
        )
        self._stack.callback(lanes.close)
        self._resources = Resources(
            session=session,
            threads=self._threads("download-disk", WRITERS),
            hashers=self._threads("download-hash", max(2, (os.cpu_count() or 2) // 2)),
            cores=Cores(),
            lanes=lanes,
            gate=HostGate(self._per_host),
            limiter=RateLimiter(self._rate),
            pool=BufferPool(),
            backoff=self._backoff,
            connections=self._connections,
            stall_timeout_s=self._stall_timeout_s,
            fsync=self._fsync,
            drop_cache=self._drop_cache,
            attempts=self._attempts,
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._resources = None
        with anyio.CancelScope(shield=True):
            await self._stack.aclose()

    async def fetch(
        self, request: DownloadRequest, resolver: Resolver, progress: ProgressCallback
    ) -> TransferResult:
        """See ``Downloader.fetch``."""
        resources = self._need()
        meter, sources = Meter(progress), Sources(request, resolver)
        tries = Tries(self._attempts, self._backoff)
        resources.transfers += 1
        try:
            while True:
                meter.kept = 0
                try:
                    return await self._attempt(request, sources, meter)
                except (PermanentTransferError, TransientTransferError) as exc:
                    await tries.again(exc, sources, meter)
        finally:
            resources.transfers -= 1
            if not resources.transfers:
                resources.pool.shrink()

    async def _attempt(
        self, request: DownloadRequest, sources: Sources, meter: Meter
    ) -> TransferResult:
        resources = self._need()
        resolved = await sources.resolve()
        destination = place(request, resolved)
        with disk_errors(destination):
            async with AsyncExitStack() as stack:
                first = None
                if not sources.one_stream:
                    first = await first_trip(
                        stack, request, resolved, destination, meter=meter, resources=resources
                    )
                if isinstance(first, TransferResult):
                    return first
                if first is not None:
                    stack.callback(first.opened.close)
                opened = first.part if first else await self._open(destination, resolved, meter)
                if isinstance(opened, int):
                    meter.finish(opened)
                    return TransferResult(destination, opened, resolved.sha256, 0)
                transfer = Transfer(
                    request, resolved, sources, part=opened, meter=meter, resources=resources
                )
                work = self._transfer(
                    stack, transfer, first, sources, part=opened, resolved=resolved, meter=meter
                )
                return await self._settled(work, opened, sources, meter)

    async def _settled(
        self,
        work: Coroutine[Any, Any, TransferResult],
        part: PartFile,
        sources: Sources,
        meter: Meter,
    ) -> TransferResult:
        """Await ``work``; then close ``part``, or discard it when it cannot be gone on with."""
        threads = self._need().threads
        try:
            return await work
        except (ChecksumMismatchError, MalformedFileError, RemoteChangedError):
            await in_thread(threads, part.discard)
            raise
        except NoRangeError:
            if sources.parts_refused(meter):
                await in_thread(threads, part.discard)
            raise
        finally:
            if part.fd >= 0:
                meter.kept = part.written.total
                await in_thread(threads, part.close)

    async def _open(self, destination: Path, resolved: Resolved, meter: Meter) -> PartFile | int:
        """The locked part file, or the size of the destination when it is whole already."""

        def work() -> PartFile | int:
            size = existing_file(destination, resolved.size_bytes, resolved.sha256)
            return PartFile.open(destination, fsync=self._fsync) if size is None else size

        while True:
            try:
                return await in_thread(self._need().threads, work)
            except BusyError:
                meter.say("another process is downloading this file")
                await anyio.sleep(BUSY_POLL_S)

    async def _transfer(
        self,
        stack: AsyncExitStack,
        transfer: Transfer,
        first: Larger | None,
        sources: Sources,
        *,
        part: PartFile,
        resolved: Resolved,
        meter: Meter,
    ) -> TransferResult:
        resources = self._need()
        if first is not None:
            await transfer.go_on(stack, first)
        elif _complete(part.identity, part):
            await transfer.follow_to_end()
        elif sources.one_stream:
            return await self._simple().stream(part, resolved, meter)
        else:
            async with stack:
                reply, span = await transfer.open(stack)
                if span is None and not reply.ranged:
                    return await self._simple().receive(part, reply, resolved, meter)
                if reply.total is not None and reply.length == reply.total <= SMALLEST_PIECE_BYTES:
                    return await receive_small(part, reply, resolved, meter, resources)
                if span is not None:
                    await transfer.run(stack, reply, span)
            if span is None:  # it has ranges, but their bodies come in a way of their own
                return await self._simple().stream(part, resolved, meter)
        meter.verifying()
        sha256 = await transfer.verify()
        size = part.written.total
        await in_thread(resources.threads, lambda: part.publish(size, sha256))
        meter.finish(size)
        return TransferResult(part.destination, size, sha256, meter.fetched)

    def _simple(self) -> SimpleDownloader:
        resources = self._need()
        return SimpleDownloader(
            stall_timeout_s=self._stall_timeout_s,
            fsync=self._fsync,
            session=resources.session,
            limiter=resources.limiter,
        )

    def _need(self) -> Resources:
        if self._resources is None:
            raise RuntimeError("use the downloader as an async context manager")
        return self._resources

    def _threads(self, name: str, count: int) -> ThreadPoolExecutor:
        nice = self._thread_nice

        def lower() -> None:
            if nice:  # on Linux a priority belongs to a thread
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)

        return self._stack.enter_context(
            ThreadPoolExecutor(count, thread_name_prefix=name, initializer=lower)
        )


def _complete(identity: Identity | None, part: PartFile) -> bool:
    return (
        identity is not None
        and bool(identity.size_bytes)
        and (part.written.prefix_end == identity.size_bytes)
    )
