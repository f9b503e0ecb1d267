"""Stopped means that everything is gone: groups, strays, those that ignore signals."""

from __future__ import annotations

import os
import signal
import time

import anyio
import pytest

from supervisor.core.status import ServiceState
from supervisor.services import procfs
from supervisor.services.spec import Dependency, StopStep
from tests.process.pod import leftovers, python, running, shell

pytestmark = pytest.mark.anyio

QUICK_STOP = (StopStep("SIGTERM", 0.2),)
# A daemon: double fork, own session, other folder, no open descriptors.
DAEMON = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.chdir("/")
        os.closerange(0, 100)
        time.sleep(1000)
    os._exit(0)
os.wait()
print("forked", flush=True)
"""


async def test_one_that_ignores_every_signal_is_killed_with_its_group() -> None:
    script = "trap '' TERM INT; sleep 1000 & echo up; while :; do sleep 1; done"
    async with running(shell("a", script, stop=QUICK_STOP)) as pod:
        await pod.says("a", "up")
        pid = pod["a"].pid
        assert pid is not None
        await pod.manager.stop("a")
        assert procfs.group_members(pid) == []
        exit_ = pod["a"].last_exit
        assert exit_ is not None
        assert (exit_.signal, exit_.reason) == ("SIGKILL", "stopped")


async def test_stopped_waits_for_the_group_and_not_for_its_leader() -> None:
    # The leader goes at once, its child takes its time to clean up.
    script = """
(trap 'sleep 0.3; echo cleaned; exit' TERM; echo up; while :; do sleep 0.05; done) &
trap 'exit 0' TERM
wait
"""
    async with running(shell("a", script, stop=(StopStep("SIGTERM", 10),))) as pod:
        await pod.says("a", "up")
        pid = pod["a"].pid
        assert pid is not None
        await pod.manager.stop("a")
        assert procfs.group_members(pid) == []
        assert "cleaned" in pod.output("a")


async def test_steps_are_taken_in_order() -> None:
    script = """
import signal, time, sys
signal.signal(signal.SIGINT, lambda *_: print("int", flush=True))
signal.signal(signal.SIGTERM, lambda *_: (print("term", flush=True), sys.exit(0)))
print("up", flush=True)
while True: time.sleep(1)
"""
    steps = (StopStep("SIGINT", 0.3), StopStep("SIGTERM", 10))
    async with running(python("a", script, stop=steps)) as pod:
        await pod.says("a", "up")
        await pod.manager.stop("a")
        assert pod.output("a") == ["up", "int", "term"]


async def test_a_stopped_process_is_woken_to_take_its_signal() -> None:
    async with running(
        shell("a", "trap 'exit 0' TERM; echo up; while :; do sleep 0.05; done")
    ) as p:
        await p.says("a", "up")
        pid = p["a"].pid
        assert pid is not None
        await p.manager.signal("a", "STOP")
        await p.manager.stop("a")
        assert p["a"].last_exit is not None
        assert p["a"].last_exit.code == 0


@pytest.mark.parametrize("how", ["stop", "crash"])
async def test_daemons_that_left_the_session_are_found(how: str) -> None:
    script = DAEMON + "time.sleep(1000)\n"
    async with running(python("a", script)) as pod:
        await pod.says("a", "forked")
        pid = pod["a"].pid
        assert pid is not None
        assert len(leftovers(pod.manager.instance)) == 2
        if how == "stop":
            await pod.manager.stop("a")
            assert leftovers(pod.manager.instance) == []
        else:
            os.kill(pid, signal.SIGKILL)
            await pod.when("a", lambda s: s.generation == 2)
            assert "ended 1 processes it left behind" in pod.output("a", "supervisor")
            await pod.when("a", lambda s: s.ready)


async def test_a_stray_that_hides_its_environment_is_found_by_its_parent() -> None:
    script = """
import os, subprocess, sys
subprocess.Popen(["/bin/sleep", "1000"], env={}, start_new_session=True)
print("up", flush=True)
import time; time.sleep(1000)
"""
    async with running(python("a", script)) as pod:
        await pod.says("a", "up")
        pid = pod["a"].pid
        assert pid is not None
        (stray,) = procfs.descendants(pid)
        await pod.manager.stop("a")
        assert not procfs.is_alive(stray)


async def test_a_grandchild_that_keeps_stdout_open_delays_nothing() -> None:
    # Not of the group, not marked: nothing of ours may kill it, and nothing may wait for it.
    script = """
import subprocess, sys
child = subprocess.Popen(["/bin/sleep", "60"], env={}, start_new_session=True)
print(child.pid, flush=True)
sys.exit(0)
"""
    async with running(python("a", script, max_restarts=0)) as pod:
        status = await pod.reaches("a", ServiceState.FAILED)
        assert status.last_exit is not None
        assert status.last_exit.code == 0
        os.kill(int(pod.output("a", "stdout")[0]), signal.SIGKILL)


async def test_all_of_a_deep_chain_is_gone_within_the_deadline() -> None:
    stubborn = "trap '' TERM INT; echo up; while :; do sleep 0.1; done"
    grace = (StopStep("SIGTERM", 60),)
    specs = [
        shell("c", stubborn, after=(Dependency("b"),), stop=grace),
        shell("b", stubborn, after=(Dependency("a"),), stop=grace),
        shell("a", stubborn, stop=grace),
    ]
    async with running(*specs) as pod:
        for name in "abc":
            await pod.says(name, "up")
        begun_s = time.monotonic()
        await pod.manager.stop_all(2.0)
        assert time.monotonic() - begun_s < 10  # and not 180
        assert {s.state for s in pod.state.snapshot.services.values()} == {ServiceState.STOPPED}


async def test_a_second_stop_hurries_the_first() -> None:
    spec = shell(
        "a", "trap '' TERM; echo up; while :; do sleep 0.1; done", stop=(StopStep("SIGTERM", 600),)
    )
    async with running(spec) as pod:
        await pod.says("a", "up")
        with anyio.fail_after(30):
            async with anyio.create_task_group() as both:
                both.start_soon(pod.manager.stop_all, 600.0)
                await pod.reaches("a", ServiceState.STOPPING)
                await pod.manager.stop_all(0.0)


async def test_cancelling_the_manager_kills_everything() -> None:
    from supervisor.core.events import EventBus
    from supervisor.core.state import StateStore
    from supervisor.services.logs import LogStore
    from supervisor.services.manager import ServiceManager

    state = StateStore()
    manager = ServiceManager(
        state=state,
        bus=EventBus(),
        logs=LogStore(None, str, console=False),
        base_environment=dict(os.environ),
    )
    async with anyio.create_task_group() as tasks:
        script = "trap '' TERM; sleep 1000 & echo up; wait"
        await tasks.start(manager.run, [shell("a", script), shell("b", script)])
        await state.wait(lambda s: s.services["a"].ready and s.services["b"].ready)
        tasks.cancel_scope.cancel()
    assert leftovers(manager.instance) == []


async def test_an_open_follower_does_not_hold_up_the_end() -> None:
    async with running(shell("a", "echo one; exec sleep 1000")) as pod:
        seen: list[str] = []

        async def follow() -> None:
            with pod.logs.subscribe("a") as lines:
                async for line in lines:
                    seen.append(line.text)  # noqa: PERF401 - an async for with an effect

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(follow)
            await pod.reaches("a", ServiceState.READY)
            await pod.says("a", "one")
            with anyio.fail_after(30):
                await pod.manager.stop_all(5.0)
        # The task group has ended by itself: the follower was told that it is over.
