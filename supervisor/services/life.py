"""One life of a service: from its spawn until nothing of it is left."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import anyio
import anyio.to_thread

from supervisor.services import procfs
from supervisor.services.logs import ServiceLog
from supervisor.services.notify import Notification, NotifySocket, read_descriptor
from supervisor.services.prepare import run_command
from supervisor.services.probes import ProbeResult, check
from supervisor.services.process import ChildProcess, Exit, Order
from supervisor.services.spec import ActiveProbe

_STREAMS = ("stdout", "stderr")
_IDLE_S = 1.0  # an unfinished line is shown after so long a pause
_DRAIN_BYTES = 16 * 1024 * 1024
_STRAY_GRACE_S = 1.0
_KILL_WAIT_S = 10.0
_TAIL_LINES = 400  # the stacks of all threads of a crash


class Announcements:
    """What a service told about itself since its spawn. Times are of the loop's clock."""

    def __init__(self) -> None:
        self.ready = anyio.Event()
        self.changed: Callable[[], None] = lambda: None
        self.status = ""
        self.watchdog_s: float | None = None
        self.watchdog_at_s: float | None = None
        self.watchdog_failed = False
        self.heard = anyio.Event()  # set and replaced at every message
        self.extended_until_s = float("-inf")

    def receive(self, message: Notification) -> None:
        """Take one message."""
        now_s = anyio.current_time()
        if message.ready:
            self.ready.set()
        if message.status is not None:
            self.status = message.status
        if message.watchdog_s is not None:
            self.watchdog_s = message.watchdog_s or None
            self.watchdog_at_s = now_s
        if message.watchdog:
            self.watchdog_at_s = now_s
        if message.extend_timeout_s is not None:
            self.extended_until_s = now_s + message.extend_timeout_s
        self.watchdog_failed = self.watchdog_failed or message.watchdog_failed
        self.heard.set()
        self.heard = anyio.Event()
        self.changed()

    def watchdog_left_s(self, now_s: float) -> float | None:
        """Seconds until the watchdog is overdue, None when there is none."""
        if self.watchdog_failed:
            return 0.0
        if self.watchdog_s is None or self.watchdog_at_s is None:
            return None
        return self.watchdog_at_s + self.watchdog_s - now_s


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a life leaves behind for its classification."""

    tail: tuple[str, ...] = ()
    oom_kills: int = 0
    marker: bool = False


class Life(Protocol):
    """What the runner needs of a running service; tests put a simulated one here."""

    @property
    def pid(self) -> int:
        """The leader's process id."""

    @property
    def announced(self) -> Announcements:
        """What it told about itself."""

    @property
    def last_output_s(self) -> float:
        """When it wrote last, by the event loop's clock."""

    async def attend(self) -> None:
        """Take its output and messages until cancelled."""

    async def wait(self) -> Exit:
        """Wait for the leader's end."""

    async def group_gone(self) -> None:
        """Wait until the leader and its whole group have ended."""

    async def probe(self, probe: ActiveProbe, timeout_s: float) -> ProbeResult:
        """Ask it once."""

    def send(self, number: int, *, group: bool = True) -> None:
        """Send a signal."""

    def abort(self) -> None:
        """Make the leader write its stacks and end, without a core dump."""

    def image(self) -> tuple[str, str] | None:
        """A value that changes when the leader replaced itself by exec; None when it ended."""

    async def cpu_seconds(self) -> float:
        """CPU time used by it and its descendants."""

    async def describe(self) -> str:
        """What the leader is doing, for the report of a hang."""

    async def remember(self) -> None:
        """Note the descendants now, so that ``sweep`` finds those that move away."""

    async def sweep(self) -> int:
        """End what is left of it, in whatever session; return how many there were."""

    async def close(self) -> Evidence:
        """Take the rest of its output and release everything."""


