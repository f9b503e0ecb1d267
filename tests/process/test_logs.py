"""Output of real processes: complete, bounded, readable, never in anybody's way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from supervisor.core.status import ServiceState
from supervisor.services import procfs
from supervisor.services.logs import LogLimits, LogStore
from supervisor.services.sinks import FileWriter, LogLine, RotatedFile
from supervisor.services.spec import RestartPolicy
from tests.process.pod import DEADLINE_S, python, running, shell

pytestmark = pytest.mark.anyio

ONCE = RestartPolicy.NEVER


async def test_the_log_of_a_short_life_is_complete() -> None:
    script = "i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done; echo end >&2; exit 3"
    async with running(shell("a", script, restart=ONCE)) as pod:
        await pod.reaches("a", ServiceState.FAILED)
        assert pod.output("a", "stdout") == [f"line {i}" for i in range(2000)]
        assert pod.output("a", "stderr") == ["end"]


async def test_a_flood_is_read_counted_and_bounded() -> None:
    # 300 MB as fast as it can: the writer must not wait for us, memory must not grow.
    script = """
import os
block = (b"x" * 99 + b"\\n") * 10000
for _ in range(300): os.write(1, block)
os.write(1, b"the end\\n")
"""
    limits = LogLimits(burst_bytes=2_000_000, rate_bytes_per_s=1_000_000, ring_bytes=1_000_000)
    async with running(python("a", script, restart=ONCE), limits=limits) as pod:
        with anyio.fail_after(60):
            await pod.reaches("a", ServiceState.STOPPED)
        kept = pod.output("a")
        dropped = pod["a"].log_bytes_dropped
        assert dropped > 250_000_000
        assert sum(map(len, kept)) < 1_000_000
        assert any("bytes of output dropped" in line for line in kept)
        assert kept[-1] == "the end"  # what it died with, however it flooded before
        said = sum(int(line.split()[0]) for line in kept if "output dropped" in line)
        assert said <= dropped
    assert pod["a"].log_bytes_dropped == dropped


async def test_a_flood_on_one_stream_costs_no_error_on_the_other() -> None:
    script = """
import os
block = (b"x" * 99 + b"\\n") * 10000
for number in range(50):
    os.write(1, block)
    os.write(2, b"error %d\\n" % number)
"""
    limits = LogLimits(burst_bytes=1_000_000, rate_bytes_per_s=1_000_000)
    async with running(python("a", script, restart=ONCE), limits=limits) as pod:
        await pod.reaches("a", ServiceState.STOPPED)
        assert pod["a"].log_bytes_dropped > 40_000_000
        assert pod.output("a", "stderr") == [f"error {number}" for number in range(50)]


async def test_bars_and_rubbish_are_readable() -> None:
    script = r"""
import os, time
for i in range(50):
    os.write(2, b"\r%3d%%|#####" % (i * 2)); time.sleep(0.005)
