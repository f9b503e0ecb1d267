"""The sampler against recorded trees and a stand-in ComfyUI; the webhook against a server."""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import pytest
from aiohttp import web

from supervisor.core.events import EventBus, Severity
from supervisor.core.retry import Backoff
from supervisor.core.state import StateStore
from supervisor.core.status import GpuDeviceStatus, GpuStatus, ServiceStatus, Snapshot
from supervisor.hardware.facts import GpuSample
from supervisor.monitor import webhook
from supervisor.monitor.disks import Disk, FillRate
from supervisor.monitor.processes import Processes, Usage
from supervisor.monitor.readings import Counters
from supervisor.monitor.sampler import Limits, Sampler
from supervisor.monitor.webhook import Webhook

pytestmark = pytest.mark.anyio


def _write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


V2 = {
    "proc/self/cgroup": "0::/\n",
    "sys/fs/cgroup/cpu.stat": "usage_usec 2000000\nuser_usec 1\n",
    "sys/fs/cgroup/memory.current": "1000\n",
    "sys/fs/cgroup/memory.stat": "anon 5\ninactive_file 400\n",
}
V1 = {
    "proc/self/cgroup": "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n",
    "sys/fs/cgroup/cpuacct/cpuacct.usage": "2000000000\n",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": "1000\n",
    "sys/fs/cgroup/memory/memory.stat": "inactive_file 1\ntotal_inactive_file 400\n",
}
MACHINE = {
    "proc/stat": "cpu  100 0 100 999 0 0 0 0 0 0\n",
    "proc/meminfo": "MemTotal: 100 kB\nMemAvailable: 40 kB\n",
}


@pytest.mark.parametrize(("files", "memory"), [(V2, 600), (V1, 600), (MACHINE, 60 * 1024)])
async def test_counters(tmp_path: Path, files: dict[str, str], memory: int) -> None:
    _write(tmp_path, files)
    reading = Counters(tmp_path).read()
    assert reading.cpu_s == pytest.approx(2.0)
    assert reading.memory_bytes == memory


async def test_counters_of_this_machine_grow() -> None:
    counters = Counters()
    first = counters.read()
    sum(range(2_000_000))
    second = counters.read({os.getpid()})
    assert first.cpu_s is not None
    assert second.cpu_s is not None
    assert second.cpu_s > first.cpu_s
    assert second.memory_bytes
    assert second.services[os.getpid()].memory_bytes > 2**20


def stat(pid: int, parent: int = 1, group: int = 1, pages: int = 3, ticks: int = 0) -> str:
    """A line of proc_pid_stat(5), with a name that means trouble."""
    return (
        f"{pid} (a) b) S {parent} {group} {' '.join(['0'] * 8)} {ticks} 0 0 0 {'0 ' * 6}{pages} 0\n"
    )


def test_what_a_service_started_is_its_own(tmp_path: Path) -> None:
    """10 is the leader, 11 of its group, 12 a session of its own below it, 13 below that."""
    _write(tmp_path, {
        "proc/10/stat": stat(10, ticks=100), "proc/11/stat": stat(11, 1, 10),
        "proc/12/stat": stat(12, 10, 12), "proc/13/stat": stat(13, 12, 13),
        "proc/20/stat": stat(20, 1, 20), "proc/21/stat": stat(21, 20, 20, pages=9),
        "proc/meminfo": "",
    })  # fmt: skip
    page, processes = os.sysconf("SC_PAGE_SIZE"), Processes(tmp_path)
    first = processes.read({10})
    assert first == {10: Usage(12 * page, 100 / os.sysconf("SC_CLK_TCK"))}
    _write(tmp_path, {"proc/13/stat": stat(13, 1, 13)})  # 12 ended, 13 is an orphan
    shutil.rmtree(tmp_path / "proc/12")
    assert processes.read({10})[10].memory_bytes == 9 * page
    both = processes.read({10, 20})
    assert (both[10].memory_bytes, both[20].memory_bytes) == (9 * page, 12 * page)
    shutil.rmtree(tmp_path / "proc/10")
    assert processes.read({10, 20}).keys() == {10, 20}, "others of the group go on"


def state_of(total: int) -> StateStore:
    gpu = GpuStatus(devices=(GpuDeviceStatus(index=0, name="x", memory_total_bytes=total),))
    return StateStore(Snapshot(gpu=gpu, services={"comfyui": ServiceStatus("comfyui", ready=True)}))


