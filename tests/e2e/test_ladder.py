"""A ComfyUI that runs out of VRAM until it is given an option that helps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from supervisor.demo.world import DemoWorld
from tests.e2e.pod import Json, Pod, edit, wait_for
from tests.fake_nvml import FakeNvml, fake_nvml, nvml_library

__all__ = ["fake_nvml", "nvml_library"]

HELPS = "--disable-dynamic-vram"  # the second step's


@pytest.fixture
def card(fake_nvml: FakeNvml) -> FakeNvml:
    """A 24 GB card."""
    fake_nvml.describe("gpu NVIDIA_L4 23034 512 GPU-0 8 9 0")
    return fake_nvml


def misbehave(world: DemoWorld, **switches: object) -> None:
    given = {f"DEMO_COMFYUI_{name.upper()}": str(value) for name, value in switches.items()}
    edit(world, "comfyui.environment", **given)


def command_of(pod: Pod) -> list[str]:
    """The words that the running ComfyUI was started with."""
    pid = pod.service("comfyui")["pid"]
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")


def kept(memory: Path) -> list[Json]:
    """What the volume remembers of the second step."""
    found = json.loads(memory.read_text())["sets"].values() if memory.exists() else ()
    return [entry for entry in found if entry["step"] == 2]


def settled(status: Json) -> bool:
    return bool(status["gpu"]["ladder_step"] == 2 and status["services"]["comfyui"]["ready"])


def test_two_crashes_are_two_steps(world: DemoWorld, card: FakeNvml) -> None:
    misbehave(world, crash_after_s=0.3, enough_with=HELPS)
    edit(world, "storage", mode="persistent")
    with Pod(world, environment=card.environ) as pod:
        status = pod.wait(settled, "two steps down, and it runs")
        first, second = status["gpu"]["ladder_reasons"]
        assert first.startswith("step 1 because ")
        assert " - headroom: DynamicVRAM keeps 2 GB" in first
        assert second.startswith("step 2 because ")
        assert " - no-dynamic-vram: " in second
        assert all("CUDA out of memory" in reason for reason in (first, second))
        assert status["services"]["comfyui"]["restarts"] == 2
        assert status["services"]["comfyui"]["restart_reasons"] == {"cuda-oom": 2}
        assert {HELPS, "--reserve-vram"} <= set(command_of(pod))
        pod.wait(lambda s: [a["code"] for a in s["advice"]] == ["cuda-oom"], "advice is given")
        page = pod.cli("status").stdout
        for shown in (first, second, "docs/troubleshooting.md#cuda-oom"):
            assert shown in page
        events = map(json.loads, pod.cli("events", "--json").stdout.splitlines())
        steps = [e for e in events if e["kind"] == "gpu.ladder"]
        assert [(e["data"]["step"], e["severity"]) for e in steps] == [
            (1, "warning"),
            (2, "warning"),
        ]
        assert 'supervisor_advice_total{code="cuda-oom"}' in pod.get("/metrics")[1]
        memory = world.folder / "state" / "ladder.json"
        entry = wait_for(lambda: kept(memory), "the volume remembers")[0]
        assert (entry["step"], entry["reasons"]) == (2, [first, second])
        assert pod.stop() == 0

    # The next boot of this volume begins where the last one ended, and can be told not to.
    with Pod(world, environment=card.environ) as pod:
        status = pod.wait(lambda s: s["services"]["comfyui"]["ready"], "it runs at once")
        assert status["gpu"]["ladder_step"] == 2
        assert status["gpu"]["ladder_reasons"] == [first, second]
        assert status["services"]["comfyui"]["restarts"] == 0
        assert any("supervisor ladder reset" in note for note in status["notes"])
        misbehave(world, crash_after_s=0, enough_with="")
        assert pod.cli("reload").returncode == 0
        assert pod.status()["gpu"]["ladder_step"] == 2, "a reload keeps the step"
        done = pod.cli("ladder", "reset")
        assert done.returncode == 0, done.stderr
        pod.wait(
            lambda s: s["gpu"]["ladder_step"] == 0 and s["services"]["comfyui"]["ready"],
            "it runs as planned",
        )
        assert HELPS not in command_of(pod)
        assert "nothing to reset" in pod.cli("ladder", "reset").stdout
        wait_for(lambda: json.loads(memory.read_text())["sets"] == {}, "it is forgotten")
        assert pod.stop() == 0


def test_jobs_that_keep_failing_are_a_reason_when_allowed(world: DemoWorld, card: FakeNvml) -> None:
    misbehave(world, jobs_out_of_memory=True, enough_with="--vram-headroom", prompt_every_s=2.5)
    edit(world, "gpu", ladder_on_job_errors=True, ladder_job_errors=2, ladder_drain_s=30)
    with Pod(world, environment=card.environ) as pod:
        status = pod.wait(
            lambda s: s["gpu"]["ladder_step"] == 1 and s["services"]["comfyui"]["ready"],
            "one step down",
        )
        (reason,) = status["gpu"]["ladder_reasons"]
        assert "because 2 jobs ran out of VRAM" in reason
        comfyui = status["services"]["comfyui"]
        assert comfyui["restart_reasons"] == {"restart-asked": 1}
        pod.wait(lambda s: s["sync"]["uploaded"] >= 1, "jobs succeed now")
        assert pod.status()["gpu"]["ladder_step"] == 1
        assert pod.stop() == 0
    assert not (world.folder / "state" / "ladder.json").exists(), "this volume does not persist"
