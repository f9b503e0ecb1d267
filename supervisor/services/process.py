"""One process with its group: spawned clean, waited for by pidfd, signalled as a whole.

``subprocess`` does the fork, anyio the waiting: no child watcher, no thread per child,
and a grandchild that keeps stdout open cannot delay the exit. A plain service is started
by vfork (0.2 ms); one that needs a user, limits or a clean-up of signals by fork (3 ms).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pwd
import resource
import signal
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.lowlevel
import anyio.to_thread

from supervisor.errors import SpawnError

_NOTIFY_DESCRIPTOR = 3
_PIPE_BYTES = 1024 * 1024  # what fcntl(2) lets an unprivileged process ask for
_READ_BYTES = 64 * 1024  # so many one-letter lines take the loop about 20 ms
_READS_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Account:
    """A user to run as."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


@dataclass(frozen=True, slots=True)
class Order:
    """What to execute and in which surroundings. ``environment`` is complete."""

    command: tuple[str, ...]
    environment: Mapping[str, str]
    user: str | None = None
    cwd: Path | None = None
    umask: int | None = None
    nice: int | None = None
    limit_nofile: int | None = None
    limit_core_bytes: int | None = None
    notify_descriptor: bool = False


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended: a code, or the number of a signal."""

    code: int | None = None
    signal: int | None = None

    @property
    def shell_code(self) -> int:
        """The exit code as a shell reports it."""
        return self.code if self.code is not None else 128 + (self.signal or 0)

    @property
    def signal_name(self) -> str | None:
        """The signal's name, SIGRTMIN+n for those without."""
        return None if self.signal is None else name_of_signal(self.signal)


def name_of_signal(number: int) -> str:
    """Return a signal's name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"


def signal_number(name: str) -> int:
    """Return the number of ``SIGTERM``, ``term`` or ``15``.

    Raises:
        ValueError: there is no such signal.
    """
    text = name.strip().upper()
    if text.isdigit() and int(text) in {int(number) for number in signal.valid_signals()}:
        return int(text)
    try:
        return signal.Signals[text if text.startswith("SIG") else f"SIG{text}"]
    except KeyError:
        raise ValueError(f"there is no signal {name}") from None


def find_account(user: str) -> Account:
    """Look up a user by name or uid; an uid without an entry is used as it is.

    Raises:
        SpawnError: there is no such user.
    """
    try:
        entry = pwd.getpwuid(int(user)) if user.isdigit() else pwd.getpwnam(user)
    except KeyError:
        if user.isdigit():
            return Account(user, int(user), int(user), (), "/")
        raise SpawnError(
            f"Cannot run as {user}: there is no such user", hint="create it in the Dockerfile"
        ) from None
    groups = tuple(os.getgrouplist(entry.pw_name, entry.pw_gid))
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid, groups, entry.pw_dir)


class ChildProcess:
    """A running process, leader of its own session and group."""

    def __init__(
        self, popen: subprocess.Popen[bytes], outputs: Mapping[str, int], notify: int | None
    ) -> None:
        self.pid = popen.pid
        self.notify_descriptor = notify
        self._popen = popen
        self._outputs = dict(outputs)
        try:
            self._pidfd = os.pidfd_open(popen.pid)
        except OSError:  # a kernel or sandbox without pidfds
            self._pidfd = -1

    @property
    def exit(self) -> Exit | None:
        """How it ended, None while it runs."""
        code = self._popen.poll()
        if code is None:
            return None
        return Exit(code=code) if code >= 0 else Exit(signal=-code)

    async def wait(self) -> Exit:
        """Wait for the process itself to end; its group may live on."""
        while (ended := self.exit) is None:
            if self._pidfd >= 0:
                await _wait_readable(self._pidfd)
            else:
                await anyio.to_thread.run_sync(
                    self._popen.wait, abandon_on_cancel=True, limiter=anyio.CapacityLimiter(1)
                )
        return ended

    def send(self, number: int, *, group: bool = True) -> None:
        """Send a signal to the group, or to the process alone; nobody there is fine."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if group:
                os.killpg(self.pid, number)
            elif self._popen.returncode is None:
                os.kill(self.pid, number)

    async def read_output(
        self,
        stream: str,
        feed: Callable[[bytes], bool],
        idle: Callable[[], float | None],
    ) -> None:
        """Hand over what the stream carries, until its end.

        ``feed`` returns whether it was cheap, so that more may be read at once; ``idle``
        the seconds after which it wants to be called again when nothing came.
        """
        descriptor = self._outputs[stream]
        while True:
            pause_s = idle()
            with anyio.move_on_after(pause_s) if pause_s is not None else contextlib.nullcontext():
                await anyio.wait_readable(descriptor)
            for _ in range(_READS_AT_ONCE):
                data = _read_now(descriptor)
                if data == b"":
                    return
                if data is None or not feed(data):
                    break

    async def drain(self, stream: str, feed: Callable[[bytes], bool], *, limit_bytes: int) -> None:
        """Read what is in the pipe now, after the process has ended."""
        while limit_bytes > 0 and (data := _read_now(self._outputs[stream])):
            feed(data)
            limit_bytes -= len(data)
            await anyio.lowlevel.checkpoint()

    def close(self) -> None:
        """Release the descriptors. The process must have been waited for."""
        for descriptor in (*self._outputs.values(), self._pidfd, self.notify_descriptor):
            if descriptor is not None and descriptor >= 0:
                os.close(descriptor)
        self._outputs.clear()
        self._pidfd, self.notify_descriptor = -1, None


