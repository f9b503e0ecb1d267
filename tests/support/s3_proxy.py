"""A proxy that stands before a real S3 server and misbehaves. Runs in a thread.

One request a connection, which keeps it simple; the server behind it is untouched.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Self
from urllib.parse import urlsplit

_ERROR = (
    b"HTTP/1.1 %d X\r\nContent-Type: application/xml\r\nContent-Length: %d\r\n"
    b"Connection: close\r\n\r\n%s"
)

# Decides per request: None, an HTTP status, or
# "reset" (half of the body is taken, then the line is dead), "lost" (done, but the answer
# never arrives), "cut" (half of the answer arrives), "slow" (a second late), "hang".
Fault = Callable[[int], int | str | None]


class FaultyProxy:
    """The proxy; a context manager. ``faults`` counts what it did."""

    def __init__(self, upstream: str, fault: Fault | None = None, *, slow_s: float = 1.0) -> None:
        parts = urlsplit(upstream)
        self._upstream = (parts.hostname or "127.0.0.1", parts.port or 80)
        self.fault = fault
        self.slow_s = slow_s
        self.down = False
        self.faults: Counter[str] = Counter()
        self.requests = 0
        self.endpoint = ""
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._tasks: set[asyncio.Task[None]] = set()

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def outage(self, *, down: bool) -> None:
        """Let the server be gone, with every connection that was open, or back."""
        self.down = down
        self.faults["outage"] += down
        if down:
            self._loop.call_soon_threadsafe(self._drop)

    def _drop(self) -> None:
        for task in self._tasks:
            task.cancel()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._accept, "127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._ready.set()
        self._loop.run_forever()
        self._drop()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
            with suppress(asyncio.CancelledError, OSError):
                self._loop.run_until_complete(task)
        self._loop.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            if not self.down:
                await self._one(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            writer.transport.abort()
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.requests += 1
        action = self.fault(self.requests) if self.fault else None
        if action is not None:
            self.faults[str(action)] += 1
        first, *lines = head[:-4].split(b"\r\n")
        headers = {line.split(b":", 1)[0].lower(): line for line in lines}
        length = int(headers.get(b"content-length", b":0").split(b":")[1])
        if b"expect" in headers:
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if action == "reset":
            await reader.readexactly(length // 2)
            writer.transport.abort()
            return
        body = await reader.readexactly(length)
        if isinstance(action, int):
            code = b"SlowDown" if action in (429, 503) else b"InternalError"
            error = b"<Error><Code>%s</Code><Message>x</Message></Error>" % code
            writer.write(_ERROR % (action, len(error), error))
            await writer.drain()
            return
        if action == "hang":
            await asyncio.sleep(3600)
        if action == "slow":
            await asyncio.sleep(self.slow_s)
        for name in (b"expect", b"connection"):
            headers.pop(name, None)
        # What has reached the server whole is done there, whatever becomes of the line before.
        answer = await asyncio.shield(self._ask(b"\r\n".join([first, *headers.values()]), body))
        if action == "lost":
            writer.transport.abort()
            return
        writer.write(answer[: len(answer) // 2] if action == "cut" else answer)
        await writer.drain()

    async def _ask(self, head: bytes, body: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(*self._upstream)
        try:
            writer.write(head + b"\r\nConnection: close\r\n\r\n" + body)
            await writer.drain()
            return await reader.read()
        finally:
            writer.close()
