"""The health port: what is public, what needs the token, and what other sites cannot do."""

from __future__ import annotations

import socket
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import aiohttp.web
import anyio
import pytest
from aiohttp.test_utils import make_mocked_request

from supervisor.api.guard import Guard
from supervisor.api.server import serve_api
from supervisor.core.state import StateStore
from supervisor.core.status import Phase, ServiceState, ServiceStatus, Snapshot
from tests.component.api_server import BEARER, TOKEN, Server, Services, make_context, serving

pytestmark = pytest.mark.anyio  # plain tests ignore it


async def request(
    server: Server, method: str, path: str, headers: dict[str, str] | None = None, **more: Any
) -> tuple[int, str, Any]:
    async with server.public.request(
        method, server.url(path), headers=headers, allow_redirects=False, **more
    ) as response:
        return response.status, await response.text(), response.headers


async def status_of(server: Server, method: str, path: str, **headers: str) -> int:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return (await request(server, method, path, names))[0]


async def test_ping_follows_the_pod(tmp_path: Path) -> None:
    async with serving(tmp_path, state=StateStore()) as server:
        needed = ServiceStatus("comfyui", ServiceState.STARTING, required=True)
        server.state.set_service(needed)
        assert await status_of(server, "GET", "/ping") == 204
        server.state.set_service(ServiceStatus("comfyui", ServiceState.READY, ready=True))
        assert await status_of(server, "GET", "/ping") == 200
        assert await status_of(server, "HEAD", "/ping") == 200
        server.state.set_service(ServiceStatus("comfyui", ServiceState.BACKOFF, required=True))
        assert await status_of(server, "GET", "/ping") == 204
        server.state.set_service(ServiceStatus("comfyui", ServiceState.FAILED, required=True))
        assert await status_of(server, "GET", "/ping") == 503
        status, text, _ = await request(server, "GET", "/readyz")
        assert (status, '"missing":["comfyui"]' in text) == (503, True)
        server.state.update(phase=Phase.STOPPING)
        assert await status_of(server, "GET", "/ping") == 503
        assert await status_of(server, "GET", "/healthz") == 200


@pytest.mark.parametrize("path", ["/v1/status", "/v1/logs", "/v1/stream", "/v1/nothing"])
async def test_nothing_without_the_token(tmp_path: Path, path: str) -> None:
    async with serving(tmp_path) as server:
        assert await status_of(server, "GET", path) == 401
        assert await status_of(server, "GET", path, Authorization="Bearer wrong") == 401
        assert await status_of(server, "GET", path, Cookie="supervisor_session=wrong") == 401
        assert await status_of(server, "GET", path, Cookie=f"supervisor_session={TOKEN}") == 401
        assert await status_of(server, "GET", f"{path}?token=wrong") == 401


@pytest.mark.parametrize(
    "header", [b"Authorization: Bearer \xff", b"Cookie: supervisor_session=\xff"]
)
async def test_bytes_that_are_no_text_are_a_wrong_token(tmp_path: Path, header: bytes) -> None:
    async with (
        serving(tmp_path) as server,
        await anyio.connect_tcp("127.0.0.1", server.port) as stream,
    ):
        await stream.send(b"GET /v1/status HTTP/1.1\r\nHost: pod\r\n" + header + b"\r\n\r\n")
        assert (await stream.receive()).startswith(b"HTTP/1.1 401 ")


def test_the_session_cannot_be_computed_from_the_token() -> None:
    def session(key: str) -> str:
        response = aiohttp.web.Response()
        request = make_mocked_request("GET", "/")
        Guard(TOKEN, key).open_session(request, response)
        return response.cookies["supervisor_session"].value

    assert session("one key") == session("one key") != session("another")
    assert session("") != session("")


