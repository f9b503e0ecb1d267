"""Alerts of the snapshot's readings: raised and cleared as state and as events."""

from __future__ import annotations

import time
from collections.abc import Callable

import anyio
import anyio.abc

from supervisor.config.settings import AlertsSection
from supervisor.core.clock import iso_utc, wall_time_s
from supervisor.core.events import EventBus, Severity
from supervisor.core.state import StateStore
from supervisor.core.status import Alert, Snapshot
from supervisor.monitor.rules import Rule, RuleState, step


class Alerts:
    """Judges the readings of the snapshot every ``interval_s`` of the section."""

    def __init__(
        self,
        *,
        settings: AlertsSection,
        state: StateStore,
        bus: EventBus,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._state = state
        self._bus = bus
        self._clock = clock
        self._known: dict[str, RuleState] = {}

    async def run(
        self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        """Judge until cancelled."""
        task_status.started()
        while True:
            self.check()
            await anyio.sleep(self._settings.interval_s)

    def check(self) -> None:
        """Judge the readings as they are now."""
        seen = readings(self._state.snapshot)
        for name in seen.keys() | self._known.keys():
            before = self._known.get(name, RuleState())
            rule = Rule(name, threshold=self._threshold(name))
            value = seen.get(name)
            after = self._known[name] = step(rule, before, value, self._clock())
            if after.firing != before.firing and value is not None:
                self._change(name, value, rule.threshold, raised=after.firing)

    def _threshold(self, name: str) -> float:
        section = self._settings
        percent = {"cpu": section.cpu_percent, "memory": section.memory_percent}
        return percent.get(name, section.gpu_memory_percent) / 100

    def _change(self, name: str, value: float, threshold: float, *, raised: bool) -> None:
        message = f"{name} at {value:.0%}, the limit is {threshold:.0%}"
        others = tuple(a for a in self._state.snapshot.alerts if a.name != name)
        alert = Alert(name, message, since=iso_utc(wall_time_s()))
        self._state.update(alerts=(*others, alert) if raised else others)
        self._bus.publish(
            "alert.raised" if raised else "alert.cleared",
            message,
            severity=Severity.WARNING if raised else Severity.INFO,
            subject=name,
            ratio=round(value, 3),
        )


def readings(snapshot: Snapshot) -> dict[str, float]:
    """Ratios of the limits, 0..1, by the alert's name; what is unknown is left out."""
    host = snapshot.host
    found: dict[str, float] = {}
    if host.cpu_ratio is not None:
        found["cpu"] = host.cpu_ratio
    if host.memory_used_bytes is not None and host.memory_limit_bytes:
        found["memory"] = host.memory_used_bytes / host.memory_limit_bytes
    for gpu in snapshot.gpu.devices:
        if gpu.memory_used_bytes is not None and gpu.memory_total_bytes:
            found[f"gpu{gpu.index}-memory"] = gpu.memory_used_bytes / gpu.memory_total_bytes
    return found
