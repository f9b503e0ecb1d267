"""Readiness and liveness of real processes, and ComfyUI's ways of restarting."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from supervisor.core.status import ServiceState
from supervisor.services.classify import ExitReason
from supervisor.services.spec import (
    ExecProbe,
    FileProbe,
    HttpProbe,
    Liveness,
    LogProbe,
    NotifyProbe,
    Readiness,
    RestartPolicy,
    ServiceKind,
    StopStep,
    TcpProbe,
)
from tests.process.pod import python, running, shell

pytestmark = pytest.mark.anyio

# A stand-in with ComfyUI's queue on one thread; files in its folder steer it.
SERVER = """
import http.server, json, os, signal, sys, time
folder = os.getcwd()
flag = lambda name: os.path.exists(os.path.join(folder, name))
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if flag("reexec"):
            os.unlink("reexec")
            os.execv(sys.executable, [sys.executable, "-S", "-u", "-c", os.environ["SELF"]])
        if flag("reboot"):
            os.unlink("reboot")
            open(os.environ["__COMFY_CLI_SESSION__"] + ".reboot", "w").close()
            os._exit(0)
        while flag("hang"):
            if flag("spin"):
                sum(range(100000))
            else:
                time.sleep(0.05)
        remaining = 1 if flag("queue") else 0
        body = json.dumps({"exec_info": {"queue_remaining": remaining}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args): pass
if flag("slow"):
    time.sleep(0.5)
if flag("hang"):
    os.unlink("hang")  # a new life is well
server = http.server.HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler)
print("listening", flush=True)
server.serve_forever()
"""


def comfyui(folder: Path, port: int, **options: object):  # type: ignore[no-untyped-def]
    probe = HttpProbe(f"http://127.0.0.1:{port}/prompt")
    spec = python(
        "comfyui",
        SERVER,
        kind=ServiceKind.COMFYUI,
        cwd=folder,
        port=port,
        environment={
            "PORT": str(port),
            "SELF": SERVER,
            "__COMFY_CLI_SESSION__": str(folder / "session"),
        },
        readiness=Readiness(probe, timeout_s=30, interval_s=0.05),
        liveness=Liveness(probe, interval_s=0.1, timeout_s=0.3, failures=2),
        stop=(StopStep("SIGTERM", 2.0),),
    )
    return replace(spec, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["http", "tcp", "exec", "file", "log"])
async def test_every_kind_of_readiness(kind: str, tmp_path: Path, free_tcp_port: int) -> None:
    probe = {
        "http": HttpProbe(f"http://localhost:{free_tcp_port}/x?y", status=200, body='"queue_re'),
        "tcp": TcpProbe("127.0.0.1", free_tcp_port),
        "exec": ExecProbe(("/bin/sh", "-c", f'test -e {tmp_path}/ready -a -n "$PORT"')),
        "file": FileProbe(tmp_path / "ready"),
        "log": LogProbe("^listen[a-z]+$"),
    }[kind]
    script = f"import time; time.sleep(0.1)\n{SERVER}".replace(
        'print("listening"', f'open("{tmp_path}/ready", "w").close()\nprint("listening"'
    )
    spec = python(
        "a",
        script,
        cwd=tmp_path,
        environment={"PORT": str(free_tcp_port)},
        readiness=Readiness(probe, timeout_s=30, interval_s=0.05),  # type: ignore[arg-type]
    )
    async with running(spec) as pod:
        await pod.reaches("a", ServiceState.STARTING)
        assert not pod["a"].ready
        await pod.reaches("a", ServiceState.READY)
        # The service had said so before it was believed.
        await pod.says("a", "listening")


@pytest.mark.needs("openssl")
async def test_readiness_by_https_whoever_signed_it(tmp_path: Path, free_tcp_port: int) -> None:
    certificate = tmp_path / "c.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=elsewhere"
    await anyio.run_process([*command.split(), "-keyout", certificate, "-out", tmp_path / "out"])
    certificate.write_bytes(certificate.read_bytes() + (tmp_path / "out").read_bytes())
    secure = f"""