class ServiceLife:
    """A real one."""

    def __init__(
        self,
        child: ChildProcess,
        *,
        order: Order,
        log: ServiceLog,
        cookie: tuple[str, str],
        log_pattern: str | None = None,
        notify: NotifySocket | None = None,
        watchdog_s: float | None = None,
        marker: Path | None = None,
        probed: Callable[[str, float], None] = lambda _probe, _seconds: None,
    ) -> None:
        """``probed`` is told the kind and the seconds of every probe."""
        self.pid = child.pid
        self._probed = probed
        self.announced = Announcements()
        self._child = child
        self._order = order
        self._log = log
        self._cookie = cookie
        self._notify = notify
        self._marker = marker
        self._opened = ExitStack()
        self._open_streams = set(_STREAMS)
        self._oom_kills = procfs.oom_kills()
        self._remembered: dict[int, int] = {}
        self._spawned_s = anyio.current_time()
        self._log_begun_at = log.position  # what former lives wrote is no evidence
        if log_pattern is not None:
            self.announced.ready = self._opened.enter_context(log.expect(log_pattern))
        if watchdog_s:
            self.announced.watchdog_s, self.announced.watchdog_at_s = watchdog_s, self._spawned_s

    @property
    def last_output_s(self) -> float:
        """When it wrote last."""
        return max(self._spawned_s, self._log.last_output_s)

    async def attend(self) -> None:
        """Take its output and messages until cancelled."""
        async with anyio.create_task_group() as tasks:
            for stream in _STREAMS:
                tasks.start_soon(self._read, stream)
            if self._notify is not None:
                tasks.start_soon(self._notify.listen, self.pid, self.announced.receive)
            if self._child.notify_descriptor is not None:
                tasks.start_soon(self._read_descriptor, self._child.notify_descriptor)

    async def wait(self) -> Exit:
        """Wait for the leader's end."""
        return await self._child.wait()

    async def group_gone(self) -> None:
        """Wait until the leader and its whole group have ended."""
        await self._child.wait()
        pause_s = 0.005
        while await anyio.to_thread.run_sync(procfs.group_members, self.pid):
            # The members are not our children: the kernel has no event for their end.
            await anyio.sleep(pause_s)
            pause_s = min(0.1, pause_s * 2)

    async def probe(self, probe: ActiveProbe, timeout_s: float) -> ProbeResult:
        """Ask it once."""
        begun_s = anyio.current_time()
        result = await check(probe, timeout_s=timeout_s, run_command=self._run_command)
        kind = type(probe).__name__.removesuffix("Probe").lower()
        self._probed(kind, anyio.current_time() - begun_s)
        if result.ok:
            # Whom the OOM killer has taken until now, it was not this one.
            self._oom_kills = procfs.oom_kills()
        return result

    def send(self, number: int, *, group: bool = True) -> None:
        """Send a signal."""
        self._child.send(number, group=group)

    def abort(self) -> None:
        """Make the leader write its stacks and end. A core of it could fill the disk."""
        if self._order.limit_core_bytes is None:
            with suppress(OSError, ValueError):
                hard = resource.prlimit(self.pid, resource.RLIMIT_CORE)[1]
                resource.prlimit(self.pid, resource.RLIMIT_CORE, (0, hard))
        self._child.send(signal.SIGABRT, group=False)

    def image(self) -> tuple[str, str] | None:
        """A value that changes when the leader replaced itself by exec."""
        stat = procfs.read_stat(self.pid)
        # Without memory (it is ending), or without permission, the kernel shows zeros.
        return stat.image if stat and "0" not in stat.image else None

    async def cpu_seconds(self) -> float:
        """CPU time used by it and its descendants."""
        return await anyio.to_thread.run_sync(procfs.cpu_seconds, self.pid)

    async def describe(self) -> str:
        """What the leader is doing."""
        return await anyio.to_thread.run_sync(procfs.describe, self.pid)

    async def remember(self) -> None:
        """Note the descendants now: the environment of another user's process cannot be
        read without CAP_SYS_PTRACE, but its parent can."""
        self._remembered = await anyio.to_thread.run_sync(_started, self.pid)

    async def sweep(self) -> int:
        """End what is left: SIGTERM, then SIGKILL."""
        found = await self._leftovers()
        if not found:
            return 0
        _signal_all(found, signal.SIGTERM)
        if await self._wait_for_end(_STRAY_GRACE_S):
            _signal_all(await self._leftovers(), signal.SIGKILL)
            await self._wait_for_end(_KILL_WAIT_S)
        return len(found)

    async def close(self) -> Evidence:
        """Take the rest of its output and release everything."""
        for stream in sorted(self._open_streams, reverse=True):
            feed = partial(self._feed, stream)
            await self._child.drain(stream, feed, limit_bytes=_DRAIN_BYTES)
        for stream in _STREAMS:
            self._log.end(stream, anyio.current_time())
        self._child.close()
        self._opened.close()
        if self._notify is not None:
            self._notify.close()
        return Evidence(
            tail=self._log.said_since(self._log_begun_at, _TAIL_LINES),
            oom_kills=procfs.oom_kills() - self._oom_kills,
            marker=self._take_marker(),
        )

    async def _read(self, stream: str) -> None:
        await self._child.read_output(
            stream, partial(self._feed, stream), partial(self._idle, stream)
        )
        self._open_streams.discard(stream)

    def _feed(self, stream: str, data: bytes) -> bool:
        return self._log.feed(stream, data, anyio.current_time())

    def _idle(self, stream: str) -> float | None:
        if not self._log.pending(stream):
            return None
        now_s = anyio.current_time()
        if now_s - self._log.last_output_s < _IDLE_S:
            return _IDLE_S
        self._log.idle(stream, now_s)
        return None

    async def _read_descriptor(self, descriptor: int) -> None:
        if await read_descriptor(descriptor):
            self.announced.ready.set()

    async def _run_command(self, command: tuple[str, ...]) -> int:
        code, _ = await run_command(command, self._order)
        return 1 if code is None else code

    async def _leftovers(self) -> list[int]:
        return await anyio.to_thread.run_sync(
            _leftovers, self.pid, self._cookie, dict(self._remembered)
        )

    async def _wait_for_end(self, timeout_s: float) -> bool:
        """Return whether something is still there."""
        with anyio.move_on_after(timeout_s):
            while await self._leftovers():
                await anyio.sleep(0.02)
            return False
        return True

    def _take_marker(self) -> bool:
        if self._marker is None or not self._marker.exists():
            return False
        self._marker.unlink(missing_ok=True)
        return True


def _started(root: int) -> dict[int, int]:
    stats = (procfs.read_stat(pid) for pid in procfs.descendants(root))
    return {stat.pid: stat.started_ticks for stat in stats if stat}


def _leftovers(group: int, cookie: tuple[str, str], remembered: dict[int, int]) -> list[int]:
    found = {*procfs.group_members(group), *procfs.marked(*cookie)}
    for pid, started_ticks in remembered.items():
        stat = procfs.read_stat(pid)
        if stat and not stat.dead and stat.started_ticks == started_ticks:
            found.add(pid)
    return sorted(found - {os.getpid()})


def _signal_all(pids: list[int], number: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
            os.kill(pid, signal.SIGCONT)
        except (ProcessLookupError, PermissionError):
            continue
