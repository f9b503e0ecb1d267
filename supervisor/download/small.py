"""Files that fit into one piece: one request, one trip to a thread, no journal; both ways."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import AsyncExitStack
from contextvars import copy_context
from pathlib import Path

import anyio

from supervisor.download.attempts import identify
from supervisor.download.files import BusyError
from supervisor.download.meter import Meter
from supervisor.download.partial import PartFile
from supervisor.download.request import DownloadRequest, Resolved, TransferResult
from supervisor.download.resources import Resources
from supervisor.download.storage import check_room
from supervisor.download.threads import in_thread
from supervisor.download.transport import Link, Reply
from supervisor.download.trip import Larger, Trip
from supervisor.download.verify import MalformedFileError, check_hash, check_start
from supervisor.download.wire import DeclinedError
from supervisor.errors import TransientTransferError


async def receive_small(
    part: PartFile, reply: Reply, resolved: Resolved, meter: Meter, resources: Resources
) -> TransferResult:
    """Read the whole body, verify it and publish it.

    Raises:
        TransientTransferError: the body was cut.
        ChecksumMismatchError: another hash than announced.
        MalformedFileError: not what its name says.
    """
    meter.begin(done=0, total=reply.total)
    chunks: list[bytes] = []
    async for chunk in reply.response.content.iter_any():
        chunks.append(chunk)
        meter.add(len(chunk))
        if (delay_s := resources.limiter.charge(len(chunk))) > 0:
            await anyio.sleep(delay_s)
    size = sum(map(len, chunks))
    if size != reply.total:
        raise TransientTransferError(f"Cannot download {part.destination.name}: it was cut")

    def work() -> None:
        check_room(part.destination, size)
        name, digest, position = part.destination.name, hashlib.sha256(), 0
        part.restart(identify(reply, resolved), journal=False)
        for chunk in chunks:
            if resolved.sha256:
                digest.update(chunk)
            part.write(position, chunk)
            position += len(chunk)
        if resolved.sha256:
            check_hash(name, expected=resolved.sha256, actual=digest.hexdigest())
        if not check_start(part.fd, size, name, size):
            raise MalformedFileError(f"Cannot use {name}: it is truncated")
        part.publish(size, resolved.sha256)
        part.close()

    await in_thread(resources.threads, work)
    meter.finish(size)
    return TransferResult(part.destination, size, resolved.sha256, meter.fetched)


async def first_trip(
    stack: AsyncExitStack,
    request: DownloadRequest,
    resolved: Resolved,
    destination: Path,
    *,
    meter: Meter,
    resources: Resources,
) -> TransferResult | Larger | None:
    """Ask a host that is known for a file, in a thread; a small one comes whole.

    None: ask in the other way. For a larger one ``stack`` holds the place at the host.

    Raises:
        TransferError: by class; nothing stays.
        OSError: the disk.
    """
    link, lanes = Link.of(resolved), resources.lanes
    if not lanes.usable(link):
        return None
    seen = _Seen(meter)
    loop, context = asyncio.get_running_loop(), copy_context()

    def tell() -> None:  # by a thread, which has another context
        loop.call_soon_threadsafe(seen.look, context=context)

    trip = Trip(destination, resolved, fsync=resources.fsync, limiter=resources.limiter, tell=tell)
    seen.trip = trip
    host, priority = link.host, resources.priority(request, first=True)
    await resources.gate.acquire(host, priority)
    found: int | Larger | None = None
    try:
        async with lanes.borrow(link, resources.pool) as loan:
            try:
                found = await lanes.call(
                    lambda: trip.run(loan.wire, loan.block, lanes.timeout_s), trip.abort
                )
            finally:
                loan.kept, loan.handed_on = trip.kept, trip.larger is not None
    except (DeclinedError, BusyError):
        return None
    except BaseException:
        if trip.larger is not None:  # it came as we were cancelled
            trip.larger.opened.close()
            await in_thread(resources.threads, trip.larger.part.close)
        raise
    finally:
        if isinstance(found, Larger):
            stack.callback(resources.gate.release, host)
        else:
            resources.gate.release(host)
        seen.look()
    if found is None or isinstance(found, Larger):
        return found
    meter.finish(found)
    return TransferResult(destination, found, resolved.sha256, trip.fetched)


class _Seen:
    """What the meter knows of a trip; on the event loop."""

    def __init__(self, meter: Meter) -> None:
        self.trip: Trip | None = None
        self._meter = meter
        self._fetched = 0

    def look(self) -> None:
        trip = self.trip
        if trip is None or trip.total is None or trip.larger is not None:
            return
        if not self._fetched:
            self._meter.begin(done=0, total=trip.total)
        fetched = trip.fetched
        self._meter.add(fetched - self._fetched)
        self._fetched = fetched
