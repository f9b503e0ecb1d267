"""A real server on a temporary socket and a free port, with small real parts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
import anyio

from supervisor.api.context import ApiContext, RestoreKind
from supervisor.api.server import serve_api
from supervisor.core.events import EventBus
from supervisor.core.state import StateStore
from supervisor.core.status import ServiceState, ServiceStatus, Snapshot, SyncStatus
from supervisor.download.request import DownloadRequest
from supervisor.errors import ControlError
from supervisor.services.logs import LogStore

TOKEN = "correct-horse-battery"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@dataclass
class Services:
    """Does what the real manager does to the status, without processes."""

    state: StateStore
    calls: list[tuple[str, ...]] = field(default_factory=list)
    block: anyio.Event | None = None

    async def start(self, name: str) -> None:
        self._set("start", name, ServiceState.READY)

    async def stop(self, name: str) -> None:
        if self.block is not None:
            await self.block.wait()
        self._set("stop", name, ServiceState.STOPPED)

    async def restart(self, name: str, *, now: bool = False) -> None:
        if not now:
            await self.state.wait(lambda s: not s.host.comfyui_queue_length)
        self._set("restart-now" if now else "restart", name, ServiceState.READY)

    async def signal(self, name: str, signal_name: str) -> None:
        if signal_name == "SIGNONE":
            raise ControlError(f"Cannot signal {name}: no such signal")
        self.calls.append(("signal", name, signal_name))

    def _set(self, action: str, name: str, state: ServiceState) -> None:
        self.calls.append((action, name))
        service = self.state.snapshot.services[name]
        self.state.set_service(replace(service, state=state, ready=state is ServiceState.READY))


@dataclass
class Sync:
    calls: list[tuple[Any, ...]] = field(default_factory=list)

    async def flush(self, timeout_s: float) -> SyncStatus:
        self.calls.append(("flush", timeout_s))
        return SyncStatus(enabled=True, uploaded=3)

    def waiting(self) -> list[str]:
        return ["a.mp4 is still being written"]

    async def retry(self) -> int:
        self.calls.append(("retry",))
        return 2

    async def restore(self, kinds: Sequence[RestoreKind]) -> Any:
        self.calls.append(("restore", *kinds))
        return {"files": 1, "kept": 0}


@dataclass
class Models:
    added: list[tuple[DownloadRequest, bool]] = field(default_factory=list)
    steered: list[tuple[str, str]] = field(default_factory=list)

    def add(self, request: DownloadRequest, *, now: bool = False) -> None:
        self.added.append((request, now))

    def prioritise(self, name: str) -> None:
        self.steered.append(("first", name))

    def retry(self, name: str) -> None:
        self.steered.append(("retry", name))

    def cancel(self, name: str) -> None:
        self.steered.append(("cancel", name))


@dataclass
class Server:
    """What a test talks to."""

    context: ApiContext
    socket: Path
    session: aiohttp.ClientSession  # over the socket
    public: aiohttp.ClientSession  # over TCP, without a token or cookies
    stops: list[str]
    reloads: list[bool]
    end: anyio.CancelScope
    ended: anyio.Event

    @property
    def port(self) -> int:
        return int(self.context.state.snapshot.health["port"])

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    @property
    def state(self) -> StateStore:
        return self.context.state

    @property
    def bus(self) -> EventBus:
        return self.context.bus


def make_context(**parts: Any) -> tuple[ApiContext, list[str], list[bool]]:
    services = {
        "comfyui": ServiceStatus("comfyui", ServiceState.READY, ready=True, required=True, pid=7),
        "jupyter": ServiceStatus("jupyter", ServiceState.READY, ready=True),
    }
    state = StateStore(Snapshot(version="1.2.3"))
    state.update(services=services)
    stops: list[str] = []
    reloads: list[bool] = []

    async def reload(dry_run: bool) -> Mapping[str, Any]:
        reloads.append(dry_run)
        return {"dry_run": dry_run, "services": {"changed": ["jupyter"]}}

    context = ApiContext(
        **{
            "state": state,
            "bus": EventBus(),
            "token": TOKEN,
            "session_key": "kept in the state directory",
            "logs": LogStore(None, str, console=False),
            "services": Services(state),
            "models": Models(),
            "syncer": Sync(),
            "shutdown": stops.append,
            "reload": reload,
            **parts,
        }
    )
    return context, stops, reloads


@asynccontextmanager
async def serving(tmp_path: Path, *, port: int = 0, **parts: Any) -> AsyncIterator[Server]:
    """Serve until the body ends; ``parts`` are fields of the context."""
    context, stops, reloads = make_context(**parts)
    path = tmp_path / "run" / "s.sock"
    async with anyio.create_task_group() as tasks:
        end, ended = anyio.CancelScope(), anyio.Event()

        async def serve(*, task_status: Any) -> None:
            with end:
                await serve_api(
                    context, socket_path=path, host="127.0.0.1", port=port, task_status=task_status
                )
            ended.set()

        await tasks.start(serve)
        connector = aiohttp.UnixConnector(str(path))
        jar = aiohttp.DummyCookieJar()
        async with (
            aiohttp.ClientSession("http://supervisor", connector=connector) as owner,
            aiohttp.ClientSession(cookie_jar=jar) as public,
        ):
            yield Server(context, path, owner, public, stops, reloads, end, ended)
        tasks.cancel_scope.cancel()
