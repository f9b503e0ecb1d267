"""Alerts of the snapshot's readings: raised and cleared as state and as events."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace

from supervisor.config.settings import AlertsSection
from supervisor.core.clock import iso_utc, wall_time_s
from supervisor.core.events import EventBus, Severity
from supervisor.core.state import StateStore
from supervisor.core.status import Alert
from supervisor.monitor.rules import RuleState, step
from supervisor.monitor.watches import Watch, watches

log = logging.getLogger("supervisor.monitor")


class Alerts:
    """Judges the readings of the snapshot, whenever ``check`` is called."""

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
        self._raised: dict[str, Alert] = {}

    def check(self) -> None:
        """Judge the readings as they are now."""
        now_s = self._clock()
        seen = {w.rule.name: w for w in watches(self._state.snapshot, self._settings)}
        for name, watch in seen.items():
            before = self._known.get(name, RuleState())
            after = self._known[name] = step(watch.rule, before, watch.value, now_s)
            if after.firing and watch.value is not None:
                self._raise(watch, new=not before.firing)
            elif before.firing and not after.firing:
                self._clear(name)
        # A mount, a card or a limit that is gone cannot be over its limit.
        for name in self._raised.keys() - seen.keys():
            self._known.pop(name, None)
            self._clear(name)
        self._state.update(alerts=tuple(self._raised.values()))

    def _raise(self, watch: Watch, *, new: bool) -> None:
        name = watch.rule.name
        if not new and name in self._raised:  # the numbers in it follow the reading
            self._raised[name] = replace(self._raised[name], message=watch.message)
            return
        self._raised[name] = Alert(
            name, watch.message, watch.severity, watch.hint, since=iso_utc(wall_time_s())
        )
        log.warning("%s (hint: %s)", watch.message, watch.hint)
        self._bus.publish(
            "alert.raised",
            watch.message,
            severity=Severity(watch.severity),
            subject=name,
            hint=watch.hint,
        )

    def _clear(self, name: str) -> None:
        alert = self._raised.pop(name)
        message = f"over: {alert.message[0].lower()}{alert.message[1:]}"
        log.info("%s", message)
        self._bus.publish("alert.cleared", message, subject=name)
