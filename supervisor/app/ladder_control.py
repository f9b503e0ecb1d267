"""What moves the VRAM ladder besides crashes: jobs that keep failing, and people."""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from supervisor.app.ladder_memory import FILE_NAME, Descent, LadderMemory, set_key
from supervisor.config.settings import StorageMode
from supervisor.errors import ControlError

if TYPE_CHECKING:
    from supervisor.app.essentials import Essentials
    from supervisor.services.spec import ServiceSpec

log = logging.getLogger("supervisor.gpu")

WINDOW_S = 1800.0  # failures further apart have different causes


class LadderControl:
    """Steps down after repeated job errors, resets on request, remembers on the volume."""

    def __init__(self, base: Essentials) -> None:
        self._base = base
        self._ladder = base.ladder
        self._failures: deque[float] = deque(maxlen=1000)
        self._failed = anyio.Event()

    def job_failed(self) -> None:
        """A job of ComfyUI failed for lack of VRAM."""
        settings = self._ladder.settings
        if not (settings.ladder and settings.ladder_on_job_errors):
            return
        self._failures.append(anyio.current_time())
        self._failed.set()

    async def run(self) -> None:
        """Act until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._follow)
            tasks.start_soon(self._watch_jobs)

    async def reset(self, *, now: bool = False) -> int:
        """Undo all steps; returns how many there were. ComfyUI restarts when its queue is
        empty, or at once with ``now``.

        Raises:
            ControlError: the pod is stopping.
        """
        if self._ladder.step and not now:
            await self._base.manager.drain("comfyui")
        steps = self._ladder.step
        if steps:
            await self._apply(self._ladder.reset())
        return steps

    async def _watch_jobs(self) -> None:
        while True:
            await self._failed.wait()
            self._failed = anyio.Event()
            if not self._too_many():
                continue
            count = self._ladder.settings.ladder_job_errors
            self._failures.clear()
            before = self._ladder.descent
            log.warning("jobs keep running out of VRAM: a step down when the queue is empty")
            with anyio.move_on_after(self._ladder.settings.ladder_drain_s):
                await self._base.manager.drain("comfyui")
            if self._ladder.descent != before:
                continue  # it crashed while it was waited for, and has stepped down already
            try:
                await self._apply(self._ladder.step_down(f"{count} jobs ran out of VRAM"))
            except ControlError as error:
                log.info("%s", error.message)

    def _too_many(self) -> bool:
        failures, limit = self._failures, self._ladder.settings.ladder_job_errors
        return len(failures) >= limit and failures[-1] - failures[-limit] <= WINDOW_S

    async def _apply(self, comfyui: ServiceSpec | None) -> None:
        """Run ComfyUI with another command; nothing else is touched."""
        if comfyui is None:
            return
        manager = self._base.manager
        await manager.reconcile(
            [comfyui if spec.name == comfyui.name else spec for spec in manager.specs]
        )

    async def _follow(self) -> None:
        """After each change: failures count anew, and a persistent volume remembers it."""
        boot = self._base.boot
        memory = None
        if boot.plan.storage.mode == StorageMode.PERSISTENT:
            key = set_key(boot.settings, boot.facts)
            memory = LadderMemory(boot.settings.supervisor.state_dir / FILE_NAME, key)
        seen = boot.descent
        while True:
            changed = self._ladder.changed
            if (descent := self._ladder.descent) != seen:
                seen = descent
                self._failures.clear()
                if memory is not None:
                    await self._keep(memory, descent)
            await changed.wait()

    async def _keep(self, memory: LadderMemory, descent: Descent) -> None:
        try:
            await anyio.to_thread.run_sync(memory.keep, descent)
        except OSError as error:
            log.warning("Cannot remember the VRAM ladder: %s", error.strerror or error)
