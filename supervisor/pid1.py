"""The init: forks one child, forwards signals to it, reaps everything, returns its exit code.

Two users: ``run_under_init`` runs the supervisor as the child, so that its event loop only
ever has children of its own (docs/adr/0001-two-processes.md); ``run_command`` runs any
program the way ``tini`` and ``dumb-init`` do. Standard library only, synchronous, no
configuration, and imported before everything else: keep it quick to load (no pathlib).

As PID 1 orphans arrive here by themselves; elsewhere the process makes itself their reaper
(``PR_SET_CHILD_SUBREAPER``). Every signal is blocked and then waited for, one at a time, so
that no handler ever runs between two system calls.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing takes as long as the rest together
    from collections.abc import Callable, Iterator, Sequence
    from typing import NoReturn

    from supervisor.terminal import Terminal

LEFTOVER_GRACE_S = 2.0
"""What the child leaves behind has so long between SIGTERM and SIGKILL."""

HURRY_DEADLINE_S = 5.0
"""The supervisor has so long after the second request to stop."""

KILL_INTERVAL_S = 0.05
"""Pause between rounds of SIGKILL: a process may have forked while the round went by."""

KILL_DEADLINE_S = 5.0
"""Processes that survive SIGKILL so long are stuck in the kernel; nobody can wait for them."""

# What POSIX shells answer for a command that cannot be run.
NOT_FOUND = 127
NOT_EXECUTABLE = 126
BUG = 70  # EX_SOFTWARE, sysexits.h

_CATCHABLE = frozenset(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP}
_STOP_REQUESTS = frozenset({signal.SIGTERM, signal.SIGINT})
_TERMINAL_STOPS = frozenset({signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU})
# Ignored by CPython at its start, and an ignored signal stays ignored across exec.
_IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)

# From linux/prctl.h.
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36


def run_under_init(child: Callable[[], int]) -> int:
    """Run ``child`` in a forked process under the init; return its exit code, or 128+n.

    Call it before any heavy import, and do those inside ``child``: that process has the
    caller's signal mask, a session of its own, and ends with ``os._exit``, so nothing that
    hangs at interpreter exit holds up the stop. Every signal that can be caught is passed
    on to it, and to it only. The third request to stop (SIGTERM or SIGINT) kills it, as does
    ``HURRY_DEADLINE_S`` after the second. Whatever it leaves behind gets SIGTERM, then
    SIGKILL, and is reaped before this returns.
    """
    mask = _block_signals()
    prctl = _adopt_orphans()
    init = os.getpid()
    pid = os.fork()
    if pid == 0:
        os.setsid()
        if prctl is not None:
            # Not PID 1: the kernel does not end the child with the init, so ask for it.
            prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != init:
                os._exit(128 + signal.SIGTERM)
        _exit_with(child, mask)
    _hide()
    code = _Init(pid).wait()
    _end_leftovers()
    return code


def run_command(command: Sequence[str], *, group: bool = True, setsid: bool = True) -> int:
    """Run one program under the init (``supervisor run -- COMMAND``); return its exit code.

    The program leads a session of its own, or with ``setsid=False`` a process group of its
    own; a controlling terminal is handed over to it. Every signal that can be caught, but
    SIGCHLD, is forwarded to that group, or with ``group=False`` to the program only. When
    the program ends, what is left gets SIGTERM and, after ``LEFTOVER_GRACE_S``, SIGKILL;
    with ``group=False`` it is left to the kernel.

    Returns 0-255 as the program did, 128+n when signal n ended it, 127 when there is no such
    program and 126 when it cannot be executed. Writes nothing to standard output.
    """
    if not command:
        raise ValueError("run_command needs a program to run")
    mask = _block_signals()
    _adopt_orphans()
    from supervisor.terminal import Terminal  # noqa: PLC0415 - the supervisor needs none

    terminal = Terminal(setsid=setsid)
    pid = os.fork()
    if pid == 0:
        terminal.enter_child()
        _undo_locale_coercion()
        for number in _IGNORED_BY_PYTHON:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        _execute(command)
    code = _Init(pid, group=group, terminal=terminal).wait()
    terminal.take_back()
    if group:
        _end_leftovers()
    return code


def _block_signals() -> set[int | signal.Signals]:
    """Block all signals; return the mask as it was."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _CATCHABLE)
    # An inherited SIG_IGN would make the kernel throw exit codes away.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    return mask


