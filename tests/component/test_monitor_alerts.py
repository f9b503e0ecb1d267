"""Alerts: from readings in the snapshot to state and events."""

from __future__ import annotations

from supervisor.config.settings import AlertsSection
from supervisor.core.events import EventBus
from supervisor.core.state import StateStore
from supervisor.core.status import GpuDeviceStatus, GpuStatus, HostStatus
from supervisor.monitor.alerts import Alerts


def test_an_alert_is_raised_once_and_cleared_once() -> None:
    state, bus, now_s = StateStore(), EventBus(), [0.0]
    alerts = Alerts(settings=AlertsSection(), state=state, bus=bus, clock=lambda: now_s[0])
    with bus.subscribe() as events:
        for used in [90] * 10 + [50] * 10:
            gpu = GpuDeviceStatus(0, "L4", memory_total_bytes=100, memory_used_bytes=used)
            host = HostStatus(memory_used_bytes=used, memory_limit_bytes=100, cpu_ratio=0.1)
            state.update(host=host, gpu=GpuStatus(devices=(gpu,)))
            alerts.check()
            # 85 % of memory is the limit, 95 % of the GPU's: only one of them is crossed.
            expected = ["memory"] if 30 <= now_s[0] < 80 else []
            assert [alert.name for alert in state.snapshot.alerts] == expected
            now_s[0] += 5
        kinds = [(event.kind, event.subject) for event in events._queue]
    assert kinds == [("alert.raised", "memory"), ("alert.cleared", "memory")]
