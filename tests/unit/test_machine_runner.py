"""The runner with simulated processes, under Trio's clock: hours pass in no time."""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise

import anyio
import anyio.lowlevel
import pytest
import trio
import trio.testing

from supervisor.core.events import EventBus
from supervisor.core.retry import Backoff
from supervisor.core.state import StateStore
from supervisor.core.status import ServiceState
from supervisor.errors import ControlError, SpawnError
from supervisor.services.health import Pulse, Verdict, judge
from supervisor.services.life import Announcements, Evidence
from supervisor.services.logs import LogStore
from supervisor.services.manager import ServiceManager
from supervisor.services.probes import ProbeResult
from supervisor.services.process import Exit
from supervisor.services.spec import (
    ActiveProbe,
    Dependency,
    HttpProbe,
    Liveness,
    Readiness,
    ServiceKind,
    ServiceSpec,
    StopStep,
)

PROBE = HttpProbe("http://127.0.0.1:1/")


@dataclass
class SimulatedLife:
    """A process that needs ``starts_s``, lives ``lives_s`` and takes ``dies_s`` to stop."""

    lives_s: float = float("inf")
    starts_s: float = 0.0
    dies_s: float = 0.1
    code: int = 1
    hangs_after_s: float = float("inf")
    pid: int = 4242
    announced: Announcements = field(default_factory=Announcements)
    last_output_s: float = 0.0
    signals: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._begun_s = anyio.current_time()
        self._doomed = anyio.Event()
        self._died = anyio.Event()

    async def attend(self) -> None:
        await anyio.sleep_forever()

    async def wait(self) -> Exit:
        with anyio.move_on_after(self._begun_s + self.lives_s - anyio.current_time()):
            await self._doomed.wait()
            if 9 not in self.signals:
                await anyio.sleep(self.dies_s)
            return Exit(signal=self.signals[-1])
        return Exit(code=self.code)

    async def group_gone(self) -> None:
        await self.wait()

    async def probe(self, probe: ActiveProbe, timeout_s: float) -> ProbeResult:
        age_s = anyio.current_time() - self._begun_s
        if age_s > self.hangs_after_s:
            await anyio.sleep(timeout_s)
            return ProbeResult(ok=False, detail="no answer")
        return ProbeResult(ok=age_s >= self.starts_s, detail="starting")

    def send(self, number: int, *, group: bool = True) -> None:
        if number != 18:  # SIGCONT
            self.signals.append(number)
            self._doomed.set()

    def abort(self) -> None:
        self.send(6)

    def image(self) -> tuple[str, str] | None:
        return None

    async def cpu_seconds(self) -> float:
        return 0.0

    async def describe(self) -> str:
        return "sleeping"

    async def remember(self) -> None:
        await anyio.lowlevel.checkpoint()

    async def sweep(self) -> int:
        await anyio.lowlevel.checkpoint()
        return 0

    async def close(self) -> Evidence:
        await anyio.lowlevel.checkpoint()
        return Evidence()


Make = Callable[[], SimulatedLife]


