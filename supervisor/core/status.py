"""The one picture of the pod that everybody renders: CLI, page, metrics, ``/ping``.

All types are frozen: a component replaces its part in the ``StateStore`` and never
changes one in place. JSON names are part of the public interface (INTERFACE: JSON shapes).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from enum import StrEnum
from pathlib import PurePath
from typing import Any

from supervisor.core.clock import iso_utc


class Phase(StrEnum):
    """What the pod as a whole is doing."""

    BOOTING = "booting"
    READY = "ready"
    DEGRADED = "degraded"
    RESCUE = "rescue"
    STOPPING = "stopping"


class ServiceState(StrEnum):
    """States of a service; ``services.machine`` holds the legal transitions."""

    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    UNHEALTHY = "unhealthy"
    BACKOFF = "backoff"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"
    DISABLED = "disabled"


class DownloadState(StrEnum):
    """States of one file."""

    QUEUED = "queued"
    ACTIVE = "active"
    VERIFYING = "verifying"
    DONE = "done"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class LastExit:
    """How a service's process ended last. ``at`` is ISO 8601 UTC."""

    code: int | None
    signal: str | None
    reason: str
    at: str


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """One service. ``generation`` counts spawns, ``restarts`` those after the first."""

    name: str
    state: ServiceState = ServiceState.WAITING
    ready: bool = False
    pid: int | None = None
    generation: int = 0
    restarts: int = 0
    last_exit: LastExit | None = None
    required: bool = False
    message: str = ""  # one sentence: why it is in this state, or its own STATUS= line
    hint: str | None = None
    since_s: float = 0.0  # wall time of the last state change
    url: str | None = None
    restart_reasons: Mapping[str, int] = field(default_factory=dict)
    log_bytes_dropped: int = 0


@dataclass(frozen=True, slots=True)
class DownloadFileStatus:
    """One file on its way. Sizes in bytes; ``bytes_total`` is None while unknown."""

    name: str
    state: DownloadState = DownloadState.QUEUED
    bytes_total: int | None = None
    bytes_done: int = 0
    error: str | None = None
    hint: str | None = None
    required: bool = False
    source: str = "http"
    bundle: str | None = None
    destination: str = ""
    rate_bytes_per_s: float = 0.0


@dataclass(frozen=True, slots=True)
class DownloadsStatus:
    """All files. The sums are of files with a known size."""

    files: tuple[DownloadFileStatus, ...] = ()
    rate_bytes_per_s: float = 0.0
    eta_s: float | None = None

    @property
    def total(self) -> int:
        """Files that are wanted (skipped ones are not)."""
        return sum(1 for f in self.files if f.state is not DownloadState.SKIPPED)

    @property
    def done(self) -> int:
        """Files in place and verified."""
        return sum(1 for f in self.files if f.state is DownloadState.DONE)

    @property
    def failed(self) -> int:
        """Files that were given up."""
        return sum(1 for f in self.files if f.state is DownloadState.FAILED)

    @property
    def bytes_total(self) -> int:
        """Known bytes of all wanted files."""
        return sum(f.bytes_total or 0 for f in self.files if f.state is not DownloadState.SKIPPED)

    @property
    def bytes_done(self) -> int:
        """Bytes of wanted files that are on the disk."""
        return sum(f.bytes_done for f in self.files if f.state is not DownloadState.SKIPPED)

    def to_json(self) -> dict[str, Any]:
        """Render with the sums."""
        return {
            "total": self.total,
            "done": self.done,
            "failed": self.failed,
            "bytes_total": self.bytes_total,
            "bytes_done": self.bytes_done,
            "rate_bytes_per_s": self.rate_bytes_per_s,
            "eta_s": self.eta_s,
            "files": [to_jsonable(f) for f in self.files],
        }


@dataclass(frozen=True, slots=True)
class VerificationStatus:
    """The last, or running, pass over the model files. ``finished``: ISO 8601 UTC, last end."""

    running: bool = False
    files: int = 0
    checked: int = 0  # read to their end
    skipped: int = 0  # read lately
    damaged: int = 0  # and fetched again
    finished: str | None = None


@dataclass(frozen=True, slots=True)
class SyncStatus:
    """Output sync. Counts are files of this boot; ``pending`` includes those in flight."""

    enabled: bool = False
    target: str = ""
    pending: int = 0
    uploaded: int = 0
    failed: int = 0
    last_error: str | None = None
    hint: str | None = None
    uploaded_bytes: int = 0
    incomplete: int = 0
    last_stored: str | None = None
    retained: int = 0  # files left for the next boot, known once the flush has ended
    unflushed: int = 0  # of those that were finished when the last flush was asked for
    blocked: bool = False  # the target takes nothing until somebody mends it: key, bucket, disk


@dataclass(frozen=True, slots=True)
class GpuDeviceStatus:
    """One GPU as NVML reports it. Memory in bytes; capability like ``8.9``."""

    index: int
    name: str
    uuid: str | None = None
    memory_total_bytes: int = 0
    memory_free_bytes: int | None = None
    memory_used_bytes: int | None = None
    compute_capability: str | None = None
    utilization_ratio: float | None = None
    temperature_celsius: float | None = None
    throttle_reasons: tuple[str, ...] = ()
    mig: bool = False


@dataclass(frozen=True, slots=True)
class GpuStatus:
    """What was found, what was decided, and why."""

    devices: tuple[GpuDeviceStatus, ...] = ()
    driver: str | None = None
    cuda: str | None = None
    error: str | None = None
    tier: str | None = None
    mode: str | None = None
    reasons: tuple[str, ...] = ()
    nvenc: Mapping[str, bool] = field(default_factory=dict)  # codec → a real encode worked
    ladder_step: int = 0
    ladder_reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DiskStatus:
    """One mount. ``full_in_s``: at the pace of the last minute; None = it does not fill."""

    free_bytes: int
    total_bytes: int
    full_in_s: float | None = None


