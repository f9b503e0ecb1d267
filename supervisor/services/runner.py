"""One service, one task: wait, start, watch, end, decide, again."""

from __future__ import annotations

import random
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import anyio

from supervisor.core.clock import iso_utc, wall_time_s
from supervisor.core.events import EventBus, Severity
from supervisor.core.state import StateStore
from supervisor.core.status import LastExit, ServiceState, ServiceStatus, Snapshot
from supervisor.errors import SpawnError
from supervisor.services.classify import Classification, ExitFacts, ExitReason, classify
from supervisor.services.health import Finding, LivenessWatch, become_ready, watch_watchdog
from supervisor.services.launcher import PortTakenError
from supervisor.services.life import Evidence, Life
from supervisor.services.machine import (
    RESTING,
    Decision,
    Ending,
    History,
    Trigger,
    Wanted,
    next_state,
    on_exit,
)
from supervisor.services.process import Exit, signal_number
from supervisor.services.spec import DependencyCondition, ServiceKind, ServiceSpec

_KILL_WAIT_S = 10.0
_DUMP_WAIT_S = 3.0
_RELEASE_WAIT_S = 10.0
_SAFE_MODE_FLAG = "--disable-all-custom-nodes"
_TELLS = frozenset({ExitReason.HUNG, ExitReason.STALLED, ExitReason.WATCHDOG})
_PYTHON_KINDS = frozenset({ServiceKind.COMFYUI, ServiceKind.JUPYTER})


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What every runner needs from outside.

    ``released`` returns when the GPU memory of the former life was given back.
    ``adjust`` may return another spec after an exit (a step down the VRAM ladder).
    ``given_up`` is told of a service that is down for good.
    """

    state: StateStore
    bus: EventBus
    launch: Callable[[ServiceSpec, int, tuple[str, ...]], Awaitable[Life]]
    note: Callable[[str, str], None]
    given_up: Callable[[ServiceSpec, Classification, Exit | None], None]
    rng: random.Random
    released: Callable[[ServiceSpec], Awaitable[None]] | None = None
    adjust: Callable[[ServiceSpec, Classification], ServiceSpec | None] | None = None
    gpu_busy: Callable[[], bool] = lambda: False


@dataclass(slots=True)
class _Course:
    """How one life goes: when it became ready, and why it has to end."""

    over: anyio.Event
    cause: ExitReason | None = None
    finding: Finding | None = None
    exit: Exit | None = None
    ready_since_s: float | None = None
    ready_s: float | None = None

    def end(self, cause: ExitReason | None, finding: Finding | None = None) -> None:
        """The first reason counts."""
        if not self.over.is_set():
            self.cause, self.finding = cause, finding
            self.over.set()


class ServiceRunner:
    """Runs one service until it is retired."""

    def __init__(self, spec: ServiceSpec, surroundings: Surroundings) -> None:
        self.spec = spec
        self.life: Life | None = None
        self._around = surroundings
        self._wanted = Wanted.UP if spec.enabled else Wanted.DOWN
        self._asked = anyio.Event()
        self._retired = False
        self._blocked = False
        self._history = History()
        self._delay_s = 0.0
        self._dropped: frozenset[str] = frozenset()
        self._next_reason: ExitReason | None = None
        self._course: _Course | None = None
        self._launching: anyio.CancelScope | None = None
        self._grace: anyio.CancelScope | None = None
        self._stop_by_s = float("inf")
        self.status = ServiceStatus(
            name=spec.name,
            state=ServiceState.WAITING if spec.enabled else ServiceState.DISABLED,
            required=spec.required,
            url=spec.url,
            since_s=wall_time_s(),
        )
        surroundings.state.set_service(self.status)

    # What others ask for. Only ``run`` changes the state; these set goals and wake it.

    def ask(self, wanted: Wanted, *, stop_by_s: float | None = None) -> None:
        """Set the goal. ``stop_by_s`` (loop clock) bounds the graces of a stop."""
        self._wanted = wanted
        self._stop_by_s = float("inf") if stop_by_s is None else stop_by_s
        if wanted is not Wanted.UP:
            if self._launching is not None:
                self._launching.cancel()
            if self._course is not None:
                again = wanted is Wanted.AGAIN
                self._course.end(ExitReason.RESTARTED if again else ExitReason.STOPPED)
            if self._grace is not None and stop_by_s is not None:
                self._grace.deadline = min(self._grace.deadline, stop_by_s)
        elif self.status.state is ServiceState.STOPPING:
            self._wanted = Wanted.AGAIN
        self._asked.set()

    def retire(self) -> None:
        """End ``run`` as soon as the service rests."""
        self._retired = True
        self._asked.set()

    @property
    def resting(self) -> bool:
        """Whether nothing runs and nothing will by itself."""
        return self.status.state in RESTING

    def update_spec(self, spec: ServiceSpec) -> None:
        """Take over what can change while the service runs."""
        self.spec = spec
        self._publish(required=spec.required, url=spec.url)

    def note_dropped(self, total_bytes: int) -> None:
        """Show how much of its output was lost."""
        self._publish(log_bytes_dropped=total_bytes)

    async def run(self) -> None:
        """Live until retired or cancelled; then nothing of the service is left."""
        while not (self._retired and self.resting):
            if self.resting:
                await self._rest()
            elif self.status.state is ServiceState.BACKOFF:
                await self._back_off()
            elif await self._dependencies_met():
                await self._live()

    async def _rest(self) -> None:
        if self._blocked:
            await self._wait_asked_or(lambda s: not self._down_dependencies(s))
            if not self._asked.is_set():
                self._wanted = Wanted.UP
        else:
            await self._asked.wait()
        self._asked = anyio.Event()
        if self._wanted is not Wanted.DOWN and not self._retired:
            self._blocked = False
            self._wanted = Wanted.UP
            self._history = History()
            self._dropped = frozenset()
            self._step(Trigger.START)
        elif self.status.state is ServiceState.FAILED:
            self._blocked = False
            self._step(Trigger.FINISH, "stopped")

    async def _back_off(self) -> None:
        with anyio.move_on_after(self._delay_s):
            await self._asked.wait()
        asked = self._asked.is_set()
        self._asked = anyio.Event()
        if not asked:
            self._step(Trigger.ELAPSED)
        elif self._wanted is Wanted.DOWN:
            self._step(Trigger.FINISH, "stopped")
        else:
            self._history = History()
            self._wanted = Wanted.UP
            self._step(Trigger.START)

    async def _dependencies_met(self) -> bool:
        """Wait for the dependencies; False when the state has changed instead."""
        while True:
            if self._wanted is Wanted.DOWN:
                self._asked = anyio.Event()
                self._step(Trigger.FINISH, "stopped")
                return False
            if self.spec.unavailable is not None:
                self._give_up_unavailable(self.spec.unavailable)
                return False
            snapshot = self._around.state.snapshot
            missing = self._missing(snapshot)
            if not missing:
                self._asked = anyio.Event()
                self._wanted = Wanted.UP
                return True
            if down := self._down_dependencies(snapshot):
                self._blocked = True
                self._rest_as(Trigger.BLOCKED, f"it needs {down[0]}, which has failed")
                return False
            self._publish(message=f"waiting for {', '.join(missing)}")
            self._asked = anyio.Event()
            await self._wait_asked_or(lambda s, m=missing: self._missing(s) != m)  # type: ignore[misc]

    def _give_up_unavailable(self, why: str) -> None:
        told = Classification(ExitReason.SPAWN, why, self.spec.hint)
        self._rest_as(Trigger.BLOCKED, why, hint=self.spec.hint)
        self._around.given_up(self.spec, told, None)

    def _missing(self, snapshot: Snapshot) -> list[str]:
        return [
            d.service
            for d in self.spec.after
            if not _satisfied(snapshot.services.get(d.service), d.condition)
        ] + self._down_dependencies(snapshot)

    def _down_dependencies(self, snapshot: Snapshot) -> list[str]:
        services = (snapshot.services.get(d.service) for d in self.spec.after)
        return [s.name for s in services if s and s.state is ServiceState.FAILED]

    async def _wait_asked_or(self, predicate: Callable[[Snapshot], bool]) -> None:
        async with anyio.create_task_group() as race:

            async def asked() -> None:
                await self._asked.wait()
                race.cancel_scope.cancel()

            race.start_soon(asked)
            await self._around.state.wait(predicate)
            race.cancel_scope.cancel()

    async def _live(self) -> None:
        generation = self.status.generation + 1
        reasons = dict(self.status.restart_reasons)
        if generation > 1:
            reason = str(self._next_reason or "start-asked")
            reasons[reason] = reasons.get(reason, 0) + 1
        self._next_reason = None
        self._step(
            Trigger.LAUNCH,
            generation=generation,
            restart_reasons=reasons,
            restarts=sum(reasons.values()),
        )
        course = _Course(anyio.Event())
        evidence = Evidence()
        failure: SpawnError | None = None
        try:
            if (life := await self._launch(generation)) is not None:
                evidence = await self._attend(life, course)
            else:
                again = self._wanted is Wanted.AGAIN
                course.end(ExitReason.RESTARTED if again else ExitReason.STOPPED)
        except SpawnError as exc:
            failure = exc
            self._around.note(self.spec.name, exc.message)
        told = self._classify(course, evidence, failure)
        self._conclude(course, told)

    async def _launch(self, generation: int) -> Life | None:
        """Start the process; None when a stop was asked for meanwhile."""
        with anyio.CancelScope() as self._launching:
            if self._wanted is not Wanted.UP:
                return None
            if generation > 1 and self._around.released is not None:
                with anyio.move_on_after(_RELEASE_WAIT_S):
                    await self._around.released(self.spec)
            return await self._around.launch(self.spec, generation, self._command())
        self._launching = None
        return None

    def _command(self) -> tuple[str, ...]:
        command = without_flags(self.spec.command, self._dropped)
        if self._history.safe_mode:
            command = (*command, _SAFE_MODE_FLAG)
        return command

    async def _attend(self, life: Life, course: _Course) -> Evidence:
        self.life, self._course, self._launching = life, course, None
        self._publish(pid=life.pid)
        life.announced.changed = lambda: self._announce(life)
        try:
            if self._wanted is not Wanted.UP:
                again = self._wanted is Wanted.AGAIN
                course.end(ExitReason.RESTARTED if again else ExitReason.STOPPED)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(life.attend)
                tasks.start_soon(self._watch_exit, life, course)
                tasks.start_soon(self._watch_health, life, course)
                tasks.start_soon(self._watch_watchdog, life, course)
                await course.over.wait()
                self._count_ready_time(course)
                if course.exit is None:
                    await self._bring_down(life, course)
                if swept := await life.sweep():
                    self._around.note(self.spec.name, f"ended {swept} processes it left behind")
                tasks.cancel_scope.cancel()
        finally:
            with anyio.move_on_after(_KILL_WAIT_S, shield=True):
                if course.exit is None:
                    life.send(signal.SIGKILL)
                    course.exit = await life.wait()
                    await life.sweep()
            evidence = life.close()
            self.life, self._course = None, None
            self._publish(pid=None)
        return evidence

    async def _watch_exit(self, life: Life, course: _Course) -> None:
        course.exit = await life.wait()
        course.end(None)

    async def _watch_watchdog(self, life: Life, course: _Course) -> None:
        finding = await watch_watchdog(life)
        course.end(finding.reason, finding)

    async def _watch_health(self, life: Life, course: _Course) -> None:
        while True:
            if self.spec.readiness is not None:
                finding = await become_ready(life, self.spec.readiness)
                if finding is not None:
                    course.end(finding.reason, finding)
                    return
            if course.over.is_set():
                return
            course.ready_since_s = anyio.current_time()
            self._step(Trigger.READY, life.announced.status, ready=True)
            watch = LivenessWatch(
                life,
                spec=lambda: self.spec,
                report=self._report,
                gpu_busy=self._around.gpu_busy,
            )
            finding = await watch.run()
            if finding.reason is not None:
                course.end(finding.reason, finding)
                return
            self._count_ready_time(course)
            self._restarted_in_place(finding.detail)

    def _restarted_in_place(self, detail: str) -> None:
        reasons = dict(self.status.restart_reasons)
        reason = str(ExitReason.IN_PLACE)
        reasons[reason] = reasons.get(reason, 0) + 1
        self._step(
            Trigger.REEXEC,
            f"restarting in place: {detail}",
            ready=False,
            restart_reasons=reasons,
            restarts=sum(reasons.values()),
        )

    def _count_ready_time(self, course: _Course) -> None:
        if course.ready_since_s is not None:
            course.ready_s = (course.ready_s or 0.0) + anyio.current_time() - course.ready_since_s
            course.ready_since_s = None

    def _report(self, healthy: bool, ready: bool, detail: str) -> None:
        """Take the result of a liveness check."""
        state = self.status.state
        if healthy and state is ServiceState.UNHEALTHY:
            self._step(Trigger.READY, "answers again", ready=True)
        elif not healthy and state is ServiceState.READY:
            self._step(Trigger.UNHEALTHY, detail, ready=ready)
        elif not healthy:
            self._publish(message=detail, ready=ready)

    def _announce(self, life: Life) -> None:
        if life.announced.status and self.status.state is not ServiceState.STOPPING:
            self._publish(message=life.announced.status)

    async def _bring_down(self, life: Life, course: _Course) -> None:
        """End the whole group by the steps of the spec, then by SIGKILL."""
        detail = course.finding.detail if course.finding else "stopping"
        self._step(Trigger.TERMINATE, detail, ready=False)
        await life.remember()
        if course.cause in _TELLS:
            await self._ask_for_stacks(life)
        for step in self.spec.stop:
            life.send(signal_number(step.signal))
            life.send(signal.SIGCONT)  # a stopped process takes signals only when it runs
            by_s = min(anyio.current_time() + step.grace_s, self._stop_by_s)
            with anyio.CancelScope(deadline=by_s) as grace:
                self._grace = grace
                await life.group_gone()
                return
        life.send(signal.SIGKILL)
        with anyio.move_on_after(_KILL_WAIT_S):
            await life.group_gone()
            return
        self._around.note(self.spec.name, "cannot be killed: it waits inside the kernel")
        course.exit = course.exit or Exit(signal=signal.SIGKILL)

    async def _ask_for_stacks(self, life: Life) -> None:
        """Python writes the stacks of all threads at SIGABRT (PYTHONFAULTHANDLER)."""
        if self.spec.kind not in _PYTHON_KINDS:
            return
        life.abort()
        with anyio.move_on_after(_DUMP_WAIT_S):
            await life.wait()

    def _classify(
        self, course: _Course, evidence: Evidence, failure: SpawnError | None
    ) -> Classification:
        ended = course.exit
        facts = ExitFacts(
            code=ended.code if ended else None,
            signal=ended.signal_name if ended else None,
            tail=evidence.tail,
            kind=self.spec.kind,
            oom_kills=evidence.oom_kills,
            marker=evidence.marker,
            port=self.spec.port,
            planner_flags=self.spec.planner_flags,
            cause=course.cause,
            detail=course.finding.detail if course.finding else "",
            hint=course.finding.hint if course.finding else None,
        )
        if isinstance(failure, PortTakenError):
            facts = replace(facts, cause=ExitReason.PORT_TAKEN, port_holder=failure.holder)
        elif failure is not None:
            cause = ExitReason.SPAWN
            facts = replace(facts, cause=cause, detail=failure.message, hint=failure.hint)
        return classify(facts)

    def _conclude(self, course: _Course, told: Classification) -> None:
        """Record the end of a life, decide what follows and enter that state."""
        name = self.spec.name
        ended = course.exit or Exit()
        at_s = wall_time_s()
        self._around.bus.publish(
            "service.exit",
            f"{name} {told.message}",
            severity=Severity.INFO if told.success else Severity.WARNING,
            subject=name,
            reason=str(told.reason),
            code=ended.code,
            signal=ended.signal_name,
            generation=self.status.generation,
        )
        self._publish(
            last_exit=LastExit(ended.code, ended.signal_name, str(told.reason), iso_utc(at_s))
        )
        if told.drop_flags:
            self._dropped |= frozenset(told.drop_flags)
        adjusted = self._around.adjust(self.spec, told) if self._around.adjust else None
        if adjusted is not None:
            self.spec = adjusted
        ending = Ending(
            reason=str(told.reason),
            success=told.success,
            planned=told.planned,
            repaired=bool(told.drop_flags) or adjusted is not None,
            permanent=told.permanent,
            ready_s=course.ready_s,
            wanted=self._wanted,
        )
        decision = on_exit(self.spec, self._history, ending, now_s=anyio.current_time())
        self._enter(decision, told, ended)

    def _enter(self, decision: Decision, told: Classification, ended: Exit) -> None:
        self._history = decision.history
        self._asked = anyio.Event()
        parts = [told.message] if told.message else []
        if decision.message and not told.success:
            parts.append(decision.message)
        message = "; ".join(parts)
        match decision.trigger:
            case Trigger.BACK_OFF:
                self._delay_s = self.spec.backoff.delay_s(decision.attempt, self._around.rng)
                self._next_reason = told.reason
                message = f"{message}; trying again in {self._delay_s:.1f} s"
                self._step(Trigger.BACK_OFF, message, ready=False, hint=told.hint)
            case Trigger.RETRY:
                self._next_reason = told.reason
                self._wanted = Wanted.UP
                self._step(Trigger.RETRY, message, ready=False, hint=told.hint)
            case trigger:
                self._rest_as(trigger, message, hint=told.hint)
                if trigger is Trigger.FAIL:
                    self._around.given_up(self.spec, told, ended)

    def _rest_as(self, trigger: Trigger, message: str, *, hint: str | None = None) -> None:
        self._wanted = Wanted.DOWN
        self._step(trigger, message, ready=False, hint=hint)

    def _step(self, trigger: Trigger, message: str = "", **changes: object) -> None:
        """Take one transition and tell everybody."""
        before = self.status.state
        state = next_state(before, trigger)
        hint = changes.pop("hint", None)
        self._publish(state=state, message=message, hint=hint, since_s=wall_time_s(), **changes)
        severity = Severity.INFO
        if state in (ServiceState.BACKOFF, ServiceState.UNHEALTHY):
            severity = Severity.WARNING
        elif state is ServiceState.FAILED:
            severity = Severity.ERROR
        self._around.bus.publish(
            "service.state",
            f"{self.spec.name} is {state}" + (f": {message}" if message else ""),
            severity=severity,
            subject=self.spec.name,
            state=str(state),
            previous=str(before),
            generation=self.status.generation,
            pid=self.status.pid,
            hint=hint,
        )

    def _publish(self, **changes: object) -> None:
        self.status = replace(self.status, **changes)  # type: ignore[arg-type]
        self._around.state.set_service(self.status)


def _satisfied(status: ServiceStatus | None, condition: DependencyCondition) -> bool:
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
