"""Thirty services that misbehave, commands at random: nothing is lost, nothing is left."""

from __future__ import annotations

import os
import random
import signal
from contextlib import suppress
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from supervisor.core.retry import Backoff
from supervisor.core.status import ServiceState
from supervisor.errors import ControlError
from supervisor.services.logs import LogLimits
from supervisor.services.machine import RUNNING, TRANSITIONS
from supervisor.services.spec import (
    Dependency,
    ExecProbe,
    FileProbe,
    Liveness,
    Readiness,
    ServiceSpec,
    StopStep,
)
from tests.process.pod import Pod, leftovers, running, shell

pytestmark = pytest.mark.anyio

SCRIPTS = {
    "good": "exec sleep 1000",
    "crash": "sleep 0.1; exit 3",
    "fast": "exit 1",
    "zero": "sleep 0.2; exit 0",
    "stubborn": "trap '' TERM INT HUP; while :; do sleep 0.1; done",
    "flood": "yes 'a flood of words without an end' & sleep 1; kill %1; exec sleep 1000",
    "fork": "for i in 1 2 3 4; do sleep 1000 & done; wait",
    "orphan": "(sleep 1000 &) ; (sleep 1000 &) ; sleep 0.3; exit 1",
    "session": "setsid sleep 1000 & setsid sh -c 'sleep 1000 & sleep 1000' & exec sleep 1000",
    "abort": "sleep 0.2; kill -ABRT $$",
    "bars": "i=0; while [ $i -lt 200 ]; do printf '\\r%d' $i; i=$((i+1)); done; sleep 1",
    "never": "exec sleep 1000",
    "dies": "exec sleep 1000",
    "slow": "trap 'sleep 0.2; exit 0' TERM; while :; do sleep 0.05; done",
    "quiet": "exec >/dev/null 2>&1; exec sleep 1000",
}


def specs(folder: Path) -> list[ServiceSpec]:
    """Two of each kind, the second of a pair after the first."""
    made = []
    for kind, script in SCRIPTS.items():
        options: dict[str, object] = {
            "backoff": Backoff(0.02, 0.2),
            "max_restarts": 1000,
            "stop": (StopStep("SIGTERM", 0.3),),
        }
        if kind == "never":
            options["readiness"] = Readiness(FileProbe(folder / "never"), timeout_s=0.5)
        elif kind == "dies":
            check = ExecProbe(("/bin/sh", "-c", f"test ! -e {folder}/hung"))
            options["liveness"] = Liveness(check, interval_s=0.2, timeout_s=1, failures=2)
        made.append(shell(kind, script, **options))
        after = () if kind == "never" else (Dependency(kind),)
        made.append(shell(f"{kind}-2", script, after=after, **options))
    return made


async def disturb(pod: Pod, rng: random.Random, seconds: float, folder: Path) -> None:
    """Give commands and kill things until the time is over."""
    names = [spec.name for spec in pod.manager.specs]

    async def command() -> None:
        name = rng.choice(names)
        manager = pod.manager
        with suppress(ControlError):
            match rng.randrange(7):
                case 0:
                    await manager.start(name)
                case 1:
                    await manager.stop(name)
                case 2:
                    await manager.restart(name, now=rng.random() < 0.5)
                case 3:
                    await manager.signal(name, rng.choice(["HUP", "STOP", "TERM", "KILL", "USR1"]))
                case 4:
                    if (pid := pod[name].pid) is not None:
                        with suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGKILL)
                case 5:
                    hung = folder / "hung"
                    hung.unlink() if hung.exists() else hung.touch()
                case _:
                    await pod.manager.reconcile(specs(folder))

    with anyio.move_on_after(seconds):
        async with anyio.create_task_group() as commands:
            while True:
                commands.start_soon(command)
                await anyio.sleep(rng.expovariate(20))


async def chaos(seed: int, seconds: float, folder: Path) -> None:
    rng = random.Random(seed)
    limits = LogLimits(burst_bytes=200_000, rate_bytes_per_s=200_000)
    made = specs(folder)
    assert len(made) == 30
    async with running(*made, limits=limits) as pod:
        await disturb(pod, rng, seconds, folder)
        with anyio.fail_after(60):
            await pod.manager.stop_all(8.0)
        assert leftovers(pod.manager.instance) == []
        await anyio.to_thread.run_sync(check_accounts, pod)


def check_accounts(pod: Pod) -> None:
    """Every state legal, every restart counted, nobody running."""
    for name, status in pod.state.snapshot.services.items():
        assert status.state not in RUNNING
        assert status.pid is None
        in_place = status.restart_reasons.get("restart-in-place", 0)
        assert status.restarts == sum(status.restart_reasons.values())
        assert status.restarts - in_place == max(0, status.generation - 1)
        before = ServiceState.WAITING
        for event in pod.bus.recent():
            if event.kind == "service.state" and event.subject == name:
                assert event.data["previous"] == before
                before = ServiceState(event.data["state"])
                assert before in TRANSITIONS[ServiceState(event.data["previous"])].values()
        assert before is status.state
        launches = pod.states(name).count("starting") - in_place
        assert launches == status.generation == len(pod.exits(name))


def descriptors() -> int:
    """Return how many descriptors this process has."""
    return len(list(Path("/proc/self/fd").iterdir()))


def zombies() -> list[int]:
    """Return our own children that have ended and were not waited for."""
    from supervisor.services import procfs

    stats = (procfs.read_stat(pid) for pid in procfs.pids())
    return [s.pid for s in stats if s and s.parent == os.getpid() and s.dead]


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_minute_of_chaos(tmp_path: Path) -> None:
    """CHAOS_SECONDS and CHAOS_SEED give another length and another course."""
    seconds = float(os.environ.get("CHAOS_SECONDS", "60"))
    seed = int(os.environ.get("CHAOS_SEED", "20261121"))
    before, dead = descriptors(), zombies()
    await chaos(seed, seconds, tmp_path)
    assert zombies() == dead  # other tests' children are theirs
    assert descriptors() <= before + 2  # a thread pool may keep its own
