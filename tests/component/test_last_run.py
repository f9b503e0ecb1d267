"""A run that was killed is told by the next one, which ends what it left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from supervisor.app.last_run import RunMark
from supervisor.services import procfs
from tests.e2e.pod import wait_for

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


def dead_mark(state: Path, instance: str) -> None:
    """Leave the mark of a process that has ended."""
    RunMark(state, instance).begin()
    path = state / "running.json"
    mark = json.loads(path.read_text())
    assert mark["process"][0] == os.getpid()
    mark["process"][1] += 1  # another process had this id
    path.write_text(json.dumps(mark))


def test_a_run_that_ended_in_order_is_not_told(tmp_path: Path) -> None:
    first = RunMark(tmp_path / "state", "a")
    assert first.begin() is None
    first.end()
    assert RunMark(tmp_path / "state", "b").begin() is None
    assert list((tmp_path / "state").iterdir()) == [tmp_path / "state" / "running.json"]


def test_a_run_that_was_killed_is_told_once(tmp_path: Path) -> None:
    dead_mark(tmp_path, "a")
    second = RunMark(tmp_path, "b")
    death = second.begin()
    assert death is not None
    assert "did not end in order" in str(death)
    assert death.strays == 0
    second.end()
    assert RunMark(tmp_path, "c").begin() is None


def test_what_it_left_running_ends_and_nothing_else(tmp_path: Path) -> None:
    environment = {**os.environ, procfs.COOKIE: "a/1"}
    stray = subprocess.Popen(SLEEP, env={**environment, procfs.INSTANCE: "killed-run"})
    other = subprocess.Popen(SLEEP, env={**environment, procfs.INSTANCE: "another-run"})
    try:
        for process in (stray, other):  # the environment is there once it was executed
            wait_for(lambda p=process: procfs.variables_of(p.pid, procfs.INSTANCE), "executed")  # type: ignore[misc]
        dead_mark(tmp_path, "killed-run")
        death = RunMark(tmp_path, "new").begin()
        assert death is not None
        assert death.strays == 1
        assert "one process" in str(death)
        assert stray.wait(60) == -9
        assert other.poll() is None
    finally:
        for process in (stray, other):
            process.kill()
            process.wait()


def test_a_supervisor_that_runs_is_left_alone(tmp_path: Path) -> None:
    first = RunMark(tmp_path, "a")
    first.begin()
    assert RunMark(tmp_path, "b").begin() is None  # this very process holds the mark
    first.end()  # not its own any more
    assert json.loads((tmp_path / "running.json").read_text())["instance"] == "b"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"instance": 1, "process": 5}', "\0"])
def test_a_damaged_mark_says_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / "running.json").write_text(content)
    assert RunMark(tmp_path, "b").begin() is None


def test_a_place_that_cannot_be_written_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    mark = RunMark(tmp_path / "state", "a")
    assert mark.begin() is None
    mark.end()
