"""A pod of real processes for tests, which leaves nothing behind."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio

from supervisor.core.events import EventBus
from supervisor.core.retry import Backoff
from supervisor.core.state import StateStore
from supervisor.core.status import ServiceState, ServiceStatus
from supervisor.services import procfs
from supervisor.services.logs import LogLimits, LogStore
from supervisor.services.manager import ServiceManager
from supervisor.services.spec import ServiceSpec

DEADLINE_S = 30.0
QUICK = Backoff(initial_s=0.01, max_s=0.05)


@dataclass
class Pod:
    """The parts of a running pod, with shorthands."""

    state: StateStore
    bus: EventBus
    logs: LogStore
    manager: ServiceManager

    def __getitem__(self, name: str) -> ServiceStatus:
        return self.state.snapshot.services[name]

    async def reaches(self, name: str, *states: ServiceState) -> ServiceStatus:
        """Wait until a service is in one of the states."""
        return await self.when(name, lambda s: s.state in states)

    async def when(self, name: str, predicate: Callable[[ServiceStatus], bool]) -> ServiceStatus:
        """Wait until a service's status satisfies a condition."""
        with anyio.fail_after(DEADLINE_S):
            snapshot = await self.state.wait(
                lambda s: name in s.services and predicate(s.services[name])
            )
        return snapshot.services[name]

    async def says(self, name: str, text: str) -> None:
        """Wait until a line of the service's log holds ``text``."""
        with anyio.fail_after(DEADLINE_S):
            while not any(text in line for line in self.output(name)):
                await anyio.sleep(0.01)

    def output(self, name: str, stream: str | None = None) -> list[str]:
        """Return the lines a service has written."""
        lines = self.logs.tail(name, 100_000)
        return [line.text for line in lines if stream is None or line.stream == stream]

    def states(self, name: str) -> list[str]:
        """Return the states that a service went through."""
        return [
            e.data["state"]
            for e in self.bus.recent()
            if e.kind == "service.state" and e.subject == name
        ]

    def exits(self, name: str) -> list[str]:
        """Return the reasons of a service's exits."""
        return [
            e.data["reason"]
            for e in self.bus.recent()
            if e.kind == "service.exit" and e.subject == name
        ]


@asynccontextmanager
async def running(
    *specs: ServiceSpec,
    environment: dict[str, str] | None = None,
    limits: LogLimits | None = None,
    directory: Path | None = None,
    **options: Any,
) -> AsyncIterator[Pod]:
    """Run services while the context is open, then stop them and look for leftovers."""
    state, bus = StateStore(), EventBus(history=100_000)
    logs = LogStore(directory, lambda text: text, console=False, limits=limits)
    manager = ServiceManager(
        state=state,
        bus=bus,
        logs=logs,
        base_environment=dict(os.environ) if environment is None else environment,
        rng=random.Random(7),
        **options,
    )
    instance = manager.instance
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(logs.run)
        await tasks.start(manager.run, specs)
        try:
            yield Pod(state, bus, logs, manager)
            with anyio.fail_after(DEADLINE_S):
                await manager.stop_all(10.0)
        finally:
            tasks.cancel_scope.cancel()
    assert leftovers(instance) == []


def leftovers(instance: str) -> list[int]:
    """Return the living processes that a manager has started."""
    return [
        pid
        for pid in procfs.pids()
        if procfs.variables_of(pid, procfs.INSTANCE).get(procfs.INSTANCE) == instance
        and procfs.is_alive(pid)
    ]


def shell(name: str, script: str, **options: Any) -> ServiceSpec:
    """A service that is a shell script."""
    options.setdefault("backoff", QUICK)
    return ServiceSpec(name, ("/bin/sh", "-c", script), **options)


def python(name: str, script: str, **options: Any) -> ServiceSpec:
    """A service that is a Python program (started without site-packages, to be quick)."""
    options.setdefault("backoff", QUICK)
    return ServiceSpec(name, (sys.executable, "-S", "-u", "-c", script), **options)
