"""Models from the plan to the disk: planned after the launch, and again by every reload."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread

from supervisor.app.boot import Boot, with_models
from supervisor.app.notes import notes_of
from supervisor.core.status import DownloadState
from supervisor.errors import ConfigError
from supervisor.plan.model import Plan

if TYPE_CHECKING:
    from supervisor.app.essentials import Essentials
    from supervisor.config.settings import ModelsSection
    from supervisor.models.manager import ModelManager

log = logging.getLogger("supervisor.app")

MODEL_LIST = "model list"
"""What readiness misses until it is known which models there are."""

# Keys that only say which files are wanted.
_LISTS = frozenset(
    ("bundles", "selectors", "catalog", "files", "workflows", "civitai", "civitai_loras")
)
# These are looked at anew each time; all others are built into sources and engine.
_LIVE = _LISTS | {"require", "concurrent_files", "retry_attempts"}


class Downloads:
    """Runs the downloads of the plan that is in force; keeps readiness honest about them."""

    def __init__(self, base: Essentials, taken: Callable[[ModelManager], None]) -> None:
        """``taken`` gets every manager that is made."""
        self._base = base
        self._taken = taken
        self._manager: ModelManager | None = None
        self._scope = anyio.CancelScope()
        self._complaints: tuple[str, ...] = ()

    async def run(self) -> None:
        """Fetch the models of the plan, and those that are asked for later; until cancelled."""
        reloader = self._base.reloader
        await self._plan()
        runtime = await load("supervisor.models.runtime")
        while True:
            self._manager = None
            boot, plan = reloader.boot, reloader.plan
            with anyio.CancelScope() as self._scope:
                await runtime.run_models(
                    plan.downloads,
                    section=boot.settings.models,
                    environ=boot.source.environ,
                    state=self._base.state,
                    bus=self._base.bus,
                    directory=plan.models_directory,
                    on_manager=partial(self._take, plan),
                )

    def _take(self, plan: Plan, manager: ModelManager) -> None:
        self._manager = manager
        self._taken(manager)
        if self._base.reloader.plan is not plan:
            self._scope.cancel()  # a reload came in between: begin with its plan

    # -- plan -----------------------------------------------------------------------------

    async def _plan(self) -> None:
        reloader, boot = self._base.reloader, self._base.reloader.boot
        if reloader.knows_models:
            return
        try:
            plan = await anyio.to_thread.run_sync(with_models, boot.plan, boot.settings, boot.facts)
        except ConfigError as error:
            self._unreadable(error, boot)
            return
        reloader.planned(plan)
        self._known(reloader.boot, reloader.plan)

    def _unreadable(self, error: ConfigError, boot: Boot) -> None:
        """Services run; what is wrong with the list is said, and what it holds not guessed."""
        if self._base.reloader.knows_models:
            return  # a reload has mended it meanwhile
        self._complaints = tuple(str(p) for p in error.problems) or (error.message,)
        for text in self._complaints:
            log.error("no models are fetched: %s", text)
        required = boot.settings.models.require != "none"
        self._base.state.update(
            notes=_merged(self._base.state.snapshot.notes, self._complaints),
            required_downloads=frozenset(),
            broken_parts=frozenset({MODEL_LIST}) if required else frozenset(),
        )

    def _known(self, boot: Boot, plan: Plan) -> None:
        """The list could be read: say what is left out, and what readiness waits for."""
        from supervisor.models.requests import required_names  # noqa: PLC0415 - after the launch

        shown = self._base.state.snapshot.notes
        kept = tuple(note for note in shown if note not in self._complaints)
        self._complaints = ()
        for note in plan.notes:
            if note not in boot.plan.notes:
                log.info("%s", note)
        for item in plan.skipped:
            if item not in boot.plan.skipped:
                log.warning("%s is not fetched: %s", item.name, item.reason)
        require = boot.settings.models.require
        # What is required and cannot be had waits for a person, too.
        broken = {item.name for item in plan.skipped if item.required and require != "none"}
        self._base.state.update(
            notes=_merged(kept, notes_of(plan, boot)),
            required_downloads=required_names(plan.downloads, require),
            broken_parts=frozenset(broken),
        )

    # -- reload ---------------------------------------------------------------------------

    def changes(self, old: Boot, new: Boot, plan: Plan) -> Mapping[str, list[str]]:
        """What ``apply`` would do, by kind."""
        before = {request.name for request in self._base.reloader.plan.downloads}
        after = {request.name for request in plan.downloads}
        files = self._base.state.snapshot.downloads.files
        return {
            "added": sorted(after - before),
            "removed": sorted(before - after),
            "retried": sorted(f.name for f in files if f.state is DownloadState.FAILED),
            "settings": sorted(_changed(old.settings.models, new.settings.models) - _LISTS),
        }

    def apply(self, old: Boot, new: Boot, before: Plan, plan: Plan) -> None:
        """Want what ``plan`` wants; what is the same goes on, what failed is tried again."""
        self._known(new, plan)
        if self._manager is None:
            return  # ``run`` comes to it
        changed = _changed(old.settings.models, new.settings.models) - _LIVE
        if changed or before.models_directory != plan.models_directory:
            self._scope.cancel()  # partial files are resumed with the new settings
        else:
            self._manager.reconcile(plan.downloads, settings=new.settings.models)


def _changed(old: ModelsSection, new: ModelsSection) -> set[str]:
    names = type(old).model_fields
    return {name for name in names if getattr(old, name) != getattr(new, name)}


def _merged(notes: tuple[str, ...], more: Collection[str]) -> tuple[str, ...]:
    return (*notes, *(note for note in more if note not in notes))


async def load(name: str) -> Any:
    """Import in a thread: hundreds of milliseconds that must not stop the event loop."""
    return await anyio.to_thread.run_sync(import_module, name)
