"""``supervisor demo`` as its user sees it: an address at once, a clean end, nothing left.

The pod's own process is replaced here by a small program: what is tested is the command.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.component.test_demo_comfyui import DEADLINE_S, wait_until
from tests.component.test_demo_world import pids_with

COMMAND = """
import sys
from supervisor.cli.main import main
from supervisor.demo.world import DemoWorld
DemoWorld.command = property(lambda world: [sys.executable, "-c", sys.argv[1], str(world.bucket)])
sys.exit(main(["demo", *sys.argv[2:]]))
"""
POD = """
import os, pathlib, signal, sys
requests = []
bucket = pathlib.Path(sys.argv[1])
(bucket / "outputs").mkdir(parents=True)
(bucket / "outputs/a.png").touch()
(bucket / "outputs/a.mp4").touch()
(bucket / "outputs/b.png").touch()
signal.signal(signal.SIGTERM, lambda *_: requests.append(1))
print("pod up", flush=True)
while len(requests) < NEEDED:
    signal.pause()
sys.exit(CODE)
"""


def pod(*, needed: int = 1, code: int = 0) -> str:
    return POD.replace("NEEDED", str(needed)).replace("CODE", str(code))


@contextmanager
def demo(program: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, program, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def read_until(process: subprocess.Popen[str], text: str) -> str:
    assert process.stdout is not None
    seen = ""
    while text not in seen:
        line = process.stdout.readline()
        assert line, f"ended before {text!r}: {seen}"
        seen += line
    return seen


def folder_of(output: str) -> Path:
    match = re.search(r"^bucket: +(.*)/bucket/$", output, re.MULTILINE)
    assert match is not None
    return Path(match[1])


def assert_nothing_left(folder: Path) -> None:
    assert not folder.exists()
    wait_until(lambda: not pids_with(str(folder), patience_s=0), "all its processes ended")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ends_on_request_with_a_summary(number: signal.Signals) -> None:
    with demo(pod()) as process:
        output = read_until(process, "pod up")
        assert re.search(r"^page: +http://127\.0\.0\.1:\d+/\?token=\S+$", output, re.MULTILINE)
        folder = folder_of(output)
        assert folder.is_dir()
        process.send_signal(number)
        rest, errors = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 0, errors
        assert "2 pictures and 1 video stored" in rest
        assert_nothing_left(folder)


def test_ends_after_the_seconds() -> None:
    with demo(pod(), "--seconds", "0.5") as process:
        output = read_until(process, "pod up")
        process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 0
        assert_nothing_left(folder_of(output))


def test_second_ctrl_c_hurries_the_pod() -> None:
    with demo(pod(needed=2)) as process:
        output = read_until(process, "pod up")
        process.send_signal(signal.SIGINT)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        # Two that arrive as one count as one; the third is for that case.
        try:
            process.wait(2)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE_S) == 0
        assert_nothing_left(folder_of(output))


def test_pod_that_fails_gives_its_code() -> None:
    with demo("raise SystemExit(78)") as process:
        _, errors = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 78
        assert errors == "supervisor: the pod ended with 78\n"


def test_taken_port_is_one_clear_line() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with demo(pod(), "--port", port) as process:
            output, errors = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 1
    assert output == ""
    assert errors.splitlines()[0].startswith("supervisor: Cannot build the demo: ")
    assert errors.splitlines()[1:] == ["  hint: choose another port with --port"]
