"""How it ends: requests to stop, a supervisor that dies or hangs, and what it leaves behind."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from tests.pidns.driver import HURRY_DEADLINE_VARIABLE, LEFTOVER_GRACE_VARIABLE
from tests.pidns.harness import Init, children_of, process_state, start_init, wait_until

ORPHANS = 2000


def test_second_request_is_passed_on_and_the_third_kills(as_pid1: bool) -> None:
    with start_init("supervisor", "report_signals", as_pid1=as_pid1) as init:
        init.read_line()
        init.send(signal.SIGTERM)
        assert {init.read_line(), init.read_line()} == {"got 15", "got 18"}
        init.send(signal.SIGINT)
        assert {init.read_line(), init.read_line()} == {"got 2", "got 18"}
        init.send(signal.SIGTERM)
        assert init.wait() == 128 + signal.SIGKILL


def test_deadline_after_the_second_request_kills(as_pid1: bool) -> None:
    hurry = {HURRY_DEADLINE_VARIABLE: "0.2"}
    with start_init("supervisor", "report_signals", as_pid1=as_pid1, environment=hurry) as init:
        init.read_line()
        init.send(signal.SIGTERM)
        assert {init.read_line(), init.read_line()} == {"got 15", "got 18"}
        time.sleep(0.4)  # longer than the deadline, which one request alone does not start
        assert init.process.poll() is None
        init.send(signal.SIGTERM)
        assert init.wait() == 128 + signal.SIGKILL


def test_stopped_supervisor_can_be_asked_to_stop(as_pid1: bool) -> None:
    with start_init("supervisor", "report_signals", as_pid1=as_pid1) as init:
        init.read_line()
        os.kill(init.child, signal.SIGSTOP)
        wait_until(lambda: process_state(init.child) == "T", "the supervisor is stopped")
        init.send(signal.SIGTERM)
        assert {init.read_line(), init.read_line()} == {"got 15", "got 18"}


def test_killed_supervisor_leaves_nothing_behind(tmp_path: Path, as_pid1: bool) -> None:
    with start_init("supervisor", "leave_behind", str(tmp_path), as_pid1=as_pid1) as init:
        assert init.read_line().startswith("ready ")
        os.kill(init.child, signal.SIGKILL)
        assert init.wait() == 128 + signal.SIGKILL
        assert init.alive() == []
    assert (tmp_path / "plain").read_text() == "terminated"
    assert (tmp_path / "daemon").read_text() == "terminated"
    assert not (tmp_path / "stubborn").exists()  # it ignored SIGTERM and was killed


def test_request_to_stop_skips_the_grace_of_what_is_left(tmp_path: Path, as_pid1: bool) -> None:
    leave = ("supervisor", "leave_behind", str(tmp_path))
    patient = {LEFTOVER_GRACE_VARIABLE: "3600"}  # nobody waits for its end here
    with start_init(*leave, as_pid1=as_pid1, environment=patient) as init:
        init.read_line()
        os.kill(init.child, signal.SIGKILL)
        wait_until((tmp_path / "plain").exists, "SIGTERM went out")
        init.send(signal.SIGTERM)
        assert init.wait() == 128 + signal.SIGKILL
        assert init.alive() == []


def test_program_group_is_terminated_when_the_program_ends(tmp_path: Path, as_pid1: bool) -> None:
    script = (
        f"trap 'echo terminated > {tmp_path}/background; exit' TERM; "
        f"touch {tmp_path}/up; while :; do sleep 0.05; done"
    )
    leader = f'sh -c "$1" & while [ ! -e {tmp_path}/up ]; do sleep 0.01; done; exit 5'
    command = ("command", "--", "sh", "-c", leader, "sh", script)
    with start_init(*command, as_pid1=as_pid1) as init:
        assert init.wait() == 5
        assert init.alive() == []
    assert (tmp_path / "background").read_text() == "terminated\n"


def test_no_group_leaves_the_others_alone(tmp_path: Path) -> None:
    # As dumb-init --single-child: only as PID 1 the kernel ends them.
    marker = tmp_path / "ended"
    script = f"trap 'touch {marker}; exit' TERM; touch {tmp_path}/up; while :; do sleep 0.05; done"
    leader = f'sh -c "$1" & while [ ! -e {tmp_path}/up ]; do sleep 0.01; done; exit 5'
    command = ("command", "--no-group", "--", "sh", "-c", leader, "sh", script)
    with start_init(*command, as_pid1=False) as init:
        assert init.wait() == 5
        assert init.alive() != []
        assert not marker.exists()


def test_killed_init_takes_the_supervisor_along() -> None:
    # PID 1 takes the whole namespace along; elsewhere the supervisor is asked to stop.
    with start_init("supervisor", "report_signals", as_pid1=False) as init:
        init.read_line()
        init.send(signal.SIGKILL)
        assert init.read_line() == "got 15"


def _zombies_of(init: Init) -> list[int]:
    return [pid for pid in children_of(init.pid) if process_state(pid) == "Z"]


def test_orphans_of_a_program_are_reaped(as_pid1: bool) -> None:
    script = (
        "import os\n"
        f"for _ in range({ORPHANS}):\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        os.fork()\n"
        "        os._exit(0)\n"
        "    os.waitpid(pid, 0)\n"
        "print('made', flush=True)\n"
        "input()\n"
        "os._exit(3)\n"
    )
    read, write = os.pipe()
    with (
        os.fdopen(write, "wb") as keyboard,
        os.fdopen(read, "rb") as stdin,
        start_init(
            "command", "--", sys.executable, "-c", script, as_pid1=as_pid1, stdin=stdin
        ) as init,
    ):
        assert init.read_line() == "made"
        wait_until(lambda: len(children_of(init.pid)) == 1, "all orphans are reaped")
        keyboard.write(b"\n")
        keyboard.flush()
        assert init.wait() == 3


def test_orphans_are_reaped_while_the_supervisor_is_stopped(as_pid1: bool) -> None:
    read, write = os.pipe()
    with (
        os.fdopen(write, "wb") as keyboard,
        os.fdopen(read, "rb") as stdin,
        start_init(
            "supervisor", "make_orphans", str(ORPHANS), as_pid1=as_pid1, stdin=stdin
        ) as init,
    ):
        assert init.read_line().startswith("ready ")
        supervisor = init.child
        os.kill(supervisor, signal.SIGSTOP)
        wait_until(lambda: process_state(supervisor) == "T", "the supervisor is stopped")
        keyboard.write(b"go\n")
        keyboard.flush()
        assert init.read_line() == "orphans made"
        wait_until(lambda: children_of(init.pid) == [supervisor], "all orphans are reaped")
        assert process_state(supervisor) == "T"
        os.kill(supervisor, signal.SIGCONT)
        keyboard.close()
        assert init.wait() == 0
