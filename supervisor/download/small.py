"""Files that fit into one piece: one request, one trip to a thread, no journal."""

from __future__ import annotations

import hashlib

import anyio

from supervisor.download.attempts import identify
from supervisor.download.meter import Meter
from supervisor.download.partial import PartFile
from supervisor.download.request import Resolved, TransferResult
from supervisor.download.resources import Resources
from supervisor.download.storage import check_room
from supervisor.download.threads import in_thread
from supervisor.download.transport import Reply
from supervisor.download.verify import MalformedFileError, check_hash, check_start
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
