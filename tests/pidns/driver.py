"""What the tests run as the init: ``python -m tests.pidns.driver MODE …``.

``command [--no-group] [--no-setsid] -- PROGRAM ARG…`` is init mode, ``supervisor NAME ARG…``
runs one of the functions below as the supervisor.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from supervisor import pid1

HURRY_DEADLINE_VARIABLE = "TEST_HURRY_DEADLINE_S"
LEFTOVER_GRACE_VARIABLE = "TEST_LEFTOVER_GRACE_S"


def say(text: str) -> None:
    """One line for the test, at once."""
    os.write(1, f"{text}\n".encode())


def exit_with(code: str) -> int:
    """Return ``code``."""
    return int(code)


def raise_exit(code: str) -> int:
    """Leave by SystemExit."""
    raise SystemExit(int(code))


def raise_bug() -> int:
    """Leave by an error that nobody expected."""
    raise RuntimeError("a bug")


def show_process() -> int:
    """Say who and where this is, then what a program started from here inherits."""
    say(f"ppid {os.getppid()}")
    say(f"session {os.getsid(0) == os.getpid()}")
    subprocess.run(["grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status"], check=True)
    return 0


def report_signals() -> int:
    """Say each signal that arrives; SIGUSR1 ends it with code 7."""
    received: list[int] = []
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}:
        signal.signal(number, lambda got, _frame: received.append(got))
    say(f"ready {os.getpid()}")
    while True:
        while received:
            arrived = received.pop(0)
            say(f"got {arrived}")
            if arrived == signal.SIGUSR1:
                return 7
        time.sleep(0.005)


def leave_behind(folder: str) -> int:
    """Start processes that want to stay, then wait to be killed."""
    polite = (
        "import os, signal, sys, pathlib\n"
        "def end(*_):\n"
        "    pathlib.Path(sys.argv[1]).write_text('terminated')\n"
        "    os._exit(0)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "if sys.argv[2] == 'daemon' and (os.fork() or os.setsid() or os.fork()):\n"
        "    os._exit(0)\n"
        "pathlib.Path(sys.argv[1] + '.up').touch()\n"
        "while True: signal.pause()\n"
    )
    stubborn = polite.replace("signal.SIGTERM, end", "signal.SIGTERM, signal.SIG_IGN")
    root = Path(folder)
    for name, script in (("plain", polite), ("daemon", polite), ("stubborn", stubborn)):
        subprocess.Popen([sys.executable, "-c", script, str(root / name), name])
    while len(list(root.glob("*.up"))) < 3:
        time.sleep(0.01)
    say(f"ready {os.getpid()}")
    while True:
        signal.pause()


def make_orphans(count: str) -> int:
    """Have a helper make orphans whenever a line arrives; wait to be told to end."""
    helper = (
        "import os, sys\n"
        "for line in sys.stdin:\n"
        "    for _ in range(int(sys.argv[1])):\n"
        "        pid = os.fork()\n"
        "        if pid == 0:\n"
        "            os.fork()\n"
        "            os._exit(0)\n"
        "        os.waitpid(pid, 0)\n"
        "    print('orphans made', flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", helper, count])
    say(f"ready {os.getpid()}")
    return process.wait()


def main() -> int:
    """Choose the mode."""
    pid1.HURRY_DEADLINE_S = float(os.environ.get(HURRY_DEADLINE_VARIABLE, pid1.HURRY_DEADLINE_S))
    pid1.LEFTOVER_GRACE_S = float(os.environ.get(LEFTOVER_GRACE_VARIABLE, pid1.LEFTOVER_GRACE_S))
    mode, *arguments = sys.argv[1:]
    if mode == "command":
        at = arguments.index("--")
        options = arguments[:at]
        return pid1.run_command(
            arguments[at + 1 :],
            group="--no-group" not in options,
            setsid="--no-setsid" not in options,
        )
    name, *rest = arguments
    return pid1.run_under_init(lambda: int(globals()[name](*rest)))


if __name__ == "__main__":
    sys.exit(main())
