"""The ComfyUI service: its command line, probes, stop order and folders."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

from supervisor.config.secrets import is_secret_name
from supervisor.hardware.facts import ComfyUIFacts, HostFacts
from supervisor.models.folders import ALIASES, CORE_FOLDERS
from supervisor.plan.comfyui_args import Arguments, join_arguments
from supervisor.plan.context import PlanContext, reachable
from supervisor.plan.gpu_policy import (
    MODEL_OFFLOAD_FROM_GB,
    Flag,
    Generation,
    GpuDecision,
    generation_of,
    nominal_gb,
)
from supervisor.plan.storage import seed_step, volume_root
from supervisor.services.spec import (
    EnsureDirectory,
    EnsureLines,
    FailureAction,
    HttpProbe,
    Liveness,
    PrepareStep,
    Readiness,
    ServiceKind,
    ServiceSpec,
    StopStep,
    TcpProbe,
)

GIB = 1024**3

# A busy ComfyUI answered within 3.8 s at worst, and a queue at work is not a hang
# (CONTRACTS: ComfyUI, process): two minutes of silence are.
LIVE_INTERVAL_S = 10.0
LIVE_TIMEOUT_S = 10.0
LIVE_FAILURES = 10

# ComfyUI leaves on SIGINT within 2-5 s and cleans temp/; SIGTERM kills it at once.
INTERRUPT_SHARE = 0.5
TERMINATE_SHARE = 0.08

# ComfyUI's own default (main.py, autumn 2026): 10 % of RAM, at least 2 and at most 10 GB.
HEADROOM_SHARE = 0.10
HEADROOM_MIN_GB = 2.0
HEADROOM_MAX_GB = 10.0
INACTIVE_MAX_GB = 128.0  # its default for results of other workflows: all RAM, at most this


@dataclass(frozen=True, slots=True)
class ComfyUIPlan:
    """The service and the folders that the rest of the plan builds on."""

    service: ServiceSpec | None
    models_directory: Path
    output_directory: Path
    notes: tuple[str, ...] = ()


def plan_comfyui(context: PlanContext, gpu: GpuDecision) -> ComfyUIPlan:
    """Decide everything about ComfyUI.

    Raises:
        ConfigError: ``comfyui.args`` cannot be split.
    """
    section = context.settings.comfyui
    facts = context.facts.comfyui
    installed_at = facts.root if facts is not None else section.root
    seed_to = volume_root(context.settings, context.facts.host)
    seeding = seed_to is not None and installed_at != seed_to and _installed(facts)
    root = seed_to if seeding and seed_to is not None else installed_at
    models = context.settings.models.directory
    planned, prepare = _models_flags(context, root, facts)
    if seeding and seed_to is not None:
        prepare = [seed_step(installed_at, seed_to), *prepare]
    arguments = join_arguments(
        [*_basic_flags(context), *gpu.flags, *_memory_flags(facts, context.facts.host), *planned],
        section.args,
        facts,
    )
    base = Path(arguments.value("--base-directory") or root)
    output = Path(arguments.value("--output-directory") or section.output_directory
                  or base / "output")  # fmt: skip
    directories = ComfyUIPlan(
        service=None,
        models_directory=models or Path(arguments.value("--models-directory") or base / "models"),
        output_directory=output if output.is_absolute() else root / output,
        notes=arguments.notes,
    )
    if not section.enabled:
        return directories
    service, notes = _service(context, gpu, root, arguments, prepare)
    notes += _vram_advice(gpu, arguments, facts)
    if seeding:
        notes.append(f"ComfyUI is copied from {installed_at} to {root} unless it is there already")
    return ComfyUIPlan(
        service,
        directories.models_directory,
        directories.output_directory,
        (*arguments.notes, *notes),
    )


def _service(
    context: PlanContext,
    gpu: GpuDecision,
    root: Path,
    arguments: Arguments,
    prepare: list[PrepareStep],
) -> tuple[ServiceSpec, list[str]]:
    section = context.settings.comfyui
    facts = context.facts.comfyui
    session = _session_folder(context) / "session"
    # The user may add its marker and cannot replace what is ours.
    own_user = 0o700 if section.user is None else 0o1777
    secrets, notes = context.passed(section.env_pass, "comfyui")
    environment = {
        # ComfyUI-Manager then asks for a restart by <path>.reboot and exit 0.
        "__COMFY_CLI_SESSION__": str(session),
        **_guarded(context, session.parent / "torch-constraints.txt"),
        **gpu.environment,
        **section.environment,
        **secrets,
    }
    hidden = frozenset(secrets) | {name for name in section.environment if is_secret_name(name)}
    port = _port(arguments, section.port)
    unavailable, hint = _unavailable(section.root, facts)
    return ServiceSpec(
        name="comfyui",
        kind=ServiceKind.COMFYUI,
        command=(_python(context), str(root / "main.py"), *arguments.words),
        environment=environment,
        secret_names=hidden,
        required=section.required,
        on_failure=FailureAction(section.on_failure),
        readiness=_readiness(context, arguments, port),
        liveness=_liveness(arguments, port, section.listen),
        stop=_stop_steps(context.settings.supervisor.shutdown_grace_s),
        user=section.user,
        cwd=root,
        port=port,
        url=f"http://127.0.0.1:{port}/",
        stall_timeout_s=section.stall_timeout_s,
        safe_mode=section.safe_mode,
        planner_flags=arguments.planner_flags,
        reasons=(*gpu.reasons, *arguments.reasons, *_node_reasons(context)),
        prepare=(
            EnsureDirectory(session.parent, own_user),
            # pip refuses to work when the file that it was told of does not exist.
            EnsureLines(session.parent / "torch-constraints.txt", (), 0o644),
            *prepare,
        ),
        unavailable=unavailable,
        hint=hint,
    ), notes


def _node_reasons(context: PlanContext) -> tuple[str, ...]:
    section = context.settings.comfyui
    if not section.update_nodes:
        return ()
    most_s = f"{section.update_nodes_timeout_s:g} s"
    return (f"custom nodes are updated before the start, for at most {most_s}",)


def _guarded(context: PlanContext, constraints: Path) -> dict[str, str]:
    """Make installers of custom nodes (pip, and uv for ComfyUI-Manager) keep torch as it is."""
    if not context.settings.comfyui.torch_guard:
        return {}
    names = ("PIP_CONSTRAINT", "UV_CONSTRAINT")
    return {name: f"{context.environ.get(name, '')} {constraints}".strip() for name in names}


def _basic_flags(context: PlanContext) -> list[Flag]:
    section = context.settings.comfyui
    flags = [
        Flag("--listen", (section.listen,), "comfyui.listen"),
        Flag("--port", (str(section.port),), "comfyui.port"),
        Flag("--disable-auto-launch", reason="a container has no browser"),
        Flag("--log-stdout", reason="what is left on stderr is an error"),
    ]
    if section.output_directory is not None:
        flags.append(
            Flag("--output-directory", (str(section.output_directory),), "comfyui.output_directory")
        )
    return flags


def _memory_flags(facts: ComfyUIFacts | None, host: HostFacts) -> list[Flag]:
    """Keep the RAM cache inside the cgroup's limit.

    ``--cache-ram`` is a headroom: below that much free RAM cached results are dropped. An
    older ComfyUI measures the free RAM of the host, so the part of it that the container
    may never use is added (ComfyUI#14938; since #15927 it reads the cgroup by itself).
    Where the option takes one optional value, the RAM cache is not the default yet; the
    default then keeps one workflow's results and turning the other on gains nothing.
    """
    limit = host.memory_limit_bytes
    if limit is None or limit >= host.memory_total_bytes > 0:
        return []
    if facts is not None and facts.arity.get("--cache-ram") == "?":
        return []
    limit_gb = limit / GIB
    headroom_gb = min(HEADROOM_MAX_GB, max(HEADROOM_MIN_GB, limit_gb * HEADROOM_SHARE))
    reason = f"{headroom_gb:.1f} GB of the container's {limit_gb:.1f} GB of RAM stay free"
    if facts is None or facts.cgroup_aware:
        return [Flag("--cache-ram", (f"{headroom_gb:.1f}",), reason)]
    seen_gb = (host.memory_available_bytes or host.memory_total_bytes) / GIB
    foreign_gb = max(0.0, seen_gb - limit_gb)
    reason += f"; this ComfyUI also counts {foreign_gb:.0f} GB of the host that are not ours"
    values = [f"{headroom_gb + foreign_gb:.1f}"]
    if facts.arity.get("--cache-ram") == "*":
        values.append(f"{min(INACTIVE_MAX_GB, limit_gb) + foreign_gb:.1f}")
    return [Flag("--cache-ram", tuple(values), reason)]


def _models_flags(
    context: PlanContext, root: Path, facts: ComfyUIFacts | None
) -> tuple[list[Flag], list[PrepareStep]]:
    """Make ComfyUI look where the models are downloaded to."""
    directory = context.settings.models.directory
    if directory is None or directory == root / "models":
        return [], []
    if facts is not None and facts.accepts("--models-directory"):
        # It must exist, or argparse exits with 2: it is among the plan's directories.
        flag = Flag("--models-directory", (str(directory),), "models.directory")
        return [flag], []
    lines = (
        "supervisor:",
        f"  base_path: {_yaml_string(directory)}",
        "  is_default: true",
        *(f"  {category}: {_yaml_paths(category)}" for category in sorted(CORE_FOLDERS)),
    )
    # The name depends on the content: another directory is another file, never a mixture.
    checksum = zlib.crc32("\n".join(lines).encode())
    path = _session_folder(context) / f"models-{checksum:08x}.yaml"
    flag = Flag("--extra-model-paths-config", (str(path),), "models.directory")
    return [flag], [EnsureLines(path, lines, 0o644)]


def _yaml_paths(category: str) -> str:
    """The folders of a category, older names first: ComfyUI puts each before the last one."""
    older = [name for name, folder in ALIASES.items() if folder == category]
    return _yaml_string("\n".join([*older, category])) if older else category


def _vram_advice(gpu: GpuDecision, arguments: Arguments, facts: ComfyUIFacts | None) -> list[str]:
    """Say when the user's VRAM option does nothing or costs more than it gives."""
    if not arguments.given("--lowvram") or gpu.device is None:
        return []
    if generation_of(facts) is Generation.DYNAMIC and not arguments.given("--disable-dynamic-vram"):
        return ["COMFYUI_ARGS: --lowvram does nothing in this ComfyUI, DynamicVRAM replaces it"]
    size_gb = nominal_gb(gpu.device.memory_total_mib)
    if size_gb >= MODEL_OFFLOAD_FROM_GB:
        return [f"COMFYUI_ARGS: --lowvram slows a {size_gb} GB card down; it is for less than that"]
    return []


def _readiness(context: PlanContext, arguments: Arguments, port: int) -> Readiness:
    section = context.settings.comfyui
    probe = _probe(arguments, port, section.listen, "/system_stats")
    return Readiness(probe, timeout_s=section.start_timeout_s)


def _session_folder(context: PlanContext) -> Path:
    """Where ComfyUI-Manager leaves its marker; it must be writable, whatever the state is."""
    state_dir = context.settings.supervisor.state_dir
    mount = context.facts.host.mounts.get(state_dir)
    usable = mount is None or mount.writable
    return (state_dir if usable else Path("/run/supervisor")) / "comfyui"


def _liveness(arguments: Arguments, port: int, listen: str) -> Liveness:
    return Liveness(
        _probe(arguments, port, listen, "/prompt"),
        interval_s=LIVE_INTERVAL_S,
        timeout_s=LIVE_TIMEOUT_S,
        failures=LIVE_FAILURES,
    )


def _probe(arguments: Arguments, port: int, listen: str, path: str) -> HttpProbe | TcpProbe:
    host = reachable(arguments.value("--listen") or listen)
    if arguments.given("--tls-keyfile"):
        return TcpProbe(host.strip("[]"), port)  # its certificate is its own affair
    return HttpProbe(f"http://{host}:{port}{path}")


def _stop_steps(grace_s: float) -> tuple[StopStep, ...]:
    """SIGINT lets it clean up, SIGTERM ends it at once; SIGKILL follows by itself."""
    return (
        StopStep("SIGINT", round(grace_s * INTERRUPT_SHARE, 2)),
        StopStep("SIGTERM", round(max(0.2, grace_s * TERMINATE_SHARE), 2)),
    )


def _port(arguments: Arguments, configured: int) -> int:
    text = arguments.value("--port")
    return int(text) if text is not None and text.isdigit() else configured


def _python(context: PlanContext) -> str:
    if context.settings.comfyui.python is not None:
        return str(context.settings.comfyui.python)
    return context.facts.comfyui.python if context.facts.comfyui is not None else "python3"


def _installed(facts: ComfyUIFacts | None) -> bool:
    return facts is not None and facts.installed


def _unavailable(root: Path, facts: ComfyUIFacts | None) -> tuple[str | None, str | None]:
    if facts is None or facts.installed:
        return None, None
    return (
        facts.error or f"Cannot start ComfyUI: there is no main.py in {root}",
        "install ComfyUI there, or set comfyui.root, or comfyui.enabled = false",
    )


def _yaml_string(text: Path | str) -> str:
    escaped = str(text).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
