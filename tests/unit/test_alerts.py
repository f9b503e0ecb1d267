"""Alerts: from readings in the snapshot to sentences, state and events."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from supervisor.config.settings import AlertsSection
from supervisor.core.events import EventBus
from supervisor.core.state import StateStore
from supervisor.core.status import (
    DiskStatus,
    GpuDeviceStatus,
    GpuStatus,
    HostStatus,
    Snapshot,
    SyncStatus,
)
from supervisor.monitor.alerts import Alerts

GIB = 1024**3
L4 = GpuDeviceStatus(
    0, "L4", memory_total_bytes=24 * GIB, memory_used_bytes=GIB, temperature_celsius=50.0
)
WELL = HostStatus(
    cpu_ratio=0.1, cpu_limit=8.0, memory_used_bytes=GIB, memory_limit_bytes=100 * GIB,
    disks={"/workspace": DiskStatus(50 * GIB, 100 * GIB)}, comfyui_response_s=0.01,
    comfyui_queue_length=1,
)  # fmt: skip


class Pod:
    """A pod whose readings are set, and a clock that is turned."""

    def __init__(self, **limits: Any) -> None:
        self.state = StateStore(Snapshot(host=WELL, gpu=GpuStatus(devices=(L4,))))
        self.bus = EventBus()
        self.now_s = 0.0
        self.alerts = Alerts(
            settings=AlertsSection(**limits), state=self.state, bus=self.bus,
            clock=lambda: self.now_s,
        )  # fmt: skip

    def live(self, seconds: float = 120.0) -> list[str]:
        """Judge every 5 s; the names of what is raised then."""
        until_s = self.now_s + seconds
        while self.now_s <= until_s:
            self.alerts.check()
            self.now_s += 5.0
        return [alert.name for alert in self.state.snapshot.alerts]

    def host(self, **parts: Any) -> None:
        self.state.update(host=replace(WELL, **parts))

    def gpu(self, **parts: Any) -> None:
        self.state.update(gpu=GpuStatus(devices=(replace(L4, **parts),)))


def test_a_healthy_pod_raises_nothing() -> None:
    assert Pod().live() == []


def test_an_alert_is_raised_once_follows_the_numbers_and_is_cleared_once() -> None:
    pod = Pod()
    services = {"comfyui": 80 * GIB, "jupyter": GIB}
    pod.host(memory_used_bytes=90 * GIB, service_memory_bytes=services)
    assert pod.live(20) == [], "it must last"
    assert pod.live(30) == ["memory"]
    (alert,) = pod.state.snapshot.alerts
    assert alert.message == "Memory at 90% of 100.0 GiB; comfyui holds 80.0 GiB"
    assert "--cache-ram" in (alert.hint or "")
    pod.host(memory_used_bytes=95 * GIB)
    pod.live(5)
    assert pod.state.snapshot.alerts[0].message.startswith("Memory at 95%")
    pod.host(memory_used_bytes=82 * GIB)
    assert pod.live() == ["memory"], "between the two lines nothing changes"
    pod.host(memory_used_bytes=50 * GIB)
    assert pod.live() == []
    kinds = [(event.kind, event.subject) for event in pod.bus.recent()]
    assert kinds == [("alert.raised", "memory"), ("alert.cleared", "memory")]


@pytest.mark.parametrize(
    ("part", "reading", "name", "words"),
    [
        ("host", {"cpu_ratio": 0.97}, "cpu", "CPU at 97% of 8 cores"),
        ("host", {"disks": {"/workspace": DiskStatus(5 * GIB, 100 * GIB)}}, "disk /workspace",
         "/workspace is 95% full, 5.0 GiB are free"),
        ("host", {"disks": {"/workspace": DiskStatus(50 * GIB, 100 * GIB, 300.0)}},
         "disk /workspace filling", "/workspace will be full in 5 min"),
        ("host", {"comfyui_response_s": 9.0}, "comfyui slow", "ComfyUI takes 9.0 s to answer"),
        ("host", {"comfyui_queue_length": 30}, "queue", "30 jobs wait"),
        ("gpu", {"memory_used_bytes": 24 * GIB - 1}, "gpu0 memory", "Memory of GPU 0 at 100%"),
        ("gpu", {"temperature_celsius": 91.0}, "gpu0 temperature", "GPU 0 is at 91 °C"),
        ("gpu", {"throttle_reasons": ("hardware thermal slowdown",)}, "gpu0 throttled",
         "slows itself down: hardware thermal slowdown"),
        ("gpu", {"memory_used_bytes": None, "temperature_celsius": None}, "gpu0 silent",
         "does not answer the driver"),
    ],
)  # fmt: skip
def test_each_limit_has_its_sentence(
    part: str, reading: dict[str, Any], name: str, words: str
) -> None:
    pod = Pod(queue_length=20)
    getattr(pod, part)(**reading)
    assert pod.live() == [name]
    (alert,) = pod.state.snapshot.alerts
    assert words in alert.message
    assert alert.hint


def test_a_power_cap_and_a_queue_without_a_limit_are_nobodys_trouble() -> None:
    pod = Pod()
    pod.gpu(throttle_reasons=("power cap",))
    pod.host(comfyui_queue_length=10_000)
    assert pod.live() == []


def test_a_disk_that_does_not_answer_is_told_and_keeps_its_other_alerts() -> None:
    pod = Pod()
    full = {"/workspace": DiskStatus(GIB, 100 * GIB)}
    pod.host(disks=full)
    assert pod.live() == ["disk /workspace"]
    pod.host(disks=full, silent_disks=("/workspace",))
    assert pod.live() == ["disk /workspace", "disk /workspace silent"]
    silent = pod.state.snapshot.alerts[1]
    assert (silent.severity, "does not answer" in silent.message) == ("error", True)
    pod.host()
    assert pod.live() == []


def test_a_target_that_refuses_everything_is_one_alert_until_it_takes_files_again() -> None:
    pod = Pod()
    wrong = SyncStatus(True, pending=3, last_error="Cannot upload: the key was refused")
    pod.state.update(sync=wrong)
    assert pod.live() == [], "files that wait for their next try need nobody"
    pod.state.update(sync=replace(wrong, blocked=True, hint="check R2_ACCESS_KEY_ID"))
    assert pod.live() == ["sync blocked"]
    (alert,) = pod.state.snapshot.alerts
    assert alert.message == "Outputs are not stored: Cannot upload: the key was refused"
    assert (alert.hint, alert.severity) == ("check R2_ACCESS_KEY_ID", "error")
    pod.state.update(sync=SyncStatus(True, uploaded=3))
    assert pod.live() == []
    assert [event.kind for event in pod.bus.recent()] == ["alert.raised", "alert.cleared"]


def test_the_busiest_service_is_named() -> None:
    pod = Pod()
    pod.host(cpu_ratio=0.97, service_cpu_cores={"jupyter": 0.2, "comfyui": 7.5})
    pod.live()
    assert pod.state.snapshot.alerts[0].message == "CPU at 97% of 8 cores; comfyui uses 7.5"


def test_what_is_gone_is_not_over_its_limit() -> None:
    pod = Pod()
    pod.host(disks={"/data": DiskStatus(0, GIB)})
    assert pod.live() == ["disk /data"]
    pod.host(disks={})
    assert pod.live() == []
    assert [event.kind for event in pod.bus.recent()] == ["alert.raised", "alert.cleared"]