def _hide() -> None:
    """Keep services from reading the secrets in this process's environment (see isolation)."""
    import ctypes  # noqa: PLC0415 - the child is on its way already

    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def _adopt_orphans() -> Callable[[int, int], int] | None:
    """Become the subreaper unless this is PID 1; returns ``prctl`` when it was needed."""
    if os.getpid() == 1:
        return None
    import ctypes  # noqa: PLC0415 - a millisecond that PID 1 does not need

    libc = ctypes.CDLL(None, use_errno=True)

    def prctl(option: int, value: int) -> int:
        return int(libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0))

    if prctl(_PR_SET_CHILD_SUBREAPER, 1) != 0:
        reason = os.strerror(ctypes.get_errno())
        _complain(f"Cannot become the reaper of orphans: {reason}; some may be left behind")
    return prctl


class _Init:
    """The loop: wait for a signal, forward it or reap, until the child is gone."""

    def __init__(self, pid: int, *, group: bool = False, terminal: Terminal | None = None) -> None:
        self._pid = pid
        self._group = group
        self._terminal = terminal
        self._stop_requests = 0
        self._kill_at: float | None = None

    def wait(self) -> int:
        """Return the child's exit code once it is gone."""
        while True:
            number = _next_signal(self._kill_at)
            if number is None:
                self._kill_at = None
                self._send(signal.SIGKILL)
            elif number == signal.SIGCHLD:
                code = self._reap()
                if code is not None:
                    return code
            elif number in _TERMINAL_STOPS:
                self._stop(number)
            elif self._terminal is None and number in _STOP_REQUESTS:
                self._stop_supervisor(number)
            else:
                self._resume(number)
                self._send(number)

    def _reap(self) -> int | None:
        """Reap all that is dead; return the child's code when it is among them."""
        code = None
        untraced = self._terminal is not None and self._terminal.shell_above
        for pid, status in _dead(os.WUNTRACED if untraced else 0):
            if pid != self._pid:
                continue
            if not os.WIFSTOPPED(status):
                code = os.waitstatus_to_exitcode(status)
            elif signal.SIGCONT not in signal.sigpending():  # else that is over already
                self._follow_stop()
        return 128 - code if code is not None and code < 0 else code

    def _stop_supervisor(self, number: int) -> None:
        self._stop_requests += 1
        if self._stop_requests > 2:
            self._send(signal.SIGKILL)
            return
        if self._stop_requests == 2:
            self._kill_at = time.monotonic() + HURRY_DEADLINE_S
        self._send(number)
        self._send(signal.SIGCONT)  # a stopped supervisor cannot stop anything

    def _stop(self, number: int) -> None:
        """Pass on a stop of the terminal, and stop as well, as the shell expects."""
        own_session = self._terminal is None or self._terminal.own_session
        # In a session without a shell nobody could stop by this signal; SIGSTOP does it.
        self._send(signal.SIGSTOP if own_session else number)
        self._stop_self()

    def _follow_stop(self) -> None:
        """The child was stopped at its terminal: give the shell above its turn."""
        if self._terminal is not None:
            self._terminal.take_back()
        self._stop_self()

    def _resume(self, number: int) -> None:
        if number == signal.SIGCONT and self._terminal is not None:
            self._terminal.give(self._pid)

    def _stop_self(self) -> None:
        if os.getpid() != 1:  # the kernel keeps PID 1 from being stopped by itself
            os.kill(os.getpid(), signal.SIGSTOP)

    def _send(self, number: int) -> None:
        with suppress(ProcessLookupError):
            if not self._group:
                os.kill(self._pid, number)
                return
            try:
                os.killpg(self._pid, number)
            except ProcessLookupError:
                # It has not made its group yet; its signals wait until it has.
                os.kill(self._pid, number)


def _next_signal(deadline: float | None) -> int | None:
    """Wait for a signal, whichever; None when ``deadline`` (monotonic seconds) came first."""
    if deadline is None:
        return signal.sigwaitinfo(_CATCHABLE).si_signo
    return _next_of(_CATCHABLE, deadline)


