"""The control socket: who gets in, what it answers, how it begins and ends."""

from __future__ import annotations

import json
import os
import re
import socket
import stat
import sys
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import pytest

from supervisor.api.client import Client
from supervisor.api.context import ApiContext
from supervisor.api.routes import Routes
from supervisor.api.server import serve_api
from supervisor.api.streams import Streams
from supervisor.core.state import StateStore
from supervisor.core.status import HostStatus, Phase, ServiceState, ServiceStatus, Snapshot
from supervisor.download.request import DownloadRequest
from supervisor.errors import ControlError
from tests.component.api_server import TOKEN, Models, Server, Services, Sync, make_context, serving

pytestmark = pytest.mark.anyio


async def get(server: Server, path: str) -> Any:
    async with server.session.get(path) as response:
        assert response.status == 200, await response.text()
        return await response.json()


async def post(server: Server, path: str, body: Any = None) -> tuple[int, Any]:
    data = None if body is None else json.dumps(body)
    async with server.session.post(path, data=data) as response:
        return response.status, await response.json()


async def test_reading(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        status = await get(server, "/v1/status")
        assert status["phase"] == "ready"
        assert list(await get(server, "/v1/services")) == ["comfyui", "jupyter"]
        assert (await get(server, "/v1/services/comfyui"))["pid"] == 7
        assert (await get(server, "/v1/models"))["files"] == []
        assert (await get(server, "/v1/sync"))["enabled"] is False


async def test_actions_reach_their_parts(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        services, syncer = server.context.services, server.context.syncer
        assert isinstance(services, Services)
        assert isinstance(syncer, Sync)
        code, answer = await post(server, "/v1/services/jupyter/stop")
        assert (code, answer["state"]) == (200, "stopped")
        await post(server, "/v1/services/jupyter/start", {})
        await post(server, "/v1/services/jupyter/restart", {"now": True})
        await post(server, "/v1/services/jupyter/signal", {"signal": "USR1"})
        assert services.calls == [
            ("stop", "jupyter"), ("start", "jupyter"), ("restart-now", "jupyter"),
            ("signal", "jupyter", "SIGUSR1"),
        ]  # fmt: skip
        assert (await post(server, "/v1/sync/flush", {"timeout_s": 5}))[1]["uploaded"] == 3
        assert (await post(server, "/v1/sync/retry"))[1] == {"trying": 2}
        await post(server, "/v1/sync/restore", {"kinds": ["input"]})
        await post(server, "/v1/sync/restore", {"kinds": []})
        assert syncer.calls == [
            ("flush", 5.0), ("retry",), ("restore", "input"),
            ("restore", "workflows", "input", "settings"),
        ]  # fmt: skip
        assert (await post(server, "/v1/reload", {"dry_run": True}))[1]["dry_run"] is True
        assert server.reloads == [True]
        assert (await post(server, "/v1/shutdown"))[0] == 202
        assert len(server.stops) == 1


async def test_hanging_up_gives_up_the_wait(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        services = server.context.services
        assert isinstance(services, Services)
        server.state.update(host=HostStatus(comfyui_queue_length=1))
        with anyio.move_on_after(0.3):
            await post(server, "/v1/services/comfyui/restart", {})
        await get(server, "/v1/status")  # the hang-up arrived before this
        server.state.update(host=HostStatus(comfyui_queue_length=0))
        await post(server, "/v1/services/comfyui/restart", {"now": True})
        assert services.calls == [("restart-now", "comfyui")]


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/v1/services/comfui/stop", None, 404, "did you mean comfyui?"),
        ("/v1/services/comfyui/signal", {"signal": "NONE"}, 400, "no such signal"),
        ("/v1/services/comfyui/signal", {}, 422, "signal"),
        (
            "/v1/services/comfyui/restart",
            {"nwo": True},
            422,
            "nwo is not known here did you mean now",
        ),
        ("/v1/services/comfyui/restart", {"now": "soon"}, 422, "now must be true or false"),
        ("/v1/services/comfyui/restart", [], 422, "no JSON object"),
        ("/v1/models/cancel", {"names": []}, 422, "names must not be empty"),
        ("/v1/models/hide", {"names": ["x"]}, 404, "Cannot POST /v1/models/hide"),
        ("/v1/models", {"to": "loras/"}, 409, "Cannot fetch models"),
        ("/v1/idle/keep", {"seconds": 5}, 409, "ENABLE_IDLE_SHUTDOWN"),
        ("/v1/ladder/reset", {}, 409, "Cannot reset the ladder"),
        ("/v1/sync/restore", {"kinds": ["all"]}, 422, "kinds[0] must be 'workflows'"),
        ("/v1/nothing", None, 404, "Cannot POST /v1/nothing"),
    ],
)
async def test_refusals_name_the_cause(
    tmp_path: Path, path: str, body: Any, status: int, words: str
) -> None:
    async with serving(tmp_path) as server:
        code, answer = await post(server, path, body)
        assert code == status
        assert set(answer["error"]) == {"code", "message", "hint"}
        assert words in f"{answer['error']['message']} {answer['error']['hint']}"


async def test_a_model_is_added(tmp_path: Path) -> None:
    def request_for(file: Any) -> DownloadRequest:
        if not file.to:
            raise ValueError("nothing says where it goes")
        return DownloadRequest(file.to, file.url, tmp_path / file.to)

    async with serving(tmp_path, request_for=request_for) as server:
        models = server.context.models
        assert isinstance(models, Models)
        body = {"url": "https://x.example/a.safetensors", "to": "loras/a.safetensors", "now": True}
        assert await post(server, "/v1/models", body) == (
            202, {"name": body["to"], "destination": str(tmp_path / "loras/a.safetensors")},
        )  # fmt: skip
        assert [(r.name, now) for r, now in models.added] == [("loras/a.safetensors", True)]
        code, answer = await post(server, "/v1/models", {**body, "to": ""})
        assert (code, answer["error"]["message"]) == (
            422,
            "Cannot fetch the file: nothing says where it goes",
        )


async def test_models_are_steered_by_name(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        models = server.context.models
        assert isinstance(models, Models)
        for action in ("first", "retry", "cancel"):
            answer = await post(server, f"/v1/models/{action}", {"names": ["vae/a.bin", "b"]})
            assert answer == (200, {"names": ["vae/a.bin", "b"]})
        assert models.steered == [
            (action, name) for action in ("first", "retry", "cancel") for name in ("vae/a.bin", "b")
        ]


async def test_rescue_mode_says_why_nothing_works(tmp_path: Path) -> None:
    state = StateStore(Snapshot(phase=Phase.RESCUE, rescue=("health.port: bad",)))
    nothing: dict[str, Any] = {"services": None, "models": None, "syncer": None, "logs": None}
    async with serving(tmp_path, state=state, **nothing) as server:
        assert (await get(server, "/v1/status"))["rescue"] == ["health.port: bad"]
        for path in ("/v1/models", "/v1/sync/flush"):
            code, answer = await post(server, path, {"url": "http://x"})
            assert (code, answer["error"]["code"]) == (409, "unavailable")
            assert "rescue mode" in answer["error"]["message"]
        assert (await post(server, "/v1/reload"))[0] == 200
        async with server.public.get(server.url("/ping")) as response:
            assert response.status == 503


async def test_the_token_goes_over_the_socket_only(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        access = (await get(server, "/v1/status"))["access"]
        assert access == {"page": server.url(f"/?token={TOKEN}")}
        bearer = {"Authorization": f"Bearer {TOKEN}"}
        for path in ("/v1/status", "/v1/services", "/v1/events", "/metrics", "/readyz"):
            async with server.public.get(server.url(path), headers=bearer) as response:
                text = await response.text()
                assert response.status == 200
                assert TOKEN not in text
                assert "access" not in text


async def test_given_addresses_win(tmp_path: Path) -> None:
    given = {"page": "https://x.example/?token=t", "jupyter": "https://y.example/lab?token=u"}
    async with serving(tmp_path, access=given) as server:
        assert (await get(server, "/v1/status"))["access"] == given


async def test_an_address_from_before_the_port_was_known_is_corrected(tmp_path: Path) -> None:
    given = {"page": "http://127.0.0.1:0/?token=t", "jupyter": "https://y.example/lab?token=u"}
    async with serving(tmp_path, access=given) as server:
        access = (await get(server, "/v1/status"))["access"]
        assert access == {**given, "page": server.url(f"/?token={TOKEN}")}


async def test_modes_and_stale_sockets(tmp_path: Path) -> None:
    path = tmp_path / "run" / "s.sock"
    path.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with serving(tmp_path) as server:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert (await get(server, "/v1/status"))["version"] == "1.2.3"
    assert not path.exists()


async def test_a_living_daemon_keeps_its_socket(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        context, _, _ = make_context()
        with pytest.raises(ControlError, match=f"answers there .process {os.getpid()}."):
            await serve_api(context, socket_path=server.socket, host="127.0.0.1", port=0)
        assert (await get(server, "/v1/status"))["version"] == "1.2.3"


async def test_another_file_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "run" / "s.sock"
    path.parent.mkdir()
    path.write_text("mine")
    context, _, _ = make_context()
    async with anyio.create_task_group() as tasks:
        await tasks.start(_serve, context, path)
        (note,) = context.state.snapshot.notes
        assert "not a socket" in note
        async with aiohttp.ClientSession() as session:
            port = context.state.snapshot.health["port"]
            async with session.get(f"http://127.0.0.1:{port}/ping") as response:
                assert response.status == 200
        tasks.cancel_scope.cancel()
    assert path.read_text() == "mine"


async def _serve(context: ApiContext, path: Path, *, task_status: Any) -> None:
    await serve_api(context, socket_path=path, host="127.0.0.1", port=0, task_status=task_status)


@pytest.mark.needs("root")
async def test_other_users_are_refused(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        for directory in (server.socket.parent, tmp_path, *tmp_path.parents[:3]):
            directory.chmod(0o755)
        server.socket.chmod(0o666)
        code = (
            "import os,sys,socket;os.setgid(65534);os.setuid(65534);"
            "s=socket.socket(socket.AF_UNIX);s.connect(sys.argv[1]);"
            "s.sendall(b'GET /v1/status HTTP/1.0\\r\\n\\r\\n');"
            "sys.stdout.write(s.makefile().read())"
        )
        done = await anyio.run_process([sys.executable, "-c", code, str(server.socket)])
        assert b" 403 " in done.stdout.splitlines()[0]
        assert b"comfyui" not in done.stdout


async def test_the_client_of_the_command_line_understands_refusals(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        client = Client(str(server.socket))
        with pytest.raises(ControlError) as caught:
            await anyio.to_thread.run_sync(client.post, "/v1/services/x/stop")
        assert (caught.value.status, caught.value.code) == (404, "not-found")
        assert caught.value.hint == "known: comfyui, jupyter"


async def test_the_command_line_shows_it(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        backoff = ServiceStatus("jupyter", ServiceState.BACKOFF, message="waits 4 s")
        server.state.set_service(backoff)
        environment = {"PATH": os.environ["PATH"], "SUPERVISOR_SOCKET": str(server.socket)}
        done = await anyio.run_process(
            [sys.executable, "-m", "supervisor", "status"], env=environment
        )
        screen = done.stdout.decode()
        assert f"page       {server.url(f'/?token={TOKEN}')}" in screen
        assert "waits 4 s" in screen


async def test_every_route_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
    documented = set(re.findall(r"^\| `((?:GET|POST) /v1/\S+)` \|", text, re.MULTILINE))
    context, _, _ = make_context()
    async with anyio.create_task_group() as tasks:
        routes = Routes(context, streams=Streams(), tasks=tasks, owner=True)
        assert {f"{route.method} {route.path}" for route in routes.table()} == documented


async def test_texts_that_are_no_utf_8_are_escaped(tmp_path: Path) -> None:
    state = StateStore(Snapshot(notes=("a file \udcff", "\u00e9")))
    async with (
        serving(tmp_path, state=state) as server,
        server.session.get("/v1/status") as response,
    ):
        assert response.status == 200
        assert (await response.json())["notes"] == ["a file \udcff", "\u00e9"]
