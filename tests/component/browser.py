"""A real Chromium, driven over its DevTools protocol."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import aiohttp
import anyio

_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-sync", "--disable-background-networking", "--disable-component-update",
    "--remote-debugging-port=0",
)  # fmt: skip


class Page:
    """One tab. ``faults`` collects exceptions, console errors and refused content."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._ids = count(1)
        self.faults: list[str] = []

    async def call(self, method: str, **params: Any) -> Any:
        """Send a command and return its result."""
        wanted = next(self._ids)
        await self._socket.send_json({"id": wanted, "method": method, "params": params})
        while True:
            message = await self._socket.receive_json()
            self._notice(message)
            if message.get("id") == wanted:
                assert "error" not in message, message
                return message["result"]

    async def evaluate(self, script: str) -> Any:
        """Return the value of an expression."""
        result = await self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def until(self, script: str) -> None:
        """Wait until an expression is true, across navigations."""
        found = False
        with anyio.move_on_after(30):
            while not found:
                # Between two documents there is nothing to ask.
                answer = await self.call("Runtime.evaluate", expression=f"!!({script})")
                found = answer["result"].get("value") is True
                await anyio.sleep(0.02)
        assert found, f"{script}: {await self.evaluate('document.body.innerText')}"

    async def open(self, url: str) -> None:
        """Navigate, and wait until the document is there."""
        await self.call("Page.navigate", url=url)
        await self.until("location.href !== 'about:blank' && document.readyState === 'complete'")

    def _notice(self, message: dict[str, Any]) -> None:
        params = message.get("params", {})
        match message.get("method"):
            case "Runtime.exceptionThrown":
                self.faults.append(str(params["exceptionDetails"]))
            case "Log.entryAdded" if params["entry"]["level"] == "error":
                entry = params["entry"]
                self.faults.append(f"{entry['text']} {entry.get('url', '')}")


@asynccontextmanager
async def open_page(directory: Path, *, width: int, height: int) -> AsyncIterator[Page]:
    """Start a browser with a profile of its own and yield its tab."""
    profile = directory / "profile"
    command = ["chromium", *_FLAGS, f"--user-data-dir={profile}", "about:blank"]
    quiet = subprocess.DEVNULL
    process = await anyio.open_process(
        command, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True
    )
    try:
        port = await _debugging_port(profile / "DevToolsActivePort")
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json") as response:
                tabs = await response.json()
            url = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
            async with session.ws_connect(url, max_msg_size=0) as socket:
                page = Page(socket)
                for domain in ("Page", "Runtime", "Log"):
                    await page.call(f"{domain}.enable")
                await page.call(
                    "Emulation.setDeviceMetricsOverride",
                    width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
                )  # fmt: skip
                yield page
    finally:
        with anyio.CancelScope(shield=True):
            process.send_signal(signal.SIGTERM)
            with anyio.move_on_after(10):
                await process.wait()
            if process.returncode is None:
                process.kill()
                await process.wait()


async def _debugging_port(file: Path) -> int:
    port = anyio.Path(file)
    with anyio.fail_after(60):
        while not (await port.exists() and (await port.read_text()).strip()):
            await anyio.sleep(0.05)
    return int((await port.read_text()).split()[0])
