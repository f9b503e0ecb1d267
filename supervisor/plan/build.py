"""Settings and facts in, plan out. Pure: nothing is read, written or started here."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from supervisor.config.settings import Settings
from supervisor.core.status import GpuDeviceStatus, GpuStatus
from supervisor.download.request import DownloadRequest
from supervisor.errors import ConfigError, ConfigProblem
from supervisor.hardware.facts import GpuDevice, HardwareFacts
from supervisor.plan.builtin_services import plan_filebrowser, plan_jupyter, plan_ssh
from supervisor.plan.comfyui_service import ComfyUIPlan, plan_comfyui
from supervisor.plan.context import PlanContext
from supervisor.plan.env_policy import NETWORK_SYSCTL, plan_environment
from supervisor.plan.gpu_policy import GpuDecision, decide_gpu, generation_of
from supervisor.plan.graph import check_graph, start_order
from supervisor.plan.ladder import LadderStep, at_step
from supervisor.plan.model import HealthPlan, Plan, Skipped, SyncPlan
from supervisor.plan.secrets import GeneratedSecrets
from supervisor.plan.storage import choose_workspace, plan_storage
from supervisor.plan.user_services import plan_user_service
from supervisor.services.spec import ServiceKind, ServiceSpec

BUILTIN = ("comfyui", "jupyter", "filebrowser", "ssh")

__all__ = ["GeneratedSecrets", "build_plan"]


def build_plan(
    *,
    settings: Settings,
    facts: HardwareFacts,
    environ: Mapping[str, str],
    generated: GeneratedSecrets,
    downloads: Sequence[DownloadRequest] = (),
    skipped: Sequence[Skipped] = (),
    secret_names: Collection[str] = (),
    ladder_step: int = 0,
) -> Plan:
    """Decide everything that ``run`` will do.

    ``secret_names`` are environment variables that hold secrets (``LoadedSettings``
    knows them); no service inherits one. ``ladder_step`` is how far ComfyUI was taken down
    the VRAM ladder after running out of memory (see ``ladder.step_down``).

    Raises:
        ConfigError: dependencies or tables of services, or ``comfyui.args``, make no sense.
    """
    workspace = choose_workspace(settings, facts.host)
    context = PlanContext(settings, facts, environ, generated, workspace)
    gpu = decide_gpu(
        settings.gpu, facts.gpu, facts.comfyui, visible=environ.get("CUDA_VISIBLE_DEVICES")
    )
    gpu, rung = at_step(
        gpu, ladder_step if settings.gpu.ladder else 0, generation_of(facts.comfyui)
    )
    comfyui = plan_comfyui(context, gpu)
    services, left_out, notes = _services(context, comfyui)
    environment = plan_environment(
        settings,
        facts,
        environ,
        secrets=secret_names,
        workspace=None if workspace == settings.comfyui.root else workspace,
    )
    sync = plan_sync(settings, comfyui.output_directory, workspace)
    return Plan(
        gpu=gpu_status(facts, gpu, rung),
        services=services,
        downloads=tuple(downloads),
        skipped=(*skipped, *left_out),
        sync=sync,
        health=HealthPlan(settings.health.host, settings.health.port),
        notes=(
            *gpu.notes,
            *_lost_gpu(gpu, environ),
            *comfyui.notes,
            *notes,
            *environment.notes,
            *_read_only(facts, comfyui.output_directory, comfyui.models_directory),
        ),
        base_environment=environment.base,
        environment_reasons=environment.reasons,
        models_directory=comfyui.models_directory,
        output_directory=comfyui.output_directory,
        workspace=workspace,
        directories=_directories(settings, comfyui, sync, services),
        storage=plan_storage(settings, facts.host),
        sysctl=NETWORK_SYSCTL if settings.tuning.sysctl and facts.host.sysctl_writable else {},
    )


def gpu_status(
    facts: HardwareFacts, decision: GpuDecision, rung: LadderStep | None = None
) -> GpuStatus:
    """What ``status`` and ``plan`` show about the GPU."""
    return GpuStatus(
        devices=tuple(device_status(device) for device in facts.gpu.devices),
        driver=facts.gpu.driver,
        cuda=facts.gpu.cuda,
        error=facts.gpu.error,
        tier=str(decision.tier) if decision.tier else None,
        mode=str(decision.mode),
        reasons=decision.reasons,
        nvenc=dict(facts.nvenc.codecs) if facts.nvenc else {},
        ladder_step=rung.number if rung else 0,
        ladder_reasons=(f"{rung.name}: {rung.reason}",) if rung else (),
    )


def device_status(device: GpuDevice) -> GpuDeviceStatus:
    """Facts as the status renders them."""
    capability = device.compute_capability
    free = device.memory_free_bytes
    return GpuDeviceStatus(
        index=device.index,
        name=device.name,
        uuid=device.uuid,
        memory_total_bytes=device.memory_total_bytes,
        memory_free_bytes=free,
        memory_used_bytes=None if free is None else device.memory_total_bytes - free,
        compute_capability=f"{capability[0]}.{capability[1]}" if capability else None,
        mig=device.mig,
    )


def plan_sync(settings: Settings, output: Path, workspace: Path) -> SyncPlan:
    """Where outputs go.

    Raises:
        ConfigError: the target folder lies inside the watched one.
    """
    section = settings.sync
    source = section.source or output
    if section.target == "s3":
        target = f"s3://{section.bucket}/{section.prefix}".rstrip("/")
        configured = section.access_key_id is not None and section.secret_access_key is not None
        folder = None
    else:
        folder = section.folder or workspace / "synced"
        target = str(folder)
        configured = section.folder is not None
        if folder == source or folder.is_relative_to(source):
            problem = ConfigProblem(
                key="sync.folder",
                value=str(folder),
                reason=f"lies inside the watched folder {source}: every copy would be an output",
                hint="choose a folder outside it",
            )
            raise ConfigError("Cannot use sync.folder", problems=(problem,))
    if section.enabled is None:
        enabled = configured
        reason = "a target is configured" if configured else "no target is configured"
    else:
        enabled, reason = section.enabled, f"sync.enabled = {str(section.enabled).lower()}"
    return SyncPlan(enabled, source, folder, target, reason)


def _services(
    context: PlanContext, comfyui: ComfyUIPlan
) -> tuple[tuple[ServiceSpec, ...], list[Skipped], list[str]]:
    services = [comfyui.service] if comfyui.service else []
    skipped: list[Skipped] = []
    notes: list[str] = []
    problems: list[ConfigProblem] = []
    idle: list[ServiceSpec] = []  # turned off, but somebody may start them by hand
    for plan in (plan_jupyter(context), plan_filebrowser(context), plan_ssh(context)):
        services += [plan.service] if plan.service else []
        skipped += [plan.skipped] if plan.skipped else []
        notes += plan.notes
    for name, section in context.settings.services.items():
        if name in BUILTIN:
            problems.append(_reserved(name))
        else:
            spec, faults, remarks = plan_user_service(context, name, section)
            problems += faults
            if not section.enabled:
                skipped.append(Skipped(name, f"services.{name}.enabled = false"))
                idle.append(replace(spec, enabled=False, required=False))
                continue
            services.append(spec)
            notes += remarks
    running = {spec.name for spec in services}
    absent = {*BUILTIN, *context.settings.services} - running
    problems += check_graph(services, absent=absent)
    if problems:
        raise ConfigError("Cannot plan the services", problems=tuple(problems))
    planned = (_without_missing(spec, absent) for spec in start_order(services))
    return (*planned, *idle), skipped, notes


def _without_missing(spec: ServiceSpec, absent: Collection[str]) -> ServiceSpec:
    """A service that waits for one that will not run can never start: say so at once."""
    missing = [d.service for d in spec.after if d.service in absent]
    if not missing or spec.unavailable:
        return spec
    return replace(
        spec,
        unavailable=f"Cannot start {spec.name}: it comes after {missing[0]}, which does not run",
        hint=f"enable {missing[0]}, or remove it from services.{spec.name}.after",
    )


def _reserved(name: str) -> ConfigProblem:
    return ConfigProblem(
        key=f"services.{name}",
        reason=f"{name} is a built-in service",
        hint=f"configure it in [{name}], or give your service another name",
    )


def _lost_gpu(gpu: GpuDecision, environ: Mapping[str, str]) -> list[str]:
    """RunPod may bring a stopped pod back without a GPU (CONTRACTS: volumes)."""
    if gpu.device is not None or "RUNPOD_POD_ID" not in environ:
        return []
    if environ.get("RUNPOD_GPU_COUNT", "0") == "0":
        return ["this pod came up with no GPU: RunPod had none free on its host; stop and start it"]
    return ["RunPod counts a GPU for this pod, but none can be used: see supervisor doctor"]


def _read_only(facts: HardwareFacts, *directories: Path) -> list[str]:
    return [
        f"{path} cannot be written"
        for path in directories
        for mount in [facts.host.mounts.get(path)]
        if mount is not None and not mount.writable
    ]


def _directories(
    settings: Settings, comfyui: ComfyUIPlan, sync: SyncPlan, services: Sequence[ServiceSpec]
) -> tuple[Path, ...]:
    wanted = [settings.supervisor.state_dir, comfyui.models_directory, comfyui.output_directory]
    if settings.models.downloads_directory is not None:
        wanted.append(settings.models.downloads_directory)
    if sync.enabled and sync.folder is not None:
        wanted.append(sync.folder)
    served = (ServiceKind.JUPYTER, ServiceKind.FILEBROWSER)
    wanted += [spec.cwd for spec in services if spec.kind in served and spec.cwd is not None]
    return tuple(dict.fromkeys(wanted))
