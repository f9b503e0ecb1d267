"""Pieces of a file received by threads, over connections that aiohttp has shown to be plain.

The first answer of each file comes by way of aiohttp, with redirects, proxies, TLS and every
kind of refusal. The address that answered it can then be asked directly. A lane takes only
the one answer that is hoped for; all others are declined, and aiohttp asks again.
"""

from __future__ import annotations

import asyncio
import math
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import anyio
from yarl import URL

from supervisor.download.intake import OLD_BLOCK_S, Intake
from supervisor.download.limits import BufferPool
from supervisor.download.segments import Span
from supervisor.download.threads import Call
from supervisor.download.transport import (
    Link,
    NoRangeError,
    Reply,
    content_range,
    literal_url,
    proxy_for,
    retry_after_s,
)
from supervisor.download.watch import Stretch
from supervisor.download.wire import TICK_S, DeclinedError, Head, UnluckyError, Wire
from supervisor.errors import TransientTransferError

LANES = 32
CONNECT_S = 30.0
KEEP_S = 15.0
DECLINED_PAUSE_S = 5.0
BUSY = frozenset({429, 503})  # would be no less busy for the other way
HEADERS = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": "comfypod-supervisor"}

T = TypeVar("T")
Origin = tuple[str, str, int]  # scheme, host, port


@dataclass(frozen=True, slots=True)
class Errand:
    """One piece to ask for; ``etag`` is None when any will do."""

    link: Link
    where: str  # the address for people
    start: int
    end: int
    total: int
    etag: str | None
    if_range: str | None

    def headers(self, url: URL) -> dict[str, str]:
        """What is sent; the link's own headers were made for this host."""
        host = f"[{url.raw_host}]" if ":" in (url.raw_host or "") else url.raw_host or ""
        headers = {
            "Host": host if url.is_default_port() else f"{host}:{url.port}",
            **HEADERS,
            **self.link.headers,
            "Range": f"bytes={self.start}-{self.end - 1}",
        }
        return headers if self.if_range is None else {**headers, "If-Range": self.if_range}

    def accept(self, head: Head) -> None:
        """Look whether the answer brings exactly this piece.

        Raises:
            DeclinedError: it does not; aiohttp's way finds out what that means.
        """
        headers = head.headers
        try:
            span = content_range(headers.get("content-range", ""), self.link)
        except NoRangeError:
            raise DeclinedError("no range") from None
        if (
            head.status != 206
            or span != (self.start, self.end - 1, self.total)
            or headers.get("content-length") != str(self.end - self.start)
            or "transfer-encoding" in headers
            or headers.get("content-encoding", "identity").lower() not in ("", "identity")
            or (self.etag is not None and headers.get("etag") != self.etag)
        ):
            raise DeclinedError("another answer than hoped for")