import ssl
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain({str(certificate)!r})
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"""
    spec = python(
        "a",
        SERVER.replace("server.serve_forever()\n", secure),
        cwd=tmp_path,
        environment={"PORT": str(free_tcp_port)},
        readiness=Readiness(HttpProbe(f"https://localhost:{free_tcp_port}/x", body="queue_rem")),
        liveness=Liveness(
            HttpProbe(f"https://127.0.0.1:{free_tcp_port}/x"),
            interval_s=0.05,
            timeout_s=0.5,
            failures=1000,
        ),
    )
    async with running(spec) as pod:
        await pod.reaches("a", ServiceState.READY)
        (tmp_path / "hang").touch()
        await pod.reaches("a", ServiceState.UNHEALTHY)
        (tmp_path / "hang").unlink()
        assert (await pod.reaches("a", ServiceState.READY)).generation == 1


async def test_notification_by_socket_and_by_descriptor() -> None:
    script = """
import os, socket, time
name = os.environ["NOTIFY_SOCKET"]
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.connect("\\0" + name[1:])
s.send(b"STATUS=loading\\nEXTEND_TIMEOUT_USEC=20000000")
time.sleep(0.6)
s.send(b"READY=1\\nSTATUS=42 models")
time.sleep(1000)
"""
    specs = [
        # Longer than its timeout, but it asked for more.
        python("n", script, readiness=Readiness(NotifyProbe(), timeout_s=0.3, interval_s=0.05)),
        shell(
            "fd",
            "sleep 0.2; echo >&3; exec sleep 1000",
            readiness=Readiness(NotifyProbe(descriptor=True), timeout_s=30),
        ),
    ]
    async with running(*specs) as pod:
        assert (await pod.reaches("n", ServiceState.READY)).message == "42 models"
        assert (await pod.reaches("fd", ServiceState.READY)).generation == 1
        assert pod["n"].generation == 1


async def test_a_strangers_notification_does_not_count() -> None:
    import socket

    script = "echo $NOTIFY_SOCKET; exec sleep 1000"
    spec = shell("a", script, readiness=Readiness(NotifyProbe(), timeout_s=60))
    async with running(spec) as pod:
        await pod.says("a", "supervisor/a/1")
        (address,) = pod.output("a")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
            stranger.connect("\0" + address[1:])
            stranger.send(b"READY=1")
        await anyio.wait_all_tasks_blocked()
        assert pod["a"].state is ServiceState.STARTING


async def test_a_missed_watchdog_is_a_restart() -> None:
    script = """
