"""A service that the kernel kills for the memory limit of its cgroup: a real kill."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import anyio
import pytest

from supervisor.core.status import ServiceState
from supervisor.services import procfs
from supervisor.services.spec import ExecProbe, Liveness
from tests.process.pod import DEADLINE_S, running, shell

MOUNT = Path("/sys/fs/cgroup")
LIMIT_BYTES = 256 * 1024 * 1024

# Joins the group, then runs one service that takes more memory than the group may have.
POD = """
import json, sys
from pathlib import Path
import anyio
from tests.process.pod import python, running

async def main():
    greedy = python("greedy", "b = []\\nwhile True: b.append(bytearray(1 << 20))", max_restarts=0)
    async with running(greedy) as pod:
        status = await pod.when("greedy", lambda s: s.state == "failed")
        last = status.last_exit
        print(json.dumps([last.reason, last.signal, status.message, status.hint]), flush=True)

(Path(sys.argv[1]) / "cgroup.procs").write_text("0")
anyio.run(main)
"""


@contextmanager
def limited_group() -> Iterator[Path]:
    """Yield a new memory cgroup of version 2 or 1; skip where none can be made.

    No package brings this: it is a right that the container has or has not.
    """
    group = next(filter(None, map(_make, _own_groups())), None)
    if group is None:
        pytest.skip("needs a memory cgroup that may be written")
    try:
        yield group
    finally:
        by_s = time.monotonic() + 30
        while time.monotonic() < by_s:  # what was killed in it may still be going
            with suppress(OSError):
                group.rmdir()
                break
            time.sleep(0.05)


def _own_groups() -> Iterator[Path]:
    """The folders of our own memory cgroup, as ``procfs.oom_kills`` finds them."""
    for path in procfs._oom_files(Path("/")):
        if path.exists():
            yield path.parent


def _make(parent: Path) -> Path | None:
    group = parent / f"supervisor-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        return None
    for name in ("memory.max", "memory.limit_in_bytes"):
        with suppress(OSError):
            if (group / name).exists():
                (group / name).write_text(str(LIMIT_BYTES))
                return group
    group.rmdir()
    return None


@pytest.mark.anyio
async def test_a_kill_of_somebody_else_is_not_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    kills = 0
    monkeypatch.setattr(procfs, "oom_kills", lambda: kills)
    probes: list[str] = []
    live = Liveness(ExecProbe(("/bin/true",)), interval_s=0.05, timeout_s=30)
    specs = [
        shell("checked", "exec sleep 1000", liveness=live),
        shell("unchecked", "exec sleep 1000"),
    ]
    async with running(*specs, probed=lambda name, _kind, _s: probes.append(name)) as pod:
        for spec in specs:
            await pod.reaches(spec.name, ServiceState.READY)
        kills = 1  # a Jupyter kernel, say
        seen = len(probes)
        with anyio.fail_after(DEADLINE_S):
            while len(probes) < seen + 3:  # the first may have answered before
                await anyio.sleep(0.01)
        for spec in specs:
            await pod.manager.signal(spec.name, "KILL")
            await pod.when(spec.name, lambda s: s.generation == 2)
        assert pod.exits("checked") == ["killed"]
        assert pod.exits("unchecked") == ["oom-kill"]


@pytest.mark.needs("root")
def test_a_kill_by_the_memory_limit_is_told_with_what_to_do() -> None:
    with limited_group() as group:
        done = subprocess.run(
            [sys.executable, "-c", POD, str(group)],
            capture_output=True,
            text=True,
            check=False,
            timeout=90,
        )
    assert done.returncode == 0, done.stderr
    reason, signal, message, hint = json.loads(done.stdout)
    assert (reason, signal) == ("oom-kill", "SIGKILL")
    assert "memory limit was reached" in message
    assert "--cache-ram" in hint
