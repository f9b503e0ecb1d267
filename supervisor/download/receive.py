"""The fast receive path: the kernel writes straight into the blocks that go to the disk.

aiohttp makes the connection (redirects, proxy, TLS) and reads the headers; then a
``Receiver`` takes the transport over, and gives it back clean so that it is kept alive.
Only bodies of a known length, neither chunked nor encoded, can be received this way.
"""

from __future__ import annotations

import asyncio
from contextvars import copy_context

import aiohttp

from supervisor.download.intake import BUFFERED_BYTES, OLD_BLOCK_S, Intake
from supervisor.download.limits import BLOCK_BYTES
from supervisor.download.segments import Span
from supervisor.download.watch import Stretch
from supervisor.errors import TransientTransferError


def can_take_over(response: aiohttp.ClientResponse) -> bool:
    """Whether the body comes as it is, with its length."""
    return response.content_length is not None and "Transfer-Encoding" not in response.headers


class Reception:
    """The connections of one file that the event loop receives; all of them wait together."""

    def __init__(self, intake: Intake) -> None:
        self.intake = intake
        self._receivers: set[Receiver] = set()
        self._buffered = 0
        self._loop = asyncio.get_running_loop()
        # What a thread calls would run without it, and so would all that is read from then on.
        self._context = copy_context()
        intake.ledger.on_room = self._call_unhold

    def join(self, receiver: Receiver) -> None:
        """A connection begins."""
        self._receivers.add(receiver)
        self.intake.connections.add(receiver)
        if self.intake.ledger.left() <= 0:
            receiver.hold("disk")

    def leave(self, receiver: Receiver) -> None:
        """A connection has ended."""
        self._receivers.discard(receiver)
        self.intake.connections.discard(receiver)

    def received(self, receiver: Receiver, count: int) -> None:
        """Account for bytes that have just arrived."""
        intake = self.intake
        intake.ledger.arrived(count)
        self._buffered += count
        intake.count()
        if (delay_s := intake.limiter.charge(count)) > 0.001:
            receiver.throttle(delay_s)
        if self._buffered >= BUFFERED_BYTES:
            max(self._receivers, key=lambda other: other.fill).flush()
        if intake.ledger.left() <= 0:
            for other in self._receivers:
                other.hold("disk")

    def submit(self, block: bytearray, offset: int, length: int) -> None:
        """Bring a block to the disk."""
        self._buffered -= length
        self.intake.submit(block, offset, length)

    def tick(self) -> None:
        """Push what has been lying around: a slow transfer must not lose more than a fast."""
        now_s = self._loop.time()
        for receiver in list(self._receivers):
            if receiver.fill and now_s - receiver.fill_since_s > OLD_BLOCK_S:
                receiver.flush()

    def _call_unhold(self) -> None:
        if self._receivers:
            self._loop.call_soon_threadsafe(self._unhold, context=self._context)

    def _unhold(self) -> None:
        if self.intake.ledger.left() > 0:
            for receiver in self._receivers:
                receiver.unhold("disk")