import os, socket, time
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.connect("\\0" + os.environ["NOTIFY_SOCKET"][1:])
assert os.environ["WATCHDOG_USEC"] == "500000"
s.send(b"READY=1")
time.sleep(1000)
"""
    ready = Readiness(NotifyProbe(watchdog_s=0.5), timeout_s=30)
    async with running(python("a", script, readiness=ready)) as pod:
        status = await pod.when("a", lambda s: s.generation >= 2)
        assert status.restart_reasons.get("watchdog") == 1


async def test_not_ready_in_time_is_retried_and_then_failed() -> None:
    ready = Readiness(FileProbe(Path("/nonexistent")), timeout_s=0.2, interval_s=0.05)
    spec = shell("a", "exec sleep 1000", readiness=ready, max_restarts=1)
    async with running(spec) as pod:
        status = await pod.reaches("a", ServiceState.FAILED)
        assert "not ready within 0.2 s: /nonexistent is missing" in status.message
        assert status.restart_reasons == {"not-ready": 1}
        assert status.last_exit is not None
        assert status.last_exit.signal == "SIGTERM"


async def test_a_hung_comfyui_shows_its_stacks_and_is_restarted(
    tmp_path: Path, free_tcp_port: int
) -> None:
    async with running(comfyui(tmp_path, free_tcp_port)) as pod:
        await pod.reaches("comfyui", ServiceState.READY)
        (tmp_path / "hang").touch()
        await pod.reaches("comfyui", ServiceState.UNHEALTHY)
        status = await pod.when("comfyui", lambda s: s.ready and s.generation == 2)
        assert status.restart_reasons == {"hung": 1}
        log = "\n".join(pod.output("comfyui"))
        assert "Fatal Python error: Aborted" in log
        assert "do_GET" in log


async def test_a_busy_comfyui_is_not_hung(tmp_path: Path, free_tcp_port: int) -> None:
    async with running(comfyui(tmp_path, free_tcp_port)) as pod:
        await pod.reaches("comfyui", ServiceState.READY)
        (tmp_path / "queue").touch()
        await anyio.sleep(0.5)  # for at least one check to see the queue
        (tmp_path / "spin").touch()
        (tmp_path / "hang").touch()
        busy = await pod.when("comfyui", lambda s: s.message.startswith("busy"))
        assert (busy.state, busy.ready) == (ServiceState.UNHEALTHY, True)
        (tmp_path / "hang").unlink()
        status = await pod.reaches("comfyui", ServiceState.READY)
        assert status.generation == 1


async def test_a_restart_waits_for_the_queue_unless_it_is_wanted_now(
    tmp_path: Path, free_tcp_port: int
) -> None:
    (tmp_path / "queue").touch()
    async with running(comfyui(tmp_path, free_tcp_port)) as pod:
        await pod.reaches("comfyui", ServiceState.READY)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pod.manager.restart, "comfyui")
            await pod.when("comfyui", lambda s: "queue is empty: 1 left" in s.message)
            assert pod["comfyui"].generation == 1
            (tmp_path / "queue").unlink()
        assert pod["comfyui"].generation == 2
        await pod.reaches("comfyui", ServiceState.READY)
        (tmp_path / "queue").touch()
        await pod.manager.restart("comfyui", now=True)
        assert pod["comfyui"].generation == 3


async def test_a_stalled_job_is_ended_when_the_user_sets_a_limit(
    tmp_path: Path, free_tcp_port: int
) -> None:
    (tmp_path / "queue").touch()
    async with running(comfyui(tmp_path, free_tcp_port, stall_timeout_s=1.0)) as pod:
        status = await pod.when("comfyui", lambda s: s.generation == 2)
        assert status.restart_reasons == {str(ExitReason.STALLED): 1}
        (tmp_path / "queue").unlink()


async def test_a_restart_in_place_is_neither_hung_nor_a_new_process(
    tmp_path: Path, free_tcp_port: int
) -> None:
    async with running(comfyui(tmp_path, free_tcp_port)) as pod:
        first = await pod.reaches("comfyui", ServiceState.READY)
        (tmp_path / "slow").touch()
        (tmp_path / "reexec").touch()
        again = await pod.when("comfyui", lambda s: s.state is ServiceState.STARTING)
        assert "in place" in again.message
        status = await pod.reaches("comfyui", ServiceState.READY)
        assert (status.pid, status.generation) == (first.pid, 1)
        assert status.restart_reasons == {"restart-in-place": 1}


async def test_a_reboot_by_marker_is_planned_and_at_once(
    tmp_path: Path, free_tcp_port: int
) -> None:
    async with running(comfyui(tmp_path, free_tcp_port)) as pod:
        await pod.reaches("comfyui", ServiceState.READY)
        (tmp_path / "reboot").touch()
        status = await pod.when("comfyui", lambda s: s.ready and s.generation == 2)
        assert status.restart_reasons == {"planned-restart": 1}
        assert "backoff" not in pod.states("comfyui")
        assert not (tmp_path / "session.reboot").exists()


async def test_a_refused_flag_of_the_planner_is_dropped() -> None:
    script = """
