"""`[comfyui]`, `[jupyter]`, `[filebrowser]` and `[ssh]`: the built-in services."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr

from supervisor.config.settings.section import Port, Seconds, Section
from supervisor.config.settings.services import ON_FAILURE, OnFailure


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
    on_failure: OnFailure = Field("ignore", description=ON_FAILURE)
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
