"""Which class of GPU this is, how its memory is used, and the flags that say so.

Sources: ComfyUI's ``comfy/cli_args.py`` and ``main.py`` of autumn 2026 (DynamicVRAM) and
of version 0.3.64 (before it); the table of cards in docs/gpu.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from supervisor.config.settings import GpuSection, MemoryMode, Tier
from supervisor.hardware.facts import ComfyUIFacts, GpuDevice, GpuFacts

# Sizes that cards are sold with, in GB. Drivers report less (ECC, reserved pages) or a
# little more, so a card is the nearest of these: 23 028 MiB is 24, 143 771 MiB is 141.
MARKETED_GB = (2, 3, 4, 6, 8, 10, 11, 12, 16, 20, 24, 32, 40, 48, 64, 80, 94, 96, 128, 141,
               180, 192, 256, 288)  # fmt: skip
NOMINAL_SLACK = 0.10  # farther than this from every marketed size: take the size as it is

HIDDEN = ("", "-1")  # values of CUDA_VISIBLE_DEVICES under which CUDA sees no device

PROSUMER_FROM_GB = 24
DATACENTER_FROM_GB = 48
FULL_FROM_GB = 48
MODEL_OFFLOAD_FROM_GB = 12
SEQUENTIAL_FROM_GB = 8

DYNAMIC_VRAM_MIN_TORCH = (2, 8)  # ComfyUI main.py: older torch falls back to estimates


class Generation(StrEnum):
    """How the installed ComfyUI manages VRAM."""

    DYNAMIC = "dynamic"  # DynamicVRAM, on by default
    ESTIMATE = "estimate"  # before it, or with a torch too old for it
    UNKNOWN = "unknown"  # its options could not be read


@dataclass(frozen=True, slots=True)
class Flag:
    """One option for ComfyUI, its values, and why."""

    name: str
    values: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True)
class GpuDecision:
    """What was decided about the GPU. ``device`` is the one that ComfyUI gets."""

    device: GpuDevice | None
    tier: Tier | None
    mode: MemoryMode
    flags: tuple[Flag, ...]
    environment: dict[str, str]
    reasons: tuple[str, ...]
    notes: tuple[str, ...] = ()


def nominal_gb(total_mib: int) -> int:
    """The size in GB that a card with ``total_mib`` is sold as."""
    nearest = min(MARKETED_GB, key=lambda size: abs(size * 1024 - total_mib))
    if abs(nearest * 1024 - total_mib) <= NOMINAL_SLACK * nearest * 1024:
        return nearest
    return round(total_mib / 1024)


def tier_of(size_gb: int) -> Tier:
    """Class of a card by its nominal size."""
    if size_gb >= DATACENTER_FROM_GB:
        return Tier.DATACENTER
    return Tier.PROSUMER if size_gb >= PROSUMER_FROM_GB else Tier.CONSUMER


def mode_of(size_gb: int) -> MemoryMode:
    """How the memory of a card of that nominal size is best used."""
    if size_gb >= FULL_FROM_GB:
        return MemoryMode.FULL
    if size_gb >= MODEL_OFFLOAD_FROM_GB:
        return MemoryMode.MODEL_CPU_OFFLOAD
    return MemoryMode.SEQUENTIAL_CPU_OFFLOAD if size_gb >= SEQUENTIAL_FROM_GB else MemoryMode.LOW


def generation_of(comfyui: ComfyUIFacts | None) -> Generation:
    """Tell the generations apart by the options that the parser knows."""
    if comfyui is None or comfyui.flags is None:
        return Generation.UNKNOWN
    if not comfyui.accepts("--disable-dynamic-vram"):
        return Generation.ESTIMATE
    torch = _release(comfyui.torch)
    return Generation.ESTIMATE if torch and torch < DYNAMIC_VRAM_MIN_TORCH else Generation.DYNAMIC


def decide_gpu(
    settings: GpuSection,
    gpu: GpuFacts,
    comfyui: ComfyUIFacts | None,
    *,
    visible: str | None = None,
) -> GpuDecision:
    """Choose device, tier, mode and flags; ``visible`` is an inherited CUDA_VISIBLE_DEVICES."""
    if visible is not None and visible.strip() in HIDDEN:
        cause = f"CUDA_VISIBLE_DEVICES={visible} hides every GPU"
        return _without_gpu(settings, cause, uncertain=False)
    if not gpu.devices:
        cause = gpu.error or "NVML lists no device"
        return _without_gpu(settings, cause, uncertain=gpu.uncertain)
    device, environment, why_device, notes = _choose_device(settings, gpu, visible)
    if device is None:
        return _without_gpu(settings, notes[0], uncertain=True)
    size_gb = nominal_gb(device.memory_total_mib)
    card = f"{device.name} with {device.memory_total_mib} MiB counts as a {size_gb} GB card"
    reasons = [card, *why_device]
    tier = tier_of(size_gb)
    if settings.tier is Tier.AUTO:
        reasons.append(f"tier {tier}: {_tier_band(tier)}")
    else:
        reasons.append(f"tier {settings.tier}: set in the configuration (measured: {tier})")
        tier = settings.tier
    # A tier that was set speaks for the memory too: it is how users say "treat it as that".
    basis_gb = size_gb if settings.tier is Tier.AUTO else _size_for_tier(tier, size_gb)
    mode = mode_of(basis_gb)
    asked = settings.memory_mode is not MemoryMode.AUTO
    if asked:
        mode = settings.memory_mode
        reasons.append(f"mode {mode}: set in the configuration")
    else:
        reasons.append(f"mode {mode}: what suits {basis_gb} GB")
    flags = mode_flags(mode, generation_of(comfyui), asked=asked)
    reasons.append(_explain(mode, generation_of(comfyui), comfyui))
    return GpuDecision(device, tier, mode, flags, environment, tuple(reasons), tuple(notes))


def mode_flags(mode: MemoryMode, generation: Generation, *, asked: bool) -> tuple[Flag, ...]:
    """Flags for ``mode``. DynamicVRAM is left alone unless ``none`` was asked for.

    Where it is on, ``--lowvram`` does nothing and ``--highvram``, ``--novram`` turn it off.
    """
    if generation is Generation.UNKNOWN:
        return ()
    if generation is Generation.DYNAMIC:
        if mode is MemoryMode.NONE and asked:
            return (Flag("--novram", reason="mode none was asked for; it turns DynamicVRAM off"),)
        if mode in (MemoryMode.LOW, MemoryMode.NONE):
            return (Flag("--vram-headroom", ("1",), "keeps 1 GB of VRAM free for others"),)
        return ()
    match mode:
        case MemoryMode.FULL:
            return (Flag("--highvram", reason="models stay in VRAM between prompts"),)
        case MemoryMode.SEQUENTIAL_CPU_OFFLOAD | MemoryMode.LOW:
            return (Flag("--lowvram", reason=f"mode {mode}: parts of a model move in and out"),)
        case MemoryMode.NONE:
            return (Flag("--novram", reason="mode none: weights live in RAM"),)
        case _:
            return ()


def _explain(mode: MemoryMode, generation: Generation, comfyui: ComfyUIFacts | None) -> str:
    version = f"ComfyUI {comfyui.version}" if comfyui and comfyui.version else "this ComfyUI"
    match generation:
        case Generation.DYNAMIC:
            if mode is MemoryMode.NONE:
                return f"{version} has DynamicVRAM; mode none turns it off"
            return f"{version} has DynamicVRAM: it keeps in VRAM what fits, no VRAM flag is needed"
        case Generation.ESTIMATE:
            default = " (its default)" if mode is MemoryMode.MODEL_CPU_OFFLOAD else ""
            return f"{version} has no DynamicVRAM: the mode is set by a flag{default}"
        case Generation.UNKNOWN:
            return "the options of the installed ComfyUI are unknown: no VRAM flag is passed"


def _choose_device(
    settings: GpuSection, gpu: GpuFacts, visible: str | None
) -> tuple[GpuDevice | None, dict[str, str], list[str], list[str]]:
    devices = gpu.devices
    if visible is not None:
        return _inherited_device(gpu, visible)
    notes: list[str] = []
    index = settings.index
    if index >= len(devices):
        notes.append(f"gpu.index = {index}, but there {_are(len(devices))}: GPU 0 is used instead")
        index = 0
    device = devices[index]
    if len(devices) == 1 and not device.mig:
        return device, {}, [], notes
    # CUDA addresses a MIG instance by its UUID only; NVML's order is that of the PCI bus.
    name = device.uuid if device.mig and device.uuid else str(index)
    why = f"GPU {index} of {len(devices)} is chosen by gpu.index"
    return device, {"CUDA_VISIBLE_DEVICES": name}, [why], notes


def _inherited_device(
    gpu: GpuFacts, visible: str
) -> tuple[GpuDevice | None, dict[str, str], list[str], list[str]]:
    """Follow the CUDA_VISIBLE_DEVICES that the container was started with."""
    first = visible.split(",", maxsplit=1)[0].strip()
    for position, device in enumerate(gpu.devices):
        by_uuid = device.uuid and len(first) > 4 and device.uuid.startswith(first)
        if by_uuid or first == str(position):
            return device, {}, [f"CUDA_VISIBLE_DEVICES={visible} was set outside"], []
    note = f"CUDA_VISIBLE_DEVICES={visible} was set outside and names no GPU that NVML sees"
    return None, {}, [], [note]


def _without_gpu(settings: GpuSection, cause: str, *, uncertain: bool) -> GpuDecision:
    tier = None if settings.tier is Tier.AUTO else settings.tier
    if uncertain:
        reason = f"the GPU is unknown ({cause}): ComfyUI decides by itself"
        mode = (
            settings.memory_mode
            if settings.memory_mode is not MemoryMode.AUTO
            else MemoryMode.MODEL_CPU_OFFLOAD
        )
        return GpuDecision(None, tier, mode, (), {}, (reason,), (reason,))
    reason = f"no GPU ({cause}): ComfyUI runs on the CPU"
    flag = Flag("--cpu", reason="there is no GPU")
    return GpuDecision(None, tier, MemoryMode.NONE, (flag,), {}, (reason,))


def _size_for_tier(tier: Tier, measured_gb: int) -> int:
    """The size to decide the mode by when the tier was set by hand: inside the tier's band."""
    if tier_of(measured_gb) is tier:
        return measured_gb
    sizes = {Tier.DATACENTER: DATACENTER_FROM_GB, Tier.PROSUMER: PROSUMER_FROM_GB}
    return sizes.get(tier, MODEL_OFFLOAD_FROM_GB)


def _tier_band(tier: Tier) -> str:
    match tier:
        case Tier.DATACENTER:
            return f"{DATACENTER_FROM_GB} GB and more"
        case Tier.PROSUMER:
            return f"{PROSUMER_FROM_GB} GB to less than {DATACENTER_FROM_GB} GB"
        case _:
            return f"less than {PROSUMER_FROM_GB} GB"


def _are(count: int) -> str:
    return "is one GPU" if count == 1 else f"are {count} GPUs"


def _release(version: str | None) -> tuple[int, int] | None:
    """Major and minor of a version like ``2.9.1+cu130``."""
    match = re.match(r"(\d+)\.(\d+)", version or "")
    return (int(match[1]), int(match[2])) if match else None