os.write(2, b"\r100%|#####\n")
os.write(1, b"\xff\xfe\x00\x1b[31mred\x1b[0m\n" + bytes(range(256)) * 50 + b"\n")
os.write(1, b"no newline")
"""
    async with running(python("a", script, restart=ONCE)) as pod:
        await pod.reaches("a", ServiceState.STOPPED)
        bars = pod.output("a", "stderr")
        assert bars[-1] == "100%|#####"
        assert len(bars) <= 4
        out = pod.output("a", "stdout")
        assert out[0] == "\\xff\\xfe\N{REPLACEMENT CHARACTER}red"
        assert out[-1] == "no newline"
        assert not any(set(line) & set("\r\x1b\x00") for line in out)


async def test_a_prompt_without_newline_is_shown_after_a_pause() -> None:
    script = "printf 'Continue? '; exec sleep 1000"
    async with running(shell("a", script)) as pod:
        await pod.says("a", "Continue?")


async def test_following_goes_on_across_restarts() -> None:
    async with running(shell("a", "echo life $SUPERVISOR_SERVICE; exec sleep 1000")) as pod:
        seen: list[str] = []
        with pod.logs.subscribe("a") as lines, anyio.fail_after(30):
            await pod.reaches("a", ServiceState.READY)
            async for line in lines:
                seen.append(line.text)
                if len(seen) == 3:
                    break
                pid = pod["a"].pid
                assert pid is not None
                os.kill(pid, signal.SIGKILL)
                await pod.when("a", lambda s: s.generation > len(seen) and s.ready)
        assert seen == ["life a/1", "life a/2", "life a/3"]


async def test_files_rotate_and_the_users_file_is_plain(tmp_path: Path) -> None:
    mine = tmp_path / "mine" / "a.log"
    script = "i=0; while [ $i -lt 300 ]; do echo line $i is rather long; i=$((i+1)); done"
    limits = LogLimits(file_bytes=4000, files_kept=2)
    spec = shell("a", f"{script}; exec sleep 1000", log_file=mine)
    async with running(spec, directory=tmp_path / "logs", limits=limits) as pod:
        await pod.says("a", "line 299")
    files = sorted(path.name for path in (tmp_path / "logs").iterdir())
    assert files[0] == "a.log"
    assert mine.read_text().splitlines()[-1] == "line 299 is rather long"
    last = (tmp_path / "logs" / "a.log").read_text().splitlines()[-1]
    stamp, stream, text = last.split(" ", 2)
    assert stamp.endswith("Z")
    assert (stream, text) == ("stdout", "line 299 is rather long")


def test_rotation_keeps_so_many(tmp_path: Path) -> None:
    file = RotatedFile(tmp_path / "a.log", max_bytes=100, keep=2)
    for number in range(50):
        file.append(f"line {number:03}\n" * 3)
    file.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.log", "a.log.1", "a.log.2"]
    assert all(p.stat().st_size < 150 for p in tmp_path.iterdir())
    assert "line 049" in (tmp_path / "a.log").read_text()


def test_what_lies_in_a_files_place_is_not_written_through(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("whole")
    (tmp_path / "link.log").symlink_to(victim)
    os.mkfifo(tmp_path / "pipe.log")  # an open for writing would wait for a reader
    writer = FileWriter(tmp_path / "own")
    for name in ("link", "pipe", "good"):
        writer.also(name, tmp_path / f"{name}.log")
    lines = [
        LogLine(name, 0.0, "stdout", "a line", seq)
        for seq, name in enumerate(("link", "pipe", "good"))
    ]
    with pytest.raises(OSError, match=r"link\.log|pipe\.log"):
        writer.write(lines)
    writer.close()
    assert victim.read_text() == "whole"
    assert (tmp_path / "good.log").read_text() == "a line\n"  # no other's loss
    own = sorted(path.name for path in (tmp_path / "own").iterdir())
    assert own == ["good.log", "link.log", "pipe.log"]


async def test_console_lines_are_prefixed_or_json(monkeypatch: pytest.MonkeyPatch) -> None:
    for as_json in (False, True):
        read, write = os.pipe()
        monkeypatch.setattr("supervisor.services.logs.stdout_descriptor", lambda fd=write: fd)
        store = LogStore(None, lambda t: t.replace("hunter2", "***"), console_json=as_json)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(store.run)
            store.service("comfyui").feed("stderr", b"token hunter2\n", 0.0)
            data = await anyio.to_thread.run_sync(os.read, read, 10000)
            tasks.cancel_scope.cancel()
        os.close(read)
        os.close(write)
        if as_json:
            line = json.loads(data)
            assert (line["service"], line["text"]) == ("comfyui", "token ***")
            assert line["stream"] == "stderr"
        else:
            assert data == b"comfyui      | token ***\n"


def test_with_log_format_json_every_line_of_a_pod_is_json(tmp_path: Path) -> None:
    config = tmp_path / "supervisor.toml"
    config.write_text(
        f"""
        [supervisor]
        state_dir = "{tmp_path}/state"
        socket = "{tmp_path}/s.sock"
        log_format = "json"
        [comfyui]
        enabled = false
        [models]
        bundles = []
        [health]
        port = 0
        [services.talk]
        command = ["sh", "-c", "echo hello; exec sleep 1000"]
        """
    )
    command = [sys.executable, "-m", "supervisor", "run", "--config", str(config)]
    path = {"PATH": os.environ["PATH"]}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=path
    ) as pod:
        assert pod.stdout is not None
        text = []
        for line in pod.stdout:
            text.append(line)
            if "hello" in line:
                pod.terminate()
    assert pod.returncode == 0
    lines = [json.loads(line) for line in text]
    assert any("message" in line for line in lines)  # the supervisor's own are among them
    assert [line["text"] for line in lines if line.get("service") == "talk"] == ["hello"]


async def test_a_slow_follower_loses_the_oldest_and_knows() -> None:
    store = LogStore(None, str, console=False)
    with store.subscribe(None, limit=10) as lines:
        store.service("a").feed("stdout", b"".join(b"%d\n" % i for i in range(25)), 0.0)
        assert lines.lagged == 15
        lines.close()
        assert [line.text async for line in lines] == [str(i) for i in range(15, 25)]


async def test_the_tail_of_all_is_in_order() -> None:
    store = LogStore(None, str, console=False)
    for number in range(6):
        store.service("ab"[number % 2]).feed("stdout", b"%d\n" % number, 0.0)
    assert [line.text for line in store.tail(None, 4)] == ["2", "3", "4", "5"]
    assert [line.text for line in store.tail("a", 2)] == ["2", "4"]
    assert store.tail("unknown", 5) == []


def test_output_that_nobody_reads_holds_up_nothing(tmp_path: Path) -> None:
    # Stdout and stderr are one pipe that is full from the start, as of a log driver that hangs.
    config = tmp_path / "supervisor.toml"
    config.write_text(
        f"""
[supervisor]
state_dir = "{tmp_path}/state"
socket = "{tmp_path}/s.sock"
[comfyui]
enabled = false
[health]
host = "127.0.0.1"
port = 0
[services.talker]
command = ["/bin/sh", "-c", "echo $$ > {tmp_path}/pid; while :; do echo word; sleep 0.001; done"]
[services.flood]
command = ["yes", "a flood of words without an end"]
"""
    )
    command = [sys.executable, "-m", "supervisor", "run", "--config", str(config)]
    with full_pipe() as full:
        pod = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=full, stderr=full)
        try:
            first = a_number(tmp_path / "pid", other_than=0)
            os.kill(first, signal.SIGKILL)
            second = a_number(tmp_path / "pid", other_than=first)
            pod.send_signal(signal.SIGTERM)
            assert pod.wait(DEADLINE_S) == 0
        finally:
            pod.kill()
            pod.wait()
    assert not procfs.is_alive(second)


@contextmanager
def full_pipe() -> Iterator[int]:
    """Yield the writing end of a pipe that takes nothing more, and whose reader never reads."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    with suppress(BlockingIOError):
        while os.write(write, b"x" * 4096):
            pass
    os.set_blocking(write, True)
    try:
        yield write
    finally:
        os.close(write)
        os.close(read)


def a_number(path: Path, *, other_than: int) -> int:
    """Wait until a file holds a whole number and a new one."""
    by_s = time.monotonic() + DEADLINE_S
    while time.monotonic() < by_s:
        text = path.read_text() if path.exists() else ""
        if text.endswith("\n") and int(text) != other_than:
            return int(text)
        time.sleep(0.02)
    raise AssertionError(f"{path.name} has not changed")
