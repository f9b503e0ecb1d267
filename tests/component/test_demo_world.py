"""The world of ``supervisor demo``: valid, complete, and gone afterwards."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from supervisor.demo.comfyui import SESSION_VARIABLE, example_prompt
from supervisor.demo.media import safetensors
from supervisor.demo.world import MODELS, DemoWorld, create_comfyui_root, demo_world
from supervisor.hardware.comfyui import read_comfyui
from tests.component.test_demo_comfyui import Instance, wait_until
from tests.pidns.harness import process_state


def supervisor(world: DemoWorld, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "supervisor", *arguments, "--config", str(world.config)],
        env=world.environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_root_is_an_installed_comfyui_to_the_planner(tmp_path: Path) -> None:
    root = create_comfyui_root(tmp_path / "ComfyUI")
    facts = read_comfyui(root, python=None, cache_directory=None, environ={})
    assert facts.installed
    assert facts.error is None
    assert facts.flags_source == "cli_args.py"
    assert facts.version == "0.33.0"
    accepted = ("--highvram", "--novram", "--cache-ram", "--disable-dynamic-vram", "--log-stdout")
    assert all(facts.accepts(flag) for flag in accepted)
    assert not any(facts.accepts(flag) for flag in ("--medvram", "--normalvram"))


def test_root_runs_from_anywhere(tmp_path: Path) -> None:
    root = create_comfyui_root(tmp_path / "ComfyUI")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, str(root / "main.py"), "--port", str(port), "--cpu"],
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", SESSION_VARIABLE)},
        stderr=subprocess.DEVNULL,
    )
    try:
        comfyui = Instance(process, port, root)
        wait_until(comfyui.listening, "it listens")
        comfyui.run_prompt(example_prompt(1))
        assert (root / "output/demo/image_00001_.png").exists()
    finally:
        process.kill()
        process.wait()


def test_settings_are_valid_and_the_plan_is_complete() -> None:
    with demo_world(environ=os.environ) as world:
        checked = supervisor(world, "check")
        assert checked.returncode == 0, checked.stderr
        planned = supervisor(world, "plan", "--json")
        assert planned.returncode == 0, planned.stderr
        plan = json.loads(planned.stdout)
        services = {service["name"]: service for service in plan["services"]}
        assert services["comfyui"]["command"][1] == str(world.comfyui_root / "main.py")
        assert {download["name"] for download in plan["downloads"]} == {m.to for m in MODELS}
        assert plan["sync"]["enabled"]
        assert plan["health"]["port"] == world.health_port
        assert world.token not in planned.stdout


def test_models_can_be_fetched_and_one_connection_is_cut() -> None:
    with demo_world(environ=os.environ) as world:
        settings = tomllib.loads(world.config.read_text())
        hub = settings["models"]["hf_endpoint"]
        for model in MODELS:
            url = f"{hub}/demo/models/resolve/main/{model.to}"
            if model.civitai is not None:
                url = f"{hub}/api/download/models/{model.civitai}"
            with urllib.request.urlopen(url, timeout=60) as answer:  # noqa: S310
                assert int(answer.headers["Content-Length"]) == pytest.approx(
                    model.size_bytes, abs=300
                )
                if model.cut_after_bytes is None and model.size_bytes < 3_000_000:
                    expected = hashlib.sha256(safetensors(model.to, model.size_bytes)).digest()
                    assert hashlib.sha256(answer.read()).digest() == expected
                elif model.cut_after_bytes is not None:
                    with pytest.raises(http.client.IncompleteRead):
                        answer.read()


def test_settings_of_the_caller_stay_out() -> None:
    environ = {**os.environ, "SUPERVISOR_HEALTH__PORT": "1", "R2_BUCKET": "mine", "PORT": "2"}
    with demo_world(environ=environ) as world:
        assert not {"SUPERVISOR_HEALTH__PORT", "R2_BUCKET", "PORT"} & world.environment.keys()


def test_taken_port_is_an_error_only_when_it_was_asked_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match="in use"), demo_world(environ=os.environ, port=port):
            pass
    with demo_world(environ=os.environ, port=port) as world:
        assert world.health_port == port


def test_nothing_is_left() -> None:
    with demo_world(environ=os.environ) as world:
        origin = _origin_pid(world)
        hub = tomllib.loads(world.config.read_text())["models"]["hf_endpoint"]
    assert not world.folder.exists()
    assert process_state(origin) == ""
    with pytest.raises(urllib.error.URLError, match="refused"):
        urllib.request.urlopen(hub, timeout=5)  # noqa: S310


def test_origin_ends_with_a_killed_demo() -> None:
    script = (
        "import os\n"
        "from supervisor.demo.world import demo_world\n"
        "with demo_world(environ=os.environ) as world:\n"
        "    print(world.folder, flush=True)\n"
        "    input()\n"
    )
    demo = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert demo.stdout is not None
    folder = Path(demo.stdout.readline().strip())
    (origin,) = pids_with(str(folder / "run" / "supervisor.sock")) - {demo.pid}
    demo.kill()
    demo.communicate()
    wait_until(lambda: process_state(origin) in ("", "Z"), "the origin ended")
    shutil.rmtree(folder)  # a killed demo cannot


def _origin_pid(world: DemoWorld) -> int:
    (pid,) = pids_with(str(world.socket))
    return pid


def pids_with(marker: str, *, patience_s: float = 10) -> set[int]:
    """Processes with ``marker`` in their environment."""
    deadline = time.monotonic() + patience_s
    found: set[int] = set()
    while True:
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                try:
                    environment = (entry / "environ").read_bytes()
                except OSError:
                    continue
                if marker.encode() in environment:
                    found.add(int(entry.name))
        if found or time.monotonic() >= deadline:
            return found
