"""Cards, tiers, modes, devices and the VRAM ladder."""

from __future__ import annotations

from dataclasses import replace

import pytest

from supervisor.config.settings import GpuSection, MemoryMode, Tier
from supervisor.hardware.facts import GpuFacts
from supervisor.plan.gpu_policy import (
    Flag,
    Generation,
    GpuDecision,
    decide_gpu,
    generation_of,
    mode_flags,
    nominal_gb,
)
from supervisor.plan.ladder import VRAM_FLAGS, ladder, ladder_flags
from tests.unit.plan_machines import CARDS, COMFYUI, card

NEWEST = COMFYUI["0.33.0-dynamic-vram"]
OLDER = COMFYUI["0.3.76-no-dynamic-vram"]


def decide(*devices: object, visible: str | None = None, **settings: object) -> GpuDecision:
    gpu = GpuFacts(tuple(CARDS[str(d)] or card("?", 1, (1, 0)) for d in devices))
    return decide_gpu(GpuSection.model_validate(settings), gpu, NEWEST, visible=visible)


@pytest.mark.parametrize(
    ("mib", "size_gb"),
    [
        (8192, 8), (11264, 11), (12282, 12), (15360, 16), (16376, 16), (22731, 24),
        (23028, 24), (23034, 24), (24564, 24), (32607, 32), (40960, 40), (45634, 48),
        (46068, 48), (49140, 48), (81559, 80), (95830, 94), (97887, 96), (143771, 141),
        (183359, 180), (14080, 14),
    ],
)  # fmt: skip
def test_a_card_is_what_it_is_sold_as(mib: int, size_gb: int) -> None:
    assert nominal_gb(mib) == size_gb


@pytest.mark.parametrize(
    ("name", "tier", "mode"),
    [
        ("rtx-3070-8gb", Tier.CONSUMER, MemoryMode.SEQUENTIAL_CPU_OFFLOAD),
        ("rtx-3060-12gb", Tier.CONSUMER, MemoryMode.MODEL_CPU_OFFLOAD),
        ("l4-23034", Tier.PROSUMER, MemoryMode.MODEL_CPU_OFFLOAD),
        ("a10-23028", Tier.PROSUMER, MemoryMode.MODEL_CPU_OFFLOAD),
        ("rtx-4090-24564", Tier.PROSUMER, MemoryMode.MODEL_CPU_OFFLOAD),
        ("rtx-5090-32607", Tier.PROSUMER, MemoryMode.MODEL_CPU_OFFLOAD),
        ("a40-46068", Tier.DATACENTER, MemoryMode.FULL),
        ("h200-143771", Tier.DATACENTER, MemoryMode.FULL),
    ],
)
def test_tier_and_mode(name: str, tier: Tier, mode: MemoryMode) -> None:
    decision = decide(name)
    assert (decision.tier, decision.mode) == (tier, mode)


def test_the_configuration_wins_and_says_so() -> None:
    decision = decide("l4-23034", tier="datacenter", memory_mode="none")
    assert (decision.tier, decision.mode) == (Tier.DATACENTER, MemoryMode.NONE)
    assert "tier datacenter: set in the configuration (measured: prosumer)" in decision.reasons
    assert "mode none: set in the configuration" in decision.reasons


def test_a_tier_that_is_set_decides_the_mode_too() -> None:
    assert decide("h200-143771", tier="consumer").mode is MemoryMode.MODEL_CPU_OFFLOAD
    assert decide("rtx-3060-12gb", tier="datacenter").mode is MemoryMode.FULL


def test_dynamic_vram_is_left_alone() -> None:
    for mode in MemoryMode:
        names = {f.name for f in mode_flags(mode, Generation.DYNAMIC, asked=False)}
        assert names <= {"--vram-headroom"}, mode
    asked = mode_flags(MemoryMode.NONE, Generation.DYNAMIC, asked=True)
    assert [f.name for f in asked] == ["--novram"]


def test_a_24_gb_card_never_gets_lowvram() -> None:
    for installed in (NEWEST, OLDER, COMFYUI["0.3.10-normalvram"]):
        gpu = GpuFacts((card("A10", 23028, (8, 6)),))
        decision = decide_gpu(GpuSection(), gpu, installed)
        assert "--lowvram" not in [flag.name for flag in decision.flags]


def test_generations() -> None:
    assert generation_of(NEWEST) is Generation.DYNAMIC
    assert generation_of(OLDER) is Generation.ESTIMATE
    assert generation_of(replace(NEWEST, torch="2.7.1+cu128")) is Generation.ESTIMATE
    assert generation_of(replace(NEWEST, torch="2.10.0")) is Generation.DYNAMIC
    assert generation_of(replace(NEWEST, torch=None)) is Generation.DYNAMIC
    assert generation_of(COMFYUI["unreadable"]) is Generation.UNKNOWN
    assert generation_of(None) is Generation.UNKNOWN


