"""What moves the VRAM ladder, and what a volume remembers of it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import anyio
import pytest

from supervisor.app.boot import Boot, Source, decide_resumed
from supervisor.app.essentials import Essentials
from supervisor.app.ladder import Ladder, comfyui_of
from supervisor.app.ladder_control import WINDOW_S, LadderControl
from supervisor.app.ladder_memory import Descent, LadderMemory, recall_descent, set_key
from supervisor.app.timeline import Timeline
from supervisor.config.load import LoadedSettings
from supervisor.config.redaction import Redactor
from supervisor.config.settings import Settings
from supervisor.core.events import EventBus
from supervisor.core.state import StateStore
from supervisor.core.status import Snapshot
from supervisor.plan.model import Plan
from supervisor.plan.secrets import GeneratedSecrets
from supervisor.services.classify import Classification, ExitReason
from supervisor.services.spec import ServiceSpec
from tests.unit.plan_machines import CARDS, COMFYUI, machine

pytestmark = pytest.mark.anyio

PATIENCE_S = 30.0
FACTS = machine(CARDS["l4-23034"], COMFYUI["0.33.0-dynamic-vram"])
GENERATED = GeneratedSecrets("jupyter-generated", "filebrowser-generated", "health-generated")
OOM = Classification(ExitReason.CUDA_OOM, "the GPU's memory is used up")


def settings_of(state_dir: Path, **sections: Any) -> Settings:
    given = {"supervisor": {"state_dir": state_dir}, "storage": {"mode": "persistent"}}
    return Settings.model_validate({**given, **sections})


def make_boot(settings: Settings) -> Boot:
    loaded = LoadedSettings(settings, None, (), frozenset())
    plan, descent = decide_resumed(loaded, FACTS, {}, GENERATED)
    source = Source(None, (), {})
    timeline = Timeline.since_exec()
    return Boot(source, loaded, FACTS, GENERATED, plan, Redactor(()), timeline, descent)


@dataclass
class Manager:
    """Runs nothing; its queue is empty when ``drained`` is set."""

    specs: tuple[ServiceSpec, ...]
    drained: anyio.Event = field(default_factory=anyio.Event)
    waiting: anyio.Event = field(default_factory=anyio.Event)
    commands: list[tuple[str, ...]] = field(default_factory=list)

    async def drain(self, name: str) -> None:
        assert name == "comfyui"
        self.waiting.set()
        await self.drained.wait()

    async def reconcile(self, specs: Sequence[ServiceSpec]) -> None:
        assert [s.name for s in specs] == [s.name for s in self.specs]
        changed = [b for a, b in zip(self.specs, specs, strict=True) if a != b]
        self.commands += [spec.command for spec in changed]
        self.specs = tuple(specs)


@dataclass
class House:
    """A ladder and who moves it."""

    ladder: Ladder
    control: LadderControl
    manager: Manager
    state: StateStore
    bus: EventBus

    async def wait_step(self, step: int) -> Snapshot:
        with anyio.fail_after(PATIENCE_S):
            return await self.state.wait(lambda s: s.gpu.ladder_step == step)

    def crash(self) -> None:
        """ComfyUI dies of it, as the service's runner tells."""
        (spec,) = [s for s in self.manager.specs if s.name == "comfyui"]
        lower = self.ladder.adjust(spec, OOM)
        assert lower is not None
        self.manager.specs = tuple(lower if s.name == "comfyui" else s for s in self.manager.specs)


@asynccontextmanager
async def house(settings: Settings) -> AsyncIterator[House]:
    boot = make_boot(settings)
    state, bus = StateStore(Snapshot(gpu=boot.plan.gpu)), EventBus()
    ladder, manager = Ladder(boot, state, bus), Manager(boot.plan.services)
    parts = Essentials(
        boot=boot,
        state=state,
        bus=bus,
        logs=cast("Any", None),
        manager=cast("Any", manager),
        reloader=cast("Any", None),
        ladder=ladder,
        gpu_memory=cast("Any", None),
        shutdown=lambda _reason: None,
    )
    control = LadderControl(parts)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(control.run)
        await anyio.wait_all_tasks_blocked()
        try:
            yield House(ladder, control, manager, state, bus)
        finally:
            tasks.cancel_scope.cancel()


