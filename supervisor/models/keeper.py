"""Keeps a running pod's claim on the shared store, and the store within its budget."""

from __future__ import annotations

import logging
from functools import partial

import anyio
import anyio.abc
import anyio.to_thread

from supervisor.config.settings import ModelsSection
from supervisor.config.units import parse_size_bytes
from supervisor.core.events import EventBus
from supervisor.download.request import DownloadRequest
from supervisor.models.liveness import process_owner
from supervisor.models.manager import ModelManager
from supervisor.models.memory import Memory
from supervisor.models.room import human_bytes
from supervisor.models.store import PIN_LIFETIME_S, ModelStore, StoredObject

log = logging.getLogger("supervisor.models")


class StoreKeeper:
    """Renews the pins; evicts beyond ``store_budget`` whenever nothing is being fetched."""

    def __init__(self, *, settings: ModelsSection, manager: ModelManager, bus: EventBus) -> None:
        """``settings.store`` must be set."""
        if settings.store is None:
            raise ValueError("there is no store to keep")
        self._store = ModelStore(settings.store)
        self._memory = Memory(self._store)
        self._manager = manager
        self._bus = bus
        self._trouble: str | None = None
        budget = settings.store_budget
        self._budget_bytes = parse_size_bytes(budget) if budget else None

    async def run(
        self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        """Work until cancelled; trouble with the volume is logged and tried again."""
        await self.keep_once()
        task_status.started()
        while True:
            await anyio.sleep(PIN_LIFETIME_S / 3)
            await self.keep_once()

    async def keep_once(self) -> None:
        """Pin, tidy up, then evict."""
        try:
            await anyio.to_thread.run_sync(self._pin)
            await anyio.to_thread.run_sync(self._store.sweep)
            if self._budget_bytes is not None and not self._manager.busy:
                evict = partial(self._store.evict, self._budget_bytes)
                for stored in await anyio.to_thread.run_sync(evict):
                    self._tell(stored)
            self._trouble = None
        except OSError as exc:
            reason = exc.strerror or str(exc)
            if reason != self._trouble:  # a read-only volume stays so
                log.warning("Cannot look after the model store: %s", reason)
            self._trouble = reason

    def _pin(self) -> None:
        requests: list[DownloadRequest] = []
        for request in self._manager.requests:
            # A folder that nobody has asked for yet is what it was the last time.
            noted = self._memory.noted(request) if request.directory else ()
            requests += noted or (request,)
        wanted = {r.sha256 for r in requests if r.sha256}
        places = {str(r.destination) for r in requests}
        wanted |= {o.sha256 for o in self._store.objects() if places.intersection(o.places)}
        self._store.pin(process_owner(), wanted)

    def _tell(self, stored: StoredObject) -> None:
        message = (
            f"evicted {', '.join(stored.places) or stored.sha256} "
            f"({human_bytes(stored.size_bytes)}), unused for longest"
        )
        log.info("%s", message)
        self._bus.publish("models.evicted", message, subject=stored.sha256)
