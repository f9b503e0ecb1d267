"""What the idle watcher sees of ComfyUI, Jupyter, connections and transfers."""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from supervisor.core.state import StateStore
from supervisor.core.status import (
    DownloadFileStatus,
    DownloadsStatus,
    DownloadState,
    ServiceState,
    ServiceStatus,
    SyncStatus,
)
from supervisor.pod.activity import IdleFacts, busy_because
from supervisor.pod.looks import Addresses, Looks

pytestmark = pytest.mark.anyio
QUIET = IdleFacts()
OWN_PORT = -1  # stands for the port of the stand-in


@dataclass
class StandIn:
    """ComfyUI and Jupyter on one port; ``None`` as an answer is a 500."""

    remaining: int | None = 0
    history: dict[str, Any] = field(default_factory=dict)
    activity: str = "2026-11-21T00:00:00Z"
    kernels: list[dict[str, str]] = field(default_factory=list)
    tokens: set[str | None] = field(default_factory=set)

    async def prompt(self, _: web.Request) -> web.Response:
        if self.remaining is None:
            return web.Response(status=500)
        return web.json_response({"exec_info": {"queue_remaining": self.remaining}})

    async def past(self, request: web.Request) -> web.Response:
        assert request.query["max_items"] == "1"
        return web.json_response(self.history)

    async def status(self, request: web.Request) -> web.Response:
        self.tokens.add(request.headers.get("Authorization"))
        return web.json_response({"last_activity": self.activity, "kernels": len(self.kernels)})

    async def running(self, request: web.Request) -> web.Response:
        self.tokens.add(request.headers.get("Authorization"))
        return web.json_response(self.kernels)


@asynccontextmanager
async def looking(world: StandIn, **more: Any) -> AsyncGenerator[tuple[Any, StateStore]]:
    app = web.Application()
    app.router.add_get("/prompt", world.prompt)
    app.router.add_get("/history", world.past)
    app.router.add_get("/api/status", world.status)
    app.router.add_get("/api/kernels", world.running)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        state = StateStore()
        for name in ("comfyui", "jupyter"):
            state.set_service(ServiceStatus(name=name, state=ServiceState.READY))
        options = {"ssh_port": 1, **more}
        if options.get("page_port") == OWN_PORT:
            options["page_port"] = runner.addresses[0][1]
        at = Addresses(comfyui=url, jupyter=url, jupyter_token="s3cret", **options)
        async with Looks(at, state).opened() as look:
            yield look, state
    finally:
        await runner.cleanup()


async def test_a_quiet_pod() -> None:
    world = StandIn()
    async with looking(world) as (look, _):
        assert await look(False) == QUIET
        assert busy_because(await look(False)) == ()
    assert world.tokens == {"token s3cret"}


async def test_jobs_that_no_look_saw_in_the_queue() -> None:
    world = StandIn()
    async with looking(world) as (look, _):
        await look(False)
        world.history = {"job-1": {"outputs": {}}}
        assert (await look(False)).queue_changed
        assert not (await look(False)).queue_changed
        world.remaining = 3
        assert (await look(False)).queue_length == 3


async def test_kernels_and_activity_of_jupyter() -> None:
    world = StandIn(kernels=[{"execution_state": "busy"}, {"execution_state": "idle"}])
    async with looking(world) as (look, _):
        assert (await look(False)).busy_kernels == 1
        world.kernels, world.activity = [], "2026-11-21T00:01:00Z"
        facts = await look(False)
        assert (facts.busy_kernels, facts.jupyter_active) == (0, True)
        assert not (await look(False)).jupyter_active


async def test_what_does_not_answer_is_unknown() -> None:
    async with looking(StandIn(remaining=None)) as (look, state):
        assert (await look(False)).queue_length is None
        state.set_service(ServiceStatus(name="jupyter", state=ServiceState.STARTING))
        assert (await look(False)).busy_kernels is None


@pytest.mark.parametrize(
    "resting", [ServiceState.FAILED, ServiceState.STOPPED, ServiceState.DISABLED]
)
async def test_a_service_that_rests_is_used_by_nobody(resting: ServiceState) -> None:
    async with looking(StandIn(remaining=5)) as (look, state):
        state.set_service(ServiceStatus(name="comfyui", state=resting))
        assert (await look(False)).queue_length == 0


async def test_connections_count_once_they_last() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        async with looking(StandIn(), ssh_port=port, page_port=port) as (look, _):
            with socket.create_connection(("127.0.0.1", port)), server.accept()[0]:
                assert (await look(False)).ssh_sessions == 0, "it may be a stranger who knocks"
                facts = await look(False)
                assert (facts.ssh_sessions, facts.pages) == (1, 1)
            assert (await look(False)).ssh_sessions == 0


async def test_the_looks_themselves_are_no_open_page() -> None:
    async with looking(StandIn(), page_port=OWN_PORT) as (look, _):
        assert [(await look(False)).pages for _ in range(4)] == [0, 0, 0, 0]


async def test_life_in_a_terminal_is_use(tmp_path: Path) -> None:
    async with looking(StandIn(), terminals=tmp_path) as (look, _):
        (tmp_path / "0").touch()
        assert (await look(False)).terminals == 0, "nothing to compare with"
        (tmp_path / "1").touch()
        assert (await look(False)).terminals == 1
        assert (await look(False)).terminals == 0


async def test_transfers_count_while_they_move() -> None:
    files = tuple(
        DownloadFileStatus(name=kind, state=kind, error=error)
        for kind, error in (
            (DownloadState.ACTIVE, None),
            (DownloadState.VERIFYING, None),
            (DownloadState.QUEUED, "HTTP 503"),  # it fails again and again
            (DownloadState.DONE, None),
            (DownloadState.FAILED, "gone"),
        )
    )
    async with looking(StandIn()) as (look, state):
        state.update(downloads=DownloadsStatus(files=files))
        assert (await look(False)).downloads == 2
        state.update(sync=SyncStatus(enabled=True, pending=2))
        assert (await look(False)).uploads == 2
        state.update(sync=SyncStatus(enabled=True, pending=2, last_error="no such bucket"))
        assert (await look(False)).uploads == 0
        assert (await look(True)).kept
