"""How a service is known to be up, and known to be hung."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum

import anyio

from supervisor.services.classify import ExitReason
from supervisor.services.life import Life
from supervisor.services.probes import ProbeResult
from supervisor.services.spec import (
    ExecProbe,
    FileProbe,
    HttpProbe,
    Liveness,
    LogProbe,
    NotifyProbe,
    Readiness,
    ServiceKind,
    ServiceSpec,
    TcpProbe,
)

_FIRST_PAUSE_S = 0.02
_PROBE_TIMEOUT_S = 5.0
_EXEC_LIMIT = 5  # a program that replaces itself for ever is not starting
_ACTIVE_RATIO = 0.05  # of one core: a hung process waits, a busy one computes
_PATIENCE = 4
_LAST_BREATH_S = 0.5


class Verdict(StrEnum):
    """What a failed check means."""

    WAIT = "wait"
    BUSY = "busy"
    IN_PLACE = "in-place"
    HUNG = "hung"


@dataclass(frozen=True, slots=True)
class Pulse:
    """What is known when a check has failed. ``queue`` is the length at the last answer."""

    failures: int
    limit: int
    kind: ServiceKind = ServiceKind.GENERIC
    refused: bool = False
    queue: int = 0
    cpu_ratio: float = 0.0
    gpu_busy: bool = False


def judge(pulse: Pulse) -> Verdict:
    """Tell a hung service from a busy one. Pure.

    A ComfyUI that had work when it last answered and still computes is busy for as long
    as it takes (``stall_timeout_s`` bounds that); one that only computes, or only had
    work, gets four times the patience. A lost port with a live process is its restart in
    place (CONTRACTS: ComfyUI-Manager reboot).
    """
    if pulse.kind is not ServiceKind.COMFYUI:
        return Verdict.WAIT if pulse.failures < pulse.limit else Verdict.HUNG
    if pulse.refused:
        return Verdict.IN_PLACE
    if pulse.failures < pulse.limit:
        return Verdict.WAIT
    active = pulse.gpu_busy or pulse.cpu_ratio >= _ACTIVE_RATIO
    if pulse.queue > 0 and active:
        return Verdict.BUSY
    patient = pulse.queue > 0 or active
    if patient and pulse.failures < pulse.limit * _PATIENCE:
        return Verdict.BUSY
    return Verdict.HUNG


@dataclass(frozen=True, slots=True)
class Finding:
    """Why a service must be ended, or None as ``reason`` when it restarted in place."""

    reason: ExitReason | None
    detail: str = ""
    hint: str | None = None


async def become_ready(life: Life, readiness: Readiness) -> Finding | None:
    """Wait until the service is ready; return why it counts as failed when it is too late.

    The time starts again when the program replaces itself (ComfyUI's prestartup after
    installs) and is extended by EXTEND_TIMEOUT_USEC.
    """
    begun_s = anyio.current_time()
    image, execs = life.image(), 0
    pause_s = min(_FIRST_PAUSE_S, readiness.interval_s)
    while True:
        detail = await _ask(life, readiness, pause_s)
        if detail is None:
            return None
        now_s = anyio.current_time()
        if execs < _EXEC_LIMIT and _replaced(image, current := life.image()):
            image, begun_s, execs = current, now_s, execs + 1
        if now_s >= max(begun_s + readiness.timeout_s, life.announced.extended_until_s):
            return Finding(
                ExitReason.NOT_READY,
                f"not ready within {readiness.timeout_s:g} s: {detail}",
                "give it more time (timeout_s, for ComfyUI start_timeout_s), or see its log",
            )
        pause_s = min(readiness.interval_s, pause_s * 2)


def _replaced(before: tuple[str, str] | None, now: tuple[str, str] | None) -> bool:
    return before is not None and now is not None and before != now


async def _ask(life: Life, readiness: Readiness, pause_s: float) -> str | None:
    """Ask once, then wait ``pause_s``; None when it is ready, else what was missing."""
    match readiness.probe:
        case LogProbe() | NotifyProbe() as probe:
            with anyio.move_on_after(pause_s):
                await life.announced.ready.wait()
            if life.announced.ready.is_set():
                return None
            what = "the log line" if isinstance(probe, LogProbe) else "its notification"
            return f"{what} has not come"
        case HttpProbe() | TcpProbe() | ExecProbe() | FileProbe() as probe:
            result = await life.probe(probe, min(_PROBE_TIMEOUT_S, readiness.timeout_s))
            if result.ok:
                return None
            await anyio.sleep(pause_s)
            return result.detail


Report = Callable[[bool, bool, str], None]  # healthy, ready, detail


class LivenessWatch:
    """Checks one life until it is hung, stalled, or has restarted in place."""

    def __init__(
        self,
        life: Life,
        *,
        spec: Callable[[], ServiceSpec],
        report: Report,
        gpu_busy: Callable[[], bool],
    ) -> None:
        self._life = life
        self._spec = spec  # asked every time: a reload may change the limits
        self._report = report
        self._gpu_busy = gpu_busy
        self._image = life.image()
        self._failures = 0
        self._queue = 0
        self._progress_s = anyio.current_time()
        self._cpu: tuple[float, float] | None = None  # time, CPU seconds

    async def run(self) -> Finding:
        """Return what was found; runs for ever while all is well."""
        if (liveness := self._spec().liveness) is not None:
            await anyio.sleep(liveness.grace_s)
        while True:
            liveness = self._spec().liveness
            if liveness is None:
                await anyio.sleep(60.0)
                continue
            await anyio.sleep(liveness.interval_s)
            if (finding := await self._check(liveness)) is not None:
                return finding

    async def _check(self, liveness: Liveness) -> Finding | None:
        spec = self._spec()
        result = await self._life.probe(liveness.probe, liveness.timeout_s)
        if spec.readiness is not None and _replaced(self._image, self._life.image()):
            return Finding(None, "it replaced its own process")
        self._note_progress(result)
        if (stalled := self._stalled(spec)) is not None:
            return stalled
        if result.ok:
            self._failures, self._cpu = 0, None
            self._report(True, True, "")
            return None
        self._failures += 1
        return await self._failed(spec, liveness, result)

    async def _failed(
        self, spec: ServiceSpec, liveness: Liveness, result: ProbeResult
    ) -> Finding | None:
        pulse = Pulse(
            failures=self._failures,
            limit=liveness.failures,
            kind=spec.kind,
            refused=result.refused and spec.readiness is not None,
            queue=self._queue,
            cpu_ratio=await self._cpu_ratio(),
            gpu_busy=self._gpu_busy(),
        )
        match judge(pulse):
            case Verdict.IN_PLACE:
                # A process that is ending closes its port just before its end is seen.
                await anyio.sleep(_LAST_BREATH_S)
                return Finding(None, "its port is gone but its process lives")
            case Verdict.HUNG:
                what = await self._life.describe()
                return Finding(
                    ExitReason.HUNG,
                    f"hung: {self._failures} checks in a row failed ({result.detail}; {what})",
                )
            case Verdict.BUSY:
                self._report(False, True, f"busy: {result.detail}, but it is working")
            case Verdict.WAIT:
                self._report(False, self._failures < liveness.failures, result.detail)
        return None

    def _note_progress(self, result: ProbeResult) -> None:
        now_s = anyio.current_time()
        queue = queue_length(result) if result.ok else self._queue
        if queue != self._queue or queue == 0:
            self._progress_s = now_s
        self._queue = queue
        self._progress_s = max(self._progress_s, self._life.last_output_s)

    def _stalled(self, spec: ServiceSpec) -> Finding | None:
        idle_s = anyio.current_time() - self._progress_s
        if spec.stall_timeout_s <= 0 or self._queue == 0 or idle_s < spec.stall_timeout_s:
            return None
        return Finding(
            ExitReason.STALLED,
            f"a job shows no progress for {idle_s:.0f} s",
            "raise comfyui.stall_timeout_s when jobs of yours are silent for so long",
        )

    async def _cpu_ratio(self) -> float:
        """The share of a core used since the last failed check; at the first, all is open."""
        now_s, used_s = anyio.current_time(), await self._life.cpu_seconds()
        before, self._cpu = self._cpu, (now_s, used_s)
        if before is None or now_s <= before[0]:
            return 1.0
        return (used_s - before[1]) / (now_s - before[0])


def queue_length(result: ProbeResult) -> int:
    """Read ``GET /prompt`` of ComfyUI; other bodies have no queue."""
    with suppress(ValueError, KeyError, TypeError):
        return int(json.loads(result.body)["exec_info"]["queue_remaining"])
    return 0


async def watch_watchdog(life: Life) -> Finding:
    """Return when the service missed its own watchdog (WATCHDOG=1)."""
    while True:
        left_s = life.announced.watchdog_left_s(anyio.current_time())
        if left_s is not None and left_s <= 0:
            return Finding(ExitReason.WATCHDOG, "it missed its own watchdog")
        with anyio.move_on_after(left_s):
            await life.announced.heard.wait()