class Lane(Stretch):
    """One piece on its way through one thread."""

    def __init__(self, span: Span, intake: Intake, wire: Wire, block: bytearray) -> None:
        super().__init__(span)
        self.kept = False  # the wire may serve another request
        self._intake = intake
        self._wire = wire
        self._view = memoryview(block)
        self._held = True  # until the head is here: the server may think as long as it likes
        self._stop = threading.Event()
        self._reason = ""
        self._fill = self._reserved = 0

    @property
    def held(self) -> bool:
        """Whether it waits for us, or for the head of the answer."""
        return self._held

    def abort(self, reason: str) -> None:
        """Break the connection from another thread; what has arrived is kept."""
        self._reason = self._reason or reason
        self._stop.set()
        self._wire.shut()

    def run(self, errand: Errand, timeout_s: float, head: Head | None = None) -> None:
        """Fetch the piece, or as much as others leave to this span. Blocking.

        ``head`` of an answer that is under way already: then nothing is asked.

        Raises:
            DeclinedError: nothing was received; ask in the other way.
            TransientTransferError: the connection broke, stalled, or was too slow.
            OSError: the disk.
        """
        if head is None:
            head = self._ask(errand, timeout_s)
        self._held, self.last_byte_s = False, time.monotonic()
        try:
            self._receive(errand)
        finally:
            self._flush()
        whole = self.span.position == errand.end
        self.kept = whole and head.headers.get("connection", "").lower() != "close"

    def _ask(self, errand: Errand, timeout_s: float) -> Head:
        url = literal_url(errand.link.url)
        try:
            head = self._wire.ask(url.raw_path_qs, errand.headers(url), timeout_s=timeout_s)
        except OSError as exc:
            if self._wire.answers and not self._stop.is_set():
                raise UnluckyError("a kept connection had ended") from exc
            raise self._failure(errand, exc) from exc
        if head.status in BUSY:
            raise TransientTransferError(
                f"Cannot download {errand.where}: the server answered {head.status}",
                retry_after_s=retry_after_s(head.headers.get("retry-after")),
            )
        errand.accept(head)
        self._wire.answers += 1
        return head

    def _receive(self, errand: Errand) -> None:
        span, intake, began_s = self.span, self._intake, 0.0
        while (left := min(span.end, errand.end) - span.position) > 0:
            if not self._reserved:
                self._reserve(min(left, intake.block_bytes()), errand)
                began_s = time.monotonic()
            room = min(left, self._reserved - self._fill)
            step = self._view[self._fill : self._fill + intake.limiter.step(room)]
            try:
                count = self._wire.receive(step, expected=errand.end - span.position)
            except OSError as exc:
                raise self._failure(errand, exc) from exc
            now_s = time.monotonic()
            if count:
                self._fill += span.advance(count)
                self.last_byte_s = now_s
                self._throttle(count)
            if self._fill == self._reserved or (self._fill and now_s - began_s > OLD_BLOCK_S):
                self._flush()

    def _reserve(self, count: int, errand: Errand) -> None:
        while not self._intake.ledger.reserve(count, timeout_s=TICK_S):
            self._held = True
            if self._stop.is_set() or self._intake.error is not None:
                raise self._failure(errand, "the disk is too slow")
        self._reserved = count
        if self._held:
            self._held, self.last_byte_s = False, time.monotonic()

    def _throttle(self, count: int) -> None:
        if (delay_s := self._intake.limiter.charge(count)) > 0.001:
            self._held = True
            self._stop.wait(delay_s)
            self._held, self.last_byte_s = False, time.monotonic()

    def _flush(self) -> None:
        fill, reserved, self._fill, self._reserved = self._fill, self._reserved, 0, 0
        self._intake.ledger.filled(reserved, fill)
        if fill:
            self._intake.write(self.span.position - fill, self._view[:fill])

    def _failure(self, errand: Errand, cause: object) -> TransientTransferError:
        reason = self._reason or str(cause) or type(cause).__name__
        return TransientTransferError(f"Cannot download {errand.where}: {reason}")


@dataclass(slots=True)
class Loan:
    """What a lane works with; it says at the end what becomes of the connection."""

    wire: Wire
    block: bytearray
    kept: bool = False  # it may serve another request
    handed_on: bool = False  # somebody else looks after it


@dataclass(slots=True)
class Opened:
    """An answer whose head is here and whose body is under way."""

    wire: Wire
    head: Head
    taken: bool = False  # a lane looks after the wire

    def close(self) -> None:
        """Give the connection up, unless a lane has it."""
        if not self.taken:
            self.wire.close()