import argparse, time
parser = argparse.ArgumentParser("main.py")
parser.add_argument("--keep", type=int)
print("started with", parser.parse_args(), flush=True)
time.sleep(1000)
"""
    spec = python("a", script, kind=ServiceKind.COMFYUI, planner_flags=("--new-flag",))
    command = (*(spec.command), "--new-flag", "7", "--keep", "1")
    async with running(replace(spec, command=command)) as pod:
        await pod.says("a", "started with Namespace(keep=1)")
        assert pod["a"].generation == 2
        assert pod["a"].restart_reasons == {"bad-flag": 1}


async def test_a_refused_flag_of_the_user_fails_at_once() -> None:
    script = "import argparse; argparse.ArgumentParser('main.py').parse_args()"
    spec = python("a", script, kind=ServiceKind.COMFYUI)
    async with running(replace(spec, command=(*spec.command, "--typo"))) as pod:
        status = await pod.reaches("a", ServiceState.FAILED)
        assert status.generation == 1
        assert "--typo" in status.message
        assert status.hint is not None


async def test_safe_mode_is_tried_once(tmp_path: Path) -> None:
    script = """
import sys, time
if "--disable-all-custom-nodes" not in sys.argv: sys.exit(1)
print("safe", flush=True); time.sleep(1000)
"""
    spec = python("a", script, kind=ServiceKind.COMFYUI, safe_mode=True, max_restarts=2)
    async with running(spec) as pod:
        await pod.says("a", "safe")
        assert pod["a"].generation == 4
        pid = pod["a"].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        # Still in safe mode: whatever broke it is still there.
        await pod.when("a", lambda s: s.ready and s.generation == 5)
        await pod.manager.stop("a")


async def test_out_of_memory_in_the_log_is_the_reason_and_may_adjust_the_spec() -> None:
    from supervisor.services.classify import Classification
    from supervisor.services.spec import ServiceSpec

    def ladder(spec: ServiceSpec, told: Classification) -> ServiceSpec | None:
        if told.reason is not ExitReason.CUDA_OOM:
            return None
        return replace(spec, command=("/bin/sh", "-c", "echo lowered; exec sleep 1000"))

    script = "echo 'torch.OutOfMemoryError: CUDA out of memory. Tried' >&2; exit 1"
    async with running(shell("a", script, kind=ServiceKind.COMFYUI), adjust=ladder) as pod:
        await pod.says("a", "lowered")
        assert pod["a"].restart_reasons == {"cuda-oom": 1}


async def test_what_a_former_life_wrote_is_not_the_reason(tmp_path: Path) -> None:
    first = "echo 'torch.OutOfMemoryError: CUDA out of memory. Tried' >&2"
    script = f"test -e {tmp_path}/again || {{ touch {tmp_path}/again; {first}; }}; exit 1"
    async with running(shell("a", script, max_restarts=1)) as pod:
        status = await pod.reaches("a", ServiceState.FAILED)
        assert pod.exits("a") == ["cuda-oom", "exit-code"]
        assert "CUDA" not in status.message


async def test_the_next_start_waits_for_the_gpu_memory() -> None:
    waited = []

    async def released(spec: object) -> str | None:
        waited.append(spec)
        return "3 GiB were not given back" if len(waited) == 2 else None

    spec = shell("a", "exit 1", max_restarts=2)
    async with running(spec, released=released) as pod:
        await pod.reaches("a", ServiceState.FAILED)
        assert len(waited) == 2
        assert pod.output("a", "supervisor") == ["3 GiB were not given back"]
        warnings = [e.message for e in pod.bus.recent() if e.kind == "service.warning"]
        assert warnings == ["a: starting all the same: 3 GiB were not given back"]


async def test_a_one_shot_that_is_done_satisfies_its_users() -> None:
    from supervisor.services.spec import Dependency

    specs = [
        shell("once", "true", restart=RestartPolicy.NEVER),
        shell("user", "exec sleep 1000", after=(Dependency("once"),)),
    ]
    async with running(*specs) as pod:
        await pod.reaches("once", ServiceState.STOPPED)
        await pod.reaches("user", ServiceState.READY)