async def _wait_readable(descriptor: int) -> None:
    """Wait on a copy: one task at a time may wait for a descriptor, and several ask here."""
    copy = os.dup(descriptor)
    try:
        await anyio.wait_readable(copy)
    finally:
        os.close(copy)


def _read_now(descriptor: int) -> bytes | None:
    try:
        return os.read(descriptor, _READ_BYTES)
    except BlockingIOError:
        return None


def spawn(order: Order) -> ChildProcess:
    """Start a process: own session and group, /dev/null as stdin, stdout and stderr as pipes.

    Blocks until the kernel has executed the program (a fraction of a millisecond).

    Raises:
        SpawnError: the program is missing, not executable, or may not be set up so.
    """
    account = find_account(order.user) if order.user is not None else None
    if account is not None and account.uid == os.geteuid():
        account = None  # nothing to change, and an unprivileged supervisor could not
    with contextlib.ExitStack() as opened:
        outputs = {name: _pipe(opened) for name in ("stdout", "stderr")}
        notify = _pipe(opened) if order.notify_descriptor else None
        setup = _setup(order, account, notify[1] if notify else None)
        try:
            popen = _execute(order, outputs, setup)
        except (OSError, ValueError, subprocess.SubprocessError) as exc:
            raise _explain(exc, order, _read_now(outputs["stderr"][0])) from exc
        return ChildProcess(
            popen,
            {name: os.dup(ends[0]) for name, ends in outputs.items()},
            os.dup(notify[0]) if notify else None,
        )


def _pipe(opened: contextlib.ExitStack) -> tuple[int, int]:
    """Return a pipe whose reading end does not block; both ends close with ``opened``.

    A large buffer lets a service go on writing while the event loop does something else.
    """
    read, write = os.pipe2(os.O_CLOEXEC)
    opened.callback(os.close, read)
    opened.callback(os.close, write)
    os.set_blocking(read, False)
    with contextlib.suppress(OSError):  # the user's share of pipe memory is used up
        fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    return read, write


def _execute(
    order: Order, outputs: Mapping[str, tuple[int, int]], setup: Callable[[], None] | None
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        order.command,
        stdin=subprocess.DEVNULL,
        stdout=outputs["stdout"][1],
        stderr=outputs["stderr"][1],
        env=dict(order.environment),
        cwd=order.cwd,
        umask=-1 if order.umask is None else order.umask,
        start_new_session=True,
        pass_fds=(_NOTIFY_DESCRIPTOR,) if order.notify_descriptor else (),
        preexec_fn=setup,  # noqa: PLW1509 - only system calls, see _setup
    )


def _setup(order: Order, account: Account | None, notify: int | None) -> Callable[[], None] | None:
    """Return what the child does between fork and exec, None when there is nothing.

    It runs in a copy of a process with threads, so it only makes system calls: no import,
    no lock, no logging.
    """
    ignored = [
        number
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)
        if signal.getsignal(number) is signal.SIG_IGN
    ]
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    limits = {
        resource.RLIMIT_NOFILE: order.limit_nofile,
        resource.RLIMIT_CORE: order.limit_core_bytes,
    }
    wanted = [(kind, value) for kind, value in limits.items() if value is not None]
    if not (ignored or blocked or wanted or account or order.nice or notify is not None):
        return None

    def setup() -> None:
        doing = "resetting signals"
        try:
            for number in ignored:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            doing = "the notification descriptor"
            if notify is not None:
                os.dup2(notify, _NOTIFY_DESCRIPTOR, inheritable=True)
            doing = "the limits"
            for kind, value in wanted:
                _set_limit(kind, value)
            doing = f"nice = {order.nice}"
            if order.nice:
                os.setpriority(os.PRIO_PROCESS, 0, order.nice)
            if account is not None:
                doing = f"the user {account.name}"
                os.setgroups(account.groups)
                os.setgid(account.gid)
                os.setuid(account.uid)
        except OSError as exc:
            os.write(2, f"{doing}: {exc.strerror}".encode())
            raise

    return setup


def _set_limit(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    if hard == resource.RLIM_INFINITY or value <= hard:
        resource.setrlimit(kind, (value, hard))
    else:
        resource.setrlimit(kind, (value, value))


def _explain(exc: Exception, order: Order, detail: bytes | None) -> SpawnError:
    program = order.command[0] if order.command else "''"
    if isinstance(exc, subprocess.SubprocessError):
        cause = (detail or b"").decode(errors="replace") or str(exc)
        return SpawnError(f"Cannot start {program}: setting up the process failed at {cause}")
    if isinstance(exc, ValueError):  # a NUL byte, or an = in a variable's name
        return SpawnError(f"Cannot start {program}: {exc}")
    if not isinstance(exc, OSError):
        return SpawnError(f"Cannot start {program}: {exc}")
    if order.cwd is not None and str(exc.filename) == str(order.cwd):
        return SpawnError(
            f"Cannot start {program}: the working folder {order.cwd}: {exc.strerror}",
            hint="create the folder, or correct cwd",
        )
    hints = {
        errno.ENOENT: "is it installed, and is it in PATH? For a script: does the program "
        "named in its first line exist?",
        errno.EACCES: "make it executable (chmod +x) and check the folders above it",
        errno.ENOEXEC: "the file has no #! line and is no program of this machine",
        errno.EAGAIN: "the limit of processes is reached",
        errno.E2BIG: "arguments and environment are too long",
    }
    reason = "command not found" if exc.errno == errno.ENOENT else exc.strerror or str(exc)
    return SpawnError(f"Cannot start {program}: {reason}", hint=hints.get(exc.errno or 0))
