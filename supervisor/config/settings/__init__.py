"""Every setting, as frozen models. Loading them is ``config.load``.

A model's field docs become the configuration reference and the commented
``supervisor.toml``, so each says what the value does and in which unit. There is one
table per attribute of ``Settings``; the modules here are named after their tables.
"""

from __future__ import annotations

from pydantic import Field

from supervisor.config.settings.builtin import (
    ComfyUISection,
    FileBrowserSection,
    JupyterSection,
    SshSection,
)
from supervisor.config.settings.machine import (
    GpuSection,
    MemoryMode,
    StorageMode,
    StorageSection,
    Tier,
    TuningSection,
)
from supervisor.config.settings.models import ModelFile, ModelsSection
from supervisor.config.settings.pod import (
    AlertsSection,
    HealthSection,
    IdleSection,
    SupervisorSection,
    WorkerSection,
)
from supervisor.config.settings.section import Section
from supervisor.config.settings.services import Limits, LiveCheck, ReadyCheck, ServiceSection
from supervisor.config.settings.sync import SyncSection

__all__ = [
    "AlertsSection",
    "ComfyUISection",
    "FileBrowserSection",
    "GpuSection",
    "HealthSection",
    "IdleSection",
    "JupyterSection",
    "Limits",
    "LiveCheck",
    "MemoryMode",
    "ModelFile",
    "ModelsSection",
    "ReadyCheck",
    "Section",
    "ServiceSection",
    "Settings",
    "SshSection",
    "StorageMode",
    "StorageSection",
    "SupervisorSection",
    "SyncSection",
    "Tier",
    "TuningSection",
    "WorkerSection",
]


class Settings(Section):
    """The whole configuration."""

    supervisor: SupervisorSection = Field(default_factory=SupervisorSection)
    gpu: GpuSection = Field(default_factory=GpuSection)
    tuning: TuningSection = Field(default_factory=TuningSection)
    storage: StorageSection = Field(default_factory=StorageSection)
    comfyui: ComfyUISection = Field(default_factory=ComfyUISection)
    jupyter: JupyterSection = Field(default_factory=JupyterSection)
    filebrowser: FileBrowserSection = Field(default_factory=FileBrowserSection)
    ssh: SshSection = Field(default_factory=SshSection)
    services: dict[str, ServiceSection] = Field(default_factory=dict)
    models: ModelsSection = Field(default_factory=ModelsSection)
    sync: SyncSection = Field(default_factory=SyncSection)
    health: HealthSection = Field(default_factory=HealthSection)
    idle: IdleSection = Field(default_factory=IdleSection)
    alerts: AlertsSection = Field(default_factory=AlertsSection)
    worker: WorkerSection = Field(default_factory=WorkerSection)
