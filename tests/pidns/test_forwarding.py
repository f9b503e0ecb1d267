"""Every signal that can be caught reaches the child; the child starts with a clean slate."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from tests.pidns.harness import process_state, run_init, start_init, wait_until

TERMINAL_STOPS = {signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}
FORWARDED = sorted(
    set(signal.valid_signals())
    - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGUSR1}
    - TERMINAL_STOPS
)

REPORTER = """
import os, signal, sys, time
name = "child"
if os.fork() == 0:
    name = "grandchild"
received = []
for number in signal.valid_signals() - {9, 17, 19}:
    signal.signal(number, lambda got, _frame: received.append(int(got)))
os.write(1, f"{name} ready\\n".encode())
while True:
    while received:
        number = received.pop(0)
        os.write(1, f"{name} {number}\\n".encode())
        if number == signal.SIGUSR1:
            os._exit(0)
    time.sleep(0.002)
"""


def test_every_signal_reaches_the_whole_group(as_pid1: bool) -> None:
    with start_init("command", "--", sys.executable, "-c", REPORTER, as_pid1=as_pid1) as init:
        assert {init.read_line(), init.read_line()} == {"child ready", "grandchild ready"}
        for number in FORWARDED:
            init.send(number)
            got = {init.read_line(), init.read_line()}
            assert got == {f"child {int(number)}", f"grandchild {int(number)}"}
        init.send(signal.SIGUSR1)
        assert init.wait() == 0


def test_no_group_signals_the_program_only(as_pid1: bool) -> None:
    arguments = ("command", "--no-group", "--", sys.executable, "-c", REPORTER)
    with start_init(*arguments, as_pid1=as_pid1) as init:
        assert {init.read_line(), init.read_line()} == {"child ready", "grandchild ready"}
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGUSR2):
            init.send(number)
            assert init.read_line() == f"child {int(number)}"
        os.kill(init.child, signal.SIGUSR1)
        assert init.read_line() == f"child {int(signal.SIGUSR1)}"
        assert init.wait() == 0


def test_every_signal_reaches_the_supervisor(as_pid1: bool) -> None:
    with start_init("supervisor", "report_signals", as_pid1=as_pid1) as init:
        assert init.read_line().startswith("ready ")
        for number in FORWARDED:
            if number in (signal.SIGTERM, signal.SIGINT):
                continue  # requests to stop, counted: see test_stop
            init.send(number)
            assert init.read_line() == f"got {int(number)}"
        init.send(signal.SIGUSR1)
        assert init.read_line() == f"got {int(signal.SIGUSR1)}"
        assert init.wait() == 7


@pytest.mark.parametrize("number", sorted(TERMINAL_STOPS))
@pytest.mark.parametrize("mode", ["command", "supervisor"])
def test_terminal_stop_stops_and_continue_resumes(
    number: signal.Signals, mode: str, as_pid1: bool
) -> None:
    arguments = {"command": ("--", "sleep", "60"), "supervisor": ("report_signals",)}[mode]
    with start_init(mode, *arguments, as_pid1=as_pid1) as init:
        child = init.child
        if mode == "supervisor":
            init.read_line()
        else:
            wait_until(lambda: os.getsid(child) == child, "the program has its session")
        init.send(number)
        wait_until(lambda: process_state(child) == "T", "the child is stopped")
        if not as_pid1:
            wait_until(lambda: process_state(init.pid) == "T", "the init is stopped")
        init.send(signal.SIGCONT)
        wait_until(lambda: process_state(child) in {"S", "R"}, "the child runs")
        init.send(signal.SIGKILL)


def test_no_setsid_makes_a_group_in_the_same_session(as_pid1: bool) -> None:
    show = "import os; print(os.getsid(0) == os.getpid(), os.getpgrp() == os.getpid())"
    program = (sys.executable, "-c", show)
    assert run_init("command", "--", *program, as_pid1=as_pid1)[1] == "True True\n"
    result = run_init("command", "--no-setsid", "--", *program, as_pid1=as_pid1)
    assert result[1] == "False True\n"


def signals_of(line: str) -> int:
    """The set in a line of /proc/PID/status, less glibc's own signals 32 and 33.

    GNU make leaves those ignored in what it runs, and no program can change that.
    """
    return int(line.split()[1], 16) & ~(0b11 << 31)


def test_program_starts_with_a_clean_mask(as_pid1: bool) -> None:
    grep = ("grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status")
    code, out, _ = run_init("command", "--", *grep, as_pid1=as_pid1)
    assert code == 0
    assert {signals_of(line) for line in out.splitlines()} == {0}


def test_supervisor_and_its_children_start_with_a_clean_mask(as_pid1: bool) -> None:
    code, out, _ = run_init("supervisor", "show_process", as_pid1=as_pid1)
    lines = out.splitlines()
    assert code == 0
    assert lines[1] == "session True"
    assert {signals_of(line) for line in lines[2:]} == {0}
    if as_pid1:
        assert lines[0] == "ppid 1"


def test_given_mask_is_handed_on(as_pid1: bool) -> None:
    # What the container's runtime blocked stays blocked: it is not the init's to change.
    block = (
        "import os, signal, sys\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})\n"
        "os.execvp(sys.argv[1], sys.argv[1:])"
    )
    code, out, _ = run_init(
        *("command", "--", "grep", "^SigBlk", "/proc/self/status"),
        as_pid1=as_pid1,
        wrapper=(sys.executable, "-c", block),
    )
    assert code == 0
    assert int(out.split()[1], 16) == 1 << (signal.SIGUSR2 - 1)


def test_environment_is_handed_on_unchanged(as_pid1: bool) -> None:
    # In the C locale CPython adds LC_CTYPE to its own environment (PEP 538).
    clean = ("env", "-i", "PATH=/usr/bin:/bin", "A=%d $HOME")
    code, out, _ = run_init("command", "--", "env", as_pid1=as_pid1, wrapper=clean)
    assert code == 0
    assert sorted(out.splitlines()) == ["A=%d $HOME", "PATH=/usr/bin:/bin"]
