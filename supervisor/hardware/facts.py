"""What was found about the machine: pure values, no probing here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class GpuDevice:
    """One GPU (or MIG instance). Memory in bytes; ``compute_capability`` like (8, 9)."""

    index: int
    name: str
    memory_total_bytes: int
    memory_free_bytes: int | None = None
    uuid: str | None = None
    compute_capability: tuple[int, int] | None = None
    mig: bool = False

    @property
    def memory_total_mib(self) -> int:
        """Total memory in whole MiB."""
        return self.memory_total_bytes // MIB


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """The answer of NVML. No device and no error = there is no GPU."""

    devices: tuple[GpuDevice, ...] = ()
    driver: str | None = None
    cuda: str | None = None  # the newest CUDA version the driver supports, "12.8"
    error: str | None = None  # one sentence, when NVML is missing, fails or hangs
    uncertain: bool = False  # NVML could not tell (hang, failure): a GPU may be there


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process that uses a GPU. The pid is the host's; in a container it may be foreign."""

    pid: int
    memory_used_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class GpuSample:
    """What one GPU is doing now; None where the driver does not say."""

    index: int
    uuid: str | None = None
    memory_total_bytes: int | None = None
    memory_used_bytes: int | None = None
    utilization_ratio: float | None = None
    temperature_celsius: float | None = None
    throttle_reasons: tuple[str, ...] = ()
    processes: tuple[GpuProcess, ...] = ()


@dataclass(frozen=True, slots=True)
class NvencFacts:
    """Which codecs encoded a few frames on the GPU. ``ffmpeg`` None = not installed."""

    ffmpeg: str | None = None
    codecs: Mapping[str, bool] = field(default_factory=dict)
    error: str | None = None

    @property
    def available(self) -> bool:
        """At least one codec works."""
        return any(self.codecs.values())


@dataclass(frozen=True, slots=True)
class MountFacts:
    """The mount that holds a path. ``kind`` is the file-system type of /proc/mounts."""

    path: Path
    mount_point: Path
    kind: str
    device: str
    total_bytes: int
    free_bytes: int
    writable: bool
    exists: bool = True  # the path itself; the numbers are its nearest parent's when not

    @property
    def network(self) -> bool:
        """Whether other machines may write to it and inotify does not see them."""
        return self.kind in NETWORK_FILE_SYSTEMS or self.kind.startswith("fuse.")


NETWORK_FILE_SYSTEMS = frozenset(
    {
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "ceph",
        "lustre",
        "glusterfs",
        "9p",
        "virtiofs",
        "fuse",
        "moosefs",
    }
)


@dataclass(frozen=True, slots=True)
class HostFacts:
    """The container's share of the machine."""

    cpu_limit: float  # cores the cgroup allows, at most ``cpu_count``
    cpu_count: int  # cores in the affinity mask
    memory_limit_bytes: int | None  # of the cgroup; None = unlimited
    memory_total_bytes: int  # of the machine
    cgroup_version: int | None  # 1, 2 or None
    mounts: Mapping[Path, MountFacts] = field(default_factory=dict)  # by the path asked for
    tcmalloc: Path | None = None  # a library that was seen to load
    sysctl_writable: bool = False
    memory_available_bytes: int | None = None  # of the machine, MemAvailable at the probe

    @property
    def memory_bytes(self) -> int:
        """Memory that may be used."""
        if self.memory_limit_bytes is None:
            return self.memory_total_bytes
        return min(self.memory_limit_bytes, self.memory_total_bytes)


@dataclass(frozen=True, slots=True)
class ComfyUIFacts:
    """The installed ComfyUI. ``flags`` maps each accepted option to its allowed choices
    (empty = free or none); None = it could not be found out."""

    root: Path
    installed: bool
    python: str
    version: str | None = None
    flags: Mapping[str, tuple[str, ...]] | None = None
    flags_source: str | None = None  # "cli_args.py" or "--help"
    error: str | None = None
    arity: Mapping[str, str] = field(default_factory=dict)  # option → argparse nargs, "0" = switch
    exclusive: tuple[frozenset[str], ...] = ()  # groups of which one option may be given
    torch: str | None = None  # version in the interpreter's site-packages
    cgroup_aware: bool = False  # it sizes its RAM use from the cgroup by itself

    def accepts(self, flag: str) -> bool:
        """Whether ``flag`` (with its dashes) may be passed; unknown parser = no."""
        return self.flags is not None and flag in self.flags


@dataclass(frozen=True, slots=True)
class HardwareFacts:
    """Everything the plan is decided from, besides the settings."""

    gpu: GpuFacts = GpuFacts()
    nvenc: NvencFacts | None = None  # None = not probed yet
    host: HostFacts = HostFacts(
        cpu_limit=1.0,
        cpu_count=1,
        memory_limit_bytes=None,
        memory_total_bytes=0,
        cgroup_version=None,
    )
    comfyui: ComfyUIFacts | None = None
    programs: Mapping[str, str | None] = field(default_factory=dict)  # name → path found
