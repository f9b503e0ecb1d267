"""Every setting, as frozen models. Loading them is ``config.load``.

A model's field docs become the configuration reference, so each says what the value
does and in which unit. ``supervisor.toml`` has one table per attribute of ``Settings``.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from string import Formatter
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    field_validator,
    model_validator,
)

from supervisor.config.units import parse_rate_bytes_per_s, parse_size_bytes

Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(ge=0)]
Size = Annotated[str, AfterValidator(lambda text: parse_size_bytes(text) and text)]
Rate = Annotated[str, AfterValidator(lambda text: parse_rate_bytes_per_s(text) and text)]
Percent = Annotated[float, Field(gt=0, le=100)]
OnFailure = Literal["ignore", "restart", "shutdown"]

_ON_FAILURE = (
    "When max_restarts is reached: leave it down, try again for ever at the longest delay, "
    "or end the container with its exit code."
)


class Section(BaseModel):
    """Base of all tables: frozen, and a key that nobody knows is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


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


class SupervisorSection(Section):
    """The daemon itself."""

    state_dir: Path = Field(
        Path("/var/lib/supervisor"), description="Journals, rotated logs and boot history."
    )
    socket: Path = Field(
        Path("/run/supervisor/supervisor.sock"), description="Control socket, owner only."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe line that is written."
    )
    log_format: Literal["console", "json"] = Field("console", description="Shape of log lines.")
    shutdown_grace_s: Seconds = Field(
        9.0, description="Seconds for the whole stop; Docker and RunPod kill after about 10."
    )
    dry_run: bool = Field(False, description="`run` prints the plan and exits 0.")


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


class ComfyUISection(Section):
    """The built-in ComfyUI service."""

    enabled: bool = Field(True, description="Run ComfyUI.")
    root: Path = Field(Path("/opt/ComfyUI"), description="Folder that holds main.py.")
    python: Path | None = Field(
        None, description="Interpreter; default: a venv beside the root, else python3 on PATH."
    )
    port: Port = Field(8188, description="HTTP port.")
    listen: str = Field("0.0.0.0", description="Address to listen on.")  # noqa: S104
    args: str = Field("", description="Extra arguments, shell-quoted; they win over the plan's.")
    output_directory: Path | None = Field(None, description="Output folder; default ComfyUI's.")
    start_timeout_s: Seconds = Field(90.0, description="Seconds until a start counts as failed.")
    stall_timeout_s: Seconds = Field(
        0.0, description="Restart when a job shows no progress for so many seconds; 0 never."
    )
    update_nodes: bool = Field(False, description="git pull custom nodes at boot.")
    update_nodes_timeout_s: Seconds = Field(60.0, description="Deadline for all node updates.")
    torch_guard: bool = Field(True, description="Alarm when node installs replace torch.")
    safe_mode: bool = Field(
        False, description="After a crash loop start once with --disable-all-custom-nodes."
    )
    required: bool = Field(True, description="/ping is 503 while ComfyUI is down for good.")
    on_failure: OnFailure = Field("ignore", description=_ON_FAILURE)
    environment: dict[str, str] = Field(default_factory=dict, description="Extra environment.")
    env_pass: tuple[str, ...] = Field((), description="Secrets handed over, by name.")
    user: str | None = Field(None, description="User to run as; default the supervisor's.")


class JupyterSection(Section):
    """The built-in JupyterLab service. It never runs without a token."""

    enabled: bool | None = Field(
        None, description="Run JupyterLab; default: when a token is given and it is installed."
    )
    port: Port = Field(8888, description="HTTP port.")
    listen: str = Field("0.0.0.0", description="Address to listen on.")  # noqa: S104
    token: SecretStr | None = Field(None, description="Token; generated when enabled without.")
    root: Path | None = Field(None, description="Folder to serve; default the workspace.")
    command: tuple[str, ...] = Field(("jupyter", "lab"), description="How to start it.")
    required: bool = Field(False, description="/ping is 503 while it is down for good.")


