"""Stops the pod when nobody has used it for long enough.

The order at the end: everything stored and verified, a last look, ComfyUI stopped so that
no job begins any more, what it wrote while ending stored too, then the stop itself. Whatever
fails on the way, the pod goes on, says so, and tries again later.
"""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from typing import Protocol

import anyio

from supervisor.core.clock import iso_utc, wall_time_s
from supervisor.core.events import EventBus, Severity
from supervisor.core.retry import Backoff
from supervisor.core.state import StateStore
from supervisor.core.status import IdleStatus, Phase, SyncStatus
from supervisor.errors import SupervisorError
from supervisor.pod.activity import IdleFacts, Idleness, busy_because

log = logging.getLogger("supervisor.idle")

_LONGEST_PAUSE_S = 5.0
_SHORTEST_PAUSE_S = 1.0
_WARN_SHARE = 0.8
# Uploads that get on count as use; this is for those that fail, and it is tried again later.
_FLUSH_S = 120.0
_COMMAND_S = 120.0
_AGAIN = Backoff(initial_s=60.0, max_s=900.0, jitter=False)


class PodEndError(SupervisorError):
    """The pod could not be ended and runs on."""


Look = Callable[[bool], Awaitable[IdleFacts]]


class Looker(Protocol):
    """Finds out whether the pod is in use; see ``pod.looks``."""

    def opened(self) -> AbstractAsyncContextManager[Look]: ...


@dataclass(frozen=True, slots=True)
class Ending:
    """How the pod is ended.

    ``flush`` stores outputs within so many seconds and tells what is left; ``drain`` stops
    what takes new jobs and returns the names, ``resume`` starts them again and waits until they
    are up, so that this does not look like use; ``stop`` asks for the end of the pod (None:
    the process just exits) and raises ``SupervisorError`` when it was refused; ``exit`` ends
    this process.
    """

    flush: Callable[[float], Awaitable[SyncStatus | None]]
    drain: Callable[[], Awaitable[Sequence[str]]]
    resume: Callable[[Sequence[str]], Awaitable[None]]
    stop: Callable[[], Awaitable[object]] | None
    exit: Callable[[str], None]
    what: str  # for people: "the pod is stopped"
    dry_run: bool = False
    ignore_unsynced: bool = False


