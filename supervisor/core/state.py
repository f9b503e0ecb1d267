"""Levels: the latest snapshot and a way to wait for it to satisfy a condition.

``wait`` conflates: a waiter may miss intermediate values but never the latest one.
Used from the event loop's thread only.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from typing import Any

import anyio

from supervisor.core.status import Phase, ServiceStatus, Snapshot


class StateStore:
    """Holds the one ``Snapshot``; components replace their own part of it."""

    def __init__(self, initial: Snapshot | None = None) -> None:
        self._snapshot = initial or Snapshot()
        self._changed = anyio.Event()
        self.revision = 0

    @property
    def snapshot(self) -> Snapshot:
        """The picture as of now."""
        return self._snapshot

    def update(self, **parts: Any) -> None:
        """Replace parts of the snapshot and derive the phase; wakes every waiter."""
        snapshot = replace(self._snapshot, **parts)
        snapshot = replace(snapshot, phase=_phase(snapshot))
        if snapshot == self._snapshot:
            return
        self._snapshot = snapshot
        self.revision += 1
        self._changed.set()
        self._changed = anyio.Event()

    def set_service(self, status: ServiceStatus) -> None:
        """Replace one service's status."""
        self.update(services={**self._snapshot.services, status.name: status})

    def drop_service(self, name: str) -> None:
        """Forget a service that a reload removed."""
        self.update(services={k: v for k, v in self._snapshot.services.items() if k != name})

    async def wait(self, predicate: Callable[[Snapshot], bool]) -> Snapshot:
        """Return the first snapshot seen for which ``predicate`` holds."""
        while not predicate(self._snapshot):
            await self._changed.wait()
        return self._snapshot

    async def changes(self) -> AsyncGenerator[Snapshot, None]:
        """Yield the snapshot now and after every change, conflated; close it when done."""
        seen = -1
        while True:
            if seen == self.revision:
                await self._changed.wait()
            seen = self.revision
            yield self._snapshot


def _phase(snapshot: Snapshot) -> Phase:
    """Derive the phase; rescue and stopping are set by the app and stay."""
    if snapshot.phase in (Phase.RESCUE, Phase.STOPPING):
        return snapshot.phase
    if snapshot.broken:
        return Phase.DEGRADED
    # A pod that only fetches or sorts models has no service to wait for.
    launched = snapshot.services or "launch" in snapshot.boot.spans_s
    if launched and snapshot.ready:
        return Phase.READY
    # Once ready, losing a required part is a degradation and not a second boot.
    was_up = snapshot.phase in (Phase.READY, Phase.DEGRADED)
    return Phase.DEGRADED if was_up else Phase.BOOTING