class FileBrowserSection(Section):
    """The built-in FileBrowser service. It never runs with a default password."""

    enabled: bool = Field(False, description="Run FileBrowser.")
    port: Port = Field(8080, description="HTTP port.")
    listen: str = Field("0.0.0.0", description="Address to listen on.")  # noqa: S104
    username: str = Field("admin", description="User name.")
    password: SecretStr | None = Field(None, description="Password; generated when absent.")
    root: Path | None = Field(None, description="Folder to serve; default the workspace.")
    command: str = Field("filebrowser", description="Program.")


class SshSection(Section):
    """The built-in sshd service."""

    enabled: bool | None = Field(None, description="Run sshd; default: when a key is given.")
    port: Port = Field(22, description="TCP port.")
    public_key: str = Field("", description="Keys for authorized_keys, one a line.")
    command: str = Field("/usr/sbin/sshd", description="Program.")


class ReadyCheck(Section):
    """When a service counts as ready: exactly one kind of probe."""

    http: str | None = Field(None, description="URL that must answer 2xx.")
    status: int | None = Field(None, description="Exact HTTP status instead of any 2xx.")
    body: str | None = Field(None, description="Regular expression the body must match.")
    tcp: str | None = Field(None, description="host:port that must accept a connection.")
    exec: tuple[str, ...] | None = Field(None, description="Command that must exit 0.")
    file: Path | None = Field(None, description="Path that must exist.")
    log: str | None = Field(None, description="Regular expression a log line must match.")
    notify: bool | Literal["fd"] | None = Field(
        None, description='true: sd_notify READY=1; "fd": a newline on descriptor 3 (s6).'
    )
    watchdog_s: Seconds = Field(
        0.0, description="With notify: WATCHDOG=1 must come at least so often; 0 never."
    )
    timeout_s: Seconds = Field(60.0, description="Seconds until the start counts as failed.")
    interval_s: Seconds = Field(0.25, description="Pause between tries.")

    @model_validator(mode="after")
    def _one_kind(self) -> ReadyCheck:
        _require_one_kind(self, ("http", "tcp", "exec", "file", "log", "notify"))
        return self


class LiveCheck(Section):
    """When a service counts as hung: exactly one kind of probe."""

    http: str | None = Field(None, description="URL that must answer 2xx.")
    status: int | None = Field(None, description="Exact HTTP status instead of any 2xx.")
    body: str | None = Field(None, description="Regular expression the body must match.")
    tcp: str | None = Field(None, description="host:port that must accept a connection.")
    exec: tuple[str, ...] | None = Field(None, description="Command that must exit 0.")
    file: Path | None = Field(None, description="Path that must exist.")
    interval_s: Annotated[float, Field(gt=0)] = Field(10.0, description="Pause between checks.")
    timeout_s: Seconds = Field(5.0, description="Seconds for one check.")
    failures: Annotated[int, Field(ge=1)] = Field(3, description="Failures in a row = hung.")
    grace_s: Seconds = Field(0.0, description="Seconds after ready before the first check.")

    @model_validator(mode="after")
    def _one_kind(self) -> LiveCheck:
        _require_one_kind(self, ("http", "tcp", "exec", "file"))
        return self


def _require_one_kind(check: Section, kinds: tuple[str, ...]) -> None:
    given = [kind for kind in kinds if getattr(check, kind) not in (None, False)]
    if len(given) != 1:
        found = ", ".join(given) or "none"
        raise ValueError(f"give exactly one of {', '.join(kinds)} (found {found})")


class Limits(Section):
    """Resource limits of a service's processes."""

    nofile: int | None = Field(None, ge=1, description="Open files.")
    core_bytes: int | None = Field(None, ge=0, description="Core dump size in bytes.")