class IdleWatcher:
    """Counts the seconds without use, says so, and ends the pod at the limit."""

    def __init__(
        self, *, limit_s: float, looks: Looker, ending: Ending, state: StateStore, bus: EventBus
    ) -> None:
        self._limit_s = limit_s
        self._pause_s = min(_LONGEST_PAUSE_S, max(_SHORTEST_PAUSE_S, limit_s / 10))
        self._looks = looks
        self._ending = ending
        self._state = state
        self._bus = bus
        self._kept_until_s: float | None = None  # on the loop's clock
        self._idleness: Idleness | None = None
        self._failures = 0
        self._not_before_s = 0.0

    def keep(self, seconds: float) -> None:
        """Count as in use for so long; 0 takes it back. An end that has begun is given up."""
        now_s = anyio.current_time()
        self._kept_until_s = now_s + seconds if seconds else None
        self._idleness = Idleness(now_s, ("kept by request",) if seconds else ())
        self._failures, self._not_before_s = 0, 0.0
        until = iso_utc(wall_time_s() + seconds) if seconds else None
        self._show(kept_until=until, problem=None, **self._counted(now_s))
        text = f"The pod counts as in use until {until}" if until else "Idle time counts again"
        self._bus.publish("idle.keep", text, seconds=seconds)

    async def run(self) -> None:
        """Watch until the pod ends; cancelling stops watching."""
        self._idleness = Idleness(anyio.current_time())
        self._show(enabled=True, limit_s=self._limit_s, ending=None)
        async with self._looks.opened() as look:
            while self._state.snapshot.phase is not Phase.STOPPING:
                await self._count(look)
                if self._is_due() and await self._end(look):
                    return
                await anyio.sleep(self._pause_s)

    # -- counting -------------------------------------------------------------------------

    async def _count(self, look: Look) -> IdleFacts:
        """Look once, and take it in."""
        facts = await look(self._kept())
        now_s = anyio.current_time()
        assert self._idleness is not None  # noqa: S101 - set by run
        self._idleness = self._idleness.after(facts, now_s)
        if self._idleness.busy:
            self._failures, self._not_before_s = 0, 0.0
        idle_s = self._idleness.idle_s(now_s)
        self._show(
            **self._counted(now_s),
            **({} if self._kept_until_s else {"kept_until": None}),
            **({"problem": None} if self._idleness.busy else {}),
        )
        if idle_s >= self._limit_s * _WARN_SHARE and not self._idleness.warned:
            self._idleness = replace(self._idleness, warned=True)
            self._tell(
                "idle.warning",
                f"Nobody has used the pod for {_minutes(idle_s)}: in "
                f"{_minutes(max(0.0, self._limit_s - idle_s))} {self._ending.what}",
                "`supervisor idle keep 2h`, or the button on the page, keeps it",
            )
        return facts

    def _counted(self, now_s: float) -> dict[str, object]:
        """What people see of the time."""
        assert self._idleness is not None  # noqa: S101 - set by those who call this
        idle_s = self._idleness.idle_s(now_s)
        due_s = max(self._limit_s - idle_s, self._not_before_s - now_s, 0.0)
        busy = self._idleness.busy
        return {
            "idle_s": round(idle_s, 1),
            "busy_because": busy,
            "ends_in_s": None if busy else round(due_s, 1),
        }

    def _kept(self) -> bool:
        if self._kept_until_s is not None and anyio.current_time() >= self._kept_until_s:
            self._kept_until_s = None
        return self._kept_until_s is not None

    def _is_due(self) -> bool:
        now_s = anyio.current_time()
        assert self._idleness is not None  # noqa: S101 - set by run
        return self._idleness.idle_s(now_s) >= self._limit_s and now_s >= self._not_before_s

    # -- ending ---------------------------------------------------------------------------

    async def _end(self, look: Look) -> bool:
        """End the pod; False when it goes on, because it is used again or cannot be ended."""
        reason = f"nobody has used the pod for {_minutes(self._limit_s)}"
        if self._ending.dry_run:
            self._tell("idle.dry_run", f"Dry run: {reason}; now {self._ending.what}", None)
            self._idleness = Idleness(anyio.current_time())
            return False
        try:
            return await self._store_and_stop(look, reason)
        except SupervisorError as error:
            pause_s = _AGAIN.delay_s(self._failures)
            self._failures += 1
            self._not_before_s = anyio.current_time() + pause_s
            problem = f"{error.message}; tried again in {_minutes(pause_s)}"
            self._show(problem=problem)
            self._tell("idle.failed", problem, error.hint, severity=Severity.ERROR)
            return False
        finally:
            self._show(ending=None)

    async def _store_and_stop(self, look: Look, reason: str) -> bool:
        await self._flush()
        if busy_because(await self._count(look)):
            return False
        self._show(ending="ComfyUI is stopped")
        drained = await self._ending.drain()
        try:
            await self._flush()
            # The queue is closed, but somebody may have come by another way.
            used = bool(busy_because(await self._count(look)))
            if not used:
                await self._stop(reason)
        except Exception:
            await self._ending.resume(drained)
            raise
        if used:
            await self._ending.resume(drained)
            return False
        self._ending.exit(reason)
        return True

    async def _stop(self, reason: str) -> None:
        self._show(ending=self._ending.what)
        self._bus.publish("idle.stop", f"{reason[0].upper()}{reason[1:]}", subject="pod")
        log.info("%s: %s", reason, self._ending.what)
        if self._ending.stop is not None:
            await self._ending.stop()

    async def _flush(self) -> None:
        """Store everything.

        Raises:
            PodEndError: outputs are left, and the pod may not be stopped with them.
        """
        self._show(ending="outputs are stored")
        status = await self._ending.flush(_FLUSH_S)
        if status is None or not status.retained or self._ending.ignore_unsynced:
            return
        cause = f": {status.last_error}" if status.last_error else ""
        raise PodEndError(
            f"The idle pod is not stopped: outputs are not stored yet ({status.retained}){cause}",
            hint=status.hint or "mend the sync, or set idle.ignore_unsynced = true",
        )

    # -- telling --------------------------------------------------------------------------

    def _show(self, **parts: object) -> None:
        current: IdleStatus = self._state.snapshot.idle
        self._state.update(idle=replace(current, **parts))  # type: ignore[arg-type]  # its fields

    def _tell(
        self, kind: str, message: str, hint: str | None, severity: Severity = Severity.WARNING
    ) -> None:
        text = f"{message} (hint: {hint})" if hint else message
        log.log(logging.ERROR if severity is Severity.ERROR else logging.WARNING, "%s", text)
        self._bus.publish(kind, text, severity=severity, subject="pod")


async def run_command(
    command: tuple[str, ...],
    environment: dict[str, str],
    *,
    redact: Callable[[str], str],
    timeout_s: float = _COMMAND_S,
) -> None:
    """Run the user's own way of stopping the pod; one that hangs is killed.

    Raises:
        PodEndError: it cannot be run, or says that it failed.
    """
    hint = "see idle.command"
    try:
        with anyio.fail_after(timeout_s):
            done = await anyio.run_process(
                command, check=False, stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT,
                env=environment,
            )  # fmt: skip
    except TimeoutError:
        cause = f"{command[0]} has not ended in {timeout_s:g} s"
        raise PodEndError(cause, hint=hint) from None
    except OSError as error:
        raise PodEndError(f"Cannot run {command[0]}: {error.strerror}", hint=hint) from None
    if done.returncode:
        said = done.stdout.decode(errors="replace").strip().splitlines()
        last = f": {redact(said[-1])[:200]}" if said else ""
        raise PodEndError(f"{command[0]} ended with {done.returncode}{last}", hint=hint)


def _minutes(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min"