class Receiver(Stretch, asyncio.BufferedProtocol):
    """Receives the body of one answer into ``span``'s place in the file."""

    def __init__(self, span: Span, reception: Reception, where: str) -> None:
        super().__init__(span)
        self.fill = 0
        self.fill_since_s = 0.0
        self._reception = reception
        self._intake = reception.intake
        self._where = where
        self._loop = asyncio.get_running_loop()
        self._done: asyncio.Future[None] = self._loop.create_future()
        self._body_end = span.end
        self._block: bytearray | None = None
        self._view = memoryview(b"")
        self._transport: asyncio.Transport | None = None
        self._handler: asyncio.BaseProtocol | None = None
        self._holds: set[str] = set()
        self._early: bytes | memoryview = b""
        self._spill = bytearray(4096)

    async def run(self, response: aiohttp.ClientResponse, length: int) -> None:
        """Receive until the span, which others may shorten, or the body has ended.

        Whatever arrived is handed to the intake, also on errors and cancellation.

        Raises:
            TransientTransferError: the connection broke, stalled, or was too slow.
        """
        self._body_end = self.span.position + length
        self._reception.join(self)
        try:
            if self._start(response):
                await self._done
        finally:
            self._restore(response)
            self._reception.leave(self)
            self._flush_last()

    def _start(self, response: aiohttp.ClientResponse) -> bool:
        """Take the connection over; False when everything has arrived already."""
        self._new_block()
        content = response.content
        if content.exception() is not None:
            raise TransientTransferError(f"Cannot download {self._where}: the connection was cut")
        early = content.read_nowait()
        connection = response.connection
        if connection is not None and connection.transport is not None:
            self._transport, self._handler = connection.transport, connection.protocol
            if connection.protocol is not None:  # the stall watch of the intake takes over
                connection.protocol.read_timeout = None
                connection.protocol.start_timeout()
            self._transport.set_protocol(self)
            if self._holds:
                self._transport.pause_reading()
            elif not self._transport.is_reading():
                self._transport.resume_reading()
        self._absorb(early)
        if self._transport is None and not self._done.done():
            raise TransientTransferError(f"Cannot download {self._where}: the connection closed")
        return True

    def _absorb(self, early: bytes | memoryview) -> None:
        view = memoryview(early)
        while view and not self._done.done():
            buffer = self.get_buffer(len(view))
            count = min(len(buffer), len(view))
            buffer[:count] = view[:count]
            if self._block is None:  # no memory now: nothing is read until there is
                self._early = view
                return
            self.buffer_updated(count)
            view = view[count:]

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go (``asyncio.BufferedProtocol``)."""
        left = min(self.span.end, self._body_end) - self.span.position
        room = min(BLOCK_BYTES - self.fill, left)
        if self._block is None or room <= 0 or self._done.done():
            return memoryview(self._spill)
        room = min(room, max(self._intake.ledger.left(), 4096))
        return self._view[self.fill : self.fill + self._intake.limiter.step(room)]

    def buffer_updated(self, nbytes: int) -> None:
        """Count bytes that have arrived (``asyncio.BufferedProtocol``)."""
        if self._done.done():
            return  # read in the same turn as the end: not part of the span
        if self._block is None:
            self.abort("out of buffers")
            return
        if not self.fill:
            self.fill_since_s = self._loop.time()
        self.fill += nbytes
        self.span.position += nbytes
        self.last_byte_s = self._loop.time()
        ended = self.span.position >= min(self.span.end, self._body_end)
        if ended:
            self.hold("end")
            self._done.set_result(None)
        elif self.fill == BLOCK_BYTES:
            self.flush()
        self._reception.received(self, nbytes)

    def eof_received(self) -> None:
        """The server closed; ``connection_lost`` follows."""

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection broke before the end."""
        self._transport = None
        if self._handler is not None:
            self._handler.connection_lost(exc)
        self.abort(str(exc) if exc else "the connection was cut")

    def abort(self, reason: str) -> None:
        """Give up this connection; what is missing is fetched by another."""
        if not self._done.done():
            error = TransientTransferError(f"Cannot download {self._where}: {reason}")
            self._done.set_exception(error)

    def hold(self, why: str) -> None:
        """Stop reading for a reason; several may hold at once."""
        if not self._holds and self._transport is not None:
            self._transport.pause_reading()
        self._holds.add(why)

    def unhold(self, why: str) -> None:
        """One reason less."""
        if why not in self._holds:
            return
        self._holds.remove(why)
        self.last_byte_s = self._loop.time()
        if not self._holds and self._transport is not None:
            self._transport.resume_reading()

    @property
    def held(self) -> bool:
        """Whether it waits for us and not for the server."""
        return bool(self._holds)

    def throttle(self, delay_s: float) -> None:
        """Read nothing for a while: the bandwidth is used up."""
        self.hold("rate")
        self._loop.call_later(delay_s, self.unhold, "rate")

    def flush(self) -> None:
        """Hand what is here to the disk and go on in another block."""
        if self._block is None or not self.fill:
            return
        block, fill, self._block, self.fill = self._block, self.fill, None, 0
        self._reception.submit(block, self.span.position - fill, fill)
        self._new_block()

    def _new_block(self) -> None:
        block = self._intake.pool.take()
        if block is None:
            self.hold("memory")
            self._intake.pool.when_free(self._got_block)
        else:
            self._got_block(block)

    def _got_block(self, block: bytearray) -> None:
        self._block, self._view = block, memoryview(block)
        early, self._early = self._early, b""
        self._absorb(early)
        if self._block is not None:
            self.unhold("memory")

    def _flush_last(self) -> None:
        self._intake.pool.forget(self._got_block)
        block, fill, self._block, self.fill = self._block, self.fill, None, 0
        if block is None:
            return
        if fill:
            self._reception.submit(block, self.span.position - fill, fill)
        else:
            self._intake.pool.give(block)

    def _restore(self, response: aiohttp.ClientResponse) -> None:
        """Give the connection back; alive only when the whole body was read."""
        transport, self._transport = self._transport, None
        if self._done.done() and not self._done.cancelled():
            self._done.exception()
        if transport is None or self._handler is None:
            return
        transport.set_protocol(self._handler)
        if self.span.position == self._body_end and not transport.is_closing():
            if not transport.is_reading():
                transport.resume_reading()
            response.content.feed_eof()  # releases the connection for the next request
        else:
            response.close()
