"""A syncer in a process of its own that kills itself at a named step of the journal.

``python -m tests.support.sync_victim CONFIG STEP``: CONFIG is JSON of a pod; STEP is
"before:METHOD:N" or "after:METHOD:N" of ``Ledger`` (or of os or Path: "os.fsync"), "never", or
"stay" (until it is killed, with a wall clock that jumps). Prints ``done`` at the end.
"""

from __future__ import annotations

import functools
import json
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

import anyio

from supervisor.core.clock import wall_time_s
from supervisor.sync import ledger
from supervisor.sync.ledger import Ledger
from tests.support.sync import Pod


def arm(step: str) -> None:
    """Make the N-th call of a journal method the last thing this process does."""
    if step == "stay":
        vars(ledger)["wall_time_s"] = lambda: wall_time_s() + random.uniform(-1e7, 1e7)
    if step in ("never", "stay"):
        return
    when, method, nth = step.split(":")
    owner, _, method = method.rpartition(".")
    place = {"": Ledger, "os": os, "Path": Path}[owner]
    original = getattr(place, method)
    calls = 0

    @functools.wraps(original)
    def deadly(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        mine = calls == int(nth)  # now: other threads count on while this one writes
        if mine and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **kwargs)
        if mine and when == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(place, method, deadly)


async def main(config: dict[str, Any], stay: bool) -> None:
    """Sync until nothing waits, or for ever."""
    pod = Pod(Path(config.pop("root")), **config)
    async with pod.running():
        if stay:
            await anyio.sleep_forever()
        status = await pod.syncer.flush(60.0, final=True)
        while pod.settings.delete_after_upload and any(pod.source.iterdir()):
            await anyio.sleep(0.05)
        print("done", json.dumps({"retained": status.retained, "error": status.last_error}))


if __name__ == "__main__":
    arm(sys.argv[2])
    anyio.run(main, json.loads(sys.argv[1]), sys.argv[2] == "stay")
