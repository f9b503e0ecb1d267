"""A pod that nobody uses ends by itself, with everything stored."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from aiohttp import web

from supervisor.demo.comfyui import example_prompt
from supervisor.demo.media import png
from supervisor.demo.world import DemoWorld, demo_world
from tests.e2e.pod import DEADLINE_S, Pod, edit, wait_for
from tests.support.s3_servers import strict

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
def idle_world(
    api: RunPodApi, *, sync: Mapping[str, object] | None = None, **idle: object
) -> Iterator[DemoWorld]:
    """A limit of 2 s and an output from before; ``sync`` names another bucket than a folder."""
    with demo_world(environ=os.environ, port=0, prompt_every_s=0) as world:
        picture = png(width=8, height=8, seed=1, text={})
        (world.comfyui_root / "output" / "before.png").write_bytes(picture)
        edit(world, "jupyter", enabled=False)
        edit(world, "storage", mode="persistent")  # as if the bucket outlived the pod
        edit(world, "sync", **(sync or {}))
        settings = {"enabled": True, "minutes": 2 / 60, "api_url": api.url, "pod_id": "pod1"}
        settings["terminals_count"] = False  # the terminals of this machine are not the pod's
        edit(world, "idle", **{**settings, **idle})
        yield world


def boot(world: DemoWorld) -> Pod:
    """Nobody waits for it to be ready: by then it may have ended."""
    return Pod(world, environment={"RUNPOD_API_KEY": KEY})


def submitted(world: DemoWorld) -> bool:
    """Submit a job; False while ComfyUI does not answer."""
    body = json.dumps({"prompt": example_prompt(1)}).encode()
    url = f"http://127.0.0.1:{world.comfyui_port}/prompt"
    try:
        with urllib.request.urlopen(url, data=body, timeout=DEADLINE_S) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def outputs(world: DemoWorld) -> set[str]:
    return {path.name for path in (world.comfyui_root / "output").rglob("*.png")}


def test_an_idle_pod_drains_flushes_calls_the_stop_once_and_exits(api: RunPodApi) -> None:
    with idle_world(api, minutes=5 / 60) as world, boot(world) as pod:
        wait_for(lambda: submitted(world), "a job is taken")
        assert pod.process.wait(DEADLINE_S) == 0
        assert api.asked == [
            ("/v2/pods/pod1/action", json.dumps({"action": "stop"}), f"Bearer {KEY}")
        ]
        assert len(outputs(world)) > 1
        assert outputs(world) == {path.name for path in world.bucket.rglob("*.png")}
        text = pod.text()
        assert re.search(r"in \d s the pod is stopped \(hint: `supervisor idle keep 2h`", text)
        assert "stopped (nobody has used the pod for 5 s)" in text
        assert KEY not in text


def test_a_pod_that_is_kept_goes_on_and_says_so(api: RunPodApi) -> None:
    with idle_world(api, dry_run=True) as world, boot(world) as pod:
        pod.wait(lambda s: s["idle"]["enabled"], "the watcher is there")
        assert pod.cli("idle", "keep", "2h").returncode == 0
        shown = pod.json("idle", "status")
        assert "kept by request" in shown["busy_because"]
        assert shown["kept_until"] is not None
        assert "kept by request" in pod.cli("status").stdout
        assert "idle release" in pod.cli("idle", "status").stdout
        assert pod.json("idle", "release")["kept_until"] is None
        wait_for(lambda: "Dry run: nobody has used the pod" in pod.text(), "it would be stopped")
        assert api.asked == []


def test_a_refused_stop_keeps_the_pod_and_says_what_to_do(api: RunPodApi) -> None:
    api.status = 500
    with idle_world(api) as world, boot(world) as pod:
        status = pod.wait(lambda s: s["idle"]["problem"], "the refusal is told")
        assert "Cannot stop the pod: REST v2: HTTP 500" in status["idle"]["problem"]
        pod.wait(lambda s: s["services"]["comfyui"]["ready"], "ComfyUI is back")
        assert "HTTP 500" in pod.cli("idle", "status").stdout
        assert KEY not in json.dumps(pod.status())


class Bucket:
    """Decides what the bucket does with uploads: refuse, keep waiting, or take them."""

    def __init__(self) -> None:
        self.does: int | str | None = 503
        self.waiting = 0

    def __call__(self, request: web.Request, _: int) -> int | str | None:
        if request.method != "PUT":
            return None
        self.waiting += self.does == "hang"
        return self.does


def test_the_boot_after_a_flush_was_killed_goes_on_with_it(api: RunPodApi) -> None:
    bucket = Bucket()
    with (
        strict(fault=bucket) as server,
        idle_world(api, sync=server.settings) as world,
        boot(world) as pod,
    ):
        pod.wait(lambda s: s["idle"]["ending"] == "outputs are stored", "the flush has begun")
        bucket.does = "hang"
        wait_for(lambda: bucket.waiting, "an upload is under way")
        assert pod.status()["idle"]["ending"] == "outputs are stored"
        os.kill(pod.supervisor, signal.SIGKILL)
        pod.process.wait(DEADLINE_S)
        assert server.objects() == {}
        assert api.asked == []
        bucket.does = None
        with boot(world) as again:
            assert again.process.wait(DEADLINE_S) == 0
        assert len(api.asked) == 1
        assert outputs(world) == {key.rpartition("/")[2] for key in server.objects()}


def test_a_bucket_that_refuses_keeps_the_pod(api: RunPodApi) -> None:
    with strict() as server, idle_world(api, sync=server.settings) as world:
        assert server.strict is not None
        server.strict.keys.clear()  # whoever comes is a stranger
        with boot(world) as pod:
            status = pod.wait(lambda s: s["idle"]["problem"], "it is told")
            assert "outputs are not stored yet (1)" in status["idle"]["problem"]
            assert status["services"]["comfyui"]["ready"], "nobody gains from a stopped ComfyUI"
            assert api.asked == []
