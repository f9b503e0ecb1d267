"""A pod that nobody uses ends by itself, with everything stored."""

from __future__ import annotations

import json
import os
import signal
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from supervisor.demo.comfyui import example_prompt
from supervisor.demo.world import DemoWorld, demo_world
from tests.e2e.pod import DEADLINE_S, Pod, edit, ready_pod, wait_for

KEY = "rpa_sentinelRUNPOD00000000000000003"


class RunPodApi:
    """A stand-in of RunPod's API: keeps what it was asked, answers ``status``."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, str | None]] = []
        self.status = 200
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
                api.asked.append((self.path, body, self.headers.get("Authorization")))
                self.send_response(api.status)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *_: object) -> None:
                """The test's output stays clean."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def api() -> Iterator[RunPodApi]:
    made = RunPodApi()
    thread = threading.Thread(target=made.server.serve_forever, daemon=True)
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join(DEADLINE_S)


@contextmanager
def idle_pod(api: RunPodApi, **idle: object) -> Iterator[tuple[DemoWorld, Pod]]:
    with demo_world(environ=os.environ, port=0, prompt_every_s=0) as world:
        edit(world, "jupyter", enabled=False)
        edit(world, "storage", mode="persistent")  # as if the bucket outlived the pod
        settings = {"enabled": True, "minutes": 5 / 60, "api_url": api.url, "pod_id": "pod1"}
        settings["terminals_count"] = False  # the terminals of this machine are not the pod's
        edit(world, "idle", **{**settings, **idle})
        with ready_pod(world, environment={"RUNPOD_API_KEY": KEY}) as pod:
            yield world, pod


def submit(world: DemoWorld) -> None:
    body = json.dumps({"prompt": example_prompt(1)}).encode()
    url = f"http://127.0.0.1:{world.comfyui_port}/prompt"
    with urllib.request.urlopen(url, data=body, timeout=DEADLINE_S) as answer:
        assert answer.status == 200


def test_an_idle_pod_drains_flushes_calls_the_stop_once_and_exits(api: RunPodApi) -> None:
    with idle_pod(api) as (world, pod):
        submit(world)
        assert pod.process.wait(DEADLINE_S) == 0
        assert api.asked == [
            ("/v2/pods/pod1/action", json.dumps({"action": "stop"}), f"Bearer {KEY}")
        ]
        made = list((world.comfyui_root / "output").rglob("*.png"))
        stored = {path.name for path in world.bucket.rglob("*.png")}
        assert made
        assert {path.name for path in made} <= stored
        text = pod.text()
        assert "in 1 s the pod is stopped" in text
        assert "`supervisor idle keep 2h`" in text
        assert "stopped (nobody has used the pod for 5 s)" in text
        assert KEY not in text


def test_a_pod_that_is_kept_goes_on_and_says_so(api: RunPodApi) -> None:
    with idle_pod(api, dry_run=True) as (_, pod):
        assert pod.cli("idle", "keep", "2h").returncode == 0
        shown = pod.json("idle", "status")
        assert shown["busy_because"] == ["kept by request"]
        assert shown["kept_until"] is not None
        assert "kept by request" in pod.cli("status").stdout
        assert "idle release" in pod.cli("idle", "status").stdout
        assert pod.json("idle", "release")["kept_until"] is None
        wait_for(lambda: "Dry run: nobody has used the pod" in pod.text(), "it would be stopped")
        assert api.asked == []


def test_a_refused_stop_keeps_the_pod_and_says_what_to_do(api: RunPodApi) -> None:
    api.status = 500
    with idle_pod(api) as (_, pod):
        status = pod.wait(lambda s: s["idle"]["problem"], "the refusal is told")
        assert "Cannot stop the pod: REST v2: HTTP 500" in status["idle"]["problem"]
        pod.wait(lambda s: s["services"]["comfyui"]["ready"], "ComfyUI is back")
        assert "HTTP 500" in pod.cli("idle", "status").stdout
        assert KEY not in json.dumps(pod.status())


def test_what_a_killed_flush_left_is_stored_by_the_next_boot(api: RunPodApi) -> None:
    with idle_pod(api, minutes=600.0) as (world, pod):
        submit(world)
        wait_for(lambda: list((world.comfyui_root / "output").rglob("*.png")), "a picture")
        os.kill(pod.supervisor, signal.SIGKILL)
        pod.process.wait(DEADLINE_S)
        edit(world, "idle", minutes=5 / 60)
        with ready_pod(world, environment={"RUNPOD_API_KEY": KEY}) as again:
            assert again.process.wait(DEADLINE_S) == 0
        assert len(api.asked) == 1
        made = {path.name for path in (world.comfyui_root / "output").rglob("*.png")}
        assert made <= {path.name for path in world.bucket.rglob("*.png")}
