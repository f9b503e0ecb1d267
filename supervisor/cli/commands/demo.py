"""``supervisor demo``: a whole pod of stand-ins on a bare machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

from supervisor.errors import ExitCode, SupervisorError

TYPE_CHECKING = False  # spares the import of typing; type checkers know the name
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Mapping
    from pathlib import Path

    from supervisor.demo.world import DemoWorld

STOP_TIMEOUT_S = 20.0
"""Longer than the pod's own grace of 9 s and what the init adds."""
_PR_SET_PDEATHSIG = 1  # include/uapi/linux/prctl.h


def configure(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--port", type=_port, metavar="N", help="health port (default: 8000 or free)"
    )
    parser.add_argument("--seconds", type=_seconds, metavar="N", help="end after so many seconds")
    parser.description = (
        "Boot a whole pod with stand-ins: no GPU, no ComfyUI, no network, no bucket. "
        "Ends on Ctrl-C and leaves nothing behind."
    )


def run(args: Namespace, environ: Mapping[str, str]) -> int:
    """Run the demo to its end; the exit code."""
    from supervisor.demo.world import demo_world  # noqa: PLC0415 - not for --help

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.default_int_handler)
    try:
        with demo_world(environ=environ, port=args.port) as world:
            return _run_pod(world, args.seconds)
    except BrokenPipeError:
        raise  # whoever read the address has gone: as with every command
    except OSError as error:
        hint = "choose another port with --port" if args.port else None
        raise SupervisorError(f"Cannot build the demo: {error}", hint=hint) from error


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65535:
        raise ValueError(text)
    return port


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds <= threading.TIMEOUT_MAX:  # nan is neither
        raise ValueError(text)
    return seconds


_port.__name__, _seconds.__name__ = "port", "number of seconds"  # argparse: "invalid port value"


def _run_pod(world: DemoWorld, seconds: float | None) -> int:
    print(f"page:    {world.page}")
    print(f"status:  SUPERVISOR_SOCKET={world.socket} supervisor status")
    print(f"bucket:  {world.bucket}/")
    print("The pod boots; Ctrl-C ends it.\n", flush=True)
    begin = time.monotonic()
    pod = _start(world)
    asked = False
    try:
        pod.wait(seconds)
    except (KeyboardInterrupt, subprocess.TimeoutExpired):
        asked = True
    code = _stop(pod)
    print(f"\n{_summary(world, time.monotonic() - begin)}", flush=True)
    if asked and code in (0, 128 + signal.SIGTERM):
        return ExitCode.DONE
    print(f"supervisor: the pod ended with {code}", file=sys.stderr)
    return code if code > 0 else ExitCode.BUG


def _start(world: DemoWorld) -> subprocess.Popen[bytes]:
    """Start the pod; it stops when this process is killed and cannot ask it to."""
    import ctypes  # noqa: PLC0415 - not for --help

    prctl, demo = ctypes.CDLL(None).prctl, os.getpid()

    def end_with_us() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != demo:
            os._exit(0)  # killed before that was asked for

    return subprocess.Popen(
        world.command,
        env=world.environment,
        start_new_session=True,  # Ctrl-C shall arrive once, through us
        preexec_fn=end_with_us,  # noqa: PLW1509 - this process has no other thread
    )


def _stop(pod: subprocess.Popen[bytes]) -> int:
    """Ask the pod to stop; another Ctrl-C hurries it, and the deadline kills it."""
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while pod.poll() is None:
        try:
            pod.terminate()
            pod.wait(max(0.0, deadline - time.monotonic()))
        except KeyboardInterrupt:
            continue
        except subprocess.TimeoutExpired:
            pod.kill()
    return pod.returncode


def _summary(world: DemoWorld, elapsed_s: float) -> str:
    models = _files(world.comfyui_root / "models", (".safetensors",))
    pictures = _files(world.bucket, (".png",))
    videos = _files(world.bucket, (".mp4",))
    return (
        f"The demo ran for {elapsed_s:.0f} s: {_count(models, 'model')} "
        f"({sum(f.stat().st_size for f in models) / 1e6:.0f} MB) fetched, "
        f"{_count(pictures, 'picture')} and {_count(videos, 'video')} stored in the bucket. "
        f"Everything is gone again."
    )


def _count(files: list[Path], noun: str) -> str:
    return f"{len(files)} {noun}{'' if len(files) == 1 else 's'}"


def _files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    if not folder.is_dir():
        return []
    return [path for path in folder.rglob("*") if path.suffix in suffixes and path.is_file()]
