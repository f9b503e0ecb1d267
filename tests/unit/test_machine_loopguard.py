"""The guard of the event loop sees what it is for."""

from __future__ import annotations

import time

import anyio
import anyio.lowlevel
import pytest

from tests import loopguard
from tests.loopguard import watch_loop


def test_a_computation_on_the_loop_is_caught() -> None:
    async def block() -> None:
        end_s = time.thread_time() + 0.3
        while time.thread_time() < end_s:
            pass
        await anyio.lowlevel.checkpoint()

    with watch_loop() as guard:
        anyio.run(block)
    assert len(guard.blocked) == 1


@pytest.mark.parametrize(("pressure", "limit_s"), [("quiet", 1.0), ("full", 0.1), ("untold", 0.1)])
def test_a_sleep_on_the_loop_is_caught(
    pressure: str, limit_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def block() -> None:
        time.sleep(0.5)  # noqa: ASYNC251 - the fault that is to be found
        await anyio.lowlevel.checkpoint()

    machine(pressure, monkeypatch)
    monkeypatch.setattr(loopguard, "WAIT_LIMIT_S", limit_s)  # a second, to save time
    with watch_loop() as guard:
        anyio.run(block)
    assert len(guard.blocked) == 1
    assert "block" in guard.blocked[0]


def test_a_wait_for_a_processor_is_nobodys_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    async def block() -> None:
        time.sleep(0.2)  # noqa: ASYNC251 - as a thread that has to be started would take
        await anyio.lowlevel.checkpoint()

    machine("full", monkeypatch)
    with watch_loop() as guard:
        anyio.run(block)
    assert guard.blocked == []


def machine(pressure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the guard see a machine with free processors, without, or that does not tell."""
    told = {"quiet": lambda: 0.0, "full": time.monotonic, "untold": lambda: None}[pressure]
    monkeypatch.setattr(loopguard, "_pressure_s", told)


def test_an_idle_loop_is_fine() -> None:
    with watch_loop() as guard:
        anyio.run(anyio.sleep, 0.1)
    assert guard.blocked == []
