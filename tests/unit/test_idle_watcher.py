"""The idle watcher under a simulated clock: hours pass in milliseconds."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import anyio
import pytest
import trio
import trio.testing

from supervisor.core.events import EventBus
from supervisor.core.state import StateStore
from supervisor.core.status import Phase, SyncStatus
from supervisor.pod.activity import IdleFacts
from supervisor.pod.idle import Ending, IdleWatcher, PodEndError, run_command

HOUR_S = 3600.0
BUSY = IdleFacts(queue_length=1)


@dataclass
class World:
    """A pod whose use follows ``timetable``: pairs of (until second, facts)."""

    timetable: Sequence[tuple[float, IdleFacts]] = ()
    retained: int = 0
    refusals: int = 0  # so often the stop is refused
    options: dict[str, Any] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    ended_s: float | None = None
    on_flush: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self.state = StateStore()
        self.bus = EventBus()
        self.watcher = IdleWatcher(
            limit_s=HOUR_S, looks=self, state=self.state, bus=self.bus,
            ending=replace(self.ending(), **self.options),
        )  # fmt: skip

    def ending(self) -> Ending:
        async def flush(_: float) -> SyncStatus:
            self.calls.append("flush")
            self.on_flush()
            return SyncStatus(enabled=True, retained=self.retained, last_error="no such bucket")

        async def drain() -> list[str]:
            self.calls.append("drain")
            return ["comfyui"]

        async def resume(names: Sequence[str]) -> None:
            self.calls.append(f"resume {' '.join(names)}")

        async def stop() -> None:
            self.calls.append("stop")
            if self.refusals:
                self.refusals -= 1
                raise PodEndError("Cannot stop the pod: HTTP 500", hint="see the console")

        def leave(reason: str) -> None:
            self.calls.append(f"exit: {reason}")
            self.ended_s = anyio.current_time()

        return Ending(flush, drain, resume, stop, leave, what="the pod is stopped")

    @asynccontextmanager
    async def opened(self) -> AsyncGenerator[Callable[[bool], Awaitable[IdleFacts]]]:
        async def look(kept: bool) -> IdleFacts:
            now_s = anyio.current_time()
            facts = next((f for until_s, f in self.timetable if now_s < until_s), IdleFacts())
            return replace(facts, kept=kept)

        yield look

    def live(
        self, *, hours: float = 24, beside: Callable[[], Coroutine[Any, Any, None]] | None = None
    ) -> None:
        """Let so many hours pass, with somebody acting ``beside``."""

        async def main() -> None:
            with anyio.move_on_after(hours * HOUR_S):
                async with anyio.create_task_group() as tasks:
                    if beside is not None:
                        tasks.start_soon(beside)
                    await self.watcher.run()

        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))

    def told(self, kind: str) -> list[str]:
        return [event.message for event in self.bus.recent(1000) if event.kind == kind]


def test_an_unused_pod_is_stored_drained_stored_and_stopped_once() -> None:
    world = World()
    world.live()
    reason = "nobody has used the pod for 60 min"
    assert world.calls == ["flush", "drain", "flush", "stop", f"exit: {reason}"]
    assert world.ended_s == pytest.approx(HOUR_S, abs=10)
    assert world.told("idle.warning")[0].startswith("Nobody has used the pod for 48 min: in 12 min")
    assert len(world.told("idle.warning")) == len(world.told("idle.stop")) == 1


def test_use_begins_the_hour_anew() -> None:
    world = World(timetable=[(2 * HOUR_S, BUSY)])
    world.live()
    assert world.ended_s == pytest.approx(3 * HOUR_S, abs=10)


def test_a_pod_in_use_is_never_stopped() -> None:
    world = World(timetable=[(100 * HOUR_S, IdleFacts(queue_length=None))])
    world.live(hours=48)
    assert world.calls == []
    assert world.state.snapshot.idle.busy_because == ("ComfyUI's queue is unknown",)


def test_outputs_that_cannot_be_stored_keep_the_pod_and_are_told() -> None:
    world = World(retained=3)
    world.live(hours=2)
    assert set(world.calls) == {"flush"}, "ComfyUI must not be stopped for a bucket that is down"
    problem = world.state.snapshot.idle.problem or ""
    assert "outputs are not stored yet (3): no such bucket" in problem
    assert 2 <= len(world.told("idle.failed")) <= 10, "it is tried again at a slow pace"


def test_unsynced_outputs_are_given_up_when_told_to() -> None:
    world = World(retained=3, options={"ignore_unsynced": True})
    world.live(hours=2)
    assert world.ended_s is not None


def test_a_refused_stop_brings_comfyui_back_and_is_tried_again() -> None:
    world = World(refusals=2)
    world.live(hours=3)
    once = ["flush", "drain", "flush", "stop"]
    again = [*once, "resume comfyui"]
    assert world.calls[:-1] == [*again, *again, *once]
    assert len(world.told("idle.failed")) == 2


def test_a_keep_during_the_last_flush_is_heard() -> None:
    world = World()
    flushes = 0

    def keep_at_the_second() -> None:
        nonlocal flushes
        flushes += 1
        if flushes == 2:
            world.watcher.keep(2 * HOUR_S)

    world.on_flush = keep_at_the_second
    world.live(hours=2.5)
    assert world.calls == ["flush", "drain", "flush", "resume comfyui"]
    assert world.state.snapshot.idle.kept_until is not None


def test_use_that_begins_while_comfyui_is_stopped_is_seen() -> None:
    world = World()
    flushes = 0

    def somebody_logs_in_at_the_second() -> None:
        nonlocal flushes
        flushes += 1
        if flushes == 2:
            until_s = anyio.current_time() + HOUR_S
            world.timetable = [(until_s, IdleFacts(ssh_sessions=1))]

    world.on_flush = somebody_logs_in_at_the_second
    world.live(hours=1.5)
    assert world.calls == ["flush", "drain", "flush", "resume comfyui"]


def test_a_bug_on_the_way_brings_comfyui_back() -> None:
    async def stop() -> None:
        raise RuntimeError("a bug")

    world = World(options={"stop": stop})
    with pytest.raises(BaseExceptionGroup):
        world.live(hours=2)
    assert world.calls[-1] == "resume comfyui"


def test_the_time_that_is_left_is_shown_and_what_is_being_done() -> None:
    world = World()
    left, doing = list[float | None](), list[str | None]()

    async def watch() -> None:
        seen = world.state.snapshot.idle
        while seen.ending is None:
            left.append(seen.ends_in_s)
            await anyio.sleep(600)
            seen = world.state.snapshot.idle

    def note() -> None:
        doing.append(world.state.snapshot.idle.ending)

    world.on_flush = note
    world.live(hours=0.9, beside=watch)
    assert left[1:] == pytest.approx([3000, 2400, 1800, 1200, 600], abs=10)
    world.live()
    assert doing == ["outputs are stored", "outputs are stored"]
    assert world.state.snapshot.idle.ending is None


def test_keep_postpones_and_ends_by_itself() -> None:
    world = World()

    async def keep() -> None:
        await anyio.sleep(HOUR_S / 2)
        world.watcher.keep(2 * HOUR_S)
        assert world.state.snapshot.idle.busy_because == ("kept by request",)

    world.live(beside=keep)
    assert world.ended_s == pytest.approx(3.5 * HOUR_S, abs=15)


def test_keep_is_taken_back_by_zero() -> None:
    world = World()

    async def keep() -> None:
        world.watcher.keep(20 * HOUR_S)
        await anyio.sleep(HOUR_S)
        world.watcher.keep(0)
        assert world.state.snapshot.idle.kept_until is None

    world.live(beside=keep)
    assert world.ended_s == pytest.approx(2 * HOUR_S, abs=15)


def test_a_dry_run_only_talks() -> None:
    world = World(options={"dry_run": True})
    world.live(hours=3.5)
    assert world.calls == []
    assert len(world.told("idle.dry_run")) == 3


def test_without_a_stop_call_the_process_just_ends() -> None:
    world = World(options={"stop": None})
    world.live(hours=2)
    assert world.calls[-1].startswith("exit:")
    assert "stop" not in world.calls


def test_nothing_is_done_while_the_pod_stops_anyway() -> None:
    world = World()
    world.state.update(phase=Phase.STOPPING)
    world.live(hours=2)
    assert world.calls == []


def hide(text: str) -> str:
    return text.replace("s3cret", "***")


@pytest.mark.anyio
async def test_a_command_that_fails_is_told_without_secrets() -> None:
    shell = ("/bin/sh", "-c", "echo starting; echo no s3cret >&2; exit 3")
    with pytest.raises(PodEndError, match=r"/bin/sh ended with 3: no \*\*\*"):
        await run_command(shell, {}, redact=hide)
    with pytest.raises(PodEndError, match="Cannot run /nowhere/at-all: No such file"):
        await run_command(("/nowhere/at-all",), {}, redact=hide)


@pytest.mark.anyio
async def test_a_command_that_hangs_is_killed() -> None:
    with pytest.raises(PodEndError, match=r"/bin/sleep has not ended in 0\.2 s"):
        await run_command(("/bin/sleep", "600"), {}, redact=hide, timeout_s=0.2)
