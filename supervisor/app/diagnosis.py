"""Advice from the services' logs, in the status, as events and as a metric.

A reader of its own beside the log's other followers: lines wait in a bounded queue and are
judged a few times a second, so a flood costs what fits into the queue and holds nobody up.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import anyio.to_thread

from supervisor.core.clock import wall_time_s
from supervisor.core.events import EventBus, Severity
from supervisor.core.state import StateStore
from supervisor.core.status import ServiceState
from supervisor.monitor.diagnosis import Diagnosis, Sighting
from supervisor.monitor.rulebook import Context, Rulebook, load_rules
from supervisor.plan.gpu_policy import nominal_gb
from supervisor.services.logs import LogLine, LogStore
from supervisor.services.spec import ServiceKind

if TYPE_CHECKING:
    from supervisor.app.essentials import Essentials

log = logging.getLogger("supervisor.diagnosis")

_PAUSE_S = 0.25  # between two looks
_QUEUE_LINES = 5000  # the newest: of a flood the end tells most
_LINES_AT_ONCE = 1000  # a millisecond of the event loop
_REFRESH_S = 5.0  # counts and times of known advice need not be newer
_SEVERITIES = {"error": Severity.ERROR, "warning": Severity.WARNING, "info": Severity.INFO}


class Diagnostician:
    """Reads the logs of all services until the pod stops.

    ``context`` tells the facts of the moment, ``command`` where the subject of a sighting
    can be had (it may block), ``seen`` is told every sighting.
    """

    def __init__(
        self,
        rulebook: Rulebook,
        *,
        logs: LogStore,
        state: StateStore,
        bus: EventBus,
        context: Callable[[], Context],
        command: Callable[[Mapping[str, str]], str | None],
        seen: Callable[[Sighting], None],
    ) -> None:
        self._diagnosis = Diagnosis(rulebook)
        self._codes = frozenset(rule.code for rule in rulebook.rules)
        self._logs = logs
        self._state = state
        self._bus = bus
        self._context = context
        self._command = command
        self._seen = seen
        self._shown_s = float("-inf")

    async def run(self) -> None:
        """Judge what is there and what comes; returns when the logs end."""
        with self._logs.subscribe(None, limit=_QUEUE_LINES) as lines:
            await self._judge(self._logs.tail(None, _QUEUE_LINES))
            while not lines.closed:
                with anyio.move_on_after(_REFRESH_S):
                    await lines.wait()
                await self._judge(lines.take())
                await anyio.sleep(_PAUSE_S)

    async def _judge(self, lines: Sequence[LogLine]) -> None:
        fresh = False
        context = self._context()
        for service, at_s, text in _pieces(lines):
            found = self._diagnosis.examine(
                text,
                service=service,
                run=self._run_of(service, at_s),
                now_s=at_s,
                context=context,
            )
            for sighting in found:
                fresh = fresh or sighting.fresh
                await self._report(sighting)
            await anyio.lowlevel.checkpoint()
        self._show(at_once=fresh)

    async def _report(self, sighting: Sighting) -> None:
        self._seen(sighting)
        if not sighting.fresh:
            return
        rule = sighting.rule
        self._bus.publish(
            "advice.given",
            sighting.message,
            severity=_SEVERITIES[rule.severity],
            subject=sighting.service,
            code=rule.code,
        )
        log.log(
            logging.INFO if rule.severity == "info" else logging.WARNING,
            "%s: %s (see %s)",
            sighting.service,
            sighting.message,
            rule.link,
        )
        if rule.lookup is not None and sighting.subject is not None:
            command = await anyio.to_thread.run_sync(self._command, sighting.groups)
            if command is not None:
                self._diagnosis.remedy(rule.code, sighting.service, sighting.subject, command)

    def _show(self, *, at_once: bool) -> None:
        """Put the advice into the status; changed counts alone can wait."""
        services = self._state.snapshot.services.values()
        gone = self._diagnosis.forget(
            wall_time_s(), {s.name: s.generation for s in services if s.ready}
        )
        for advice in gone:
            self._bus.publish(
                "advice.cleared", f"no longer seen: {advice.message}", subject=advice.service,
                code=advice.code,
            )  # fmt: skip
        now_s = anyio.current_time()
        if at_once or gone or now_s - self._shown_s >= _REFRESH_S:
            self._shown_s = now_s
            others = (a for a in self._state.snapshot.advice if a.code not in self._codes)
            self._state.update(advice=(*others, *self._diagnosis.advice()))

    def _run_of(self, service: str, at_s: float) -> int:
        """The run that wrote a line: what a service says when it dies is read a moment later."""
        status = self._state.snapshot.services.get(service)
        if status is None:
            return 0
        older = status.state is ServiceState.STARTING and at_s < status.since_s
        return status.generation - older


async def diagnose(base: Essentials, *, seen: Callable[[Sighting], None]) -> None:
    """Give advice until the logs end."""
    from supervisor.app.remedies import ModelFinder  # noqa: PLC0415 - the catalog's libraries

    rulebook = await anyio.to_thread.run_sync(load_rules)
    await Diagnostician(
        rulebook,
        logs=base.logs,
        state=base.state,
        bus=base.bus,
        context=lambda: _context(base),
        command=ModelFinder(base.boot.settings.models.catalog).command,
        seen=seen,
    ).run()


def _context(base: Essentials) -> Context:
    facts, gpu = base.boot.facts, base.state.snapshot.gpu
    index = base.boot.settings.gpu.index
    devices = facts.gpu.devices
    device = devices[index if index < len(devices) else 0] if devices else None
    capability = device.compute_capability if device else None
    command = next((s.command for s in base.manager.specs if s.kind is ServiceKind.COMFYUI), ())
    return Context(
        gpu=device.name if device else None,
        vram_gb=nominal_gb(device.memory_total_mib) if device else None,
        capability=f"{capability[0]}.{capability[1]}" if capability else None,
        driver=facts.gpu.driver,
        cuda=facts.gpu.cuda,
        torch=facts.comfyui.torch if facts.comfyui else None,
        comfyui=facts.comfyui.version if facts.comfyui else None,
        mode=gpu.mode,
        flags=tuple(word for word in command if word.startswith("--")),
    )


def _pieces(lines: Sequence[LogLine]) -> Iterator[tuple[str, float, str]]:
    """Yield service, time and text of runs of lines that services wrote themselves."""
    for start in range(0, len(lines), _LINES_AT_ONCE):
        for service, group in groupby(lines[start : start + _LINES_AT_ONCE], lambda n: n.service):
            own = [line for line in group if line.stream != "supervisor"]
            if own:
                yield service, own[-1].at_s, "\n".join([line.text for line in own])
