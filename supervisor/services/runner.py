"""One service, one task: wait, start, watch, end, decide, again."""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import partial
from typing import Any

import anyio

from supervisor.core.status import ServiceState, ServiceStatus, Snapshot
from supervisor.errors import SpawnError
from supervisor.services import dependencies
from supervisor.services.board import Board
from supervisor.services.classify import Classification, ExitReason
from supervisor.services.course import KILL_WAIT_S, Course, without_flags
from supervisor.services.health import LivenessWatch, become_ready, queue_length, watch_watchdog
from supervisor.services.life import Life
from supervisor.services.machine import (
    RESTING,
    RUNNING,
    Decision,
    Ending,
    History,
    Trigger,
    Wanted,
    on_exit,
)
from supervisor.services.process import Exit
from supervisor.services.spec import ServiceKind, ServiceSpec
from supervisor.services.surroundings import Surroundings

_RELEASE_WAIT_S = 15.0
_SAFE_MODE_FLAG = "--disable-all-custom-nodes"


class ServiceRunner:
    """Runs one service until it is retired."""

    def __init__(self, spec: ServiceSpec, surroundings: Surroundings) -> None:
        self.spec = spec
        self.life: Life | None = None
        self._around = surroundings
        self.ups_asked = 0  # tells a stop that it was overtaken
        self.waits_for: list[str] = []
        self._request: Wanted | None = None  # what was asked for and not yet acted on
        self._wake = anyio.Event()
        self._retired = False
        self._blocked = False
        self._history = History()
        self._delay_s = 0.0
        self._dropped: frozenset[str] = frozenset()
        self._next_reason: ExitReason | None = None
        self._course: Course | None = None
        self._launching: anyio.CancelScope | None = None
        self._stop_by_s: float | None = None
        self._board = Board(spec, state=surroundings.state, bus=surroundings.bus)

    @property
    def status(self) -> ServiceStatus:
        """What is shown."""
        return self._board.status

    # What others ask for. Only ``run`` changes the state; these set goals and wake it.

    def ask(self, wanted: Wanted, *, stop_by_s: float | None = None) -> None:
        """Set the goal. ``stop_by_s`` (loop clock) bounds the graces of a stop."""
        self.ups_asked += wanted is not Wanted.DOWN
        if wanted is Wanted.UP:
            if self.status.state is ServiceState.STOPPING:
                wanted = Wanted.AGAIN
            elif self.status.state in RUNNING:
                return
        self._request = wanted
        self._stop_by_s = stop_by_s
        if wanted is not Wanted.UP:
            if self._launching is not None:
                self._launching.cancel()
            if self._course is not None:
                self._course.end(self._asked_cause())
                if stop_by_s is not None:
                    self._course.hurry(stop_by_s)
        self._wake.set()

    def _take_request(self) -> Wanted | None:
        request, self._request = self._request, None
        self._wake = anyio.Event()
        return request

    def retire(self) -> None:
        """End ``run`` as soon as the service rests."""
        self._retired = True
        self._wake.set()

    @property
    def resting(self) -> bool:
        """Whether nothing runs and nothing will by itself."""
        return self.status.state in RESTING

    def update_spec(self, spec: ServiceSpec) -> None:
        """Take over what can change while the service runs."""
        self.spec = spec
        self._board.publish(required=spec.required, url=spec.url)

    async def drain(self) -> None:
        """Wait until a ComfyUI has no job left, or does not answer any more."""
        while self.spec.kind is ServiceKind.COMFYUI and self.life and self.status.ready:
            if (liveness := self.spec.liveness) is None:
                return
            result = await self.life.probe(liveness.probe, liveness.timeout_s)
            if not result.ok or (left := queue_length(result)) == 0:
                return
            self._board.publish(message=f"to be restarted when its queue is empty: {left} left")
            await anyio.sleep(1.0)

    def disable(self) -> None:
        """Show a service that rests as disabled, because the configuration says so."""
        if self.status.state in (ServiceState.STOPPED, ServiceState.FAILED):
            self._board.step(Trigger.DISABLE)

    def note_dropped(self, total_bytes: int) -> None:
        """Show how much of its output was lost."""
        self._board.publish(log_bytes_dropped=total_bytes)

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
        """Stay down until somebody asks, or what it needs is no longer down for good."""
        if self._blocked:
            await self._wait_woken_or(lambda s: not dependencies.failed(self.spec.after, s))
            unblocked = not self._wake.is_set()
        else:
            await self._wake.wait()
            unblocked = False
        request = self._take_request()
        if self._retired:
            return
        if unblocked or request in (Wanted.UP, Wanted.AGAIN):
            self._blocked = False
            self._history = History()
            self._dropped = frozenset()
            self._board.step(Trigger.START)
        elif request is Wanted.DOWN and self.status.state is ServiceState.FAILED:
            self._blocked = False
            self._board.step(Trigger.FINISH, "stopped")

    async def _back_off(self) -> None:
        with anyio.move_on_after(self._delay_s):
            await self._wake.wait()
        match self._take_request():
            case None:
                self._board.step(Trigger.ELAPSED)
            case Wanted.DOWN:
                self._board.step(Trigger.FINISH, "stopped")
            case _:
                self._history = History()
                self._board.step(Trigger.START)

    async def _dependencies_met(self) -> bool:
        """Wait for the dependencies; False when the state has changed instead."""
        while True:
            if self._take_request() is Wanted.DOWN:
                self._board.step(Trigger.FINISH, "stopped")
                return False
            if self.spec.unavailable is not None:
                self._give_up_unavailable(self.spec.unavailable)
                return False
            after = self.spec.after
            snapshot = self._around.state.snapshot
            missing = dependencies.missing(after, snapshot)
            self.waits_for = missing
            if not missing:
                return True
            if failed := dependencies.failed(after, snapshot):
                self._blocked = True
                self._rest_as(Trigger.BLOCKED, f"it needs {failed[0]}, which has failed")
                return False
            self._board.publish(message=f"waiting for {', '.join(missing)}")
            await self._wait_woken_or(partial(dependencies.differ, after, missing))

    def _give_up_unavailable(self, why: str) -> None:
        told = Classification(ExitReason.SPAWN, why, self.spec.hint)
        self._rest_as(Trigger.BLOCKED, why, hint=self.spec.hint)
        self._around.given_up(self.spec, told, None)

    async def _wait_woken_or(self, predicate: Callable[[Snapshot], bool]) -> None:
        async with anyio.create_task_group() as race:

            async def woken() -> None:
                await self._wake.wait()
                race.cancel_scope.cancel()

            race.start_soon(woken)
            await self._around.state.wait(predicate)
            race.cancel_scope.cancel()

    async def _live(self) -> None:
        generation = self.status.generation + 1
        changes: dict[str, Any] = {"generation": generation}
        if generation > 1:
            changes |= self._board.count_restart(str(self._next_reason or "start-asked"))
        self._next_reason = None
        self._board.step(Trigger.LAUNCH, **changes)
        course = Course()
        try:
            if (life := await self._launch(generation)) is not None:
                await self._attend(life, course)
            else:
                course.end(self._asked_cause())
        except SpawnError as exc:
            course.failure = exc
            self._around.note(self.spec.name, exc.message)
        self._conclude(course, await course.explain(self.spec))

    def _asked_cause(self) -> ExitReason:
        again = self._request is Wanted.AGAIN
        return ExitReason.RESTARTED if again else ExitReason.STOPPED

    async def _launch(self, generation: int) -> Life | None:
        """Start the process; None when a stop was asked for meanwhile."""
        if self._request is not None:
            return None
        try:
            with anyio.CancelScope() as self._launching:
                if self._around.hold is not None:
                    await self._around.hold(self.spec)
                if generation > 1:
                    await self._memory_released()
                return await self._around.launch(self.spec, generation, self._command())
        finally:
            self._launching = None
        return None

    async def _memory_released(self) -> None:
        """Wait for the memory of the last life, and tell when it does not come back."""
        kept = None
        if self._around.released is not None:
            with anyio.move_on_after(_RELEASE_WAIT_S):
                kept = await self._around.released(self.spec)
        if kept is not None:
            self._board.warn(f"starting all the same: {kept}")
            self._around.note(self.spec.name, kept)

    def _command(self) -> tuple[str, ...]:
        command = without_flags(self.spec.command, self._dropped)
        if self._history.safe_mode:
            command = (*command, _SAFE_MODE_FLAG)
        return command

    async def _attend(self, life: Life, course: Course) -> None:
        self.life, self._course = life, course
        self._board.publish(pid=life.pid)
        life.announced.changed = lambda: self._announce(life)
        try:
            if self._request is not None:
                course.end(self._asked_cause())
            elif self.spec.readiness is None:
                self._became_ready(life, course)  # at once, however short its life is
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(life.attend)
                tasks.start_soon(self._watch_exit, life, course)
                tasks.start_soon(self._watch_health, life, course)
                tasks.start_soon(self._watch_watchdog, life, course)
                await course.over.wait()
                course.ceased_to_be_ready()
                if course.exit is None:
                    await self._bring_down(life, course)
                if left := await life.sweep():
                    course.left_behind = left
                    self._around.note(self.spec.name, f"ended {left} processes it left behind")
                tasks.cancel_scope.cancel()
        finally:
            with anyio.move_on_after(KILL_WAIT_S, shield=True):
                if course.exit is None:
                    life.send(signal.SIGKILL)
                    course.exit = await life.wait()
                    await life.sweep()
            with anyio.CancelScope(shield=True):
                course.evidence = await life.close()
            self.life, self._course = None, None
            self._board.publish(pid=None)

    async def _watch_exit(self, life: Life, course: Course) -> None:
        course.exit = await life.wait()
        course.end(None)

    async def _watch_watchdog(self, life: Life, course: Course) -> None:
        finding = await watch_watchdog(life)
        course.end(finding.reason, finding)

    async def _watch_health(self, life: Life, course: Course) -> None:
        while True:
            if course.ready_since_s is None:
                if self.spec.readiness is not None:
                    late = await become_ready(life, self.spec.readiness)
                    if late is not None:
                        course.end(late.reason, late)
                if course.over.is_set():
                    return
                self._became_ready(life, course)
            watch = LivenessWatch(
                life,
                spec=lambda: self.spec,
                report=self._report,
                gpu_busy=self._around.gpu_busy,
            )
            finding = await watch.run()
            if finding.reason is not None:
                course.end(finding.reason, finding)
            if course.over.is_set():
                return
            course.ceased_to_be_ready()
            self._restarted_in_place(finding.detail)

    def _became_ready(self, life: Life, course: Course) -> None:
        course.became_ready()
        self._board.step(Trigger.READY, life.announced.status, ready=True)

    def _restarted_in_place(self, detail: str) -> None:
        counted = self._board.count_restart(str(ExitReason.IN_PLACE))
        self._board.step(Trigger.REEXEC, f"restarting in place: {detail}", ready=False, **counted)

    def _report(self, healthy: bool, ready: bool, detail: str) -> None:
        """Take the result of a liveness check."""
        state = self.status.state
        if healthy and state is ServiceState.UNHEALTHY:
            self._board.step(Trigger.READY, "answers again", ready=True)
        elif not healthy and state is ServiceState.READY:
            self._board.step(Trigger.UNHEALTHY, detail, ready=ready)
        elif not healthy and state is ServiceState.UNHEALTHY:
            self._board.publish(message=detail, ready=ready)

    def _announce(self, life: Life) -> None:
        if life.announced.status and self.status.state is not ServiceState.STOPPING:
            self._board.publish(message=life.announced.status)

    async def _bring_down(self, life: Life, course: Course) -> None:
        detail = course.finding.detail if course.finding else "stopping"
        self._board.step(Trigger.TERMINATE, detail, ready=False)
        if self._stop_by_s is not None:
            course.hurry(self._stop_by_s)
        note = partial(self._around.note, self.spec.name)
        await course.bring_down(life, self.spec, note=note)

    def _conclude(self, course: Course, told: Classification) -> None:
        """Record the end of a life, decide what follows and enter that state."""
        ended = course.exit or Exit()
        self._board.exited(told, ended)
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
            wanted=self._take_request() or Wanted.UP,
        )
        decision = on_exit(self.spec, self._history, ending, now_s=anyio.current_time())
        self._enter(decision, told, ended)

    def _enter(self, decision: Decision, told: Classification, ended: Exit) -> None:
        self._history = decision.history
        parts = [told.message] if told.message else []
        if decision.message and not told.success:
            parts.append(decision.message)
        message = "; ".join(parts)
        match decision.trigger:
            case Trigger.BACK_OFF:
                self._delay_s = self.spec.backoff.delay_s(decision.attempt, self._around.rng)
                self._next_reason = told.reason
                message = f"{message}; trying again in {self._delay_s:.1f} s"
                self._board.step(Trigger.BACK_OFF, message, ready=False, hint=told.hint)
            case Trigger.RETRY:
                self._next_reason = told.reason
                self._board.step(Trigger.RETRY, message, ready=False, hint=told.hint)
            case trigger:
                self._rest_as(trigger, message, hint=told.hint)
                if trigger is Trigger.FAIL:
                    self._around.given_up(self.spec, told, ended)

    def _rest_as(self, trigger: Trigger, message: str, *, hint: str | None = None) -> None:
        self._board.step(trigger, message, ready=False, hint=hint)
