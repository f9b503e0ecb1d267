"""A controlling terminal is handed over to the program, and the shell gets it back."""

from __future__ import annotations

import os
import pty
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.pidns.harness import (
    DEADLINE_S,
    NAMESPACE,
    REPOSITORY,
    children_of,
    process_state,
    wait_until,
)

DRIVER = (sys.executable, "-m", "tests.pidns.driver")
OWNER = (
    "import os, signal\n"
    "def got(number, _frame): print('signal', number, flush=True)\n"
    "for number in (signal.SIGINT, signal.SIGHUP, signal.SIGCONT): signal.signal(number, got)\n"
    "print('leads', os.getsid(0) == os.getpid(), flush=True)\n"
    "print('in front', os.tcgetpgrp(0) == os.getpgrp(), flush=True)\n"
    "open('/dev/tty').close()\n"
    "while True: signal.pause()\n"
)


class Screen:
    """The other end of a terminal."""

    def __init__(self, master: int, pid: int) -> None:
        self.master = master
        self.pid = pid
        self.text = ""

    def wait_for(self, text: str) -> None:
        """Read until ``text`` is on the screen; what came before it is forgotten."""
        deadline = time.monotonic() + DEADLINE_S
        while text not in self.text:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.master], [], [], left)[0]:
                raise AssertionError(f"no {text!r} on the screen: {self.text!r}")
            try:
                self.text += os.read(self.master, 4096).decode(errors="replace")
            except OSError as error:
                raise AssertionError(f"no {text!r} on the screen: {self.text!r}") from error
        self.text = self.text.partition(text)[2]

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self.master, keys.encode())

    def wait(self) -> int:
        """The exit code of what was started on the terminal."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@contextmanager
def terminal(*command: str) -> Iterator[Screen]:
    """Run a command as the leader of a session with a terminal of its own."""
    pid, master = pty.fork()
    if pid == 0:
        os.chdir(REPOSITORY)
        os.execvp(command[0], command)  # noqa: S606 - the child of a fork
    screen = Screen(master, pid)
    try:
        yield screen
    finally:
        os.close(master)  # hangs up
        with_children = [pid, *children_of(pid)]
        for each in with_children:
            try:
                os.kill(each, signal.SIGKILL)
            except ProcessLookupError:
                continue


def press_until(screen: Screen, keys: str, condition: Callable[[], bool]) -> None:
    """Press keys until it holds: bash drops some while it takes the terminal over."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "the shell does not react"
        screen.type(keys)
        pause = time.monotonic() + 1.0
        while not condition() and time.monotonic() < pause:
            time.sleep(0.01)


def test_session_leader_gives_its_terminal_to_the_program() -> None:
    # As `docker run -it` starts an entrypoint.
    with terminal(*DRIVER, "command", "--", sys.executable, "-c", OWNER) as screen:
        screen.wait_for("leads True")
        screen.wait_for("in front True")
        screen.type("\x03")
        screen.wait_for("signal 2")
        os.kill(screen.pid, signal.SIGHUP)  # and one that really comes is passed on
        screen.wait_for("signal 1")
        assert "signal" not in screen.text
        os.kill(screen.pid, signal.SIGTERM)
        assert screen.wait() == 128 + signal.SIGTERM


@pytest.mark.needs("unshare", "root")
def test_pid1_under_a_shell_puts_the_program_in_front() -> None:
    command = (*NAMESPACE, *DRIVER, "command", "--", sys.executable, "-c", OWNER)
    with terminal(*command) as screen:
        screen.wait_for("leads False")
        screen.wait_for("in front True")
        screen.type("\x03")
        screen.wait_for("signal 2")


def test_no_setsid_keeps_the_session_and_puts_the_program_in_front() -> None:
    command = (*DRIVER, "command", "--no-setsid", "--", sys.executable, "-c", OWNER)
    with terminal(*command) as screen:
        screen.wait_for("leads False")
        screen.wait_for("in front True")
        screen.type("\x03")
        screen.wait_for("signal 2")


def test_script_that_goes_on_can_read_the_terminal_again() -> None:
    script = f'{" ".join(DRIVER)} command -- true; read line; echo "read $line"'
    with terminal("sh", "-c", script) as screen:
        screen.type("words\n")
        screen.wait_for("read words")


@pytest.mark.needs("bash")
def test_job_control_of_the_shell_above() -> None:
    with terminal("bash", "--norc", "--noprofile", "-i") as screen:
        screen.type(f"PS1='> '; {' '.join(DRIVER)} command -- sh -c 'echo up; cat'\n")
        screen.wait_for("up\r\n")
        screen.type("first\n")
        screen.wait_for("first\r\nfirst")  # echoed by the terminal, then by cat
        program = os.tcgetpgrp(screen.master)
        for round_number in range(2):
            screen.type("\x1a")
            screen.wait_for("Stopped")
            screen.wait_for("> ")
            press_until(screen, "fg\n", lambda: os.tcgetpgrp(screen.master) == program)
            screen.type(f"again {round_number}\n")
            screen.wait_for(f"again {round_number}\r\nagain {round_number}")
        screen.type("\x04")
        screen.type("echo code $?\n")
        screen.wait_for("code 0\r\n")


def test_supervisor_gets_one_interrupt_for_one_ctrl_c() -> None:
    with terminal(*DRIVER, "supervisor", "report_signals") as screen:
        screen.wait_for("ready")
        screen.type("\x03")
        screen.wait_for("got 2")
        screen.wait_for("got 18")  # the init also wakes a stopped supervisor
        os.kill(screen.pid, signal.SIGUSR1)
        screen.wait_for("got 10")
        assert "got 2" not in screen.text
        assert screen.wait() == 7


def test_ctrl_z_stops_the_supervisor_and_the_init() -> None:
    with terminal(*DRIVER, "supervisor", "report_signals") as screen:
        screen.wait_for("ready ")
        supervisor = children_of(screen.pid)[0]
        os.kill(screen.pid, signal.SIGTSTP)
        wait_until(lambda: process_state(supervisor) == "T", "the supervisor is stopped")
        wait_until(lambda: process_state(screen.pid) == "T", "the init is stopped")
        os.kill(screen.pid, signal.SIGCONT)
        wait_until(lambda: process_state(supervisor) != "T", "the supervisor runs")
