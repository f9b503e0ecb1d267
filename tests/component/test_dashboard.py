"""The web page in a real browser: what it shows, what it does, what it must never do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import anyio
import pytest

from supervisor.core.events import Severity
from supervisor.core.state import StateStore
from supervisor.core.status import (
    Advice,
    Alert,
    BootStatus,
    DiskStatus,
    DownloadFileStatus,
    DownloadsStatus,
    DownloadState,
    GpuDeviceStatus,
    GpuStatus,
    HostStatus,
    IdleStatus,
    Phase,
    ServiceState,
    ServiceStatus,
    Snapshot,
    SyncStatus,
)
from tests.component.api_server import TOKEN, Server, Services, serving
from tests.component.browser import Page, open_page

DASHBOARD = Path(__file__).parents[2] / "supervisor" / "api" / "dashboard"
EVIL = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>\'"&amp;'


def pod() -> StateStore:
    """A pod with something in every panel, and markup in every text that others choose."""
    snapshot = Snapshot(
        version="1.2.3",
        config_file=f"/etc/{EVIL}",
        links={"comfyui": "https://pod-8188.example/", "xtts": "javascript:alert(1)"},
        gpu=GpuStatus(
            devices=(
                GpuDeviceStatus(0, f"L4 {EVIL}", None, 24 << 30, None, 6 << 30, None, 0.5, 60),
            ),
            tier="prosumer",
            mode="full",
            reasons=(EVIL,),
            nvenc={"h264": True},
        ),
        services={
            "comfyui": ServiceStatus("comfyui", ServiceState.READY, True, 7, required=True),
            "xtts": ServiceStatus(
                "xtts", ServiceState.BACKOFF, message=f"taken {EVIL}", hint=f"hint {EVIL}"
            ),
        },
        downloads=DownloadsStatus(
            files=(
                DownloadFileStatus(f"a {EVIL}", DownloadState.ACTIVE, 1000, 250),
                DownloadFileStatus("b", DownloadState.QUEUED, None, 0, error="timed out"),
                DownloadFileStatus(
                    "c",
                    DownloadState.FAILED,
                    error="gated",
                    hint="see https://hf.example/a/b, then set HF_TOKEN",
                ),
                DownloadFileStatus("d", DownloadState.DONE, 2000, 2000),
            )
        ),
        sync=SyncStatus(True, "s3://b", 2, 10, 1, last_error=EVIL),
        host=HostStatus(
            cpu_ratio=0.5, memory_used_bytes=1, memory_limit_bytes=2, disks={EVIL: DiskStatus(5, 9)}
        ),
        idle=IdleStatus(True, 300, 3600),
        alerts=(Alert("disk", f"full {EVIL}"),),
        advice=(Advice("x", EVIL, link="javascript:alert(1)"),),
        notes=(EVIL,),
        boot=BootStatus("2026-01-01T00:00:00Z", {"launch": 0.2, "ready": 9.0}, {"ready": 8.0}),
    )
    state = StateStore(snapshot)
    state.update(version="1.2.4")  # derives the phase
    return state


async def visit(page: Page, server: Server) -> None:
    await page.open(server.url(f"/?token={TOKEN}"))
    await page.until("document.getElementById('live').dataset.live === 'yes'")


async def visible(page: Page) -> str:
    return str(await page.evaluate("document.body.innerText"))


@pytest.mark.anyio
@pytest.mark.needs("chromium")
@pytest.mark.parametrize(("width", "height"), [(1280, 900), (360, 800)])
async def test_everything_is_shown_and_nothing_is_executed(
    tmp_path: Path, width: int, height: int
) -> None:
    async with (
        serving(tmp_path, state=pod()) as server,
        open_page(tmp_path, width=width, height=height) as page,
    ):
        log = server.context.logs.service("comfyui")  # type: ignore[union-attr]
        log.feed("stdout", f"\x1b[31mred\x1b[0m {EVIL}\n".encode(), anyio.current_time())
        server.bus.publish("test.edge", EVIL, severity=Severity.ERROR)
        await visit(page, server)
        await page.until("document.getElementById('log').innerText.includes('red <img')")
        await page.until("document.getElementById('event-list').innerText.includes('<img')")
        shown = await visible(page)
        for text in (
            "Ready to work. 2 more models are on the way. 1 model could not be downloaded.",
            f"taken {EVIL}", f"hint {EVIL}", f"L4 {EVIL}", "6.0 GiB of 24.0 GiB", "60 °C",
            "Open ComfyUI", f"full {EVIL}", "1 of 4 files in place", "2.3 kB of at least 3.0 kB",
            "250 B of 1.0 kB", "retrying", "timed out", "set HF_TOKEN", "s3://b",
            "5 min 0 s of 1 h 0 min", "9.00 s (usually 8.00 s)", "supervisor 1.2.4",
        ):  # fmt: skip
            assert text in shown
        followed = "document.querySelector('#downloads .hint a').href"
        assert await page.evaluate(followed) == "https://hf.example/a/b"
        assert await page.evaluate("location.pathname + location.search") == "/"
        assert await page.evaluate("window.hacked") is None
        assert await page.evaluate("document.querySelectorAll('main img, main script').length") == 0
        assert await page.evaluate("document.querySelectorAll('a[href^=javascript]').length") == 0
        assert await page.evaluate("document.documentElement.scrollWidth") <= width
        assert TOKEN not in await page.evaluate("document.documentElement.outerHTML")
        assert await page.evaluate(_NAMELESS) == []
        assert page.faults == []


# Controls that a screen reader would read out without a name.
_NAMELESS = """[...document.querySelectorAll(`button, a, input, select, [role=meter],
  [role=progressbar], [role=log], section`)].filter(e => !(e.textContent.trim() ||
  e.getAttribute('aria-label') || e.labels?.length || e.getAttribute('aria-labelledby')))
  .map(e => e.outerHTML)"""


@pytest.mark.anyio
@pytest.mark.needs("chromium")
async def test_buttons_act_and_the_page_follows(tmp_path: Path) -> None:
    state = pod()
    services = Services(state)
    async with (
        serving(tmp_path, state=state, services=services) as server,
        open_page(tmp_path, width=1280, height=900) as page,
    ):
        state.update(host=HostStatus(comfyui_queue_length=2))
        await visit(page, server)
        button = "document.querySelector('[data-key={0}] [data-action={1}]')"
        await page.evaluate(button.format("xtts", "stop") + ".click()")
        await page.until("document.getElementById('confirm').open")
        await page.evaluate("document.querySelector('#confirm-actions [value=yes]').click()")
        await page.until("!" + button.format("xtts", "start") + ".hidden")
        assert services.calls == [("stop", "xtts")]
        await page.evaluate(button.format("xtts", "start") + ".click()")
        await page.until("!" + button.format("xtts", "stop") + ".hidden")
        await page.evaluate(button.format("comfyui", "restart") + ".click()")
        assert "2 jobs are running or waiting" in await visible(page)
        await page.evaluate("document.querySelector('#confirm-actions [value=now]').click()")
        await page.until(
            "document.getElementById('toasts').innerText.includes('ComfyUI: restarting')"
        )
        assert services.calls[1:] == [("start", "xtts"), ("restart-now", "comfyui")]
        await page.evaluate(button.format("comfyui", "stop") + ".click()")
        await page.call(
            "Input.dispatchKeyEvent",
            type="keyDown",
            key="Escape",
            code="Escape",
            windowsVirtualKeyCode=27,
        )
        await page.until("!document.getElementById('confirm').open")
        await page.evaluate("document.getElementById('keep').click()")
        await page.until(
            "document.getElementById('toasts').innerText.includes('idle shutdown is off')"
        )
        assert len(services.calls) == 3


@pytest.mark.anyio
@pytest.mark.needs("chromium")
async def test_a_lost_connection_is_seen_and_mended(tmp_path: Path) -> None:
    async with open_page(tmp_path, width=1280, height=900) as page:
        async with serving(tmp_path / "a", state=pod()) as server:
            port = server.port
            await visit(page, server)
            assert await page.evaluate("document.getElementById('lost').hidden")
        await page.until("!document.getElementById('lost').hidden")
        assert "Connection lost. What you see is as of" in await visible(page)
        state = pod()
        jupyter = ServiceStatus("jupyter", ServiceState.STARTING, message="new here")
        state.update(
            services={"jupyter": jupyter}, boot=BootStatus("2026-01-02T00:00:00Z", {"launch": 0.1})
        )
        async with serving(tmp_path / "b", state=state, port=port) as server:
            log = server.context.logs.service("jupyter")  # type: ignore[union-attr]
            log.feed("stdout", b"a new life\n", anyio.current_time())
            await page.until("document.getElementById('lost').hidden")
            await page.until("document.getElementById('log').innerText.includes('a new life')")
            shown = await visible(page)
            assert "new here" in shown
            assert "xtts" not in await page.evaluate(
                "document.getElementById('services').innerText"
            )


@pytest.mark.anyio
@pytest.mark.needs("chromium")
async def test_the_form_and_rescue_mode(tmp_path: Path) -> None:
    faults = (
        "health.prot = 1: there is no such key\n  hint: did you mean port?",
        "sync: no bucket",
    )
    state = StateStore(Snapshot(phase=Phase.RESCUE, rescue=faults))
    parts: dict[str, Any] = {"services": None, "models": None, "syncer": None, "logs": None}
    async with (
        serving(tmp_path, state=state, **parts) as server,
        open_page(tmp_path, width=360, height=800) as page,
    ):
        await page.open(server.url("/"))
        enter = "document.getElementById('token').value='{0}'; document.forms[0].submit()"
        await page.evaluate(enter.format("wrong"))
        await page.until("document.body.innerText.includes('That is not the token of this pod.')")
        await page.evaluate(enter.format(TOKEN))
        await page.until("document.body.innerText.includes('The configuration cannot be used')")
        await page.until("document.body.innerText.includes('did you mean port?')")
        assert await page.evaluate("location.pathname") == "/"
        shown = await visible(page)
        for fault in faults:
            assert fault in shown
        assert "Machine" not in shown
        await page.evaluate("document.getElementById('rescue-reload').click()")
        await page.until("document.getElementById('toasts').innerText.includes('was loaded')")
        assert server.reloads == [False]


@pytest.mark.anyio
async def test_without_a_browser(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        async with server.public.get(server.url("/")) as response:
            assert response.status == 401
            assert 'name="token"' in await response.text()
        for path, kind in (("app.js", "text/javascript"), ("style.css", "text/css")):
            async with server.public.get(server.url(f"/assets/{path}")) as response:
                assert (response.status, response.content_type) == (200, kind)
        for path in ("index.html", "..%2fserver.py", "nothing"):
            async with server.public.get(server.url(f"/assets/{path}")) as response:
                assert response.status in (401, 404)
        for body, status in (({"token": "wrong"}, 401), ({"token": TOKEN}, 303), ({}, 401)):
            async with server.public.post(
                server.url("/login"), data=body, allow_redirects=False
            ) as response:
                assert response.status == status
                assert ("Set-Cookie" in response.headers) == (status == 303)


@pytest.mark.anyio
async def test_the_page_can_be_turned_off(tmp_path: Path) -> None:
    async with serving(tmp_path, dashboard=False) as server:
        for path, status in (("/", 401), ("/assets/app.js", 401), ("/ping", 200)):
            async with server.public.get(server.url(path)) as response:
                assert response.status == status


def test_no_text_becomes_markup_and_nothing_comes_from_elsewhere() -> None:
    for file in DASHBOARD.iterdir():
        source = file.read_text()
        for word in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval("):
            assert word not in source, f"{file.name}: {word}"
        foreign = re.findall(r"(?:src|href|import|url)\W{0,3}['\"(]\s*(?:https?:)?//\S+", source)
        assert foreign == [], file.name
        assert not re.search(r"\son\w+=|\sstyle=|<style|<script>", source), file.name


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: str, other: str) -> float:
    """WCAG 2.2, relative luminance and contrast ratio."""
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_colours_can_be_read(theme: int) -> None:
    source = (DASHBOARD / "style.css").read_text()
    block = source.split(":root {")[theme + 1].split("}")[0]
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block))
    pairs = [(name, f"{name}-soft") for name in ("good", "busy", "warn", "bad", "rest")]
    pairs += [
        (name, ground)
        for name in ("text", "quiet", "bad", "warn", "accent")
        for ground in ("card", "page")
    ]
    pairs += [
        ("on-accent", "accent"),
        ("text", "soft"),
        ("bad", "soft"),
        ("text", "field"),
        ("quiet", "field"),
    ]
    for front, ground in pairs:
        assert _contrast(colours[front], colours[ground]) >= 4.5, (front, ground)
    assert _contrast(colours["accent"], colours["track"]) >= 3
