"""Starting an init in a PID namespace of its own (as PID 1) or as an ordinary process."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

REPOSITORY = Path(__file__).resolve().parents[2]
NAMESPACE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "--")
COOKIE = "TEST_PIDNS_COOKIE"
DEADLINE_S = 30.0


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Poll until it holds; a generous deadline, since machines are slow at times."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"still not so after {DEADLINE_S} s: {what}")
        time.sleep(0.01)


def process_state(pid: int) -> str:
    """The letter of /proc/PID/stat, "" when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return ""
    return chr(text.rpartition(b")")[2].split()[0][0])


def children_of(pid: int) -> list[int]:
    """Direct children, zombies too."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_bytes().rpartition(b")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == pid:
                found.append(int(entry.name))
    return found


@dataclass
class Init:
    """A running init. ``pid`` is the init's as this process sees it."""

    process: subprocess.Popen[bytes]
    pid: int
    cookie: str
    lines: list[str] = field(default_factory=list)

    @property
    def child(self) -> int:
        """The pid, as seen from here, of what the init forked (its oldest child)."""
        wait_until(lambda: bool(children_of(self.pid)), "the init has a child")
        return min(children_of(self.pid))

    def read_line(self) -> str:
        """The next line of standard output."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline().decode().rstrip("\n")
        self.lines.append(line)
        return line

    def send(self, number: int) -> None:
        """Signal the init."""
        os.kill(self.pid, number)

    def wait(self) -> int:
        """The init's exit code."""
        return self.process.wait(timeout=DEADLINE_S)

    def alive(self) -> list[int]:
        """Processes started below this init that live, wherever they went."""
        marker = f"{COOKIE}={self.cookie}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                try:
                    environment = (entry / "environ").read_bytes()
                except OSError:
                    continue
                if marker in environment.split(b"\0"):
                    found.append(int(entry.name))
        return found


@contextmanager
def start_init(
    *arguments: str,
    as_pid1: bool,
    environment: Mapping[str, str] | None = None,
    program: Sequence[str] = (sys.executable, "-m", "tests.pidns.driver"),
    wrapper: Sequence[str] = (),
    stdin: int | IO[bytes] = subprocess.DEVNULL,
    stderr: int | None = None,
) -> Iterator[Init]:
    """Start it; whatever is left at the end is killed."""
    cookie = secrets.token_hex(8)
    command = [*(NAMESPACE if as_pid1 else ()), *wrapper, *program, *arguments]
    process = subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env={**os.environ, **(environment or {}), COOKIE: cookie},
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=stderr,
    )
    pid = process.pid
    if as_pid1:
        wait_until(
            lambda: bool(children_of(process.pid)) or process.poll() is not None, "unshare forked"
        )
        pid = next(iter(children_of(process.pid)), -1)
    init = Init(process, pid, cookie)
    try:
        yield init
    finally:
        for left in {*init.alive(), process.pid}:
            if left != process.pid or process.poll() is None:
                try:
                    os.kill(left, signal.SIGKILL)
                except ProcessLookupError:
                    continue
        process.communicate()


def run_init(
    *arguments: str,
    as_pid1: bool,
    environment: Mapping[str, str] | None = None,
    program: Sequence[str] = (sys.executable, "-m", "tests.pidns.driver"),
    wrapper: Sequence[str] = (),
) -> tuple[int, str, str]:
    """Run it to its end: exit code, standard output, standard error."""
    with start_init(
        *arguments,
        as_pid1=as_pid1,
        environment=environment,
        program=program,
        wrapper=wrapper,
        stderr=subprocess.PIPE,
    ) as init:
        out, err = init.process.communicate(timeout=2 * DEADLINE_S)
        return init.process.returncode, out.decode(), err.decode()