def test_one_card_is_not_named_and_one_of_many_is() -> None:
    assert decide("l4-23034").environment == {}
    two = decide("l4-23034", "a40-46068", index=1)
    assert two.environment == {"CUDA_VISIBLE_DEVICES": "1"}
    assert two.tier is Tier.DATACENTER


def test_a_mig_instance_is_named_by_its_uuid() -> None:
    decision = decide("h200-mig-1g.18gb")
    assert decision.environment == {"CUDA_VISIBLE_DEVICES": "MIG-H200-MIG-1g.18gb"}
    assert decision.mode is MemoryMode.MODEL_CPU_OFFLOAD


def test_an_index_beyond_the_cards_falls_back_and_is_noted() -> None:
    decision = decide("l4-23034", "a40-46068", index=5)
    assert decision.environment == {"CUDA_VISIBLE_DEVICES": "0"}
    assert decision.notes == ("gpu.index = 5, but there are 2 GPUs: GPU 0 is used instead",)


@pytest.mark.parametrize("visible", ["1", "GPU-A40", "1,0"])
def test_an_inherited_choice_of_devices_is_followed(visible: str) -> None:
    decision = decide("l4-23034", "a40-46068", visible=visible)
    assert decision.environment == {}
    assert decision.device is not None
    assert decision.device.name == "NVIDIA A40"


def test_without_a_gpu_comfyui_runs_on_the_cpu() -> None:
    decision = decide_gpu(GpuSection(), GpuFacts(error="there is no NVML"), NEWEST)
    assert [flag.name for flag in decision.flags] == ["--cpu"]
    assert (decision.tier, decision.mode) == (None, MemoryMode.NONE)


@pytest.mark.parametrize("visible", ["", "-1"])
def test_a_gpu_that_is_hidden_on_purpose_is_not_used(visible: str) -> None:
    assert [flag.name for flag in decide("l4-23034", visible=visible).flags] == ["--cpu"]


def test_an_inherited_name_that_nvml_does_not_know_is_left_to_comfyui() -> None:
    decision = decide("l4-23034", visible="GPU-elsewhere")
    assert decision.flags == ()
    assert "names no GPU that NVML sees" in decision.notes[0]


def test_a_hung_driver_does_not_put_a_rented_gpu_aside() -> None:
    gpu = GpuFacts(error="NVML did not answer within 5 s", uncertain=True)
    decision = decide_gpu(GpuSection(), gpu, NEWEST)
    assert decision.flags == ()
    assert "NVML did not answer" in decision.reasons[0]


def names(flags: tuple[Flag, ...]) -> list[str]:
    return [flag.name for flag in flags]


def test_the_ladder_goes_down_in_the_documented_order() -> None:
    dynamic = [step.name for step in ladder(Generation.DYNAMIC, MemoryMode.FULL)]
    assert dynamic == ["headroom", "no-dynamic-vram", "lowvram", "novram"]
    estimate = [step.name for step in ladder(Generation.ESTIMATE, MemoryMode.FULL)]
    assert estimate == ["default", "lowvram", "novram"]
    low = [step.name for step in ladder(Generation.ESTIMATE, MemoryMode.LOW)]
    assert low == ["novram"]
    assert ladder(Generation.UNKNOWN) == ()
    assert ladder(Generation.DYNAMIC, MemoryMode.NONE) == ()


@pytest.mark.parametrize("generation", [Generation.DYNAMIC, Generation.ESTIMATE])
def test_every_step_has_a_reason_and_only_flags_that_exist(generation: Generation) -> None:
    installed = NEWEST if generation is Generation.DYNAMIC else OLDER
    steps = ladder(generation)
    assert [step.number for step in steps] == list(range(1, len(steps) + 1))
    for step in steps:
        assert step.reason
        assert set(names(step.flags)) <= VRAM_FLAGS
        assert all(installed.accepts(flag.name) for flag in step.flags)
        assert not any(len(set(names(step.flags)) & group) > 1 for group in installed.exclusive)


def test_steps_by_number() -> None:
    assert ladder_flags(0, Generation.DYNAMIC) is None
    first = ladder_flags(1, Generation.DYNAMIC)
    assert first is not None
    assert names(first.flags) == ["--vram-headroom", "--reserve-vram"]
    assert ladder_flags(99, Generation.DYNAMIC) is None
