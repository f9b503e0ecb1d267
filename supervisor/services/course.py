"""How one life of a service goes, from its launch to the reason of its end."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import anyio
import anyio.to_thread

from supervisor.errors import SpawnError
from supervisor.services import ports
from supervisor.services.classify import Classification, ExitFacts, ExitReason, classify
from supervisor.services.health import Finding
from supervisor.services.launcher import PortTakenError
from supervisor.services.life import Evidence, Life
from supervisor.services.process import Exit, signal_number
from supervisor.services.spec import ServiceKind, ServiceSpec

KILL_WAIT_S = 10.0
_DUMP_WAIT_S = 3.0
_TELLS = frozenset({ExitReason.HUNG, ExitReason.STALLED, ExitReason.WATCHDOG})
_PYTHON_KINDS = frozenset({ServiceKind.COMFYUI, ServiceKind.JUPYTER})


@dataclass(slots=True)
class Course:
    """One life. ``cause`` and ``finding`` are set when the supervisor ends it.

    ``stop_by_s`` (event loop's clock) bounds the graces of the stop steps.
    """

    over: anyio.Event = field(default_factory=anyio.Event)
    cause: ExitReason | None = None
    finding: Finding | None = None
    exit: Exit | None = None
    evidence: Evidence = Evidence()
    failure: SpawnError | None = None
    ready_s: float | None = None
    ready_since_s: float | None = None
    left_behind: int = 0  # processes that outlived its leader
    stop_by_s: float = float("inf")
    _grace: anyio.CancelScope | None = None

    def end(self, cause: ExitReason | None, finding: Finding | None = None) -> None:
        """Give the reason why this life ends; the first one counts."""
        if not self.over.is_set():
            self.cause, self.finding = cause, finding
            self.over.set()

    def hurry(self, stop_by_s: float) -> None:
        """Bound a stop, also one that is under way."""
        self.stop_by_s = min(self.stop_by_s, stop_by_s)
        if self._grace is not None:
            self._grace.deadline = min(self._grace.deadline, stop_by_s)

    def became_ready(self) -> None:
        """Begin to count the time of being ready."""
        self.ready_since_s = anyio.current_time()

    def ceased_to_be_ready(self) -> None:
        """Add up the time of being ready."""
        if self.ready_since_s is not None:
            self.ready_s = (self.ready_s or 0.0) + anyio.current_time() - self.ready_since_s
            self.ready_since_s = None

    async def bring_down(
        self, life: Life, spec: ServiceSpec, *, note: Callable[[str], None]
    ) -> None:
        """End the whole group: stacks of a hung one, the spec's steps, then SIGKILL."""
        await life.remember()
        if self.cause in _TELLS and spec.kind in _PYTHON_KINDS:
            # Python writes the stacks of all threads at SIGABRT (PYTHONFAULTHANDLER).
            life.abort()
            with anyio.move_on_after(_DUMP_WAIT_S):
                await life.wait()
        for step in spec.stop:
            life.send(signal_number(step.signal))
            life.send(signal.SIGCONT)  # a stopped process takes signals only when it runs
            by_s = min(anyio.current_time() + step.grace_s, self.stop_by_s)
            with anyio.CancelScope(deadline=by_s) as self._grace:
                await life.group_gone()
                return
        life.send(signal.SIGKILL)
        with anyio.move_on_after(KILL_WAIT_S):
            await life.group_gone()
            return
        note("cannot be killed: it waits inside the kernel")
        self.exit = self.exit or Exit(signal=signal.SIGKILL)

    async def explain(self, spec: ServiceSpec) -> Classification:
        """Classify the end, and look who holds a port that was taken."""
        facts = self._facts(spec)
        told = classify(facts)
        if told.port is not None and facts.port_holder is None:
            holder = await anyio.to_thread.run_sync(ports.holder, told.port)
            told = classify(replace(facts, port_holder=str(holder) if holder else None))
        return told

    def _facts(self, spec: ServiceSpec) -> ExitFacts:
        facts = ExitFacts(
            code=self.exit.code if self.exit else None,
            signal=self.exit.signal_name if self.exit else None,
            tail=self.evidence.tail,
            kind=spec.kind,
            oom_kills=self.evidence.oom_kills,
            marker=self.evidence.marker,
            left_behind=self.left_behind,
            port=spec.port,
            planner_flags=spec.planner_flags,
            cause=self.cause,
            detail=self.finding.detail if self.finding else "",
            hint=self.finding.hint if self.finding else None,
        )
        if isinstance(self.failure, PortTakenError):
            holder = self.failure.holder
            facts = replace(facts, cause=ExitReason.PORT_TAKEN, port_holder=holder)
        elif self.failure is not None:
            detail, hint = self.failure.message, self.failure.hint
            facts = replace(facts, cause=ExitReason.SPAWN, detail=detail, hint=hint)
        return facts


def without_flags(command: tuple[str, ...], flags: frozenset[str]) -> tuple[str, ...]:
    """Return a command without some options and the values that follow them."""
    kept: list[str] = []
    dropping = False
    for word in command:
        if word.startswith("-"):
            dropping = word.partition("=")[0] in flags
        if not dropping:
            kept.append(word)
    return tuple(kept)
