"""One connection a file: the reference engine, and the way for servers without ranges."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp
import anyio
from anyio.to_thread import run_sync

from supervisor.core.retry import Backoff
from supervisor.download.attempts import (
    Sources,
    Tries,
    check_size,
    identify,
    place,
    resumable,
)
from supervisor.download.files import BusyError
from supervisor.download.limits import RateLimiter
from supervisor.download.meter import Meter
from supervisor.download.partial import PartFile
from supervisor.download.request import (
    DownloadRequest,
    ProgressCallback,
    Resolved,
    Resolver,
    TransferResult,
)
from supervisor.download.storage import check_room, disk_errors, existing_file
from supervisor.download.transport import (
    Link,
    NoRangeError,
    RemoteChangedError,
    Reply,
    open_range,
    open_session,
    tls_context,
    validator,
)
from supervisor.download.verify import MalformedFileError, check_hash, check_start, hash_range
from supervisor.errors import (
    ChecksumMismatchError,
    PermanentTransferError,
    TransientTransferError,
)

WRITE_BYTES = 1024 * 1024
CHECKPOINT_BYTES = 4 * 1024 * 1024
BUSY_POLL_S = 1.0


class SimpleDownloader:
    """Implements ``Downloader``; use as an async context manager."""

    def __init__(
        self,
        *,
        stall_timeout_s: float = 300.0,
        fsync: bool = True,
        attempts: int = 5,
        backoff: Backoff | None = None,
        ca_file: Path | None = None,
        session: aiohttp.ClientSession | None = None,
        limiter: RateLimiter | None = None,
    ) -> None:
        """``attempts`` counts failures in a row without progress; then ``fetch`` raises."""
        self._stall_timeout_s = stall_timeout_s
        self._fsync = fsync
        self._attempts = attempts
        self._backoff = backoff or Backoff(initial_s=0.5, max_s=30.0)
        self._ca_file = ca_file
        self._session = session
        self._limiter = limiter or RateLimiter(None)
        self._owns_session = session is None

    async def __aenter__(self) -> Self:
        if self._session is None:
            self._session = open_session(await tls_context(self._ca_file))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._owns_session and self._session is not None:
            await self._session.close()
            self._session = None

    async def fetch(
        self, request: DownloadRequest, resolver: Resolver, progress: ProgressCallback
    ) -> TransferResult:
        """See ``Downloader.fetch``."""
        meter = Meter(progress)
        sources = Sources(request, resolver)
        tries = Tries(self._attempts, self._backoff)
        while True:
            meter.kept = 0
            try:
                return await self._attempt(request, sources, meter)
            except (PermanentTransferError, TransientTransferError) as exc:
                await tries.again(exc, sources, meter)

    async def _attempt(
        self, request: DownloadRequest, sources: Sources, meter: Meter
    ) -> TransferResult:
        resolved = await sources.resolve()
        destination = place(request, resolved)
        found = await run_sync(existing_file, destination, resolved.size_bytes, resolved.sha256)
        if found is not None:
            meter.finish(found)
            return TransferResult(destination, found, resolved.sha256, 0)
        with disk_errors(destination):
            part = await open_part(destination, self._fsync, meter)
            try:
                return await self.stream(part, resolved, meter)
            except (ChecksumMismatchError, MalformedFileError, RemoteChangedError):
                await run_sync(part.discard)
                raise
            except NoRangeError:
                if sources.parts_refused(meter):
                    await run_sync(part.discard)
                raise
            finally:
                meter.kept = part.written.total if part.fd >= 0 else 0
                with anyio.CancelScope(shield=True):
                    await run_sync(part.close)

    async def stream(self, part: PartFile, resolved: Resolved, meter: Meter) -> TransferResult:
        assert self._session is not None, "use the downloader as a context manager"  # noqa: S101
        link, identity = Link.of(resolved), part.identity
        start = part.written.prefix_end if resumable(identity, resolved) else 0
        complete = identity is not None and start and start == identity.size_bytes
        if not complete:
            if_range = validator(identity.etag, identity.modified) if start and identity else None
            async with open_range(
                self._session,
                link,
                start=start,
                if_range=if_range,
                timeout_s=self._stall_timeout_s,
                sock_read_s=self._stall_timeout_s,
            ) as reply:
                return await self.receive(part, reply, resolved, meter)
        return await finish(part, start, resolved, meter)

    async def receive(
        self, part: PartFile, reply: Reply, resolved: Resolved, meter: Meter
    ) -> TransferResult:
        """Read one answer to its end into ``part``, verify and publish."""
        remote = identify(reply, resolved)
        known = part.identity
        check_size(remote.size_bytes, resolved, reply.link.url)
        if reply.start == 0 or known is None:
            await run_sync(part.restart, remote)
        elif known.size_bytes != remote.size_bytes or known.etag != remote.etag:
            raise RemoteChangedError(f"Cannot resume {remote.origin}: the remote file changed")
        if reply.total is not None:
            needed, begun = reply.total - reply.start, reply.start > 0
            await run_sync(lambda: check_room(part.destination, needed, begun=begun))
        writer = _Writer(part, reply.start, reply.total, meter, self._limiter)
        meter.begin(done=reply.start, total=reply.total)
        try:
            async for chunk in reply.response.content.iter_any():
                await writer.feed(chunk)
        finally:
            with anyio.CancelScope(shield=True):  # what has arrived is never fetched twice
                await writer.flush()
        if reply.total is not None and writer.position != reply.total:
            raise TransientTransferError(f"Cannot download {remote.origin}: the answer was cut")
        return await finish(part, writer.position, resolved, meter)


class _Writer:
    """Gathers chunks into writes of at least 1 MiB."""

    def __init__(
        self,
        part: PartFile,
        position: int,
        total: int | None,
        meter: Meter,
        limiter: RateLimiter,
    ) -> None:
        self._limiter = limiter
        self.position = position
        self._part = part
        self._total = total
        self._meter = meter
        self._buffer = bytearray()
        self._unsynced = 0
        self._checked = position > 0

    async def feed(self, chunk: bytes) -> None:
        self._buffer += chunk
        self._meter.add(len(chunk))
        if len(self._buffer) >= WRITE_BYTES:
            await self.flush()
        if (delay_s := self._limiter.charge(len(chunk))) > 0:
            await anyio.sleep(delay_s)

    async def flush(self) -> None:
        data, self._buffer = bytes(self._buffer), bytearray()
        if not data:
            return
        await run_sync(self._part.write, self.position, data)
        self.position += len(data)
        self._unsynced += len(data)
        if not self._checked:
            name = self._part.destination.name
            self._checked = await run_sync(
                check_start, self._part.fd, self._total, name, self.position
            )
        if self._unsynced >= CHECKPOINT_BYTES:
            await run_sync(self._part.checkpoint)
            self._unsynced = 0


async def open_part(destination: Path, fsync: bool, meter: Meter) -> PartFile:
    """Open the partial file, waiting while another process downloads to the same place."""
    while True:
        try:
            return await run_sync(lambda: PartFile.open(destination, fsync=fsync))
        except BusyError:
            meter.say("another process is downloading this file")
            await anyio.sleep(BUSY_POLL_S)


async def finish(
    part: PartFile, size_bytes: int, resolved: Resolved, meter: Meter
) -> TransferResult:
    """Verify the complete partial file against size, header and hash, and publish it.

    Raises:
        ChecksumMismatchError: another size or hash than announced.
        MalformedFileError: not what its name says.
    """
    meter.verifying()

    def work() -> None:
        name = part.destination.name
        check_size(size_bytes, resolved, resolved.url)
        if not check_start(part.fd, size_bytes, name, size_bytes):
            raise MalformedFileError(f"Cannot use {name}: it is truncated")
        if resolved.sha256:
            digest = hashlib.sha256()
            hash_range(part.fd, digest, 0, size_bytes)
            check_hash(name, expected=resolved.sha256, actual=digest.hexdigest())
        part.publish(size_bytes, resolved.sha256)

    await settle(work)
    meter.finish(size_bytes)
    return TransferResult(part.destination, size_bytes, resolved.sha256, meter.fetched)


async def settle(work: Callable[[], None]) -> None:
    """Run ``work`` in a thread to its end even when cancelled: its file must stay open."""
    with anyio.CancelScope(shield=True):
        await run_sync(work)