async def test_the_token_in_an_address_becomes_a_cookie(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        path = f"/v1/events?limit=1&token={TOKEN}"
        status, _, headers = await request(server, "GET", path, {"X-Forwarded-Proto": "https"})
        assert (status, headers["Location"]) == (303, "/v1/events?limit=1")
        cookie = headers["Set-Cookie"]
        assert TOKEN not in cookie
        for attribute in ("HttpOnly", "SameSite=Lax", "Secure", "Path=/"):
            assert attribute in cookie
        session = cookie.split(";")[0]
        assert await status_of(server, "GET", "/v1/status", Cookie=session) == 200
        _, _, headers = await request(server, "GET", path)
        assert "Secure" not in headers["Set-Cookie"]  # a local page has no TLS


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),  # another pod's page on the same proxy
        ({"Sec-Fetch-Site": "none"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "https://p-8000.proxy.runpod.net", "Host": "p-8000.proxy.runpod.net"}, 200),
        (
            {
                "Origin": "https://p-8000.proxy.runpod.net",
                "Host": "10.0.0.1:8000",
                "X-Forwarded-Host": "p-8000.proxy.runpod.net",
            },
            200,
        ),
        ({}, 403),
    ],
)
async def test_only_our_page_changes_anything(
    tmp_path: Path, headers: dict[str, str], status: int
) -> None:
    async with serving(tmp_path) as server:
        services = server.context.services
        assert isinstance(services, Services)
        _, _, answered = await request(server, "GET", f"/v1/status?token={TOKEN}")
        cookie = answered["Set-Cookie"].split(";")[0]
        path = "/v1/services/jupyter/restart"
        found, _, _ = await request(server, "POST", path, {**headers, "Cookie": cookie})
        assert found == status
        assert len(services.calls) == (1 if status == 200 else 0)


