"""Steps down the VRAM ladder when ComfyUI died of CUDA out of memory."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from supervisor.app.boot import decide
from supervisor.core.events import EventBus, Severity
from supervisor.core.state import StateStore
from supervisor.plan.gpu_policy import generation_of
from supervisor.plan.ladder import step_down
from supervisor.plan.model import Plan
from supervisor.services.classify import Classification, ExitReason
from supervisor.services.spec import ServiceKind, ServiceSpec

if TYPE_CHECKING:
    from supervisor.app.boot import Boot

log = logging.getLogger("supervisor.gpu")


class Ladder:
    """Remembers for this boot how far ComfyUI was taken down; never goes up by itself."""

    def __init__(self, boot: Boot, state: StateStore, bus: EventBus) -> None:
        self._boot = boot
        self._state = state
        self._bus = bus
        self._plan = boot.plan
        self._reasons: tuple[str, ...] = ()

    @property
    def step(self) -> int:
        """How many steps down; 0 = as planned."""
        return self._plan.gpu.ladder_step

    def replaced(self, boot: Boot, plan: Plan) -> None:
        """Take over what a reload decided; the step stays."""
        self._boot, self._plan = boot, plan

    def adjust(self, spec: ServiceSpec, told: Classification) -> ServiceSpec | None:
        """Return ComfyUI's next, humbler command after a CUDA out-of-memory exit."""
        if spec.kind is not ServiceKind.COMFYUI or told.reason is not ExitReason.CUDA_OOM:
            return None
        boot = self._boot

        def build(step: int) -> Plan:
            return decide(
                boot.loaded, boot.facts, boot.source.environ, boot.generated, ladder_step=step
            )

        lower = step_down(build, self._plan, generation_of(boot.facts.comfyui))
        if lower is None:
            self._say(f"{told.message}; there is no lower step on the VRAM ladder", Severity.ERROR)
            return None
        self._plan = lower
        self._reasons = (*self._reasons, *lower.gpu.ladder_reasons)
        gpu = replace(self._state.snapshot.gpu, ladder_step=self.step, ladder_reasons=self._reasons)
        self._state.update(gpu=gpu)
        self._say(
            f"{told.message}; ComfyUI goes one step down: {'; '.join(lower.gpu.ladder_reasons)}",
            Severity.WARNING,
        )
        return next((s for s in lower.services if s.name == spec.name), None)

    def _say(self, message: str, severity: Severity) -> None:
        log.warning("%s", message)
        self._bus.publish(
            "gpu.ladder", message, severity=severity, subject="comfyui", step=self.step
        )