@dataclass
class World:
    """A manager whose processes are simulated."""

    make: dict[str, Make]
    state: StateStore = field(default_factory=StateStore)
    bus: EventBus = field(default_factory=lambda: EventBus(history=100_000))
    launched: list[tuple[float, str, tuple[str, ...]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.manager = ServiceManager(
            state=self.state,
            bus=self.bus,
            logs=LogStore(None, str, console=False),
            base_environment={},
            launch=self.launch,
            rng=random.Random(1),
        )

    async def launch(
        self, spec: ServiceSpec, generation: int, command: tuple[str, ...]
    ) -> SimulatedLife:
        self.launched.append((anyio.current_time(), spec.name, command))
        return self.make[spec.name]()

    def states(self, name: str) -> list[str]:
        events = (e for e in self.bus.recent() if e.kind == "service.state")
        return [e.data["state"] for e in events if e.subject == name]


def simulate(world: World, *specs: ServiceSpec, body: Callable[[World], Awaitable[None]]) -> None:
    """Run ``body`` beside the services; time jumps whenever everybody sleeps."""

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            await tasks.start(world.manager.run, specs)
            with anyio.fail_after(24 * 3600):
                await body(world)
                await world.manager.stop_all(60.0)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def service(name: str = "a", **options: object) -> ServiceSpec:
    return ServiceSpec(name, ("x",), **options)  # type: ignore[arg-type]


def test_half_an_hour_of_backoff_takes_no_time() -> None:
    spec = service(
        backoff=Backoff(1.0, 60.0, jitter=False), max_restarts=40, window_s=7200, readiness=None
    )
    world = World({"a": lambda: SimulatedLife(lives_s=0.5)})

    async def body(world: World) -> None:
        await world.state.wait(lambda s: s.services["a"].state is ServiceState.FAILED)

    begun_s = time.process_time()
    simulate(world, spec, body=body)
    used_s = time.process_time() - begun_s
    at = [moment for moment, _, _ in world.launched]
    assert len(at) == 41
    assert at[-1] - at[0] > 31 * 60
    pauses = [round(b - a - 0.5, 3) for a, b in pairwise(at)]
    assert pauses[:8] == [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0]
    assert used_s < 2.0  # 0.1 s on a quiet machine


def test_full_jitter_stays_below_its_ceiling() -> None:
    spec = service(backoff=Backoff(10.0, 60.0), max_restarts=30, window_s=1e6)
    world = World({"a": lambda: SimulatedLife(lives_s=0.0)})

    async def body(world: World) -> None:
        await world.state.wait(lambda s: s.services["a"].state is ServiceState.FAILED)

    simulate(world, spec, body=body)
    at = [moment for moment, _, _ in world.launched]
    pauses = [b - a for a, b in pairwise(at)]
    assert all(pause <= 60.1 for pause in pauses)
    assert len({round(p, 3) for p in pauses}) > 25


def test_a_long_start_is_not_a_failed_start() -> None:
    slow = Readiness(PROBE, timeout_s=3600)
    world = World({"a": lambda: SimulatedLife(starts_s=3500)})

    async def body(world: World) -> None:
        await world.state.wait(lambda s: s.services["a"].ready)

    simulate(world, service(readiness=slow, healthy_after_s=1), body=body)
    assert len(world.launched) == 1
    assert "backoff" not in world.states("a")


def test_a_hung_one_is_ended_after_its_failures_and_started_again() -> None:
    spec = service(
        readiness=Readiness(PROBE),
        liveness=Liveness(PROBE, interval_s=10, timeout_s=5, failures=3, grace_s=60),
    )
    world = World({"a": lambda: SimulatedLife(hangs_after_s=300)})

    async def body(world: World) -> None:
        await world.state.wait(lambda s: s.services["a"].generation == 3)

    simulate(world, spec, body=body)
    first, second, _ = (moment for moment, _, _ in world.launched)
    assert 300 + 3 * 15 - 10 < second - first < 300 + 3 * 15 + 20
    assert world.state.snapshot.services["a"].restart_reasons == {"hung": 2}
    moves = world.states("a")
    assert moves[:6] == ["starting", "ready", "unhealthy", "stopping", "waiting", "starting"]


def test_a_healthy_life_makes_the_next_restart_immediate() -> None:
    lives = iter([1.0, 1.0, 1.0, 100.0, 1.0])
    spec = service(backoff=Backoff(8.0, 8.0, jitter=False), healthy_after_s=30)
    world = World({"a": lambda: SimulatedLife(lives_s=next(lives, float("inf")))})

    async def body(world: World) -> None:
        await world.state.wait(lambda s: s.services["a"].generation == 6)

    simulate(world, spec, body=body)
    at = [moment for moment, _, _ in world.launched]
    ages = [1.0, 1.0, 1.0, 100.0, 1.0]
    pauses = [round(b - a - age) for a, b, age in zip(at, at[1:], ages, strict=False)]
    assert pauses == [0, 8, 8, 0, 8]


def test_the_stop_shares_its_time_along_the_chain() -> None:
    def stubborn() -> SimulatedLife:
        return SimulatedLife(dies_s=1000)

    specs = [
        service("a", stop=(StopStep("SIGTERM", 600),)),
        service("b", stop=(StopStep("SIGTERM", 600),), after=(Dependency("a"),)),
    ]
    world = World({"a": stubborn, "b": stubborn})
    ended: list[float] = []

    async def body(world: World) -> None:
        await world.state.wait(lambda s: all(x.ready for x in s.services.values()))
        begun_s = anyio.current_time()
        await world.manager.stop_all(10.5)
        ended.append(anyio.current_time() - begun_s)

    simulate(world, *specs, body=body)
    assert 9.9 < ended[0] < 10.6
    stopped = [e.subject for e in world.bus.recent() if e.data.get("state") == "stopped"]
    assert stopped == ["b", "a"]


def test_a_spawn_that_fails_is_retried_until_the_command_is_there() -> None:
    tries = iter(range(100))

    def make() -> SimulatedLife:
        if next(tries) < 3:
            raise SpawnError("Cannot start x: command not found", hint="install it")
        return SimulatedLife()

    world = World({"a": make})

    async def body(world: World) -> None:
        status = await world.state.wait(lambda s: s.services["a"].ready)
        assert status.services["a"].restart_reasons == {"spawn-failed": 3}

    simulate(world, service(), body=body)


def test_commands_at_any_instant_of_a_crash_loop_end_in_a_defined_state() -> None:
    for seed in range(30):
        rng = random.Random(seed)
        world = World({"a": lambda rng=rng: SimulatedLife(lives_s=rng.choice([0, 1, 5, 1e9]))})  # type: ignore[misc]
        readiness = Readiness(PROBE, timeout_s=2) if seed % 2 else None

        async def tolerant(command: Callable[[str], Awaitable[None]]) -> None:
            with suppress(ControlError):  # overtaken by the next one
                await command("a")

        async def body(world: World, rng: random.Random = rng) -> None:
            manager = world.manager
            async with anyio.create_task_group() as commands:
                for _ in range(30):
                    await anyio.sleep(rng.expovariate(1.0))
                    command = rng.choice([manager.start, manager.stop, manager.restart])
                    commands.start_soon(tolerant, command)
            await manager.stop("a")
            assert world.state.snapshot.services["a"].state is ServiceState.STOPPED
            await manager.start("a")
            await world.state.wait(lambda s: s.services["a"].pid is not None)

        simulate(world, service(readiness=readiness), body=body)
        status = world.state.snapshot.services["a"]
        assert status.generation == len(world.launched)
        assert status.restarts == status.generation - 1 == sum(status.restart_reasons.values())


@pytest.mark.parametrize(
    ("pulse", "verdict"),
    [
        (Pulse(1, 3), Verdict.WAIT),
        (Pulse(3, 3), Verdict.HUNG),
        (Pulse(3, 3, queue=5, cpu_ratio=1.0), Verdict.HUNG),  # only ComfyUI has a queue
        (Pulse(1, 3, ServiceKind.COMFYUI, refused=True), Verdict.IN_PLACE),
        (Pulse(3, 3, ServiceKind.COMFYUI), Verdict.HUNG),
        (Pulse(50, 3, ServiceKind.COMFYUI, queue=1, cpu_ratio=0.9), Verdict.BUSY),
        (Pulse(50, 3, ServiceKind.COMFYUI, queue=1, gpu_busy=True), Verdict.BUSY),
        (Pulse(11, 3, ServiceKind.COMFYUI, queue=1), Verdict.BUSY),
        (Pulse(12, 3, ServiceKind.COMFYUI, queue=1), Verdict.HUNG),
        (Pulse(11, 3, ServiceKind.COMFYUI, cpu_ratio=0.9), Verdict.BUSY),
        (Pulse(12, 3, ServiceKind.COMFYUI, cpu_ratio=0.9), Verdict.HUNG),
    ],
)
def test_busy_is_not_hung(pulse: Pulse, verdict: Verdict) -> None:
    assert judge(pulse) is verdict
