"""A local HTTP origin that misbehaves on request, written on raw sockets so that it can.

Each request asks ``behave(Ask)`` for a ``Fault``; the default serves honest ranges.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Ask:
    """One request as the origin saw it; ``number`` counts from 0."""

    number: int
    path: str
    headers: dict[str, str]
    start: int
    end: int | None
    ranged: bool


@dataclass(frozen=True)
class Fault:
    """How to answer. The defaults are an honest server."""

    status: int | None = None  # instead of 200/206, with an empty body
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes | None = None  # instead of the file, with 200
    cut_after: int | None = None  # close after so many bytes of the body
    stall_after: int | None = None  # say nothing more after so many bytes
    bytes_per_s: float | None = None
    flip_at: int | None = None  # offset in the file of a byte that arrives wrong
    shift: int = 0  # error of the Content-Range
    ranges: bool = True
    chunked: bool = False
    gzipped: bool = False
    no_length: bool = False
    unsized: bool = False  # parts of a file whose size the Content-Range does not tell
    etag: str | None = '"v1"'
    data: bytes | None = None  # another version of the file
    close: bool = False


@dataclass
class Origin:
    """The running server."""

    data: bytes
    behave: Callable[[Ask], Fault]
    port: int = 0
    scheme: str = "http"
    asks: list[Ask] = field(default_factory=list)
    sent: int = 0
    open: int = 0
    most_open: int = 0
    connections: int = 0  # ever made

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/model.bin"

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


@asynccontextmanager
async def serve(
    data: bytes,
    behave: Callable[[Ask], Fault] | None = None,
    host: str = "127.0.0.1",
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[Origin]:
    """Run an origin on a free port."""
    origin = Origin(data, behave or (lambda _: Fault()))
    handlers: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        handlers.add(task)
        origin.connections += 1
        try:
            while await _serve_one(origin, reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()
            handlers.discard(task)

    server = await asyncio.start_server(handle, host, 0, ssl=tls)
    origin.scheme = "http" if tls is None else "https"
    origin.port = server.sockets[0].getsockname()[1]
    try:
        yield origin
    finally:
        server.close()
        for task in list(handlers):
            task.cancel()
        while handlers:
            await asyncio.sleep(0.01)


async def _serve_one(
    origin: Origin, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> bool:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {}
    for line in head[1:]:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    value = headers.get("range", "")
    first, _, last = value.removeprefix("bytes=").partition("-")
    ask = Ask(
        len(origin.asks),
        head[0].split(" ")[1],
        headers,
        int(first or 0),
        int(last) + 1 if last else None,
        bool(value),
    )
    origin.asks.append(ask)
    fault = origin.behave(ask)
    origin.open += 1
    origin.most_open = max(origin.most_open, origin.open)
    try:
        return await _answer(origin, ask, fault, writer)
    finally:
        origin.open -= 1


async def _answer(origin: Origin, ask: Ask, fault: Fault, writer: asyncio.StreamWriter) -> bool:
    data = origin.data if fault.data is None else fault.data
    if fault.status is not None:
        extra = "".join(f"{name}: {value}\r\n" for name, value in fault.headers)
        writer.write(f"HTTP/1.1 {fault.status} X\r\n{extra}Content-Length: 0\r\n\r\n".encode())
        await writer.drain()
        return True
    ranged = ask.ranged and fault.ranges and fault.body is None
    if "if-range" in ask.headers and ask.headers["if-range"] != fault.etag:
        ranged = False
    if ranged and ask.start >= len(data):
        head = f"HTTP/1.1 416 X\r\nContent-Range: bytes */{len(data)}"
        writer.write(f"{head}\r\nContent-Length: 0\r\n\r\n".encode())
        await writer.drain()
        return True
    if fault.body is not None:
        data = fault.body
    start, end = (ask.start, min(ask.end or len(data), len(data))) if ranged else (0, len(data))
    # Many connections may be sent the whole file at once: none of them has a copy of its own.
    body = memoryview(data)[start:end]
    if fault.flip_at is not None and start <= fault.flip_at < end:
        flipped = bytearray(body)
        flipped[fault.flip_at - start] ^= 0xFF
        body = memoryview(flipped)
    lines = [f"HTTP/1.1 {206 if ranged else 200} OK"]
    if fault.etag:
        lines.append(f"ETag: {fault.etag}")
    if ranged:
        lines.append(
            f"Content-Range: bytes {start + fault.shift}-{end - 1 + fault.shift}/"
            + ("*" if fault.unsized else str(len(data)))
        )
    if fault.gzipped:
        body = memoryview(gzip.compress(body, 1))
        lines.append("Content-Encoding: gzip")
    if fault.chunked:
        lines.append("Transfer-Encoding: chunked")
    elif fault.no_length:
        lines.append("Connection: close")
    else:
        lines.append(f"Content-Length: {len(body)}")
    lines += [f"{name}: {value}" for name, value in fault.headers]
    writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
    return await _send(origin, body, fault, writer)


async def _send(
    origin: Origin, body: memoryview, fault: Fault, writer: asyncio.StreamWriter
) -> bool:
    step = 65536 if fault.bytes_per_s is None else max(1, int(fault.bytes_per_s / 20))
    stop = min(x for x in (fault.cut_after, fault.stall_after, len(body)) if x is not None)
    for position in range(0, stop, step):
        piece = body[position : min(position + step, stop)]
        writer.write(b"%x\r\n%s\r\n" % (len(piece), piece) if fault.chunked else piece)
        await writer.drain()
        origin.sent += len(piece)
        if fault.bytes_per_s is not None:
            await asyncio.sleep(0.05)
    if fault.stall_after is not None:
        await asyncio.sleep(3600)
    if stop < len(body) or fault.cut_after is not None:
        return False
    if fault.chunked:
        writer.write(b"0\r\n\r\n")
        await writer.drain()
    return not (fault.no_length or fault.close)


__all__ = ["Ask", "Fault", "Origin", "replace", "serve"]