async def test_jobs_that_fail_do_nothing_unless_allowed(tmp_path: Path) -> None:
    async with house(settings_of(tmp_path)) as made:
        for _ in range(10):
            made.control.job_failed()
        await anyio.wait_all_tasks_blocked()
        assert not made.manager.waiting.is_set()
        assert made.ladder.step == 0


async def test_repeated_job_errors_wait_for_the_queue_and_step_down(tmp_path: Path) -> None:
    async with house(settings_of(tmp_path, gpu={"ladder_on_job_errors": True})) as made:
        made.control.job_failed()
        made.control.job_failed()
        await anyio.wait_all_tasks_blocked()
        assert not made.manager.waiting.is_set(), "twice is not yet too often"
        made.control.job_failed()
        with anyio.fail_after(PATIENCE_S):
            await made.manager.waiting.wait()
        assert made.ladder.step == 0, "jobs in the queue come first"
        made.manager.drained.set()
        snapshot = await made.wait_step(1)
        assert "because 3 jobs ran out of VRAM" in snapshot.gpu.ladder_reasons[0]
        await anyio.wait_all_tasks_blocked()
        (command,) = made.manager.commands
        assert "--vram-headroom" in command
        made.control.job_failed()
        made.control.job_failed()
        await anyio.wait_all_tasks_blocked()
        assert made.ladder.step == 1, "failures of before do not count again"


async def test_a_queue_that_never_ends_is_not_waited_for(tmp_path: Path) -> None:
    section = {"ladder_on_job_errors": True, "ladder_job_errors": 1, "ladder_drain_s": 0.05}
    async with house(settings_of(tmp_path, gpu=section)) as made:
        made.control.job_failed()
        await made.wait_step(1)
        assert not made.manager.drained.is_set()


async def test_a_crash_during_the_wait_is_one_step_and_not_two(tmp_path: Path) -> None:
    section = {"ladder_on_job_errors": True, "ladder_job_errors": 1}
    async with house(settings_of(tmp_path, gpu=section)) as made:
        made.control.job_failed()
        with anyio.fail_after(PATIENCE_S):
            await made.manager.waiting.wait()
        made.crash()
        made.manager.drained.set()
        await anyio.wait_all_tasks_blocked()
        assert made.ladder.step == 1
        assert made.manager.commands == [], "the crash restarts it by itself"


