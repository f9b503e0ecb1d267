"""The real Dockerfile, built with buildah and run as PID 1 under bubblewrap.

The base is a debootstrapped Debian, ComfyUI a small program in a local git repository with
the stand-in's real option parser; packages come from the machine's own package index. What is
left out is torch, which is gigabytes and changes nothing about the image's structure.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest

from supervisor.api.client import connect

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = "ca-certificates git libgoogle-perftools4 openssh-server python3 python3-venv"
COMFYUI = """
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        body = b'{"system": {}, "exec_info": {"queue_remaining": 0}}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass

port = int(sys.argv[sys.argv.index("--port") + 1])
ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""

pytestmark = [
    pytest.mark.needs("buildah", "bwrap", "debootstrap", "git", "root"),
    pytest.mark.timeout(900),
    pytest.mark.slow,
]


@dataclass(frozen=True)
class Image:
    """A built image: its root file system, unpacked, and its configuration."""

    root: Path
    config: dict[str, object]

    @property
    def environment(self) -> dict[str, str]:
        lines = self.config["Env"]
        assert isinstance(lines, list)
        return dict(line.split("=", 1) for line in lines)


class Buildah:
    """buildah with storage in the test's folder, without a daemon or user namespaces."""

    def __init__(self, folder: Path) -> None:
        storage = ("--root", folder / "root", "--runroot", folder / "run")
        self._prefix = ["buildah", *map(str, storage), "--storage-driver", "vfs"]

    def __call__(self, *arguments: str | Path) -> str:
        done = subprocess.run(
            [*self._prefix, *map(str, arguments)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (
            f"buildah {arguments[0]}:\n{done.stdout}\n{done.stderr[-4000:]}"
        )
        return done.stdout.strip()


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    folder = tmp_path_factory.mktemp("image")
    buildah = Buildah(folder)
    _make_base(buildah, folder)
    _make_comfyui(folder / "comfyui")
    _download_wheels(folder / "wheels")
    buildah(
        *("bud", "-q", "--isolation", "chroot", "--format", "docker"),
        *("--build-arg", "BASE_IMAGE=localhost/base"),
        *("--build-arg", f"APT_PACKAGES={PACKAGES}"),
        *("--build-arg", "PIP_ARGS=--no-index --find-links=/wheels"),
        *("--build-arg", "COMFYUI_REPOSITORY=/comfyui", "--build-arg", "COMFYUI_REF=v1"),
        *("--build-arg", "TORCH_PACKAGES=", "--build-arg", "EXTRA_PACKAGES="),
        *("--volume", f"{folder / 'wheels'}:/wheels:ro"),
        *("--volume", f"{folder / 'comfyui'}:/comfyui:ro"),
        *("-t", "localhost/pod", ROOT),
    )
    inspected = json.loads(buildah("inspect", "--type", "image", "localhost/pod"))
    container = buildah("from", "localhost/pod")
    yield Image(Path(buildah("mount", container)), inspected["Docker"]["config"])
    buildah("umount", container)
    shutil.rmtree(folder)  # gigabytes that pytest would keep


def _make_base(buildah: Buildah, folder: Path) -> None:
    base = folder / "base"
    subprocess.run(
        ["debootstrap", "--variant=minbase", "bookworm", str(base)],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    container = buildah("from", "scratch")
    buildah("add", "-q", container, base, "/")
    buildah("commit", "-q", "--rm", container, "localhost/base")
    shutil.rmtree(base)


def _make_comfyui(folder: Path) -> None:
    (folder / "comfy").mkdir(parents=True)
    (folder / "main.py").write_text(COMFYUI)
    (folder / "requirements.txt").touch()
    shutil.copy(ROOT / "supervisor" / "demo" / "cli_args.py", folder / "comfy" / "cli_args.py")
    author = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    for command in (("init", "-q"), ("add", "."), ("commit", "-q", "-m", "one"), ("tag", "v1")):
        subprocess.run(["git", *author, *command], cwd=folder, check=True)


def _download_wheels(folder: Path) -> None:
    """Every wheel that the build installs; the build itself then needs no index."""
    download = [sys.executable, "-m", "pip", "download", "-q", "--dest", str(folder)]
    for what in (("--require-hashes", "-r", str(ROOT / "requirements.lock")), ("hatchling",)):
        subprocess.run([*download, *what], check=True)


@pytest.fixture
def pod(image: Image, free_tcp_port_factory: object) -> Iterator[Pod]:
    assert callable(free_tcp_port_factory)
    with_pod = Pod(image, health=free_tcp_port_factory(), comfyui=free_tcp_port_factory())
    yield with_pod
    with_pod.process.kill()
    with_pod.process.wait()
    with_pod.run.cleanup()


class Pod:
    """The image's ENTRYPOINT as PID 1 of a namespace of its own."""

    def __init__(self, image: Image, *, health: int, comfyui: int) -> None:
        self.health = health
        # A socket's address holds 107 bytes at most: a short folder stands in for the image's.
        self.run = tempfile.TemporaryDirectory(prefix="pod-")
        self.socket = Path(self.run.name, "supervisor.sock")
        variables = image.environment | {
            "COMFYUI_PORT": str(comfyui),
            "PORT_HEALTH": str(health),
            "R2_SECRET_ACCESS_KEY": "not-for-comfyui",
        }
        entrypoint = image.config["Entrypoint"]
        assert isinstance(entrypoint, list)
        self.process = subprocess.Popen(
            [
                *("bwrap", "--bind", str(image.root), "/", "--proc", "/proc", "--dev", "/dev"),
                *("--bind", self.run.name, "/run/supervisor"),
                *("--tmpfs", "/tmp", "--unshare-pid", "--as-pid-1", "--die-with-parent"),
                *("--clearenv", *(p for k, v in variables.items() for p in ("--setenv", k, v))),
                *("--chdir", str(image.config["WorkingDir"]), *entrypoint),
            ],
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )

    def ping(self) -> int | None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.health}/ping", timeout=5) as got:
                return int(got.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return None

    @property
    def supervisor_pid(self) -> int:
        """The asyncio process: child of bwrap's child, which is PID 1 inside."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return int(children.read_text().split()[0])


async def until_pinged(pod: Pod, status: int) -> None:
    with anyio.fail_after(90):
        while await anyio.to_thread.run_sync(pod.ping) != status:
            assert pod.process.poll() is None, "the entrypoint ended"
            await anyio.sleep(0.1)


@pytest.mark.anyio
async def test_the_entrypoint_boots_answers_and_ends_cleanly(pod: Pod) -> None:
    await until_pinged(pod, 200)
    status = connect(str(pod.socket)).get("/v1/status")
    assert status["phase"] == "ready"
    assert status["services"]["comfyui"]["state"] == "ready"
    assert "not-for-comfyui" not in json.dumps(status)
    os.kill(pod.supervisor_pid, signal.SIGTERM)  # what `docker stop` does to PID 1
    with anyio.fail_after(30):
        assert await anyio.to_thread.run_sync(pod.process.wait) == 0
    assert not pod.socket.exists()


def test_the_image_is_configured_as_documented(image: Image) -> None:
    assert image.config["Entrypoint"] == ["supervisor", "run"]
    health = image.config["Healthcheck"]
    assert isinstance(health, dict)
    assert health["Test"] == ["CMD", "supervisor", "status", "--check"]
    assert set(image.config["ExposedPorts"] or ()) == {"22/tcp", "8000/tcp", "8188/tcp", "8888/tcp"}  # type: ignore[call-overload]


def test_the_supervisor_is_apart_from_comfyui(image: Image) -> None:
    theirs = {
        path.name for path in image.root.glob("opt/comfyui-venv/lib/python3*/site-packages/*")
    }
    ours = {path.name for path in image.root.glob("opt/supervisor/lib/python3*/site-packages/*")}
    assert "aiohttp" in ours
    assert "aiohttp" not in theirs
    # No keys that every container of this image would share.
    assert not list(image.root.glob("etc/ssh/ssh_host_*"))