async def test_programs_with_the_token_need_no_origin(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        path = "/v1/services/jupyter/restart"
        assert (await request(server, "POST", path, BEARER))[0] == 200
        foreign = {**BEARER, "Origin": "https://evil.example"}
        assert (await request(server, "POST", path, foreign))[0] == 403
        assert (await request(server, "POST", f"{path}?token={TOKEN}"))[0] == 401


async def test_wrong_tokens_wait_and_right_ones_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_FIRST_PAUSE_S", "_LONGEST_PAUSE_S"):
        monkeypatch.setattr(f"supervisor.api.guard.{name}", 60.0)
    async with serving(tmp_path) as server:
        statuses: list[int] = []

        async def guess() -> None:
            statuses.append(await status_of(server, "GET", "/v1/status?token=guess"))

        async with anyio.create_task_group() as tasks:
            for _ in range(40):
                tasks.start_soon(guess)
            with anyio.fail_after(20):
                while 429 not in statuses:
                    await anyio.sleep(0.01)
            assert (await request(server, "GET", "/v1/status", BEARER))[0] == 200
            assert set(statuses) == {429}  # the first ones still wait
            tasks.cancel_scope.cancel()


async def test_headers_that_browsers_obey(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        for path, headers in (("/ping", {}), ("/v1/status", BEARER), ("/v1/nothing", {})):
            _, _, answered = await request(server, "GET", path, dict(headers))
            policy = answered["Content-Security-Policy"]
            assert "script-src 'self';" in policy
            assert "frame-ancestors 'none'" in policy
            assert "unsafe" not in policy
            assert answered["X-Content-Type-Options"] == "nosniff"
            assert answered["Referrer-Policy"] == "no-referrer"
            assert answered["Cache-Control"] == "no-store"


async def test_a_bug_shows_no_details(tmp_path: Path) -> None:
    async def broken(_: bool) -> Any:
        raise RuntimeError(f"secret {TOKEN}")

    async with serving(tmp_path, reload=broken) as server:
        status, text, _ = await request(server, "POST", "/v1/reload", BEARER)
        assert status == 500
        assert "secret" not in text
        assert '"code":"bug"' in text


async def test_a_slow_action_goes_on_behind_the_proxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("supervisor.api.routes._PATIENCE_S", 0.05)
    state = StateStore(Snapshot(services={"a": ServiceStatus("a", ServiceState.READY)}))
    release = anyio.Event()
    services = Services(state, block=release)
    async with serving(tmp_path, state=state, services=services) as server:
        status, text, _ = await request(server, "POST", "/v1/services/a/stop", BEARER)
        assert (status, text) == (202, '{"pending":true,"service":"a"}')
        release.set()
        with anyio.fail_after(10):
            await state.wait(lambda s: s.services["a"].state is ServiceState.STOPPED)


async def test_a_taken_port_is_said_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("supervisor.api.server._RETRY_S", (0.05,))
    context, _, _ = make_context()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        async def serve(*, task_status: Any) -> None:
            await serve_api(
                context,
                socket_path=tmp_path / "s.sock",
                host="127.0.0.1",
                port=port,
                task_status=task_status,
            )

        async with anyio.create_task_group() as tasks:
            await tasks.start(serve)
            (note,) = context.state.snapshot.notes
            assert note == f"Cannot serve the health port 127.0.0.1:{port}: Address already in use"
            assert [e.kind for e in context.bus.recent()] == ["api.fault"]
            async with (
                aiohttp.ClientSession(
                    "http://x", connector=aiohttp.UnixConnector(str(tmp_path / "s.sock"))
                ) as session,
                session.get("/v1/status") as response,
            ):
                assert (await response.json())["notes"] == [note]
            taken.close()
            with anyio.fail_after(20):
                await context.state.wait(lambda s: s.health.get("port") == port)
            assert context.state.snapshot.notes == ()
            async with (
                aiohttp.ClientSession() as session,
                session.get(f"http://127.0.0.1:{port}/ping") as response,
            ):
                assert response.status == 200
            tasks.cancel_scope.cancel()


async def test_idle_connections_give_way_and_streams_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("supervisor.api.port.MOST_CONNECTIONS", 8)
    async with serving(tmp_path) as server, AsyncExitStack() as stack:
        stream = await stack.enter_async_context(
            server.public.get(server.url("/v1/stream"), headers=BEARER)
        )
        await stream.content.readuntil(b"event: snapshot\n")
        silent = []
        for _ in range(20):
            connection = await anyio.connect_tcp("127.0.0.1", server.port)
            silent.append(await stack.enter_async_context(connection))
        with pytest.raises(anyio.EndOfStream), anyio.fail_after(10):
            await silent[0].receive()  # was closed for a younger one
        assert await status_of(server, "GET", "/ping") == 200
        server.bus.publish("test.edge", "still here")
        with anyio.fail_after(10):
            await stream.content.readuntil(b"still here")


async def test_connections_at_work_are_not_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("supervisor.api.port.MOST_CONNECTIONS", 2)
    async with serving(tmp_path) as server, AsyncExitStack() as stack:
        for _ in range(2):
            stream = server.public.get(server.url("/v1/stream"), headers=BEARER)
            await stack.enter_async_context(stream)
        with pytest.raises(aiohttp.ClientError):
            await status_of(server, "GET", "/ping")
        async with server.session.get("/ping") as response:
            assert response.status == 200


async def test_forms_that_never_end_do_not_close_the_door(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("supervisor.api.port.MOST_CONNECTIONS", 4)
    head = b"POST /login HTTP/1.1\r\nHost: pod\r\nContent-Length: 100\r\n"
    head += b"Content-Type: application/x-www-form-urlencoded\r\n\r\nt"
    async with serving(tmp_path) as server, AsyncExitStack() as stack:
        for _ in range(12):
            connection = await anyio.connect_tcp("127.0.0.1", server.port)
            await stack.enter_async_context(connection)
            await connection.send(head)
        assert await status_of(server, "GET", "/ping") == 200


async def test_a_form_that_never_ends_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("supervisor.api.pages._FORM_PATIENCE_S", 0.05)
    head = b"POST /login HTTP/1.1\r\nHost: pod\r\nContent-Length: 100\r\n"
    head += b"Content-Type: application/x-www-form-urlencoded\r\n\r\nt"
    async with (
        serving(tmp_path) as server,
        await anyio.connect_tcp("127.0.0.1", server.port) as stream,
    ):
        await stream.send(head)
        with anyio.fail_after(30):
            assert (await stream.receive()).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("path", ["//evil.example/", "////evil.example/v1/status"])
async def test_the_way_to_the_session_leads_to_no_other_host(tmp_path: Path, path: str) -> None:
    raw = f"GET {path}?token={TOKEN} HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n"
    async with (
        serving(tmp_path) as server,
        await anyio.connect_tcp("127.0.0.1", server.port) as stream,
    ):
        await stream.send(raw.encode())
        with anyio.fail_after(30):
            answer = await stream.receive()
        location = answer.partition(b"Location: ")[2].partition(b"\r\n")[0]
        assert location.startswith(b"/")
        assert not location.startswith((b"//", b"/\\"))


@pytest.mark.parametrize(
    "body",
    [
        {"url": "file:///etc/passwd", "to": "loras/x"},
        {"url": "FILE:///etc/passwd", "to": "loras/x"},
        {"url": "https://host/x", "mirrors": ["file:///etc/passwd"], "to": "loras/x"},
    ],
)
async def test_the_page_reads_no_file_of_the_machine(tmp_path: Path, body: dict[str, Any]) -> None:
    async with serving(tmp_path, request_for=str) as server:
        status, text, _ = await request(server, "POST", "/v1/models", BEARER, json=body)
        assert (status, "in a shell on the pod" in text) == (403, True)


def test_there_is_no_door_without_a_key() -> None:
    with pytest.raises(ValueError, match="needs a token"):
        Guard("", "key")
