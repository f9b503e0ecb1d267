"""From a service's output to the advice in the status."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import anyio
import pytest

from supervisor.app.diagnosis import Diagnostician
from supervisor.app.remedies import ModelFinder
from supervisor.core.events import EventBus, Severity
from supervisor.core.state import StateStore
from supervisor.core.status import Advice, ServiceState, ServiceStatus, Snapshot
from supervisor.monitor.diagnosis import Sighting
from supervisor.monitor.rulebook import Context, load_rules
from supervisor.services.logs import LogLimits, LogStore

pytestmark = pytest.mark.anyio

SECRET = "hf_sentinel0000000000000000000000"
PATIENCE_S = 30.0


@dataclass
class Desk:
    """A diagnostician with its surroundings."""

    logs: LogStore
    state: StateStore = field(default_factory=StateStore)
    bus: EventBus = field(default_factory=EventBus)
    seen: list[Sighting] = field(default_factory=list)

    def write(self, service: str, text: str) -> None:
        self.logs.service(service).feed("stdout", text.encode(), anyio.current_time())

    def run_of(self, service: str, generation: int, *, ready: bool) -> None:
        state = ServiceState.READY if ready else ServiceState.STARTING
        self.state.set_service(ServiceStatus(service, state, ready, generation=generation))

    async def wait(self, condition: Callable[[Snapshot], bool]) -> Snapshot:
        with anyio.fail_after(PATIENCE_S):
            return await self.state.wait(condition)


@asynccontextmanager
async def desk(
    *,
    command: Callable[[Mapping[str, str]], str | None] = lambda _groups: None,
    before: str = "",
    limits: LogLimits | None = None,
) -> AsyncIterator[Desk]:
    made = Desk(LogStore(None, lambda t: t.replace(SECRET, "***"), console=False, limits=limits))
    made.write("comfyui", before)
    doctor = Diagnostician(
        load_rules(),
        logs=made.logs,
        state=made.state,
        bus=made.bus,
        context=Context,
        command=command,
        seen=made.seen.append,
    )
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(doctor.run)
        try:
            yield made
        finally:
            tasks.cancel_scope.cancel()


async def test_lines_from_before_and_after_the_start_become_advice() -> None:
    async with desk(before="WARNING: xFormers can't load C++/CUDA extensions. ...\n") as made:
        await made.wait(lambda s: len(s.advice) == 1)
        made.write("comfyui", "got prompt\nOSError: [Errno 28] No space left on device\n")
        snapshot = await made.wait(lambda s: len(s.advice) == 2)
        assert [a.code for a in snapshot.advice] == ["disk-full", "xformers-mismatch"]
        events = made.bus.recent()
        assert [(e.kind, e.data["code"]) for e in events] == [
            ("advice.given", "xformers-mismatch"),
            ("advice.given", "disk-full"),
        ]
        assert events[1].severity is Severity.ERROR
        assert events[1].subject == "comfyui"
        assert [s.rule.code for s in made.seen] == ["xformers-mismatch", "disk-full"]


async def test_advice_of_a_run_is_cleared_by_the_next_one() -> None:
    async with desk() as made:
        made.run_of("comfyui", 1, ready=True)
        made.write("comfyui", "RuntimeError: operator torchvision::nms does not exist\n")
        await made.wait(lambda s: bool(s.advice))
        made.run_of("comfyui", 2, ready=False)
        made.write("comfyui", "an ordinary line\n")
        with anyio.move_on_after(0.6):
            await made.state.wait(lambda s: not s.advice)
        assert made.state.snapshot.advice, "it is not known to be better yet"
        made.run_of("comfyui", 2, ready=True)
        made.write("comfyui", "another ordinary line\n")
        await made.wait(lambda s: not s.advice)
        assert made.bus.recent()[-1].kind == "advice.cleared"


async def test_last_words_belong_to_the_run_that_died() -> None:
    async with desk() as made:
        made.run_of("comfyui", 1, ready=True)
        made.write("comfyui", "RuntimeError: operator torchvision::nms does not exist\n")
        # The next process runs before the line was looked at.
        later_s = made.logs.clock() + 1.0
        status = ServiceStatus("comfyui", ServiceState.STARTING, generation=2, since_s=later_s)
        made.state.set_service(status)
        await made.wait(lambda s: bool(s.advice))
        made.run_of("comfyui", 2, ready=True)
        made.write("comfyui", "an ordinary line\n")
        await made.wait(lambda s: not s.advice)


async def test_advice_of_others_is_left_alone() -> None:
    async with desk() as made:
        made.state.update(advice=(Advice("torch-stack", "torch was replaced"),))
        made.write("x", "OSError: [Errno 28] No space left on device\n")
        snapshot = await made.wait(lambda s: len(s.advice) > 1)
        assert [a.code for a in snapshot.advice] == ["torch-stack", "disk-full"]


async def test_what_the_supervisor_notes_itself_is_no_symptom() -> None:
    async with desk() as made:
        made.logs.service("comfyui").note("exit: CUDA out of memory. No space left on device")
        made.write("xts", "ModuleNotFoundError: No module named 'yaml'\n")
        snapshot = await made.wait(lambda s: bool(s.advice))
        assert [a.code for a in snapshot.advice] == ["module-missing"]


async def test_no_secret_gets_into_advice() -> None:
    async with desk() as made:
        made.write("x", f"ModuleNotFoundError: No module named 'a.{SECRET}'\n")
        made.write("x", f"PermissionError: [Errno 13] Permission denied: '/w/{SECRET}'\n")
        snapshot = await made.wait(lambda s: bool(s.advice))
        assert SECRET not in f"{snapshot.to_json()}{made.bus.recent()}"
        assert "/w/***" in snapshot.advice[0].message


async def test_a_flood_neither_waits_nor_hides_what_comes_after_it() -> None:
    limits = LogLimits(rate_bytes_per_s=10**12, burst_bytes=10**9)
    async with desk(limits=limits) as made:
        block = "a line of the flood that says nothing at all\n" * 2000
        for _ in range(100):
            made.write("flood", block)  # more lines than the queue holds
        made.write("flood", "OSError: [Errno 28] No space left on device\n")
        snapshot = await made.wait(lambda s: bool(s.advice))
        assert snapshot.advice[0].code == "disk-full"


async def test_the_command_for_a_missing_model(tmp_path: Path) -> None:
    catalog = tmp_path / "mine.toml"
    catalog.write_text(
        '[files."loras/mine.safetensors"]\nurl = "https://example.org/m.safetensors"\n'
    )
    async with desk(command=ModelFinder((catalog,)).command) as made:
        made.write("comfyui", "  - Value not in list: lora_name: 'mine.safetensors' not in []\n")
        snapshot = await made.wait(lambda s: any("models add" in (a.hint or "") for a in s.advice))
        assert snapshot.advice[0].hint == (
            "fetch it: supervisor models add https://example.org/m.safetensors "
            "--to loras/mine.safetensors"
        )


def test_who_knows_where_a_model_is(tmp_path: Path) -> None:
    finder = ModelFinder()
    vae = {"input": "vae_name", "model": "wan_2.1_vae.safetensors"}
    assert (finder.command(vae) or "").startswith("supervisor models add Comfy-Org/")
    assert (finder.command(vae) or "").endswith("--to vae/wan_2.1_vae.safetensors")
    nested = {"input": "vae_name", "model": r"Wan\wan_2.1_vae.safetensors"}
    assert (finder.command(nested) or "").endswith("--to vae/Wan/wan_2.1_vae.safetensors")
    assert finder.command({**vae, "input": "lora_name"}) is None
    assert finder.command({"input": "vae_name", "model": "nobody-knows.safetensors"}) is None
    assert finder.command({"input": "vae_name", "model": "../../wan_2.1_vae.safetensors"}) is None
    template = {"folder": "audio_encoders", "model": "whisper_large_v3_fp16.safetensors"}
    assert "Comfy-Org/HuMo_ComfyUI:" in (finder.command(template) or "")
    broken = tmp_path / "broken.toml"
    broken.write_text("[files")
    assert ModelFinder((broken,)).command(vae) is None


def test_advice_is_in_the_status_document() -> None:
    advice = {"code": "x", "message": "m", "count": 1, "since": None, "last_seen": None}
    document = replace(Snapshot(), advice=(Advice("x", "m"),)).to_json()["advice"][0]
    assert advice.items() <= document.items()
