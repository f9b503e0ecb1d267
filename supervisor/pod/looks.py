"""Looking whether somebody uses the pod: ComfyUI, Jupyter, SSH, transfers."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio.to_thread

from supervisor.core.state import StateStore
from supervisor.core.status import DownloadState, ServiceState, Snapshot
from supervisor.pod.activity import IdleFacts, peers
from supervisor.pod.terminals import Terminals

if TYPE_CHECKING:
    import aiohttp

# A service in one of these is used by nobody; in any other its state of use is unknown.
_UNUSED = frozenset({ServiceState.STOPPED, ServiceState.FAILED, ServiceState.DISABLED})
_MOVING = frozenset({DownloadState.QUEUED, DownloadState.ACTIVE, DownloadState.VERIFYING})
_TIMEOUT_S = 10.0
_LARGEST_ANSWER_BYTES = 8 * 1024 * 1024
_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))


# Takes whether somebody asked to keep the pod, which only the asker knows.
Look = Callable[[bool], Awaitable[IdleFacts]]


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where to look. URLs without a path; ``None`` = there is no such service.

    ``page_port``: connections to it count as use, because somebody has ComfyUI open.
    ``terminals``: where the pod's pseudo-terminals are, when life in them counts.
    """

    comfyui: str | None = None
    jupyter: str | None = None
    jupyter_token: str = field(default="", repr=False)
    ssh_port: int = 22
    page_port: int | None = None
    terminals: Path | None = None


class Looks:
    """Looks at the pod again and again and tells what has changed in between."""

    def __init__(self, addresses: Addresses, state: StateStore) -> None:
        self._at = addresses
        self._state = state
        self._newest_job: object = None
        self._jupyter_activity: object = None
        self._connected: dict[int, frozenset[str]] = {}
        self._terminals: Terminals | None = (
            Terminals(addresses.terminals) if addresses.terminals else None
        )

    @asynccontextmanager
    async def opened(self) -> AsyncGenerator[Look]:
        """Give the function that looks; its connections last as long as the context."""
        import aiohttp  # noqa: PLC0415 - slow to import, and needed only while idleness is watched

        # A connection kept open would count as somebody's page.
        connector = aiohttp.TCPConnector(force_close=True)
        async with aiohttp.ClientSession(connector=connector, trust_env=False) as session:
            yield lambda kept: self._look(session, kept)

    async def _look(self, session: aiohttp.ClientSession, kept: bool) -> IdleFacts:
        """Gather the facts; what does not answer is unknown, and that counts as use."""
        snapshot = self._state.snapshot
        queue, changed = await self._comfyui(session, snapshot)
        kernels, active = await self._jupyter(session, snapshot)
        ports = {port for port in (self._at.ssh_port, self._at.page_port) if port}
        counts = await anyio.to_thread.run_sync(self._count, ports)
        files = snapshot.downloads.files
        sync = snapshot.sync
        return IdleFacts(
            queue_length=queue,
            queue_changed=changed,
            busy_kernels=kernels,
            jupyter_active=active,
            ssh_sessions=counts[self._at.ssh_port],
            pages=counts[self._at.page_port] if self._at.page_port else 0,
            terminals=await anyio.to_thread.run_sync(self._terminals.used)
            if self._terminals
            else 0,
            # What fails again and again moves nothing and must not keep the pod for ever.
            downloads=sum(f.state in _MOVING and not f.error for f in files),
            uploads=0 if sync.last_error else sync.pending,
            kept=kept,
        )

    async def _comfyui(
        self, session: aiohttp.ClientSession, snapshot: Snapshot
    ) -> tuple[int | None, bool]:
        """The queue's length, and whether a job ended that no look has seen in the queue."""
        if self._at.comfyui is None or _rests(snapshot, "comfyui"):
            return 0, False
        if not _is_ready(snapshot, "comfyui"):
            return None, False
        prompt = await _get(session, f"{self._at.comfyui}/prompt")
        history = await _get(session, f"{self._at.comfyui}/history?max_items=1")
        try:
            length = int(prompt["exec_info"]["queue_remaining"])
        except (TypeError, KeyError, ValueError):
            return None, False
        newest = next(iter(history), None) if isinstance(history, Mapping) else None
        before, self._newest_job = self._newest_job, newest
        return length, newest is not None and newest != before

    async def _jupyter(
        self, session: aiohttp.ClientSession, snapshot: Snapshot
    ) -> tuple[int | None, bool]:
        """Busy kernels, and whether Jupyter saw activity since the last look."""
        if self._at.jupyter is None or _rests(snapshot, "jupyter"):
            return 0, False
        if not _is_ready(snapshot, "jupyter"):
            return None, False
        headers = {"Authorization": f"token {self._at.jupyter_token}"}
        status = await _get(session, f"{self._at.jupyter}/api/status", headers)
        kernels = await _get(session, f"{self._at.jupyter}/api/kernels", headers)
        if not isinstance(status, Mapping) or not isinstance(kernels, list):
            return None, False
        busy = sum(isinstance(k, Mapping) and k.get("execution_state") == "busy" for k in kernels)
        before, self._jupyter_activity = self._jupyter_activity, status.get("last_activity")
        return busy, before is not None and before != self._jupyter_activity

    def _count(self, ports: Collection[int]) -> dict[int, int | None]:
        """Connections that were there at the last look too: strangers who knock are gone."""
        try:
            tables = [path.read_text(encoding="ascii") for path in _TABLES if path.exists()]
        except OSError:
            return dict.fromkeys(ports)
        counts: dict[int, int | None] = {}
        for port in ports:
            now = frozenset().union(*(peers(table, port) for table in tables))
            counts[port] = len(now & self._connected.get(port, frozenset()))
            self._connected[port] = now
        return counts


def _rests(snapshot: Snapshot, name: str) -> bool:
    service = snapshot.services.get(name)
    return service is None or service.state in _UNUSED


def _is_ready(snapshot: Snapshot, name: str) -> bool:
    return snapshot.services[name].state is ServiceState.READY


async def _get(
    session: aiohttp.ClientSession, url: str, headers: Mapping[str, str] | None = None
) -> Any:
    """The JSON of a service of this pod; None when it does not answer as it should."""
    import aiohttp  # noqa: PLC0415 - slow to import, and needed only while idleness is watched

    limit = aiohttp.ClientTimeout(total=_TIMEOUT_S)
    try:
        async with session.get(
            url, headers=headers, timeout=limit, allow_redirects=False
        ) as response:
            if response.status != 200:
                return None
            return json.loads(await _read(response))
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
        return None


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """The whole body.

    Raises:
        ValueError: it is larger than any of these answers can be.
    """
    body = bytearray()
    async for chunk in response.content.iter_chunked(65_536):
        body += chunk
        if len(body) > _LARGEST_ANSWER_BYTES:
            raise ValueError("answer too large")
    return bytes(body)
