"""Cards and ComfyUI versions that the plan is checked on.

The option tables are the options that matter here, of four real parsers: the end of 2024
(with ``--normalvram``), late 2025 (an optional RAM cache, no DynamicVRAM), summer 2026 (a
RAM cache by default, sized from the host) and autumn 2026 (sized from the cgroup).
"""

from __future__ import annotations

from pathlib import Path

from supervisor.hardware.facts import (
    MIB,
    ComfyUIFacts,
    GpuDevice,
    GpuFacts,
    HardwareFacts,
    HostFacts,
    MountFacts,
)

GIB = 1024**3
ROOT = Path("/opt/ComfyUI")

_COMMON = {
    "--listen": "?",
    "--port": "1",
    "--output-directory": "1",
    "--extra-model-paths-config": "+",
    "--disable-auto-launch": "0",
    "--preview-method": "1",
    "--gpu-only": "0",
    "--highvram": "0",
    "--lowvram": "0",
    "--novram": "0",
    "--cpu": "0",
    "--reserve-vram": "1",
    "--cache-classic": "0",
    "--cache-lru": "1",
    "--use-sage-attention": "0",
    "--use-pytorch-cross-attention": "0",
    "--log-stdout": "0",
    "--base-directory": "1",
}
_OLD = {**_COMMON, "--normalvram": "0"}
_MIDDLE = {**_OLD, "--cache-none": "0", "--cache-ram": "?"}
_NEW = {
    **_COMMON,
    "--cache-none": "0",
    "--cache-ram": "*",
    "--vram-headroom": "1",
    "--disable-dynamic-vram": "0",
    "--enable-dynamic-vram": "0",
    "--models-directory": "1",
}
PREVIEWS = ("none", "auto", "latent2rgb", "taesd")
_VRAM = {"--gpu-only", "--highvram", "--normalvram", "--lowvram", "--novram", "--cpu"}
_CACHE = {"--cache-ram", "--cache-classic", "--cache-lru", "--cache-none"}
_ATTENTION = {"--use-sage-attention", "--use-pytorch-cross-attention"}


def comfyui(version: str, arity: dict[str, str], *, aware: bool = False) -> ComfyUIFacts:
    flags = {name: PREVIEWS if name == "--preview-method" else () for name in arity}
    groups = (_VRAM & set(arity), _CACHE & set(arity), _ATTENTION)
    return ComfyUIFacts(
        root=ROOT,
        installed=True,
        python="/opt/venv/bin/python",
        version=version,
        flags=flags,
        flags_source="cli_args.py",
        arity=arity,
        exclusive=tuple(frozenset(group) for group in groups),
        torch="2.9.1+cu130",
        cgroup_aware=aware,
    )


COMFYUI = {
    "0.3.10-normalvram": comfyui("0.3.10", _OLD),
    "0.3.76-no-dynamic-vram": comfyui("0.3.76", _MIDDLE),
    "0.30.0-host-ram": comfyui("0.30.0", _NEW),
    "0.33.0-dynamic-vram": comfyui("0.33.0", _NEW, aware=True),
    "unreadable": ComfyUIFacts(root=ROOT, installed=True, python="/opt/venv/bin/python"),
}


def card(name: str, mib: int, capability: tuple[int, int], *, mig: bool = False) -> GpuDevice:
    uuid = f"{'MIG' if mig else 'GPU'}-{name.replace(' ', '-')}"
    return GpuDevice(0, f"NVIDIA {name}", mib * MIB, mib * MIB, uuid, capability, mig=mig)


CARDS = {
    "none": None,
    "rtx-3070-8gb": card("GeForce RTX 3070", 8192, (8, 6)),
    "rtx-3060-12gb": card("GeForce RTX 3060", 12288, (8, 6)),
    "l4-23034": card("L4", 23034, (8, 9)),
    "a10-23028": card("A10", 23028, (8, 6)),
    "rtx-4090-24564": card("GeForce RTX 4090", 24564, (8, 9)),
    "rtx-5090-32607": card("GeForce RTX 5090", 32607, (12, 0)),
    "a40-46068": card("A40", 46068, (8, 6)),
    "a100-81920": card("A100 80GB PCIe", 81920, (8, 0)),
    "h200-143771": card("H200", 143771, (9, 0)),
    "h200-mig-1g.18gb": card("H200 MIG 1g.18gb", 16384, (9, 0), mig=True),
}


def mount(path: str, *, point: str, kind: str, exists: bool = True) -> MountFacts:
    return MountFacts(
        path=Path(path),
        mount_point=Path(point),
        kind=kind,
        device="/dev/x",
        total_bytes=100 * GIB,
        free_bytes=50 * GIB,
        writable=True,
        exists=exists,
    )


POD = HostFacts(
    cpu_limit=12.8,
    cpu_count=64,
    memory_limit_bytes=50 * GIB,
    memory_total_bytes=503 * GIB,
    memory_available_bytes=300 * GIB,
    cgroup_version=2,
    mounts={
        Path("/workspace"): mount("/workspace", point="/workspace", kind="ext4"),
        Path("/runpod-volume"): mount("/runpod-volume", point="/", kind="overlay", exists=False),
        ROOT: mount(str(ROOT), point="/", kind="overlay"),
    },
    tcmalloc=Path("/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4"),
)


def machine(
    gpu: GpuDevice | None, installed: ComfyUIFacts | None, host: HostFacts = POD
) -> HardwareFacts:
    facts = GpuFacts((gpu,), "570.86.15", "12.8") if gpu else GpuFacts(error="there is no NVML")
    programs = {"jupyter": "/usr/bin/jupyter", "filebrowser": "/usr/bin/filebrowser"}
    return HardwareFacts(gpu=facts, host=host, comfyui=installed, programs=programs)