class Lanes:
    """The threads of all lanes of an engine, and the connections kept for them."""

    def __init__(
        self, threads: Executor, *, count: int, tls: ssl.SSLContext, timeout_s: float
    ) -> None:
        """``count`` threads at most; ``timeout_s`` bounds the wait for the head of an answer."""
        self._threads = threads
        self._tls = tls
        self.timeout_s = timeout_s
        self._free = count
        self._peers: dict[Origin, Any] = {}
        self._declined_s: dict[Origin, float] = {}
        self._idle: dict[Origin, list[tuple[Wire, float]]] = {}  # until when each is kept
        self._expiring = False

    def learn(self, reply: Reply) -> None:
        """Remember which address of a host has answered."""
        connection = reply.response.connection
        if connection is None or connection.transport is None:
            return
        peer = connection.transport.get_extra_info("peername")
        url = literal_url(reply.link.url)
        if isinstance(peer, tuple) and url.user is None and proxy_for(reply.link.url)[0] is None:
            self._peers[_origin(url)] = peer

    def usable(self, link: Link) -> bool:
        """Whether a thread is free, and this host is known to answer plainly."""
        origin = _origin(literal_url(link.url))
        declined_s = self._declined_s.get(origin, -DECLINED_PAUSE_S)
        quiet = time.monotonic() - declined_s >= DECLINED_PAUSE_S
        return quiet and self._free > 0 and origin in self._peers

    async def fetch(
        self, errand: Errand, span: Span, intake: Intake, opened: Opened | None = None
    ) -> None:
        """Fetch a piece in a thread; when cancelled, what has arrived is kept.

        Raises:
            DeclinedError: use the other way.
            TransientTransferError: the connection failed midway.
        """
        wire, head = None, None
        if opened is not None:
            wire, head, opened.taken = opened.wire, opened.head, True
        async with self.borrow(errand.link, intake.pool, wire) as loan:
            lane = Lane(span, intake, loan.wire, loan.block)
            intake.connections.add(lane)
            try:
                await self.call(
                    lambda: lane.run(errand, self.timeout_s, head), lambda: lane.abort("cancelled")
                )
            finally:
                intake.connections.discard(lane)
                loan.kept = lane.kept

    @asynccontextmanager
    async def borrow(
        self, link: Link, pool: BufferPool, wire: Wire | None = None
    ) -> AsyncIterator[Loan]:
        """One of the threads with a connection, or with that ``wire``, and a block of memory.

        Raises:
            UnluckyError: there is no memory, or no connection.
        """
        origin = _origin(literal_url(link.url))
        loan = None
        block = pool.take()
        self._free -= 1
        try:
            if block is None:
                raise UnluckyError("no memory")
            wire = wire or await self._wire(origin)
            loan = Loan(wire, block)
            yield loan
        except UnluckyError:
            raise
        except DeclinedError:
            self._declined_s[origin] = time.monotonic()
            raise
        finally:
            self._free += 1
            if block is not None:
                pool.give(block)
            if wire is not None and loan is not None and loan.kept:
                self._keep(origin, wire)
            elif wire is not None and not (loan is not None and loan.handed_on):
                wire.close()

    async def call(self, work: Callable[[], T], abort: Callable[[], None]) -> T:
        """Run ``work`` in a thread of the lanes to its end; ``abort`` hastens it on cancel."""
        call = Call(work)
        self._threads.submit(call.run)
        try:
            await call.waiter
        finally:
            if not call.ended:
                abort()
                with anyio.CancelScope(shield=True):
                    await call.again()
        return call.result()

    def close(self) -> None:
        """Close every kept connection; none may be in use."""
        for wires in self._idle.values():
            for wire, _ in wires:
                wire.close()
        self._idle.clear()

    async def _wire(self, origin: Origin) -> Wire:
        if kept := self._idle.get(origin):
            return kept.pop()[0]
        scheme, host, _ = origin
        peer = self._peers[origin]
        family = socket.AF_INET6 if ":" in peer[0] else socket.AF_INET
        connected = socket.socket(family, socket.SOCK_STREAM)
        connected.setblocking(False)
        try:
            with anyio.fail_after(CONNECT_S):
                await asyncio.get_running_loop().sock_connect(connected, peer)
            secure = self._tls if scheme == "https" else None
            return Wire(connected, tls=secure, host=host.rstrip("."))
        except BaseException as exc:
            connected.close()
            if isinstance(exc, OSError):  # TimeoutError is one
                self._peers.pop(origin, None)
                raise UnluckyError("cannot connect") from exc
            raise

    def _keep(self, origin: Origin, wire: Wire) -> None:
        loop = asyncio.get_running_loop()
        self._idle.setdefault(origin, []).append((wire, loop.time() + KEEP_S))
        if not self._expiring:
            self._expiring = True
            loop.call_later(KEEP_S, self._expire)

    def _expire(self) -> None:
        loop = asyncio.get_running_loop()
        now_s, soonest_s = loop.time(), math.inf
        for wires in self._idle.values():
            while wires and wires[0][1] <= now_s:  # the one unused for longest comes first
                wires.pop(0)[0].close()
            soonest_s = min(soonest_s, wires[0][1] if wires else math.inf)
        self._expiring = soonest_s < math.inf
        if self._expiring:
            loop.call_at(soonest_s, self._expire)


def _origin(url: URL) -> Origin:
    return url.scheme, url.raw_host or "", url.port or 0