class ServiceSection(Section):
    """A service of the user."""

    command: tuple[str, ...] = Field(description="Program and arguments; no shell.", min_length=1)
    enabled: bool = Field(True, description="Run it.")
    after: tuple[str, ...] = Field(
        (), description='Services that come first: "name" (ready) or "name:started".'
    )
    required: bool = Field(False, description="/ping is 503 while it is down for good.")
    restart: Literal["always", "on-failure", "never"] = Field(
        "always", description="When it is started again after it ended."
    )
    on_failure: OnFailure = Field("ignore", description=_ON_FAILURE)
    backoff_initial_s: Seconds = Field(1.0, description="First delay before a restart.")
    backoff_max_s: Seconds = Field(60.0, description="Longest delay before a restart.")
    max_restarts: int = Field(10, ge=0, description="Restarts per window before giving up.")
    window_s: Seconds = Field(600.0, description="The window for max_restarts.")
    healthy_after_s: Seconds = Field(30.0, description="Ready for so long: backoff starts anew.")
    stop_signal: str = Field("SIGTERM", description="First signal of a stop.")
    stop_grace_s: Seconds = Field(5.0, description="Seconds before SIGKILL.")
    ready: ReadyCheck | None = Field(None, description="When it is ready; default at once.")
    live: LiveCheck | None = Field(None, description="When it is hung; default never.")
    environment: dict[str, str] = Field(default_factory=dict, description="Extra environment.")
    env_pass: tuple[str, ...] = Field((), description="Secrets handed over, by name.")
    user: str | None = Field(None, description="User (name or uid) to run as.")
    cwd: Path | None = Field(None, description="Working folder.")
    umask: str | None = Field(None, pattern="^0?[0-7]{3}$", description='Octal, like "022".')
    nice: int | None = Field(None, ge=-20, le=19, description="Scheduling priority.")
    limits: Limits = Field(default_factory=Limits, description="Resource limits.")
    log_file: Path | None = Field(None, description="Also append the output to this file.")
    url: str | None = Field(None, description="Address that the page links to.")


class ModelFile(Section):
    """One model file: exactly one source, and where it goes."""

    url: str | None = Field(None, description="http(s) address.")
    huggingface: str | None = Field(None, description='"owner/repo:path/in/repo[@revision]".')
    civitai: int | None = Field(None, description="CivitAI model version id.")
    to: str = Field("", description="Path below the models folder; ending in / keeps the name.")
    sha256: str | None = Field(None, pattern="^[0-9a-fA-F]{64}$", description="Expected hash.")
    size_bytes: int | None = Field(None, ge=0, description="Expected size.")
    required: bool = Field(False, description="Readiness waits for it.")
    mirrors: tuple[str, ...] = Field((), description="Other addresses of the same bytes.")

    @model_validator(mode="after")
    def _one_source(self) -> ModelFile:
        given = [k for k in ("url", "huggingface", "civitai") if getattr(self, k) is not None]
        if len(given) != 1:
            found = ", ".join(given) or "none"
            raise ValueError(f"give exactly one of url, huggingface, civitai (found {found})")
        return self


class ModelsSection(Section):
    """Model files and how they arrive."""

    directory: Path | None = Field(None, description="Models folder; default ComfyUI's models.")
    downloads_directory: Path | None = Field(
        None, description="Folder whose files are sorted into the models folder."
    )
    bundles: tuple[str, ...] = Field(
        ("vibevoice", "controlnet", "wan_720p"),
        description="Bundles of the catalog to fetch; one that does not fit is skipped.",
    )
    selectors: dict[str, str] = Field(
        default_factory=dict, description="Choices of bundles, like QWEN_EDIT_MODEL."
    )
    catalog: tuple[Path, ...] = Field((), description="Further catalog files.")
    files: tuple[ModelFile, ...] = Field((), description="Single files.")
    workflows: tuple[Path, ...] = Field((), description="Workflow files whose models to fetch.")
    civitai: tuple[int, ...] = Field((), description="CivitAI version ids to fetch.")
    civitai_loras: tuple[int, ...] = Field((), description="The same, placed under loras/.")
    connections: int = Field(16, ge=1, le=64, description="Connections per file, at most.")
    concurrent_files: int = Field(8, ge=1, le=64, description="Files at once, at most.")
    per_host: int = Field(32, ge=1, le=256, description="Connections per host, at most.")
    rate_limit: Rate | None = Field(None, description='Cap of all downloads, like "100MB/s".')
    require: Literal["none", "required", "all"] = Field(
        "required", description="Which models readiness waits for."
    )
    stall_timeout_s: Seconds = Field(300.0, description="No byte for so long = a new connection.")
    retry_attempts: int = Field(
        0, ge=0, description="Tries before the pace slows down; 0 = built-in. Never gives up."
    )
    hf_endpoint: str = Field("https://huggingface.co", description="Hugging Face mirror.")
    hf_token: SecretStr | None = Field(None, description="Hugging Face token.")
    civitai_endpoint: str = Field("https://civitai.com", description="CivitAI address.")
    civitai_token: SecretStr | None = Field(None, description="CivitAI API key.")
    fsync: bool = Field(True, description="Flush a file to the disk before it is published.")
    drop_cache: bool = Field(
        False, description="Drop downloaded bytes from the page cache, for tight memory limits."
    )
    verify_interval_h: float = Field(
        24.0, ge=0, description="Hours between readings of all models that repair them; 0 never."
    )
    organize: bool = Field(True, description="Sort files of downloads_directory by kind.")
    store: Path | None = Field(None, description="Content-addressed store shared by pods.")
    store_staging: Path | None = Field(
        None, description="Fast local disk for files on their way into a slow store."
    )
    store_budget: Size | None = Field(None, description='Evict beyond this, like "500GB".')


