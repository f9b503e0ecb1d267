"""`[gpu]`, `[tuning]` and `[storage]`: what is made of the machine."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from pydantic import Field

from supervisor.config.settings.section import Seconds, Section


class Tier(StrEnum):
    """Class of GPU by VRAM; ``auto`` measures it."""

    AUTO = "auto"
    CONSUMER = "consumer"
    PROSUMER = "prosumer"
    DATACENTER = "datacenter"


class MemoryMode(StrEnum):
    """How much of the models stays in VRAM; ``auto`` follows the tier."""

    AUTO = "auto"
    FULL = "full"
    MODEL_CPU_OFFLOAD = "model_cpu_offload"
    SEQUENTIAL_CPU_OFFLOAD = "sequential_cpu_offload"
    LOW = "low"
    NONE = "none"


class StorageMode(StrEnum):
    """Whether the workspace survives the pod; ``auto`` looks at the mount."""

    AUTO = "auto"
    EPHEMERAL = "ephemeral"
    PERSISTENT = "persistent"


class GpuSection(Section):
    """GPU detection and the VRAM policy."""

    tier: Tier = Field(Tier.AUTO, description="GPU class; auto reads it from the card.")
    memory_mode: MemoryMode = Field(MemoryMode.AUTO, description="VRAM mode; auto by tier.")
    index: int = Field(0, ge=0, description="GPU that ComfyUI runs on.")
    ladder: bool = Field(True, description="Step down after CUDA out-of-memory crashes.")
    ladder_on_job_errors: bool = Field(
        False, description="Also step down when jobs keep failing out of memory without a crash."
    )
    ladder_job_errors: int = Field(
        3, ge=1, le=1000, description="So many failed jobs within half an hour are too many."
    )
    ladder_drain_s: Seconds = Field(
        600.0, description="Longest wait for an empty queue before such a restart."
    )
    probe_timeout_s: Seconds = Field(5.0, description="Seconds after which NVML counts as hung.")
    nvenc: bool = Field(True, description="Try a real encode per NVENC codec at boot.")


class TuningSection(Section):
    """Environment tuning; each part can be turned off."""

    tcmalloc: bool = Field(True, description="Preload tcmalloc when the library loads.")
    allocator: bool = Field(True, description="Set PYTORCH_CUDA_ALLOC_CONF.")
    threads: bool = Field(True, description="Thread counts from the cgroup's CPU quota.")
    cuda: bool = Field(True, description="Set CUDA_DEVICE_ORDER and TORCH_CUDA_ARCH_LIST.")
    hf_cache: bool = Field(True, description="Put the Hugging Face cache on the workspace.")
    sysctl: bool = Field(False, description="Raise network buffers where /proc/sys is writable.")


class StorageSection(Section):
    """Where things live."""

    mode: StorageMode = Field(StorageMode.AUTO, description="Persistent volume or container disk.")
    workspace: Path | None = Field(
        None, description="Workspace; default /workspace, else /runpod-volume, when mounted."
    )
    seed_comfyui: bool = Field(
        True, description="Copy ComfyUI onto an empty persistent volume at the first boot."
    )
