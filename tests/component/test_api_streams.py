"""Answers that go on: logs and events as lines, snapshots and events for the page."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import pytest

from supervisor.core.status import HostStatus
from tests.component.api_server import BEARER, Server, serving

pytestmark = pytest.mark.anyio


async def records(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    async for line in response.content:
        if line.strip():
            yield json.loads(line)


async def server_events(response: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, str]]:
    name, data = "", ""
    async for raw in response.content:
        line = raw.decode().rstrip("\n")
        if line.startswith("event: "):
            name = line[7:]
        elif line.startswith("data: "):
            data = line[6:]
        elif not line and name:
            yield name, data
            name = ""


def write(server: Server, service: str, *lines: str) -> None:
    log = server.context.logs.service(service)  # type: ignore[union-attr]
    log.feed("stdout", "".join(f"{line}\n" for line in lines).encode(), anyio.current_time())


async def test_the_last_lines(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        write(server, "comfyui", "one", "two", "three")
        write(server, "jupyter", "four")
        async with server.session.get("/v1/logs?service=comfyui&limit=2") as response:
            assert response.content_type == "application/x-ndjson"
            found = [record async for record in records(response)]
        assert [r["text"] for r in found] == ["two", "three"]
        assert set(found[0]) == {"service", "at", "stream", "text", "seq"}
        async with server.session.get("/v1/logs") as response:
            found = [record async for record in records(response)]
        assert [r["service"] for r in found] == ["comfyui"] * 3 + ["jupyter"]
        for query, status in (("service=comfui", 404), ("limit=x", 400), ("service=jupyter", 200)):
            async with server.session.get(f"/v1/logs?{query}") as response:
                assert response.status == status


async def test_following_repeats_and_misses_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        write(server, "comfyui", *map(str, range(50)))
        async with server.session.get("/v1/logs?follow=1&limit=1000") as response:
            write(server, "comfyui", *map(str, range(50, 60)))
            seen = []
            async for record in records(response):
                seen.append(record["text"])
                if record["text"] == "59":
                    write(server, "comfyui", "end")
                if record["text"] == "end":
                    break
        assert seen == [*map(str, range(60)), "end"]


async def test_a_slow_reader_is_told_what_it_lost(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        async with server.session.get("/v1/logs?follow=1&limit=0") as response:
            # In one go, without the loop running: more than the subscription keeps.
            write(server, "comfyui", *map(str, range(6000)))
            seen, lost = 0, 0
            async for record in records(response):
                lost += record.get("lagged", 0)
                seen += "text" in record
                if record.get("text") == "5999":
                    break
        assert lost > 0
        assert seen + lost == 6000


async def test_events(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        for number in range(5):
            server.bus.publish("test.edge", f"event {number}", subject="x")
        async with server.session.get("/v1/events?limit=2") as response:
            found = [record async for record in records(response)]
        assert [r["message"] for r in found] == ["event 3", "event 4"]
        async with server.session.get("/v1/events?limit=1&follow=1") as response:
            server.bus.publish("test.edge", "event 5")
            stream = records(response)
            assert [(await anext(stream))["message"] for _ in range(2)] == ["event 4", "event 5"]


async def test_the_page_gets_conflated_snapshots_and_every_event(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        url = server.url("/v1/stream")
        async with server.public.get(url, headers=BEARER) as response:
            assert response.content_type == "text/event-stream"
            stream = server_events(response)
            name, data = await anext(stream)
            assert name == "event"  # the health port's
            name, data = await anext(stream)
            assert (name, json.loads(data)["phase"]) == ("snapshot", "ready")
            for number in range(100):
                server.state.update(host=HostStatus(comfyui_queue_length=number))
                server.bus.publish("test.edge", str(number))
            events, snapshots = [], []
            with anyio.fail_after(20):
                async for name, data in stream:
                    document = json.loads(data)
                    if name == "event":
                        events.append(document["message"])
                    else:
                        snapshots.append(document["host"]["comfyui_queue_length"])
                    if snapshots and len(events) == 100:
                        break
        assert events == [str(n) for n in range(100)]
        assert snapshots == [99]


async def test_a_browser_that_reconnects_misses_no_event(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        for number in range(5):
            seq = server.bus.publish("test.edge", str(number)).seq
        headers = {**BEARER, "Last-Event-ID": str(seq - 2)}
        async with server.public.get(server.url("/v1/stream"), headers=headers) as response:
            stream = server_events(response)
            found = [json.loads((await anext(stream))[1])["message"] for _ in range(2)]
        assert found == ["3", "4"]


async def test_open_streams_do_not_hold_up_the_end(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        service = server.state.snapshot.services["comfyui"]
        server.state.set_service(replace(service, message="busy"))
        server.state.update(host=HostStatus(comfyui_queue_length=1))
        async with anyio.create_task_group() as waiting:
            waiting.start_soon(_stuck, server)
            streams = [
                await server.session.get("/v1/logs?follow=1"),
                await server.session.get("/v1/events?follow=1"),
                await server.public.get(server.url("/v1/stream"), headers=BEARER),
            ]
            server.end.cancel()
            with anyio.fail_after(10):  # the bound is 0.3 s; this machine may be busy
                await server.ended.wait()
            for stream in streams:
                await stream.read()  # each was ended, none was cut
        assert not server.socket.exists()


async def _stuck(server: Server) -> None:
    try:
        async with server.session.post("/v1/services/comfyui/restart", data="{}"):
            pass
    except aiohttp.ClientError:
        return
