"""The decision of docs/adr/0001-two-processes.md as a regression test: no code is lost."""

from __future__ import annotations

import json
import sys

import pytest

from tests.pidns.harness import run_init

SPAWNS = 400
PROGRAM = (sys.executable, "-m", "tests.pidns.exit_code_load")


def _lost(design: str, patience_s: int, *, as_pid1: bool) -> dict[str, int]:
    code, out, err = run_init(
        design, str(SPAWNS), str(patience_s), as_pid1=as_pid1, program=PROGRAM
    )
    assert code == 0, err
    return dict(json.loads(out))


def test_two_processes_lose_no_exit_code(as_pid1: bool) -> None:
    tally = _lost("two-processes", 60, as_pid1=as_pid1)
    assert tally == {"spawned": SPAWNS, "lost_own": 0, "lost_library": 0, "waiting": 0}


@pytest.mark.needs("unshare", "root")
def test_the_load_would_show_a_loss() -> None:
    # The same load under a design that reaps in the event loop's process: the test above
    # can fail.
    tally = _lost("one-process", 10, as_pid1=True)
    assert tally["lost_own"] + tally["lost_library"] + tally["waiting"] > 0