async def test_a_sample(tmp_path: Path) -> None:
    net = "a\nb\n lo: 9 0 0 0 0 0 0 0 9\n eth0: 700 0 0 0 0 0 0 0 300\n"
    _write(tmp_path, {**V2, "proc/net/dev": net, "proc/7/stat": stat(7)})
    state = state_of(100)
    gpu = [GpuSample(index=0, memory_used_bytes=60, throttle_reasons=("power brake",))]

    async def samples() -> tuple[GpuSample, ...]:
        return tuple(gpu)

    async def answer(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await stream.receive()
            await stream.send(b'HTTP/1.0 200 OK\r\n\r\n{"exec_info": {"queue_remaining": 3}}')

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
    port = listener.extra(anyio.abc.SocketAttribute.local_port)  # noqa: S610 - of anyio
    sampler = Sampler(
        state=state,
        read_gpu=samples,
        pids=lambda: {"comfyui": 7},
        comfyui_url=f"http://127.0.0.1:{port}/prompt",
        disks=[tmp_path, tmp_path / "gone"],
        limits=Limits(2.0, 1000),
        system_root=tmp_path,
    )
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, answer)
        await sampler.sample()
        assert state.snapshot.host.cpu_ratio is None, "one reading is no rate"
        _write(tmp_path, {"sys/fs/cgroup/cpu.stat": "usage_usec 2010000\n"})
        _write(tmp_path, {"proc/7/stat": stat(7, ticks=100_000_000)})
        await sampler.sample()
        host, device = state.snapshot.host, state.snapshot.gpu.devices[0]
        gpu.clear()
        await sampler.sample()
        tasks.cancel_scope.cancel()
    assert host.cpu_ratio
    assert host.memory_used_bytes == 600
    assert host.comfyui_queue_length == 3
    assert host.comfyui_response_s is not None
    assert host.service_memory_bytes["comfyui"] == 3 * os.sysconf("SC_PAGE_SIZE")
    assert host.service_cpu_cores["comfyui"] > 0
    assert list(host.disks) == [str(tmp_path)]
    assert 0 < host.disks[str(tmp_path)].free_bytes <= host.disks[str(tmp_path)].total_bytes
    assert (device.memory_free_bytes, device.throttle_reasons) == (40, ("power brake",))
    assert state.snapshot.gpu.devices[0].memory_used_bytes is None, "a silent card has no numbers"


async def test_a_disk_that_fills_is_seen_coming() -> None:
    rate = FillRate()
    pace = [rate.full_in_s(at_s, 1000 - int(at_s)) for at_s in (0.0, 10.0, 40.0)]
    assert pace == [None, None, 960.0]
    assert rate.full_in_s(45.0, 2000) is None, "something was deleted"


async def test_a_disk_that_hangs_keeps_one_thread_and_its_last_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(tmp_path, patience_s=30.0)
    await disk.look()
    seen, back, looks = disk.last, threading.Event(), []

    def hang(path: Path) -> None:
        looks.append(path)
        back.wait(60)

    with monkeypatch.context() as patch:
        patch.setattr("supervisor.monitor.disks._space", hang)
        disk = Disk(tmp_path, patience_s=0.1)
        disk.last = seen
        for _ in range(3):
            await disk.look()
            assert disk.silent
        assert (looks, disk.last) == ([tmp_path], seen)
    back.set()
    with anyio.fail_after(30):
        while disk.silent:
            await anyio.sleep(0.01)
            await disk.look()
    assert disk.last is not None


async def test_a_silent_comfyui_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("supervisor.monitor.sampler._PATIENCE_S", 0.2)
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
    port = listener.extra(anyio.abc.SocketAttribute.local_port)  # noqa: S610 - of anyio
    state = state_of(0)
    url = f"http://127.0.0.1:{port}/prompt"
    sampler = Sampler(state=state, pids=dict, limits=Limits(1.0, None), comfyui_url=url)
    async with listener:
        await sampler.sample()
    assert state.snapshot.host.comfyui_queue_length is None
    assert state.snapshot.host.comfyui_response_s == 0.2


class Receiver:
    """Takes messages; the first ``refusals`` are answered with 503."""

    def __init__(self, refusals: int = 0) -> None:
        self.refusals = refusals
        self.got: list[dict[str, Any]] = []
        self.changed = anyio.Event()

    async def take(self, request: web.Request) -> web.Response:
        if self.refusals:
            self.refusals -= 1
            return web.Response(status=503)
        self.got.append(json.loads(await request.text()))
        self.changed.set()
        self.changed = anyio.Event()
        return web.Response()


async def test_alerts_reach_the_webhook_in_order_and_its_address_no_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(webhook, "_BACKOFF", Backoff(initial_s=0.01, max_s=0.02))
    receiver, bus = Receiver(refusals=2), EventBus()
    app = web.Application()
    app.router.add_post("/hooks/s3cret", receiver.take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/hooks/s3cret"
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(Webhook(url=url, pod="pod1", bus=bus).run)
            with anyio.fail_after(30):
                while not bus._subscriptions:
                    await anyio.lowlevel.checkpoint()
                bus.publish("alert.raised", "Memory at 90%", subject="memory")
                bus.publish("service.state", "not for people")
                bus.publish("sync.blocked", "an alert says it", severity=Severity.ERROR)
                bus.publish("idle.failed", "Cannot stop the pod", severity=Severity.ERROR)
                while len(receiver.got) < 2:
                    await receiver.changed.wait()
            tasks.cancel_scope.cancel()
    finally:
        await runner.cleanup()
    assert [(m["pod"], m["kind"], m["message"]) for m in receiver.got] == [
        ("pod1", "alert.raised", "Memory at 90%"),
        ("pod1", "idle.failed", "Cannot stop the pod"),
    ]
    assert "HTTP 503" in caplog.text
    assert "s3cret" not in "".join(r.getMessage() for r in caplog.records if "supervisor" in r.name)
