"""All services together: start, stop, change, in the order of their dependencies."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import anyio
from anyio.abc import TaskGroup, TaskStatus

from supervisor.core.events import EventBus, Severity
from supervisor.core.state import StateStore
from supervisor.core.status import ServiceState
from supervisor.errors import ControlError
from supervisor.services import graph
from supervisor.services.classify import Classification
from supervisor.services.launcher import Launcher
from supervisor.services.life import Life
from supervisor.services.logs import LogStore
from supervisor.services.machine import RESTING, Wanted
from supervisor.services.process import Exit, signal_number
from supervisor.services.reload import ServiceDiff, diff
from supervisor.services.runner import ServiceRunner
from supervisor.services.spec import FailureAction, ServiceSpec
from supervisor.services.surroundings import Surroundings

_KILL_RESERVE_S = 0.5  # of a stop's time, kept for SIGKILL and the search for strays


@dataclass(frozen=True, slots=True)
class ExitRequest:
    """A service asks for the end of the container (``on_failure = "shutdown"``)."""

    service: str
    code: int
    reason: str


class ServiceManager:
    """Runs services.

    ``base_environment`` holds no secret. ``hold``, ``released``, ``adjust`` and ``gpu_busy``: see
    ``Surroundings``. ``launch`` replaces the start of real processes in tests;
    ``probed`` is told service, kind and seconds of every probe.
    """

    def __init__(
        self,
        *,
        state: StateStore,
        bus: EventBus,
        logs: LogStore,
        base_environment: Mapping[str, str],
        hold: Callable[[ServiceSpec], Awaitable[None]] | None = None,
        released: Callable[[ServiceSpec], Awaitable[str | None]] | None = None,
        adjust: Callable[[ServiceSpec, Classification], ServiceSpec | None] | None = None,
        gpu_busy: Callable[[], bool] = lambda: False,
        launch: Callable[[ServiceSpec, int, tuple[str, ...]], Awaitable[Life]] | None = None,
        probed: Callable[[str, str, float], None] = lambda _service, _probe, _seconds: None,
        rng: random.Random | None = None,
    ) -> None:
        self.failure: ExitRequest | None = None
        self._state = state
        self._bus = bus
        self._logs = logs
        self._launcher = Launcher(logs=logs, base_environment=base_environment, probed=probed)
        self._surroundings = Surroundings(
            state=state,
            bus=bus,
            launch=launch or self._launcher.launch,
            note=lambda name, text: logs.service(name).note(text),
            given_up=self._given_up,
            rng=rng or random.Random(),
            hold=hold,
            released=released,
            adjust=adjust,
            gpu_busy=gpu_busy,
        )
        self._runners: dict[str, ServiceRunner] = {}
        self._tasks: TaskGroup | None = None
        self._stopping = False
        self._failed = anyio.Event()
        self._ended = anyio.Event()
        logs.on_drop = self._dropped

    async def run(
        self,
        specs: Sequence[ServiceSpec],
        *,
        task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
    ) -> None:
        """Run services until ``stop_all`` has ended them; cancelling kills them at once."""
        async with anyio.create_task_group() as self._tasks:
            for spec in specs:
                self._add(spec)
            task_status.started()
            await self._ended.wait()
            self._tasks.cancel_scope.cancel()
        self._tasks = None

    @property
    def instance(self) -> str:
        """The mark of this supervisor's processes (``SUPERVISOR_INSTANCE``)."""
        return self._launcher.instance

    @property
    def specs(self) -> tuple[ServiceSpec, ...]:
        """What runs now."""
        return tuple(runner.spec for runner in self._runners.values())

    @property
    def base_environment(self) -> Mapping[str, str]:
        """What every service inherits; replaceable before a reload or a late probe's result."""
        return self._launcher.base_environment

    @base_environment.setter
    def base_environment(self, environment: Mapping[str, str]) -> None:
        self._launcher.base_environment = dict(environment)

    async def wait_failure(self) -> ExitRequest:
        """Wait until a service asks for the end of the container."""
        await self._failed.wait()
        assert self.failure is not None  # noqa: S101 - set before the event
        return self.failure

    def live_pids(self) -> Mapping[str, int]:
        """Return the process ids of the leaders that run now."""
        return {name: r.life.pid for name, r in self._runners.items() if r.life is not None}

    async def start(self, name: str) -> None:
        """Start a service that rests or waits for its next try; returns at once.

        Raises:
            ControlError: there is no such service, or the pod is stopping.
        """
        runner = self._runner(name)
        self._check_running(f"start {name}")
        runner.ask(Wanted.UP)

    async def stop(self, name: str) -> None:
        """Stop a service; returns when its whole group is gone.

        Raises:
            ControlError: there is no such service, or a later command wanted it up.
        """
        runner = self._runner(name)
        if runner.status.state is ServiceState.DISABLED:
            return
        runner.ask(Wanted.DOWN)
        ups = runner.ups_asked
        await self._state.wait(lambda _: runner.resting or runner.ups_asked != ups)
        if not runner.resting:
            raise ControlError(
                f"Cannot finish the stop of {name}: another command came after it",
                status=409,
                code="overtaken",
            )

    async def restart(self, name: str, *, now: bool = False) -> None:
        """Stop and start a service; returns when the new process runs, or waits, or cannot.

        A ComfyUI with jobs in its queue is restarted when they are done, unless ``now``.

        Raises:
            ControlError: there is no such service, or the pod is stopping.
        """
        runner = self._runner(name)
        if not now:
            await runner.drain()
        self._check_running(f"restart {name}")
        generation = runner.status.generation
        runner.ask(Wanted.AGAIN)

        def settled() -> bool:
            status = runner.status
            if status.state in (*RESTING, ServiceState.BACKOFF):
                return True
            if status.generation > generation:
                return status.pid is not None
            return status.state is ServiceState.WAITING and bool(runner.waits_for)

        await self._state.wait(lambda _: settled())

    async def drain(self, name: str) -> None:
        """Wait until a ComfyUI has no job left, or does not answer; others have no queue.

        Raises:
            ControlError: there is no such service.
        """
        await self._runner(name).drain()

    async def signal(self, name: str, signal_name: str) -> None:
        """Send a signal to the whole group of a service.

        Raises:
            ControlError: no such service or signal, or it does not run.
        """
        runner = self._runner(name)
        try:
            number = signal_number(signal_name)
        except ValueError as exc:
            raise ControlError(
                f"Cannot signal {name}: {exc}", hint="names are like HUP, SIGUSR1 or 10"
            ) from None
        if runner.life is None:
            raise ControlError(
                f"Cannot signal {name}: it is not running", status=409, code="not-running"
            )
        runner.life.send(number)

    async def reconcile(
        self, specs: Sequence[ServiceSpec], *, dry_run: bool = False
    ) -> ServiceDiff:
        """Make the running services match ``specs``; touch only what differs.

        Returns what was (or, with ``dry_run``, would be) done. Returns when removed
        services are gone and changed ones are restarting.

        Raises:
            ControlError: the pod is stopping.
        """
        changes = diff(self.specs, specs)
        if dry_run:
            return changes
        self._check_running("change the services")
        async with anyio.create_task_group() as tasks:
            for name in changes.removed:
                tasks.start_soon(self._remove, name)
            for spec in specs:
                if spec.name in changes.changed:
                    tasks.start_soon(self._change, spec, changes.changed[spec.name].restart)
        for spec in specs:
            if spec.name in changes.added:
                self._add(spec)
        return changes

    async def stop_all(self, deadline_s: float) -> None:
        """Stop everything, users before what they use, within ``deadline_s`` seconds.

        May be called again with less time, to hurry a stop that is under way.
        """
        self._stopping = True
        self._logs.close_subscriptions()
        begun_s = anyio.current_time()
        specs = self.specs
        shares = graph.stop_shares(specs, max(0.0, deadline_s - _KILL_RESERVE_S))
        users = graph.dependents(specs)
        async with anyio.create_task_group() as tasks:
            for spec in specs:
                by_s = begun_s + shares[spec.name]
                tasks.start_soon(self._stop_after, spec.name, users[spec.name], by_s)
        self._ended.set()

    async def _stop_after(self, name: str, users: frozenset[str], by_s: float) -> None:
        await self._state.wait(
            lambda s: all(u not in s.services or s.services[u].state in RESTING for u in users)
        )
        if (runner := self._runners.get(name)) is None:
            return
        runner.retire()
        if not runner.resting:
            runner.ask(Wanted.DOWN, stop_by_s=by_s)
            await self._rests(name)

    async def _rests(self, name: str) -> None:
        await self._state.wait(
            lambda s: name not in s.services or s.services[name].state in RESTING
        )

    def _add(self, spec: ServiceSpec) -> None:
        if self._tasks is None:
            raise ControlError("Cannot add a service: the services are not running", status=409)
        runner = ServiceRunner(spec, self._surroundings)
        self._runners[spec.name] = runner
        self._logs.also_write(spec.name, spec.log_file)
        self._tasks.start_soon(runner.run, name=f"service {spec.name}")

    async def _remove(self, name: str) -> None:
        runner = self._runners[name]
        runner.retire()
        if not runner.resting:
            runner.ask(Wanted.DOWN)
            await self._rests(name)
        del self._runners[name]
        self._state.drop_service(name)

    async def _change(self, spec: ServiceSpec, restart: bool) -> None:
        runner = self._runners[spec.name]
        self._logs.also_write(spec.name, spec.log_file)
        runner.update_spec(spec)
        if not spec.enabled:
            if not runner.resting:
                runner.ask(Wanted.DOWN)
                await self._rests(spec.name)
            runner.disable()
        elif runner.status.state is ServiceState.DISABLED:
            runner.ask(Wanted.UP)
        elif restart and not runner.resting:
            runner.ask(Wanted.AGAIN)
        elif runner.status.state is ServiceState.FAILED:
            runner.ask(Wanted.UP)  # what made it fail may just have been corrected

    def _check_running(self, action: str) -> None:
        if self._stopping:
            raise ControlError(f"Cannot {action}: the pod is stopping", status=409, code="stopping")

    def _runner(self, name: str) -> ServiceRunner:
        runner = self._runners.get(name)
        if runner is None:
            known = ", ".join(sorted(self._runners)) or "none"
            raise ControlError(
                f"Cannot find the service {name}: there is no such service",
                hint=f"services: {known}",
                status=404,
                code="not-found",
            )
        return runner

    def _given_up(self, spec: ServiceSpec, told: Classification, ended: Exit | None) -> None:
        if spec.on_failure is not FailureAction.SHUTDOWN or self.failure is not None:
            return
        code = ended.shell_code if ended else 1
        self.failure = ExitRequest(spec.name, code or 1, told.message)
        self._bus.publish(
            "service.shutdown",
            f"{spec.name} is down for good: ending the container",
            severity=Severity.ERROR,
            subject=spec.name,
            code=self.failure.code,
        )
        self._failed.set()

    def _dropped(self, name: str, total_bytes: int) -> None:
        if (runner := self._runners.get(name)) is not None:
            runner.note_dropped(total_bytes)
