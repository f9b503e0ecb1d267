"""Where a runner writes what its service does: the state store and the event bus."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from supervisor.core.clock import iso_utc, wall_time_s
from supervisor.core.events import EventBus, Severity
from supervisor.core.state import StateStore
from supervisor.core.status import LastExit, ServiceState, ServiceStatus
from supervisor.services.classify import Classification
from supervisor.services.machine import Trigger, next_state
from supervisor.services.process import Exit
from supervisor.services.spec import ServiceSpec

_SEVERITIES = {
    ServiceState.BACKOFF: Severity.WARNING,
    ServiceState.UNHEALTHY: Severity.WARNING,
    ServiceState.FAILED: Severity.ERROR,
}


_SAID = {
    ServiceState.BACKOFF: "waits before its next try",
    ServiceState.FAILED: "has failed",
}  # the others are words that follow "is"


class Board:
    """The status of one service; every change of state goes through the table."""

    def __init__(self, spec: ServiceSpec, *, state: StateStore, bus: EventBus) -> None:
        self._state = state
        self._bus = bus
        self.status = ServiceStatus(
            name=spec.name,
            state=ServiceState.WAITING if spec.enabled else ServiceState.DISABLED,
            required=spec.required,
            url=spec.url,
            since_s=wall_time_s(),
        )
        state.set_service(self.status)

    def publish(self, **changes: Any) -> None:
        """Change fields of the status."""
        self.status = replace(self.status, **changes)
        self._state.set_service(self.status)

    def step(
        self, trigger: Trigger, message: str = "", *, hint: str | None = None, **changes: Any
    ) -> None:
        """Take one transition and tell everybody.

        Raises:
            IllegalTransitionError: a bug of the runner.
        """
        before = self.status.state
        state = next_state(before, trigger)
        self.publish(state=state, message=message, hint=hint, since_s=wall_time_s(), **changes)
        name, said = self.status.name, _SAID.get(state, f"is {state}")
        self._bus.publish(
            "service.state",
            f"{name} {said}" + (f": {message}" if message not in ("", state) else ""),
            severity=_SEVERITIES.get(state, Severity.INFO),
            subject=name,
            state=str(state),
            previous=str(before),
            generation=self.status.generation,
            pid=self.status.pid,
            hint=hint,
        )

    def warn(self, message: str) -> None:
        """Tell of something that is odd and changes nothing."""
        name = self.status.name
        self._bus.publish(
            "service.warning", f"{name}: {message}", severity=Severity.WARNING, subject=name
        )

    def count_restart(self, reason: str) -> dict[str, Any]:
        """Return the changes that count one more restart."""
        reasons = dict(self.status.restart_reasons)
        reasons[reason] = reasons.get(reason, 0) + 1
        return {"restart_reasons": reasons, "restarts": sum(reasons.values())}

    def exited(self, told: Classification, ended: Exit) -> None:
        """Record how a life has ended."""
        name = self.status.name
        self._bus.publish(
            "service.exit",
            f"{name} {told.message}",
            severity=Severity.INFO if told.success else Severity.WARNING,
            subject=name,
            reason=str(told.reason),
            code=ended.code,
            signal=ended.signal_name,
            generation=self.status.generation,
        )
        at = iso_utc(wall_time_s())
        last = LastExit(ended.code, ended.signal_name, str(told.reason), at)
        self.publish(last_exit=last)