class SyncSection(Section):
    """Finished outputs go to a bucket or a folder."""

    enabled: bool | None = Field(None, description="Default: on when a target is configured.")
    source: Path | None = Field(None, description="Folder to watch; default ComfyUI's output.")
    target: Literal["s3", "folder"] = Field("folder", description="Kind of target.")
    folder: Path | None = Field(None, description="The target when it is a folder.")
    endpoint: str | None = Field(None, description="S3 endpoint URL.")
    bucket: str = Field("runpod", description="Bucket name.")
    region: str = Field("auto", description="S3 region; R2 wants auto.")
    access_key_id: SecretStr | None = Field(None, description="S3 access key.")
    secret_access_key: SecretStr | None = Field(None, description="S3 secret key.")
    prefix: str = Field("outputs", description="First part of every key.")
    key_template: str = Field(
        "{prefix}/{date}/{path}",
        description="Key of an output, from prefix, date, year, month, day, path, folder, name, "
        "stem, suffix and host; it must keep names apart.",
    )
    timezone: str = Field("UTC", description="Time zone of the day in keys, like Europe/Paris.")
    cache_control: str | None = Field(None, description="Cache-Control of the objects.")
    patterns: tuple[str, ...] = Field(
        (
            "*.png", "*.jpg", "*.jpeg", "*.webp", "*.gif", "*.avif", "*.mp4", "*.webm", "*.mov",
            "*.mkv", "*.wav", "*.mp3", "*.flac", "*.ogg", "*.opus", "*.m4a", "*.glb", "*.obj",
            "*.ply", "*.json", "*.txt", "*.latent", "*.safetensors", "*.exr", "*.tiff", "*.svg",
        ),
        description="File names that are outputs (case does not matter).",
    )  # fmt: skip
    ignore: tuple[str, ...] = Field(
        ("*.tmp", "*.part", "*.partial", "*.temp", "*.swp", ".*", "*~"),
        description="File names that never are.",
    )
    concurrency: int = Field(8, ge=1, le=64, description="Uploads at once.")
    on_conflict: Literal["keep-both", "overwrite"] = Field(
        "keep-both", description="Other bytes under a key that exists: a new key, or overwrite."
    )
    delete_after_upload: bool = Field(False, description="Delete once the copy is verified.")
    delete_after_s: Seconds = Field(0.0, description="Keep the local file for so long.")
    rescan_interval_s: Annotated[float, Field(ge=1)] = Field(
        30.0, description="Full look at the folder, in case an event was lost."
    )
    rate_limit: Rate | None = Field(None, description='Cap of all uploads, like "50MB/s".')
    restore: tuple[Literal["workflows", "input", "settings"], ...] = Field(
        (), description="What comes back from the bucket at boot."
    )
    logs: bool = Field(False, description="Upload rotated logs and the boot report too.")

    @field_validator("key_template")
    @classmethod
    def _usable_template(cls, value: str) -> str:
        known = ("prefix", "date", "year", "month", "day", "path", "folder", "name", "stem",
                 "suffix", "host")  # fmt: skip
        fields = {name for _, name, _, _ in Formatter().parse(value) if name is not None}
        if unknown := sorted(fields.difference(known)):
            raise ValueError(f"unknown field {unknown[0]!r} (there are {', '.join(known)})")
        if not fields & {"path", "name", "stem"}:
            raise ValueError("needs {path}, {name} or {stem}, or all files get one key")
        return value

    @field_validator("timezone")
    @classmethod
    def _known_timezone(cls, value: str) -> str:
        from zoneinfo import ZoneInfo  # noqa: PLC0415 (7 ms that a boot need not spend)

        try:
            ZoneInfo(value)
        except (OSError, ValueError, KeyError):
            raise ValueError("is not a time zone of the tz database, like UTC") from None
        return value