def _next_of(signals: frozenset[int], deadline: float) -> int | None:
    info = signal.sigtimedwait(signals, max(0.0, deadline - time.monotonic()))
    return None if info is None else info.si_signo


def _dead(flags: int = 0) -> Iterator[tuple[int, int]]:
    """Reap what is dead now: pid and status of each. ChildProcessError ends it quietly."""
    with suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG | flags)
            if pid == 0:
                return
            yield pid, status


def _end_leftovers() -> None:
    """End every process that is left; another request to stop skips the grace."""
    if not _reap_leftovers():
        return
    _signal_leftovers(signal.SIGTERM)
    _signal_leftovers(signal.SIGCONT)
    deadline = time.monotonic() + LEFTOVER_GRACE_S
    while _reap_leftovers():
        number = _next_of(_STOP_REQUESTS | {signal.SIGCHLD}, deadline)
        if number != signal.SIGCHLD:
            break
    deadline = time.monotonic() + KILL_DEADLINE_S
    while _reap_leftovers() and time.monotonic() < deadline:
        _signal_leftovers(signal.SIGKILL)
        _next_of(frozenset({signal.SIGCHLD}), time.monotonic() + KILL_INTERVAL_S)


def _reap_leftovers() -> bool:
    """Reap what is dead; True while something is alive.

    All that is left descends from this process, and orphans come to it: no child, nobody.
    """
    for _ in _dead():
        pass
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _signal_leftovers(number: int) -> None:
    """Signal all processes of the namespace when this is PID 1, else all descendants."""
    if os.getpid() == 1:
        with suppress(ProcessLookupError):
            os.kill(-1, number)
        return
    for pid in _descendants():
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def _descendants() -> list[int]:
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):  # noqa: PTH208
        if name.isdecimal():
            with suppress(OSError), open(f"/proc/{name}/stat", "rb") as stat:  # noqa: PTH123
                # "pid (name) state ppid …"; the name may hold spaces and parentheses.
                parent = int(stat.read().rpartition(b")")[2].split()[1])
                children.setdefault(parent, []).append(int(name))
    found = list(children.get(os.getpid(), ()))
    for pid in found:
        found.extend(children.get(pid, ()))
    return found


def _exit_with(child: Callable[[], int], mask: set[int | signal.Signals]) -> NoReturn:
    """In the child: run ``child`` under ``mask`` and end the process with its code."""
    code = BUG
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        code = child()
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except SystemExit as error:
        code = _code_of(error)
    except BaseException:  # noqa: BLE001 - the last stop before the process ends
        sys.excepthook(*sys.exc_info())
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os._exit(code & 0xFF)


def _code_of(error: SystemExit) -> int:
    """What the interpreter would exit with."""
    if error.code is None:
        return 0
    if isinstance(error.code, int):
        return error.code
    sys.stderr.write(f"{error.code}\n")
    return 1


def _execute(command: Sequence[str]) -> NoReturn:
    """In the child: become ``command``, or say in one line why not."""
    program = command[0]
    code = NOT_EXECUTABLE
    try:
        os.execvp(program, list(command))  # noqa: S606 - that is the point
    except (FileNotFoundError, NotADirectoryError) as error:
        code = NOT_FOUND
        reason = str(error.strerror)
        if "/" not in program:
            reason = "no such program on PATH"
        elif os.path.isfile(program):  # noqa: PTH113
            code = NOT_EXECUTABLE
            reason = "the interpreter that its first line names does not exist"
        _complain(f"Cannot run {program!r}: {reason}")
    except (OSError, ValueError) as error:
        _complain(f"Cannot run {program!r}: {getattr(error, 'strerror', None) or error}")
    os._exit(code)


def _undo_locale_coercion() -> None:
    """Take back the LC_CTYPE that CPython adds in the C locale (PEP 538)."""
    if "LC_CTYPE" in os.environ:
        with suppress(OSError), open("/proc/self/environ", "rb") as given:  # noqa: PTH123
            if not any(item.startswith(b"LC_CTYPE=") for item in given.read().split(b"\0")):
                del os.environ["LC_CTYPE"]


def _complain(message: str) -> None:
    """One line on standard error, whatever became of ``sys.stderr``."""
    with suppress(OSError):
        os.write(2, f"supervisor: {message}\n".encode(errors="backslashreplace"))
