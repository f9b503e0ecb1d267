"""Everything a pod needs, in one temporary folder: ``supervisor demo`` and end-to-end tests.

A ComfyUI root whose ``main.py`` is the stand-in, a model origin in a process of its own, a
folder as the bucket, and the ``supervisor.toml`` that ties them together. Imports the
standard library only: the page's address is shown before anything heavy is loaded.
"""

from __future__ import annotations

import importlib.util
import json
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

PACKAGE_PARENT = Path(__file__).resolve().parents[2]
DEFAULT_PORT = 8000
COMFYUI_VERSION = "0.33.0"
HOST = "127.0.0.1"
# All that is taken over from the caller: its other settings are not meant for the demo.
KEPT_VARIABLES = ("HOME", "LANG", "LC_ALL", "NO_COLOR", "PATH", "TERM", "TMPDIR", "TZ", "USER")
MODEL_FOLDERS = (
    *("checkpoints", "clip_vision", "controlnet", "diffusion_models", "embeddings", "loras"),
    *("style_models", "text_encoders", "upscale_models", "vae"),
)
MAIN = """\
import sys
from pathlib import Path

sys.path.insert(0, {package_parent!r})

from supervisor.demo.comfyui import main

if __name__ == "__main__":
    sys.exit(main(Path(__file__).resolve().parent))
"""


@dataclass(frozen=True, slots=True)
class DemoModel:
    """A model of the demo; ``civitai`` is its version id there, else it is on the hub."""

    to: str
    size_bytes: int
    civitai: int | None = None
    required: bool = False
    cut_after_bytes: int | None = None  # the first connection ends here: a resume to look at


REPO = "demo/models"
MODELS = (
    DemoModel("vae/demo-vae.safetensors", 2_000_000, required=True),
    DemoModel("checkpoints/demo-sdxl.safetensors", 24_000_000, cut_after_bytes=9_000_000),
    DemoModel("text_encoders/demo-clip.safetensors", 8_000_000),
    DemoModel("loras/demo-style.safetensors", 1_000_000, civitai=41),
)


@dataclass(frozen=True, slots=True)
class DemoWorld:
    """Where everything is. ``environment`` is the whole environment to run with."""

    folder: Path
    config: Path
    environment: Mapping[str, str]
    socket: Path
    comfyui_root: Path
    bucket: Path
    health_port: int
    comfyui_port: int
    token: str

    @property
    def page(self) -> str:
        """The address of the web page, with the token that opens it."""
        return f"http://{HOST}:{self.health_port}/?token={self.token}"

    @property
    def command(self) -> list[str]:
        """How to run the pod."""
        return [sys.executable, "-m", "supervisor", "run", "--config", str(self.config)]


def create_comfyui_root(path: Path) -> Path:
    """Make a folder that looks like an installed ComfyUI and runs the stand-in."""
    (path / "comfy").mkdir(parents=True)
    for name in ("custom_nodes", "input", "output", "user/default/workflows"):
        (path / name).mkdir(parents=True)
    for name in MODEL_FOLDERS:
        (path / "models" / name).mkdir(parents=True)
    (path / "main.py").write_text(MAIN.format(package_parent=str(PACKAGE_PARENT)))
    (path / "comfyui_version.py").write_text(f'__version__ = "{COMFYUI_VERSION}"\n')
    flags = Path(__file__).with_name("cli_args.py")
    shutil.copy(flags, path / "comfy" / "cli_args.py")
    return path


@contextmanager
def demo_world(
    *, environ: Mapping[str, str], port: int | None = None, prompt_every_s: float = 2.0
) -> Iterator[DemoWorld]:
    """Build the world, serve its models, and remove every trace at the end.

    ``port`` is the health port; without it 8000, or a free one when that is taken.

    Raises:
        OSError: the port is taken, or there is no room for the folder.
    """
    with ExitStack() as cleanup:
        folder = Path(tempfile.mkdtemp(prefix="supervisor-demo-"))
        cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
        health_port = _choose_port(port)
        front, storage = cleanup.enter_context(_listen()), cleanup.enter_context(_listen())
        world = DemoWorld(
            folder=folder,
            config=folder / "supervisor.toml",
            environment=_environment(environ, folder),
            socket=folder / "run" / "supervisor.sock",
            comfyui_root=create_comfyui_root(folder / "ComfyUI"),
            bucket=folder / "bucket",
            health_port=health_port,
            comfyui_port=_free_port(),
            token=secrets.token_urlsafe(16),
        )
        origin = f"http://{HOST}:{front.getsockname()[1]}"
        world.config.touch(mode=0o600)  # it holds the token
        world.config.write_text(_settings(world, origin, prompt_every_s))
        cleanup.enter_context(_origin_process(front, storage, world.environment))
        yield world