async def test_failures_far_apart_are_no_pattern(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = {"ladder_on_job_errors": True, "ladder_job_errors": 2}
    async with house(settings_of(tmp_path, gpu=section)) as made:
        now_s = anyio.current_time()
        times = iter((now_s, now_s + WINDOW_S + 1, now_s + WINDOW_S + 2))
        for _ in range(2):
            monkeypatch.setattr(anyio, "current_time", lambda: next(times))
            made.control.job_failed()
            monkeypatch.undo()
            await anyio.wait_all_tasks_blocked()
            assert not made.manager.waiting.is_set()
        monkeypatch.setattr(anyio, "current_time", lambda: next(times))
        made.control.job_failed()
        monkeypatch.undo()
        with anyio.fail_after(PATIENCE_S):
            await made.manager.waiting.wait()


async def test_the_bottom_is_said_and_nothing_goes_up(tmp_path: Path) -> None:
    async with house(settings_of(tmp_path)) as made:
        for step in range(1, 5):
            made.crash()
            assert made.ladder.step == step
        (spec,) = [s for s in made.manager.specs if s.name == "comfyui"]
        assert made.ladder.adjust(spec, OOM) is None
        assert made.ladder.step == 4
        assert "has no lower step" in made.bus.recent()[-1].message
        assert len(made.state.snapshot.gpu.ladder_reasons) == 4
        segfault = Classification(ExitReason.SEGFAULT, "crashed")
        assert made.ladder.adjust(spec, segfault) is None


async def test_at_the_bottom_failing_jobs_are_said_and_restart_nothing(tmp_path: Path) -> None:
    section = {"ladder_on_job_errors": True, "ladder_job_errors": 2}
    async with house(settings_of(tmp_path, gpu=section)) as made:
        for _ in range(4):
            made.crash()
        made.manager.drained.set()
        await anyio.wait_all_tasks_blocked()
        made.control.job_failed()
        made.control.job_failed()
        await anyio.wait_all_tasks_blocked()
        said = [e for e in made.bus.recent() if "has no lower step" in e.message]
        assert len(said) == 1
        made.control.job_failed()
        await anyio.wait_all_tasks_blocked()
        assert [e for e in made.bus.recent() if "has no lower step" in e.message] == said
        assert made.manager.commands == []


async def test_reset_waits_for_the_queue_unless_now(tmp_path: Path) -> None:
    async with house(settings_of(tmp_path)) as made:
        assert await made.control.reset() == 0
        assert not made.manager.waiting.is_set()
        before = comfyui_of(make_boot(settings_of(tmp_path / "other")).plan)
        assert before is not None
        made.crash()
        made.crash()
        with anyio.fail_after(PATIENCE_S):
            assert await made.control.reset(now=True) == 2
        assert made.manager.commands == [before.command]
        assert made.state.snapshot.gpu.ladder_reasons == ()
        made.crash()
        assert made.ladder.step == 1, "the ladder is as long as before"
        made.manager.drained.set()
        with anyio.fail_after(PATIENCE_S):
            assert await made.control.reset() == 1
        assert made.manager.waiting.is_set()


async def test_a_persistent_volume_remembers_and_forgets(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    async with house(settings) as made:
        made.crash()
        made.crash()
        reasons = made.ladder.descent.reasons
        await until_kept(settings, 2)
    boot = make_boot(settings)
    assert (boot.plan.gpu.ladder_step, boot.plan.gpu.ladder_reasons) == (2, reasons)
    assert any("step 2" in note for note in boot.plan.notes)
    assert "--disable-dynamic-vram" in command(boot.plan)
    async with house(settings) as made:
        made.crash()
        assert made.ladder.step == 3, "it goes on from there"
        await made.control.reset(now=True)
        await until_kept(settings, 0)
    assert make_boot(settings).plan.gpu.ladder_step == 0


@pytest.mark.parametrize(
    "sections",
    [
        {"gpu": {"ladder": False}},
        {"storage": {"mode": "ephemeral"}},
        {"comfyui": {"args": "--reserve-vram 1"}},
        {"gpu": {"memory_mode": "low"}},
        {"models": {"bundles": ["wan_480p"]}},
    ],
)
async def test_another_situation_starts_at_the_top(tmp_path: Path, sections: Any) -> None:
    LadderMemory(tmp_path / "ladder.json", set_key(settings_of(tmp_path), FACTS)).keep(
        Descent(2, ("a", "b"), "2026-11-21")
    )
    assert make_boot(settings_of(tmp_path)).plan.gpu.ladder_step == 2
    assert make_boot(settings_of(tmp_path, **sections)).plan.gpu.ladder_step == 0


def test_the_key_knows_card_and_version() -> None:
    settings = settings_of(Path("/nowhere"))
    facts = (
        FACTS,
        replace(FACTS, comfyui=COMFYUI["0.30.0-host-ram"]),
        machine(CARDS["a40-46068"], COMFYUI["0.33.0-dynamic-vram"]),
        machine(None, None),
    )
    assert len({set_key(settings, each) for each in facts}) == len(facts)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"sets": 3}', '{"sets": {"KEY": 4}}', '{"sets": {"KEY": {"step": "x"}}}',
     '{"sets": {"KEY": {"step": 2}}}', "[" * 100_000],
)  # fmt: skip
def test_a_damaged_memory_is_none(tmp_path: Path, text: str) -> None:
    settings = settings_of(tmp_path)
    key = set_key(settings, FACTS)
    path = tmp_path / "ladder.json"
    path.write_text(text.replace("KEY", key))
    assert recall_descent(settings, FACTS) == Descent()
    LadderMemory(path, key).keep(Descent(1, ("a",), "now"))
    assert recall_descent(settings, FACTS) == Descent(1, ("a",), "now")


def test_only_so_many_sets_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "ladder.json"
    for number in range(50):
        LadderMemory(path, f"set {number}").keep(Descent(1, (), "now"))
    assert next(iter(json.loads(path.read_text())["sets"])) == "set 30"
    assert [p.name for p in tmp_path.iterdir()] == ["ladder.json"]


async def until_kept(settings: Settings, step: int) -> None:
    with anyio.fail_after(PATIENCE_S):
        while recall_descent(settings, FACTS).step != step:
            await anyio.sleep(0.01)


def command(plan: Plan) -> tuple[str, ...]:
    spec = comfyui_of(plan)
    assert spec is not None
    return spec.command
