"""The guard of the event loop sees what it is for."""

from __future__ import annotations

import time

import anyio
import anyio.lowlevel

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


def test_a_sleep_on_the_loop_is_caught() -> None:
    async def block() -> None:
        time.sleep(4.0)  # noqa: ASYNC251 - the fault that is to be found
        await anyio.lowlevel.checkpoint()

    with watch_loop() as guard:
        anyio.run(block)
    assert len(guard.blocked) == 1
    assert "block" in guard.blocked[0]


def test_an_idle_loop_is_fine() -> None:
    with watch_loop() as guard:
        anyio.run(anyio.sleep, 0.1)
    assert guard.blocked == []
