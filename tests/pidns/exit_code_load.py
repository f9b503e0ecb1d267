"""The load of docs/adr/0001-two-processes.md: who loses exit codes of concurrent children?

``python -m tests.pidns.exit_code_load DESIGN SPAWNS PATIENCE_S`` prints a JSON object: how
many children were started, how many of their exit codes came back wrong (for those of the
event loop and for those that a library started with ``subprocess`` in a thread), and how many
ends were not noticed at all. DESIGN is ``two-processes`` (pid1 and the supervisor) or
``one-process`` (the event loop's process reaps all that dies). Orphans arrive all the time.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from functools import partial

import anyio
import anyio.to_thread

from supervisor import pid1

CONCURRENT = 24
LIBRARY_SHARE = 4  # every fourth child is started by a library
ORPHANS = "while :; do (sleep 0.02 & sleep 0.03 & exit 0); done"


class Tally:
    """What was expected and what came."""

    def __init__(self) -> None:
        self.spawned = 0
        self.waiting = 0
        self.lost_own = 0
        self.lost_library = 0

    async def own_child(self, code: int) -> None:
        """A child of the event loop."""
        self._start()
        done = await anyio.run_process(_exiting(code), check=False)
        self.lost_own += done.returncode != code
        self.waiting -= 1

    async def library_child(self, code: int) -> None:
        """A child of a library that knows nothing of the event loop."""
        self._start()
        done = await anyio.to_thread.run_sync(lambda: subprocess.run(_exiting(code), check=False))
        self.lost_library += done.returncode != code
        self.waiting -= 1

    def _start(self) -> None:
        self.spawned += 1
        self.waiting += 1


def _exiting(code: int) -> list[str]:
    return ["sh", "-c", f"exit {code}"]


async def _load(tally: Tally, spawns: int) -> None:
    choose = random.Random(spawns)
    codes = [choose.randrange(1, 256) for _ in range(spawns)]  # 0 is what a lost one looks like

    async def worker() -> None:
        while codes:
            own = len(codes) % LIBRARY_SHARE
            await (tally.own_child if own else tally.library_child)(codes.pop())

    async with await anyio.open_process(["sh", "-c", ORPHANS], start_new_session=True) as orphans:
        async with anyio.create_task_group() as workers:
            for _ in range(CONCURRENT):
                workers.start_soon(worker)
        os.killpg(orphans.pid, signal.SIGKILL)


def _report(spawns: int, patience_s: float) -> int:
    tally = Tally()

    def say() -> None:
        print(json.dumps(vars(tally)), flush=True)

    def give_up() -> None:  # a lost child cannot be waited for, nor the wait be cancelled
        say()
        os._exit(0)

    timer = threading.Timer(patience_s, give_up)
    timer.daemon = True
    timer.start()
    anyio.run(_load, tally, spawns)
    timer.cancel()
    say()
    return 0


def _reap_everything(_number: int, _frame: object) -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def main() -> int:
    """Run the load under the chosen design."""
    design, spawns, patience_s = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    load = partial(_report, spawns, patience_s)
    if design == "two-processes":
        return pid1.run_under_init(load)
    signal.signal(signal.SIGCHLD, _reap_everything)
    return load()


if __name__ == "__main__":
    sys.exit(main())
