"""The health port's listener: a bounded number of connections, idle ones give way.

The port may be open to the world. Connections that never ask for anything are free for
those who make them and cost a descriptor here, and the pod starts its services with
those; so there is a limit, and at the limit the oldest connection is closed that does not
carry a request of somebody with the token. A form that is sent a byte a minute counts as idle.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from aiohttp import web

MOST_CONNECTIONS = 256
_BACKLOG = 128


class PublicPort:
    """Listens for one runner."""

    def __init__(self) -> None:
        self._listener: asyncio.Server | None = None
        self._busy: set[object] = set()

    async def open(self, runner: web.AppRunner, host: str, port: int) -> int:
        """Listen; return the port, which the kernel has chosen for 0.

        Raises:
            OSError: the address cannot be used.
        """
        server = runner.server
        if server is None:
            raise RuntimeError("the runner is not set up")

        def protocol() -> asyncio.BaseProtocol:
            return server() if self._has_room(server) else _Refusal()

        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(protocol, host, port, backlog=_BACKLOG)
        return int(self._listener.sockets[0].getsockname()[1])

    def close(self) -> None:
        """Take no more connections."""
        if self._listener is not None:
            self._listener.close()

    @contextmanager
    def serving(self, request: web.Request) -> Iterator[None]:
        """Keep the connection of a request that was let in while it is answered."""
        self._busy.add(request.protocol)
        try:
            yield
        finally:
            self._busy.discard(request.protocol)

    def _has_room(self, server: web.Server) -> bool:
        """Whether one more may come, for which the oldest that waits for a request may go."""
        # Those that are being closed already have no transport any more.
        there = [c for c in server.connections if c.transport is not None]
        if len(there) < MOST_CONNECTIONS:
            return True
        idle = next((c for c in there if c not in self._busy), None)
        if idle is not None:
            idle.force_close()
        return idle is not None


class _Refusal(asyncio.Protocol):
    """Hangs up at once."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Close it."""
        if isinstance(transport, asyncio.Transport):
            transport.abort()
