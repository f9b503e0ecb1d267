"""How far ComfyUI was taken down the VRAM ladder, and why."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import anyio

from supervisor.app.boot import decide
from supervisor.app.ladder_memory import Descent
from supervisor.config.settings import GpuSection
from supervisor.core.clock import iso_utc, wall_time_s
from supervisor.core.events import EventBus, Severity
from supervisor.core.state import StateStore
from supervisor.plan.ladder import step_down
from supervisor.plan.model import Plan
from supervisor.services.classify import Classification, ExitReason
from supervisor.services.spec import ServiceKind, ServiceSpec

if TYPE_CHECKING:
    from supervisor.app.boot import Boot

log = logging.getLogger("supervisor.gpu")


class Ladder:
    """Takes ComfyUI down one step at a time. It never goes up by itself: only ``reset`` does.

    ``changed`` is set, and replaced, at every change.
    """

    def __init__(self, boot: Boot, state: StateStore, bus: EventBus) -> None:
        self._boot = boot
        self._state = state
        self._bus = bus
        self._plan = boot.plan
        self.descent = boot.descent
        self.changed = anyio.Event()

    @property
    def step(self) -> int:
        """How many steps down; 0 = as planned."""
        return self._plan.gpu.ladder_step

    @property
    def settings(self) -> GpuSection:
        """The settings in force."""
        return self._boot.settings.gpu

    def replaced(self, boot: Boot, plan: Plan) -> None:
        """Take over what a reload decided; the step stays, unless the ladder was turned off."""
        self._boot, self._plan = boot, plan
        if plan.gpu.ladder_step != self.descent.step:
            self._set(Descent())

    def adjust(self, spec: ServiceSpec, told: Classification) -> ServiceSpec | None:
        """Return ComfyUI's next, humbler command after a CUDA out-of-memory exit."""
        if spec.kind is not ServiceKind.COMFYUI or told.reason is not ExitReason.CUDA_OOM:
            return None
        return self.step_down(told.message)

    def step_down(self, cause: str) -> ServiceSpec | None:
        """Go one step down and return ComfyUI's new command; None at the bottom."""
        lower = step_down(self._build, self._plan, self._boot.facts.comfyui)
        if lower is None:
            off = not self.settings.ladder
            why = "is turned off" if off else "has no lower step"
            self._say(f"{cause}; the VRAM ladder {why}", Severity.ERROR)
            return None
        self._plan = lower
        rung = "; ".join(lower.gpu.ladder_reasons)
        reason = f"step {self.step} because {cause} - {rung}"
        now = iso_utc(wall_time_s())
        self._set(Descent(self.step, (*self.descent.reasons, reason), now))
        self._say(f"ComfyUI goes one step down the VRAM ladder: {reason}", Severity.WARNING)
        return comfyui_of(lower)

    def reset(self) -> ServiceSpec | None:
        """Go back to the plan's own mode; return ComfyUI's command for it."""
        before = self.step
        self._plan = self._build(0)
        self._set(Descent())
        self._say(f"the VRAM ladder was reset from step {before}", Severity.INFO)
        return comfyui_of(self._plan)

    def _build(self, step: int) -> Plan:
        boot = self._boot
        return decide(
            boot.loaded, boot.facts, boot.source.environ, boot.generated, ladder_step=step
        )

    def _set(self, descent: Descent) -> None:
        self.descent = descent
        gpu = self._state.snapshot.gpu
        self._state.update(
            gpu=replace(gpu, ladder_step=descent.step, ladder_reasons=descent.reasons)
        )
        self.changed.set()
        self.changed = anyio.Event()

    def _say(self, message: str, severity: Severity) -> None:
        log.log(logging.INFO if severity is Severity.INFO else logging.WARNING, "%s", message)
        self._bus.publish(
            "gpu.ladder", message, severity=severity, subject="comfyui", step=self.step
        )


def comfyui_of(plan: Plan) -> ServiceSpec | None:
    """ComfyUI's service of a plan."""
    return next((s for s in plan.services if s.kind is ServiceKind.COMFYUI), None)
