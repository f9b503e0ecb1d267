"""`[supervisor]`, `[health]`, `[idle]`, `[alerts]` and `[worker]`: the pod as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr

from supervisor.config.settings.section import Percent, Seconds, Section


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


class HealthSection(Section):
    """The health port and the web page."""

    host: str = Field("0.0.0.0", description="Address to listen on.")  # noqa: S104
    port: Annotated[int, Field(ge=0, le=65535)] = Field(
        8000, description="Port; 0 lets the kernel choose."
    )
    token: SecretStr | None = Field(
        None, description="Token of page and API; generated when absent."
    )
    dashboard: bool = Field(True, description="Serve the web page.")


class IdleSection(Section):
    """Stop the pod when nobody needs it."""

    enabled: bool = Field(False, description="End the pod when nobody uses it.")
    minutes: Annotated[float, Field(gt=0)] = Field(
        60.0, description="Minutes without use until then."
    )
    action: Literal["stop", "terminate", "exit", "command"] = Field(
        "stop",
        description="Stop or terminate the pod at RunPod, end the container, or run `command`.",
    )
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