def _environment(environ: Mapping[str, str], folder: Path) -> dict[str, str]:
    kept = {name: environ[name] for name in KEPT_VARIABLES if name in environ}
    return {
        **kept,
        "PYTHONPATH": str(PACKAGE_PARENT),
        "SUPERVISOR_SOCKET": str(folder / "run" / "supervisor.sock"),
    }


@contextmanager
def _origin_process(
    front: socket.socket, storage: socket.socket, environment: Mapping[str, str]
) -> Iterator[None]:
    """Serve the models; connections made before it is up wait in the sockets' backlog."""
    descriptors = (front.fileno(), storage.fileno())
    process = subprocess.Popen(
        [sys.executable, "-m", "supervisor.demo.serve", *map(str, descriptors)],
        pass_fds=descriptors,
        stdin=subprocess.PIPE,  # it ends when this end is closed, whatever becomes of us
        env=environment,
        start_new_session=True,  # Ctrl-C is for the demo to handle
    )
    try:
        yield
    finally:
        process.kill()
        process.communicate()


def _settings(world: DemoWorld, origin: str, prompt_every_s: float) -> str:
    tables: dict[str, dict[str, object]] = {
        "supervisor": {"state_dir": world.folder / "state", "socket": world.socket},
        "storage": {"workspace": world.folder / "workspace", "seed_comfyui": False},
        "comfyui": {
            "root": world.comfyui_root,
            "python": sys.executable,
            "listen": HOST,
            "port": world.comfyui_port,
        },
        "comfyui.environment": {"DEMO_COMFYUI_PROMPT_EVERY_S": str(prompt_every_s)},
        "jupyter": _jupyter(),
        "ssh": {"enabled": False},
        "models": {"bundles": [], "hf_endpoint": origin, "civitai_endpoint": origin},
        "sync": {"enabled": True, "target": "folder", "folder": world.bucket},
        "health": {"host": HOST, "port": world.health_port, "token": world.token},
    }
    lines = ["# Written by `supervisor demo`."]
    for name, table in tables.items():
        lines += ["", f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in table.items())]
    for model in MODELS:
        table = _model_table(model)
        lines += ["", "[[models.files]]", *(f"{k} = {_toml(v)}" for k, v in table.items())]
    return "\n".join(lines) + "\n"


def _jupyter() -> dict[str, object]:
    if importlib.util.find_spec("jupyterlab") is None:
        return {"enabled": False}
    return {
        "enabled": True,
        "listen": HOST,
        "port": _free_port(),
        "command": [sys.executable, "-m", "jupyterlab"],
    }


def _model_table(model: DemoModel) -> dict[str, object]:
    source: dict[str, object] = {"huggingface": f"{REPO}:{model.to}"}
    if model.civitai is not None:
        source = {"civitai": model.civitai}
    return {**source, "to": model.to, "required": model.required}


def _toml(value: object) -> str:
    """A TOML value: JSON's strings, numbers, booleans and lists are TOML's too."""
    return json.dumps(str(value) if isinstance(value, Path) else value, ensure_ascii=False)


def _listen() -> socket.socket:
    listener = socket.socket()
    listener.bind((HOST, 0))
    listener.listen(128)
    return listener


def _free_port() -> int:
    with _listen() as listener:
        return int(listener.getsockname()[1])


def _choose_port(wanted: int | None) -> int:
    """``wanted``, if it is free; without one the default, or any.

    Raises:
        OSError: ``wanted`` is taken.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, wanted if wanted is not None else DEFAULT_PORT))
        except OSError:
            if wanted is not None:
                raise
            probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
