"""Pieces of a file received by threads, over connections that aiohttp has shown to be plain.

The first answer of each file comes by way of aiohttp, with redirects, proxies, TLS and every
kind of refusal. The address that answered it can then be asked directly. A lane takes only
the one answer that is hoped for; all others are declined, and aiohttp asks again.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
import time
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import anyio
from yarl import URL

from supervisor.download.intake import OLD_BLOCK_S, Intake
from supervisor.download.segments import Span
from supervisor.download.transport import (
    Link,
    NoRangeError,
    Reply,
    content_range,
    literal_url,
    proxy_for,
)
from supervisor.download.watch import Stretch
from supervisor.download.wire import TICK_S, DeclinedError, Head, UnluckyError, Wire
from supervisor.errors import TransientTransferError

LANES = 16
CONNECT_S = 30.0
KEEP_S = 15.0
DECLINED_PAUSE_S = 5.0
HEADERS = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": "comfypod-supervisor"}

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

    def run(self, errand: Errand, timeout_s: float) -> None:
        """Fetch the piece, or as much as others leave to this span. Blocking.

        Raises:
            DeclinedError: nothing was received; ask in the other way.
            TransientTransferError: the connection broke, stalled, or was too slow.
            OSError: the disk.
        """
        url = literal_url(errand.link.url)
        try:
            head = self._wire.ask(url.raw_path_qs, errand.headers(url), timeout_s=timeout_s)
        except OSError as exc:
            if self._wire.answers and not self._stop.is_set():
                raise UnluckyError("a kept connection had ended") from exc
            raise self._failure(errand, exc) from exc
        errand.accept(head)
        self._wire.answers += 1
        self._held, self.last_byte_s = False, time.monotonic()
        try:
            self._receive(errand)
        finally:
            self._flush()
        whole = self.span.position == errand.end
        self.kept = whole and head.headers.get("connection", "").lower() != "close"

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


class Lanes:
    """The threads of all lanes of an engine, and the connections kept for them."""

    def __init__(
        self, threads: Executor, *, count: int, tls: ssl.SSLContext, timeout_s: float
    ) -> None:
        """``count`` threads at most; ``timeout_s`` bounds the wait for the head of an answer."""
        self._threads = threads
        self._tls = tls
        self._timeout_s = timeout_s
        self._free = count
        self._peers: dict[Origin, Any] = {}
        self._declined_s: dict[Origin, float] = {}
        self._idle: dict[Origin, list[Wire]] = {}

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

    async def fetch(self, errand: Errand, span: Span, intake: Intake) -> None:
        """Fetch a piece in a thread; when cancelled, what has arrived is kept.

        Raises:
            DeclinedError: use the other way.
            TransientTransferError: the connection failed midway.
        """
        origin = _origin(literal_url(errand.link.url))
        block = intake.pool.take()
        if block is None:
            raise UnluckyError("no memory")
        self._free -= 1
        wire, lane = None, None
        try:
            wire = await self._wire(origin)
            lane = Lane(span, intake, wire, block)
            intake.connections.add(lane)
            await self._run(lane, errand)
        except UnluckyError:
            raise
        except DeclinedError:
            self._declined_s[origin] = time.monotonic()
            raise
        finally:
            self._free += 1
            intake.pool.give(block)
            if lane is not None:
                intake.connections.discard(lane)
            if wire is not None and lane is not None and lane.kept:
                self._keep(origin, wire)
            elif wire is not None:
                wire.close()

    def close(self) -> None:
        """Close every kept connection; none may be in use."""
        for wires in self._idle.values():
            for wire in wires:
                wire.close()
        self._idle.clear()

    async def _run(self, lane: Lane, errand: Errand) -> None:
        job = asyncio.get_running_loop().run_in_executor(
            self._threads, lane.run, errand, self._timeout_s
        )
        try:
            await asyncio.wait([job])
        finally:
            if not job.done():
                lane.abort("cancelled")
                with anyio.CancelScope(shield=True):
                    await asyncio.wait([job])
            job.exception()  # seen, also when this was cancelled
        job.result()

    async def _wire(self, origin: Origin) -> Wire:
        if kept := self._idle.get(origin):
            return kept.pop()
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
        self._idle.setdefault(origin, []).append(wire)
        asyncio.get_running_loop().call_later(KEEP_S, self._expire, origin, wire, wire.answers)

    def _expire(self, origin: Origin, wire: Wire, answers: int) -> None:
        wires = self._idle.get(origin, [])
        if wire in wires and wire.answers == answers:
            wires.remove(wire)
            wire.close()


def _origin(url: URL) -> Origin:
    return url.scheme, url.raw_host or "", url.port or 0
