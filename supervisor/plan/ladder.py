"""The VRAM ladder: what changes each time ComfyUI ran out of VRAM.

Pure data and functions. A step replaces the VRAM flags of the plan by its own; it never
goes up by itself, so a pod cannot swing between two steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from supervisor.config.settings import MemoryMode
from supervisor.hardware.facts import ComfyUIFacts
from supervisor.plan.gpu_policy import Flag, Generation, GpuDecision, generation_of
from supervisor.plan.model import Plan

# Options that a step takes over from the plan (and from the step before).
VRAM_FLAGS = frozenset(
    {
        "--gpu-only",
        "--highvram",
        "--normalvram",
        "--lowvram",
        "--novram",
        "--reserve-vram",
        "--vram-headroom",
        "--disable-dynamic-vram",
        "--enable-dynamic-vram",
    }
)


@dataclass(frozen=True, slots=True)
class LadderStep:
    """One rung: the flags that replace the plan's VRAM flags, and why."""

    number: int
    name: str
    flags: tuple[Flag, ...]
    reason: str


def ladder(generation: Generation, mode: MemoryMode = MemoryMode.AUTO) -> tuple[LadderStep, ...]:
    """The steps below the plan's own mode, gentlest first; empty when nothing is known."""
    if generation is Generation.UNKNOWN or mode is MemoryMode.NONE:
        return ()
    names = _DYNAMIC if generation is Generation.DYNAMIC else _estimate_rungs(mode)
    return tuple(
        LadderStep(number, name, flags, reason)
        for number, (name, flags, reason) in enumerate(names, start=1)
    )


def ladder_flags(
    step: int, generation: Generation, mode: MemoryMode = MemoryMode.AUTO
) -> LadderStep | None:
    """Step number ``step`` (from 1); None for 0 and beyond the last one."""
    steps = ladder(generation, mode)
    return steps[step - 1] if 1 <= step <= len(steps) else None


def at_step(
    decision: GpuDecision, step: int, generation: Generation
) -> tuple[GpuDecision, LadderStep | None]:
    """The decision with the flags of ``step``; unchanged for 0 and where there is no such."""
    rung = ladder_flags(step, generation, decision.mode)
    if rung is None or decision.device is None:
        return decision, None
    kept = tuple(flag for flag in decision.flags if flag.name not in VRAM_FLAGS)
    explained = tuple(replace(flag, reason=f"VRAM ladder: {rung.name}") for flag in rung.flags)
    return replace(decision, flags=(*kept, *explained)), rung


def step_down(
    build: Callable[[int], Plan], current: Plan, comfyui: ComfyUIFacts | None
) -> Plan | None:
    """The plan of the next step that changes ComfyUI's command; None at the bottom.

    ``build`` makes the plan for a step number. A step that the user's own options overrule
    is passed over: it would change nothing, or less than the step before. Options that this
    ComfyUI does not know are not passed and not missed.
    """
    generation = generation_of(comfyui)
    mode = MemoryMode(current.gpu.mode or MemoryMode.AUTO)
    for rung in ladder(generation, mode)[current.gpu.ladder_step :]:
        lower = build(rung.number)
        command = _command(lower)
        if lower.gpu.ladder_step != rung.number:
            return None  # there is no GPU, or the ladder is turned off
        known = [f.name for f in rung.flags if comfyui is None or comfyui.accepts(f.name)]
        if command != _command(current) and all(name in command for name in known):
            return lower
    return None


def _command(plan: Plan) -> tuple[str, ...]:
    return next((spec.command for spec in plan.services if spec.name == "comfyui"), ())


_Rung = tuple[str, tuple[Flag, ...], str]

_DYNAMIC: tuple[_Rung, ...] = (
    (
        "headroom",
        (Flag("--vram-headroom", ("2",)), Flag("--reserve-vram", ("2",))),
        "DynamicVRAM keeps 2 GB of VRAM free for activations and other processes",
    ),
    (
        "no-dynamic-vram",
        (Flag("--disable-dynamic-vram"), Flag("--reserve-vram", ("2",))),
        "DynamicVRAM is turned off: models are placed by estimate, 2 GB stay free",
    ),
    (
        "lowvram",
        (Flag("--disable-dynamic-vram"), Flag("--lowvram"), Flag("--reserve-vram", ("2",))),
        "only parts of a model are in VRAM; text encoders run on the CPU",
    ),
    ("novram", (Flag("--novram"),), "weights live in RAM and pass through VRAM: slow, but it runs"),
)

_ESTIMATE: tuple[tuple[MemoryMode, _Rung], ...] = (
    (
        MemoryMode.MODEL_CPU_OFFLOAD,
        (
            "default",
            (Flag("--reserve-vram", ("2",)),),
            "models leave VRAM after use and 2 GB stay free",
        ),
    ),
    (
        MemoryMode.SEQUENTIAL_CPU_OFFLOAD,
        (
            "lowvram",
            (Flag("--lowvram"), Flag("--reserve-vram", ("2",))),
            "only parts of a model are in VRAM",
        ),
    ),
    (
        MemoryMode.NONE,
        ("novram", (Flag("--novram"),), "weights live in RAM and pass through VRAM"),
    ),
)


def _estimate_rungs(mode: MemoryMode) -> tuple[_Rung, ...]:
    """Skip what the plan already does: a lowvram plan has only novram below it."""
    if mode in (MemoryMode.SEQUENTIAL_CPU_OFFLOAD, MemoryMode.LOW):
        return tuple(rung for at, rung in _ESTIMATE if at is MemoryMode.NONE)
    return tuple(rung for _, rung in _ESTIMATE)
