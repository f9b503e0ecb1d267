"""The answers of ``/ping``, ``/healthz`` and ``/readyz``.

They depend on the snapshot only and are kept until it changes, so that an answer costs
nothing whatever else the loop is busy with.
RunPod's load balancer: 200 healthy, 204 initialising, anything else unhealthy
(https://docs.runpod.io/serverless/load-balancing/overview).
"""

from __future__ import annotations

from typing import Any

from supervisor.core.state import StateStore
from supervisor.core.status import Phase, Snapshot

READY = 200
INITIALISING = 204
BROKEN = 503


def ping_status(snapshot: Snapshot) -> int:
    """Choose the status of ``/ping``.

    A required service that restarts is on its way (204); one that is down for good, a
    configuration that cannot run and a pod that stops are not (503).
    """
    if snapshot.phase in (Phase.RESCUE, Phase.STOPPING) or snapshot.broken:
        return BROKEN
    return READY if snapshot.phase is Phase.READY else INITIALISING


def ready_document(snapshot: Snapshot) -> tuple[int, dict[str, Any]]:
    """Return status and body of ``/readyz``: names of what is missing, nothing else."""
    ready = snapshot.phase is Phase.READY
    body = {"ready": ready, "phase": str(snapshot.phase), "missing": list(snapshot.missing)}
    return (READY if ready else BROKEN), body


class Health:
    """Health answers, computed once per change of the snapshot."""

    def __init__(self, state: StateStore) -> None:
        self._state = state
        self._revision = -1
        self._ping = INITIALISING
        self._ready: tuple[int, dict[str, Any]] = (BROKEN, {})

    @property
    def ping(self) -> int:
        """Status of ``/ping`` now."""
        self._refresh()
        return self._ping

    @property
    def ready(self) -> tuple[int, dict[str, Any]]:
        """Status and body of ``/readyz`` now."""
        self._refresh()
        return self._ready

    def _refresh(self) -> None:
        if self._revision == self._state.revision:
            return
        snapshot = self._state.snapshot
        self._ping = ping_status(snapshot)
        self._ready = ready_document(snapshot)
        self._revision = self._state.revision
