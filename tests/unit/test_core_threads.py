"""Calls that hang keep one thread, and nobody waits for them."""

from __future__ import annotations

import subprocess
import sys
import threading

import anyio
import pytest

from supervisor.core.threads import LoneThread

_EXITS = """
import anyio, time
from supervisor.core.threads import LoneThread
async def main():
    try:
        await LoneThread(lambda: time.sleep(600), name="dead", timeout_s=0.05).call()
    except TimeoutError as error:
        print(error)
anyio.run(main)
"""


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_a_call_that_hangs_is_made_once_until_it_is_back(anyio_backend: str) -> None:
    back, calls = threading.Event(), []

    def work() -> str:
        calls.append(threading.current_thread())
        if len(calls) == 1:
            back.wait(60)
        return "done"

    lone = LoneThread(work, name="lone", timeout_s=0.05)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            await lone.call()
    assert len(calls) == 1
    back.set()
    patient = LoneThread(work, name="patient", timeout_s=60.0)
    assert await patient.call() == "done"
    with anyio.fail_after(60):
        while True:
            try:
                assert await lone.call() == "done"
            except TimeoutError:  # a loaded machine may take longer than 50 ms
                continue
            break


@pytest.mark.anyio
async def test_errors_are_those_of_the_call_and_callers_wait_for_each_other() -> None:
    running: list[int] = []

    def work() -> int:
        running.append(1)
        assert len(running) == 1, "one at a time"
        running.clear()
        raise LookupError("not there")

    lone, caught = LoneThread(work, name="x", timeout_s=60.0), []

    async def caller() -> None:
        try:
            await lone.call()
        except LookupError as error:
            caught.append(str(error))

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(caller)
    assert caught == ["not there"] * 5


def test_the_exit_does_not_wait_for_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _EXITS], capture_output=True, text=True, timeout=120, check=True
    )
    assert "dead did not answer within 0.05 s" in done.stdout
