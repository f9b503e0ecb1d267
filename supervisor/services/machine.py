"""The life of a service as one table, and what follows from an exit. Pure.

``TRANSITIONS`` is the only place that says which state follows which; everything else
asks ``next_state`` and gets an error for a step that the table does not have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from supervisor.core.status import ServiceState
from supervisor.errors import ServiceError
from supervisor.services.spec import FailureAction, RestartPolicy, ServiceSpec


class Trigger(StrEnum):
    """What moves a service from one state to the next."""

    START = "start asked"
    LAUNCH = "dependencies met"
    BLOCKED = "cannot be started"
    READY = "ready"
    UNHEALTHY = "check failed"
    REEXEC = "restarted in place"
    TERMINATE = "must end"
    RETRY = "again at once"
    BACK_OFF = "again later"
    ELAPSED = "delay over"
    FINISH = "done or stopped"
    FAIL = "given up"
    DISABLE = "disabled"


class IllegalTransitionError(ServiceError):
    """A bug: the table has no such step."""


_S = ServiceState
_T = Trigger

_LONGEST = 1000  # a step of the backoff that has reached its longest delay
_REMEMBERED = 10_000  # restarts; a service that is tried for ever must not fill the memory

_AFTER_EXIT: Mapping[Trigger, ServiceState] = {
    _T.RETRY: _S.WAITING,
    _T.BACK_OFF: _S.BACKOFF,
    _T.FINISH: _S.STOPPED,
    _T.FAIL: _S.FAILED,
}

TRANSITIONS: Mapping[ServiceState, Mapping[Trigger, ServiceState]] = {
    _S.WAITING: {
        _T.LAUNCH: _S.STARTING,
        _T.BLOCKED: _S.FAILED,
        _T.FINISH: _S.STOPPED,
        _T.DISABLE: _S.DISABLED,
    },
    _S.STARTING: {_T.READY: _S.READY, _T.TERMINATE: _S.STOPPING, **_AFTER_EXIT},
    _S.READY: {
        _T.UNHEALTHY: _S.UNHEALTHY,
        _T.REEXEC: _S.STARTING,
        _T.TERMINATE: _S.STOPPING,
        **_AFTER_EXIT,
    },
    _S.UNHEALTHY: {
        _T.READY: _S.READY,
        _T.REEXEC: _S.STARTING,
        _T.TERMINATE: _S.STOPPING,
        **_AFTER_EXIT,
    },
    _S.STOPPING: _AFTER_EXIT,
    _S.BACKOFF: {
        _T.ELAPSED: _S.WAITING,
        _T.START: _S.WAITING,
        _T.FINISH: _S.STOPPED,
    },
    _S.STOPPED: {_T.START: _S.WAITING, _T.DISABLE: _S.DISABLED},
    _S.FAILED: {_T.START: _S.WAITING, _T.FINISH: _S.STOPPED, _T.DISABLE: _S.DISABLED},
    _S.DISABLED: {_T.START: _S.WAITING},
}

RUNNING = frozenset({_S.STARTING, _S.READY, _S.UNHEALTHY, _S.STOPPING})
RESTING = frozenset({_S.STOPPED, _S.FAILED, _S.DISABLED})


def next_state(state: ServiceState, trigger: Trigger) -> ServiceState:
    """Return the state that follows.

    Raises:
        IllegalTransitionError: the table has no such step.
    """
    try:
        return TRANSITIONS[state][trigger]
    except KeyError:
        raise IllegalTransitionError(
            f"Cannot leave the state {state} by '{trigger}': no such transition"
        ) from None


def mermaid() -> str:
    """Draw the table as a Mermaid state diagram, one line a transition."""
    lines = ["stateDiagram-v2", f"    [*] --> {_S.WAITING}", f"    [*] --> {_S.DISABLED}"]
    lines += [
        f"    {state} --> {target}: {trigger}"
        for state, steps in TRANSITIONS.items()
        for trigger, target in steps.items()
    ]
    return "\n".join(lines)


class Wanted(StrEnum):
    """What people asked for."""

    UP = "up"
    DOWN = "down"
    AGAIN = "again"  # down, then up at once


@dataclass(frozen=True, slots=True)
class History:
    """What the restart policy remembers. Times are seconds of the event loop's clock.

    ``attempt`` counts failures since the last healthy run; ``restarts`` are the times of
    the restarts inside the window.
    """

    attempt: int = 0
    restarts: tuple[float, ...] = ()
    safe_mode: bool = False


@dataclass(frozen=True, slots=True)
class Ending:
    """How one life of a service ended, as far as the policy cares.

    ``planned``: it asked to be started again. ``repaired``: the cause was removed, so the
    next try differs. ``permanent``: trying again cannot help. ``ready_s``: how long it was
    ready in all, None when it never was.
    """

    reason: str
    success: bool = False
    planned: bool = False
    repaired: bool = False
    permanent: bool = False
    ready_s: float | None = None
    wanted: Wanted = Wanted.UP


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do after an exit. ``attempt`` indexes the backoff when ``trigger`` is BACK_OFF."""

    trigger: Trigger
    history: History
    attempt: int = 0
    message: str = ""


