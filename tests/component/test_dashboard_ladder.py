"""The VRAM ladder and the known troubles in a real browser."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from supervisor.core.state import StateStore
from supervisor.core.status import Advice, GpuStatus, ServiceState, ServiceStatus, Snapshot
from supervisor.monitor.rulebook import load_rules
from tests.component.api_server import BEARER, TOKEN, Server, serving
from tests.component.browser import open_page

pytestmark = pytest.mark.anyio

REASON = "step 2 because it ran out - no-dynamic-vram: models are placed by estimate"


@dataclass
class Ladder:
    """Resets, and remembers how it was asked."""

    state: StateStore
    asked: list[bool] = field(default_factory=list)

    async def reset(self, *, now: bool = False) -> int:
        self.asked.append(now)
        gpu = self.state.snapshot.gpu
        self.state.update(gpu=replace(gpu, ladder_step=0, ladder_reasons=()))
        return gpu.ladder_step


def stepped_down() -> StateStore:
    advice = Advice(
        "cuda-oom",
        "ran out of VRAM",
        link="docs/troubleshooting.md#cuda-oom",
        count=3,
        last_seen="2026-01-01T10:20:30.000Z",
    )
    return StateStore(
        Snapshot(
            gpu=GpuStatus(mode="full", ladder_step=2, ladder_reasons=("step 1", REASON)),
            services={"comfyui": ServiceStatus("comfyui", ServiceState.READY, ready=True)},
            advice=(advice,),
        )
    )


@pytest.mark.needs("chromium")
async def test_steps_are_shown_and_can_be_undone(tmp_path: Path) -> None:
    state = stepped_down()
    ladder = Ladder(state)
    async with (
        serving(tmp_path, state=state, ladder=ladder) as server,
        open_page(tmp_path, width=390, height=844) as page,
    ):
        await page.open(f"{server.url('/')}?token={TOKEN}")
        await page.until("document.body.innerText.includes('2 steps')")
        shown = await page.evaluate("document.body.innerText")
        assert REASON in shown
        assert "ran out of VRAM (3 times, last at " in shown
        assert await page.evaluate("document.documentElement.scrollWidth") <= 390
        await page.evaluate("document.getElementById('ladder-reset').click()")
        await page.until("document.getElementById('confirm').open")
        assert ladder.asked == []
        await page.evaluate("document.querySelector('#confirm-actions [value=yes]').click()")
        await page.until("document.getElementById('ladder').hidden")
        assert ladder.asked == [False]
        assert REASON not in await page.evaluate("document.body.innerText")
        link = await page.evaluate("document.querySelector('#concern-list a').href")
        await page.open(link)
        await page.until("document.querySelector(':target h2')")
        assert (
            await page.evaluate("document.querySelector(':target h2').innerText") == "Out of VRAM"
        )
        assert await page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.faults == []


async def read(server: Server, path: str, headers: dict[str, str]) -> tuple[int, str]:
    async with server.public.get(server.url(path), headers=headers) as response:
        return response.status, await response.text()


async def test_the_known_troubles_need_the_token(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        assert (await read(server, "/help", {}))[0] == 401
        status, text = await read(server, "/help", BEARER)
        assert status == 200
        for rule in load_rules().rules:
            assert f'id="{rule.code}"' in text
        assert "<code>supervisor models workflow FILE.json --pull</code>" in text
        assert "<em>Install Missing Custom Nodes</em>" in text


async def test_the_owner_resets_over_the_socket(tmp_path: Path) -> None:
    state = stepped_down()
    ladder = Ladder(state)
    async with (
        serving(tmp_path, state=state, ladder=ladder) as server,
        server.session.post("/v1/ladder/reset", json={"now": True}) as response,
    ):
        assert (response.status, await response.json()) == (200, {"pending": False, "steps": 2})
        assert ladder.asked == [True]
