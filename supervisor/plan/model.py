"""The plan: everything ``run`` would do, frozen, with reasons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from supervisor.core.status import GpuStatus
from supervisor.download.request import DownloadRequest
from supervisor.services.spec import ServiceSpec


@dataclass(frozen=True, slots=True)
class Skipped:
    """Something configured that will not be done, and why.

    Without a ``required`` one the pod does not become ready.
    """

    name: str
    reason: str
    required: bool = False


@dataclass(frozen=True, slots=True)
class StoragePlan:
    """Whether the workspace survives the pod, and what it is made of."""

    mode: str = "ephemeral"  # or "persistent"
    kind: str | None = None  # file-system type of the workspace
    network: bool = False
    free_bytes: int | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class SyncPlan:
    """Where finished outputs go. Secrets are not here; the syncer gets the settings."""

    enabled: bool = False
    source: Path | None = None
    folder: Path | None = None  # the target when it is a folder, default filled in
    target: str = ""  # "s3://bucket/prefix" or a folder
    reason: str = ""


@dataclass(frozen=True, slots=True)
class HealthPlan:
    """The health port."""

    host: str = "0.0.0.0"  # noqa: S104
    port: int = 8000


@dataclass(frozen=True, slots=True)
class Plan:
    """What the pod will be.

    ``base_environment`` is the inherited environment less every secret, plus tuning; each
    service's own ``environment`` comes on top. ``directories`` are created before the start.
    """

    gpu: GpuStatus = GpuStatus()
    services: tuple[ServiceSpec, ...] = ()
    downloads: tuple[DownloadRequest, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    sync: SyncPlan = SyncPlan()
    health: HealthPlan = HealthPlan()
    notes: tuple[str, ...] = ()
    base_environment: Mapping[str, str] = field(default_factory=dict)
    environment_reasons: Mapping[str, str] = field(default_factory=dict)
    models_directory: Path | None = None
    output_directory: Path | None = None
    workspace: Path | None = None
    directories: tuple[Path, ...] = ()
    storage: StoragePlan = StoragePlan()
    sysctl: Mapping[str, str] = field(default_factory=dict)  # key → value to write at boot