class HealthSection(Section):
    """The health port and the web page."""

    host: str = Field("0.0.0.0", description="Address to listen on.")  # noqa: S104
    port: Annotated[int, Field(ge=0, le=65535)] = Field(
        8000, description="Port; 0 lets the kernel choose."
    )
    token: SecretStr | None = Field(None, description="Token of page and API; generated.")
    dashboard: bool = Field(True, description="Serve the web page.")


class IdleSection(Section):
    """Stop the pod when nobody needs it."""

    enabled: bool = Field(False, description="Watch for idleness.")
    minutes: Annotated[float, Field(gt=0)] = Field(60.0, description="Idle so long = stop.")
    action: Literal["stop", "terminate", "exit", "command"] = Field("stop", description="How.")
    command: tuple[str, ...] = Field((), description="Program for action = command.")
    dry_run: bool = Field(False, description="Only say what would be done.")
    api_url: str = Field("https://api.runpod.io", description="RunPod API address.")
    pod_id: str | None = Field(None, description="RunPod pod id.")
    api_key: SecretStr | None = Field(None, description="RunPod API key.")
    ignore_unsynced: bool = Field(False, description="Stop even with outputs not yet stored.")
    pages_count: bool = Field(False, description="An open ComfyUI page counts as use.")
    terminals_count: bool = Field(True, description="A terminal with life counts as use.")


class AlertsSection(Section):
    """Limits beyond which an alert is raised."""

    cpu_percent: Percent = Field(80.0, description="CPU of the container's share.")
    memory_percent: Percent = Field(85.0, description="Memory of the container's limit.")
    disk_percent: Percent = Field(90.0, description="Use of the workspace's disk.")
    gpu_memory_percent: Percent = Field(95.0, description="VRAM use.")
    gpu_temperature_celsius: float = Field(87.0, gt=0, description="Temperature of a GPU.")
    comfyui_response_s: float = Field(5.0, gt=0, description="Time of ComfyUI's answer.")
    queue_length: int = Field(0, ge=0, description="Jobs waiting in ComfyUI; 0 never alerts.")
    interval_s: Annotated[float, Field(ge=1)] = Field(5.0, description="Pause between samples.")
    webhook: SecretStr | None = Field(None, description="URL that alerts are posted to.")


class WorkerSection(Section):
    """The RunPod Serverless handler: reserved, there is no worker yet; the keys are checked."""

    endpoint: str | None = Field(None, description="S3 endpoint (or URL with bucket).")
    access_key_id: SecretStr | None = Field(None, description="S3 access key.")
    secret_access_key: SecretStr | None = Field(None, description="S3 secret key.")
    force_s3_video: bool = Field(True, description="Videos never travel as base64.")
    reconnect_attempts: int = Field(5, ge=0, description="Websocket reconnects.")
    reconnect_delay_s: Seconds = Field(3.0, description="Pause between them.")
    refresh: bool = Field(False, description="Ask for a fresh worker after every job.")


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