@dataclass(frozen=True, slots=True)
class HostStatus:
    """The container's share of the machine, sampled. Ratios are 0..1 of the limit."""

    cpu_ratio: float | None = None
    cpu_limit: float | None = None
    memory_used_bytes: int | None = None
    memory_limit_bytes: int | None = None
    disks: Mapping[str, DiskStatus] = field(default_factory=dict)  # by mount point
    silent_disks: tuple[str, ...] = ()  # mount points that do not answer
    service_memory_bytes: Mapping[str, int] = field(default_factory=dict)  # resident, by service
    service_cpu_cores: Mapping[str, float] = field(default_factory=dict)  # 1.5 = one and a half
    storage_mode: str | None = None
    comfyui_queue_length: int | None = None
    comfyui_response_s: float | None = None
    network_received_bytes_per_s: float | None = None
    network_sent_bytes_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class Alert:
    """A threshold that is crossed now."""

    name: str
    message: str
    severity: str = "warning"
    hint: str | None = None
    since: str | None = None


@dataclass(frozen=True, slots=True)
class Advice:
    """Something worth doing, found in logs or facts."""

    code: str
    message: str
    hint: str | None = None
    severity: str = "info"
    service: str | None = None
    link: str | None = None
    count: int = 1
    since: str | None = None
    last_seen: str | None = None


@dataclass(frozen=True, slots=True)
class BootStatus:
    """The boot timeline: seconds from exec to the end of each named span."""

    started_at: str | None = None
    spans_s: Mapping[str, float] = field(default_factory=dict)
    median_s: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """What the update did with one custom node. ``before`` and ``after`` are commits."""

    name: str
    state: str  # updated, current, kept, failed
    before: str | None = None
    after: str | None = None
    message: str | None = None


@dataclass(frozen=True, slots=True)
class NodesStatus:
    """ComfyUI's custom nodes; ``torch_changes`` is what differs from the image's torch."""

    updating: bool = False
    nodes: tuple[NodeStatus, ...] = ()
    torch_changes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class IdleStatus:
    """Idle shutdown: how long nothing happened and when the pod will stop."""

    enabled: bool = False
    idle_s: float = 0.0
    limit_s: float | None = None
    busy_because: tuple[str, ...] = ()
    kept_until: str | None = None
    problem: str | None = None  # why a pod that is due is not stopped
    ends_in_s: float | None = None  # None while the pod is in use
    ending: str | None = None  # what is being done right now to end the pod


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything, at one instant."""

    phase: Phase = Phase.BOOTING
    version: str = ""
    config_file: str | None = None
    health: Mapping[str, Any] = field(default_factory=dict)  # host, port
    links: Mapping[str, str] = field(default_factory=dict)  # service → address for people
    gpu: GpuStatus = GpuStatus()
    services: Mapping[str, ServiceStatus] = field(default_factory=dict)
    downloads: DownloadsStatus = DownloadsStatus()
    verification: VerificationStatus = VerificationStatus()
    sync: SyncStatus = SyncStatus()
    host: HostStatus = HostStatus()
    nodes: NodesStatus = NodesStatus()
    idle: IdleStatus = IdleStatus()
    alerts: tuple[Alert, ...] = ()
    advice: tuple[Advice, ...] = ()
    boot: BootStatus = BootStatus()
    notes: tuple[str, ...] = ()
    rescue: tuple[str, ...] = ()  # the configuration errors, in rescue mode
    required_downloads: frozenset[str] = frozenset()  # names that readiness waits for
    broken_parts: frozenset[str] = frozenset()  # required, and wait for a person

    @property
    def missing(self) -> tuple[str, ...]:
        """Names of required services and models that are not in place."""
        services = [s.name for s in self.services.values() if s.required and not s.ready]
        done = {f.name for f in self.downloads.files if f.state is DownloadState.DONE}
        return (*services, *sorted((self.required_downloads - done) | self.broken_parts))

    @property
    def ready(self) -> bool:
        """Every required service is ready and every required model is in place."""
        return self.phase not in (Phase.RESCUE, Phase.STOPPING) and not self.missing

    @property
    def broken(self) -> tuple[str, ...]:
        """Names of required parts that will not come back by themselves."""
        services = [
            s.name
            for s in self.services.values()
            if s.required and s.state in (ServiceState.FAILED, ServiceState.STOPPED)
        ]
        files = [
            f.name
            for f in self.downloads.files
            if f.name in self.required_downloads and f.state is DownloadState.FAILED
        ]
        return (*services, *files, *sorted(self.broken_parts))

    def to_json(self) -> dict[str, Any]:
        """Render ``status --json``."""
        rendered: dict[str, Any] = {
            f.name: to_jsonable(getattr(self, f.name)) for f in fields(self)
        }
        del rendered["required_downloads"], rendered["broken_parts"]
        for name, service in rendered["services"].items():
            service["since"] = iso_utc(self.services[name].since_s)
        return {"ready": self.phase is Phase.READY, "missing": list(self.missing), **rendered}


def to_jsonable(value: Any) -> Any:
    """Turn status values into what ``json`` can write; dataclasses become objects."""
    if hasattr(value, "to_json") and not isinstance(value, Snapshot):
        return value.to_json()
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_jsonable(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(k): to_jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_jsonable(v) for v in value]
    if isinstance(value, StrEnum | PurePath):
        return str(value)
    return value
