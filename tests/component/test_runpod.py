"""The stop calls, against a stand-in of RunPod's API."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from supervisor.pod.runpod import PodStopError, RunPod, StopAction

pytestmark = pytest.mark.anyio
KEY = "rpa_0123456789secret"
V2, GRAPHQL, V1 = "/v2/pods/pod1/action", "/graphql", "/v1/pods/pod1/stop"


@dataclass
class StandIn:
    """Answers by path with (status, JSON), and keeps what it was asked."""

    answers: dict[str, tuple[int, Any]] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    bodies: dict[str, Any] = field(default_factory=dict)
    keys: dict[str, str | None] = field(default_factory=dict)
    url: str = ""
    location: str = ""  # where everybody is sent
    raw_paths: list[str] = field(default_factory=list)

    async def handle(self, request: web.Request) -> web.Response:
        text = await request.text()
        self.asked.append((request.method, request.path))
        self.raw_paths.append(request.raw_path)
        self.bodies[request.path] = json.loads(text) if text else None
        self.keys[request.path] = request.query.get("api_key") or request.headers.get(
            "Authorization"
        )
        if self.location:
            raise web.HTTPTemporaryRedirect(self.location)
        status, body = self.answers.get(request.path, (404, {}))
        return web.json_response(body, status=status)


@asynccontextmanager
async def stand_in(**answers: tuple[int, Any]) -> AsyncIterator[StandIn]:
    api = StandIn({{"v2": V2, "graphql": GRAPHQL, "v1": V1}[k]: v for k, v in answers.items()})
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", api.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        api.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield api
    finally:
        await runner.cleanup()


def client(api: StandIn, programs: Path) -> RunPod:
    return RunPod(
        pod_id="pod1",
        api_key=KEY,
        api_url=api.url,
        environ={"PATH": str(programs)},
    )


@pytest.mark.parametrize("action", ["stop", "terminate"])
async def test_the_first_way_that_is_accepted_is_the_only_one(
    action: StopAction, tmp_path: Path
) -> None:
    async with stand_in(v2=(200, {})) as api:
        outcomes = await client(api, tmp_path).end(action)
    assert [(o.way, o.accepted) for o in outcomes] == [("REST v2", True)]
    assert api.asked == [("POST", V2)]
    assert api.bodies[V2] == {"action": action}
    assert api.keys[V2] == f"Bearer {KEY}"


async def test_a_refusal_leads_to_the_next_way(tmp_path: Path) -> None:
    refused = (200, {"errors": [{"message": "no"}]})
    async with stand_in(v2=(409, {}), graphql=refused, v1=(200, {})) as api:
        outcomes = await client(api, tmp_path).end()
    assert [o.way for o in outcomes] == ["REST v2", "runpodctl", "GraphQL", "REST v1"]
    assert [o.accepted for o in outcomes] == [False, False, False, True]
    assert [path for _, path in api.asked] == [V2, GRAPHQL, V1]
    assert api.bodies[GRAPHQL]["query"] == (
        'mutation{podStop(input:{podId:"pod1"}){id desiredStatus}}'
    )
    assert api.keys[GRAPHQL] == KEY


async def test_runpodctl_gets_the_key_in_its_environment(tmp_path: Path) -> None:
    program = tmp_path / "runpodctl"
    program.write_text(f'#!/bin/sh\necho "$* $RUNPOD_API_KEY $OTHERS" > {tmp_path}/called\n')
    program.chmod(0o755)
    async with stand_in(v2=(500, {})) as api:
        environ = {"PATH": str(tmp_path), "OTHERS": "secret of R2"}
        runpod = RunPod(pod_id="pod1", api_key=KEY, api_url=api.url, environ=environ)
        outcomes = await runpod.end()
    assert outcomes[-1].way == "runpodctl"
    assert outcomes[-1].accepted
    assert (tmp_path / "called").read_text() == f"pod stop pod1 {KEY} \n"


async def test_when_all_refuse_the_error_says_why_without_the_key(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="supervisor")
    async with stand_in(v2=(401, {})) as api:
        with pytest.raises(PodStopError) as caught:
            await client(api, tmp_path).end()
    assert "REST v2: HTTP 401" in caught.value.message
    assert caplog.text.count("pod stop through") == 4
    assert KEY not in caught.value.message + str(caught.value.hint) + caplog.text


async def test_the_key_follows_no_redirect(tmp_path: Path) -> None:
    async with stand_in(v2=(200, {})) as elsewhere, stand_in() as api:
        api.location = f"{elsewhere.url}{V2}"
        with pytest.raises(PodStopError, match="HTTP 307"):
            await client(api, tmp_path).end()
    assert [path for _, path in api.asked] == [V2, GRAPHQL, V1]
    assert elsewhere.asked == []


async def test_an_id_cannot_lead_to_another_address(tmp_path: Path) -> None:
    async with stand_in() as api:
        runpod = RunPod(
            pod_id="../admin?x=1", api_key=KEY, api_url=api.url, environ={"PATH": str(tmp_path)}
        )
        with pytest.raises(PodStopError):
            await runpod.end()
    assert api.raw_paths[0].startswith("/v2/pods/..%2Fadmin%3F")


async def test_nobody_answers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with stand_in() as api:
        pass
    with pytest.raises(PodStopError) as caught:
        await client(api, tmp_path).end()
    assert "ClientConnectorError" in caught.value.message
    assert KEY not in caught.value.message + caplog.text