def on_exit(spec: ServiceSpec, history: History, ending: Ending, *, now_s: float) -> Decision:
    """Decide what follows when a service's process is gone.

    The first failure after a healthy run (or the very first) is repaired at once when the
    service had been ready; every further one waits, with full jitter, up to the limit.
    """
    if ending.wanted is Wanted.DOWN:
        return Decision(Trigger.FINISH, History(), message="stopped")
    if ending.wanted is Wanted.AGAIN:
        return Decision(Trigger.RETRY, History(), message="restarting as asked")
    if ending.planned and ending.ready_s is not None:
        return Decision(Trigger.RETRY, history, message="it asked to be restarted")
    if ending.repaired:
        return Decision(Trigger.RETRY, history)
    if spec.restart is RestartPolicy.NEVER or (
        spec.restart is RestartPolicy.ON_FAILURE and ending.success
    ):
        trigger = Trigger.FINISH if ending.success else Trigger.FAIL
        return Decision(trigger, history, message=f"not restarted: restart = {spec.restart}")
    return _after_failure(spec, history, ending, now_s=now_s)


def _after_failure(
    spec: ServiceSpec, history: History, ending: Ending, *, now_s: float
) -> Decision:
    healthy = ending.ready_s is not None and ending.ready_s >= spec.healthy_after_s
    attempt = 0 if healthy else history.attempt
    recent = tuple(at for at in history.restarts if now_s - at < spec.window_s)
    exhausted = len(recent) >= spec.max_restarts
    remembered = replace(history, attempt=attempt + 1, restarts=(*recent, now_s)[-_REMEMBERED:])
    if ending.permanent:
        return Decision(Trigger.FAIL, history, message="trying again cannot help")
    if exhausted:
        return _exhausted(spec, history, remembered)
    if attempt == 0 and ending.ready_s is not None:
        return Decision(Trigger.RETRY, remembered)
    # The free first restart does not count as a step of the backoff.
    step = max(0, attempt - 1) if ending.ready_s is not None else attempt
    return Decision(Trigger.BACK_OFF, remembered, attempt=step)


def _exhausted(spec: ServiceSpec, history: History, remembered: History) -> Decision:
    if spec.safe_mode and not history.safe_mode:
        return Decision(
            Trigger.RETRY,
            History(safe_mode=True),
            message="it keeps failing: trying once in safe mode",
        )
    message = f"restarted {spec.max_restarts} times within {spec.window_s:g} s"
    if spec.on_failure is FailureAction.RESTART:
        return Decision(Trigger.BACK_OFF, remembered, attempt=_LONGEST, message=message)
    if spec.max_restarts == 0:
        message = "not restarted: max_restarts = 0"
    return Decision(Trigger.FAIL, history, message=message)
