"""Whether what a service waits for is there. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from supervisor.core.status import ServiceState, ServiceStatus, Snapshot
from supervisor.services.classify import ExitReason
from supervisor.services.spec import Dependency, DependencyCondition


def missing(after: Sequence[Dependency], snapshot: Snapshot) -> list[str]:
    """Return the services that have not reached what is asked of them."""
    return [
        d.service for d in after if not satisfied(snapshot.services.get(d.service), d.condition)
    ]


def failed(after: Sequence[Dependency], snapshot: Snapshot) -> list[str]:
    """Return the services that are down for good."""
    services = (snapshot.services.get(d.service) for d in after)
    return [s.name for s in services if s and s.state is ServiceState.FAILED]


def differ(after: Sequence[Dependency], before: list[str], snapshot: Snapshot) -> bool:
    """Whether one that found ``before`` missing has something new to look at."""
    return missing(after, snapshot) != before or bool(failed(after, snapshot))


def satisfied(status: ServiceStatus | None, condition: DependencyCondition) -> bool:
    """Whether a service has reached ``condition``; one that has done its work has."""
    if status is None:
        return False
    completed = (
        status.state is ServiceState.STOPPED
        and status.last_exit is not None
        and status.last_exit.reason == ExitReason.EXITED
    )
    if condition is DependencyCondition.STARTED:
        return status.pid is not None or completed
    return status.ready or completed
