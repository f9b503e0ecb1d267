"""``reload``: the configuration is read again, and only what differs is touched."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import anyio.to_thread

from supervisor.app.boot import Boot, decide, with_models
from supervisor.app.notes import notes_of, renewed
from supervisor.config.settings import Settings
from supervisor.core.events import EventBus
from supervisor.core.state import StateStore
from supervisor.core.status import to_jsonable
from supervisor.errors import ConfigError, ControlError
from supervisor.plan.model import Plan
from supervisor.services.manager import ServiceManager

if TYPE_CHECKING:
    from supervisor.app.downloads import Downloads

log = logging.getLogger("supervisor.reload")

# Sections whose parts are made once; a change of theirs waits for the next start.
_AT_START = ("supervisor", "sync", "health", "idle", "alerts")


class Reloader:
    """Holds what is in force and compares it with what is configured now."""

    def __init__(
        self,
        boot: Boot,
        *,
        manager: ServiceManager,
        state: StateStore,
        bus: EventBus,
        applied: Callable[[Boot, Plan], None],
    ) -> None:
        self.boot = boot
        self.plan = boot.plan
        self.knows_models = False  # whether ``plan`` holds the downloads, too
        self._manager = manager
        self._state = state
        self._bus = bus
        self._applied = applied
        self.downloads: Downloads | None = None

    def planned(self, plan: Plan) -> None:
        """Take note of the downloads, which are planned after the launch."""
        if not self.knows_models:  # else a reload was faster, and knows better
            self.plan, self.knows_models = plan, True

    async def reload(self, dry_run: bool) -> Mapping[str, Any]:
        """Apply the configuration as it is now; returns what was (or would be) changed.

        Raises:
            ControlError: the new configuration is unusable; the old one stays in force.
        """
        try:
            loaded = await anyio.to_thread.run_sync(self.boot.source.load)
            boot = replace(self.boot, loaded=loaded)
            plan = await anyio.to_thread.run_sync(self._decide, boot)
        except ConfigError as error:
            problems = "; ".join(str(problem) for problem in error.problems)
            raise ControlError(
                f"Cannot reload: {problems or error.message}",
                hint="the old configuration stays in force; mend the new one and reload again",
                status=422,
                code="configuration",
            ) from error
        changes = await self._manager.reconcile(plan.services, dry_run=dry_run)
        old, before = self.boot, self.plan
        downloads = self.downloads.changes(old, boot, plan) if self.downloads else {}
        if not dry_run:
            self._manager.base_environment = plan.base_environment
            for secret in loaded.secrets:
                boot.redactor.add(secret)
            self.boot, self.plan, self.knows_models = boot, plan, True
            shown = self._state.snapshot.notes
            notes = renewed(shown, notes_of(before, old), notes_of(plan, boot))
            self._state.update(notes=notes)
            if self.downloads is not None:
                self.downloads.apply(old, boot, before, plan)
            self._applied(boot, plan)
            self._bus.publish("pod.reloaded", "The configuration was reloaded")
        return {
            "dry_run": dry_run,
            "services": to_jsonable(changes),
            "downloads": downloads,
            "needs_restart": _waiting(old.settings, loaded.settings),
        }

    def _decide(self, boot: Boot) -> Plan:
        step = self._state.snapshot.gpu.ladder_step
        plan = decide(
            boot.loaded, boot.facts, boot.source.environ, boot.generated, ladder_step=step
        )
        return with_models(plan, boot.settings, boot.facts)


def _waiting(old: Settings, new: Settings) -> list[str]:
    return [name for name in _AT_START if getattr(old, name) != getattr(new, name)]
