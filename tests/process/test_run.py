"""``supervisor run`` from outside: what its services do to the container, and what not."""

from __future__ import annotations

import json
import os
import pwd
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.process.pod import DEADLINE_S

BASE = """
[supervisor]
state_dir = "{folder}/state"
socket = "{folder}/s.sock"
[comfyui]
enabled = false
[health]
host = "127.0.0.1"
port = 0
"""


@dataclass
class Container:
    """A running ``supervisor run``; its output is in ``folder/out``."""

    folder: Path
    environment: dict[str, str]
    process: subprocess.Popen[bytes]

    def command(self, *arguments: str) -> list[str]:
        """A command of the supervisor that talks to this one."""
        return [sys.executable, "-m", "supervisor", *arguments]

    def status(self) -> dict[str, Any]:
        """What ``supervisor status --json`` tells; empty while nobody answers."""
        done = subprocess.run(
            self.command("status", "--json"),
            env=self.environment,
            capture_output=True,
            check=False,
            timeout=DEADLINE_S,
        )
        return dict(json.loads(done.stdout)) if done.returncode == 0 else {}

    def service(self, name: str) -> dict[str, Any]:
        """One service of the status."""
        return dict(self.status().get("services", {}).get(name, {}))

    def until(self, holds: Callable[[], Any], what: str) -> None:
        """Wait until something holds."""
        by_s = time.monotonic() + DEADLINE_S
        while not holds():
            out = (self.folder / "out").read_text(errors="replace")[-3000:]
            assert self.process.poll() is None, f"it ended while waiting until {what}: {out}"
            assert time.monotonic() < by_s, f"not so in time: {what}: {out}"
            time.sleep(0.05)


@contextmanager
def container(folder: Path, services: str, *, wrapper: Sequence[str] = ()) -> Iterator[Container]:
    """Run a configuration; whatever the test does, nothing of it stays."""
    config = folder / "supervisor.toml"
    config.write_text((BASE + services).replace("{folder}", str(folder)))
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "SUPERVISOR_SOCKET": f"{folder}/s.sock",
        "R2_SECRET_ACCESS_KEY": "of the test",
    }
    with (folder / "out").open("wb") as out:
        process = subprocess.Popen(
            [*wrapper, sys.executable, "-m", "supervisor", "run", "--config", str(config)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )
    try:
        yield Container(folder, environment, process)
    finally:
        process.terminate()
        try:
            process.wait(DEADLINE_S)
        finally:
            process.kill()
            process.wait()


def test_a_program_that_is_down_for_good_ends_the_container_with_its_code(tmp_path: Path) -> None:
    services = """
[services.vital]
command = ["/bin/sh", "-c", "exit 9"]
required = true
max_restarts = 1
backoff_initial_s = 0.01
on_failure = "shutdown"
[services.other]
command = ["/bin/sh", "-c", "echo $$ > {folder}/pid; exec sleep 1000"]
"""
    with container(tmp_path, services) as run:
        assert run.process.wait(DEADLINE_S) == 9
    assert "vital is down for good" in (tmp_path / "out").read_text()
    other = tmp_path / "pid"
    assert not other.exists() or not Path(f"/proc/{other.read_text().strip()}").exists()


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_are_not_missed(tmp_path: Path, closed: str) -> None:
    services = """
[services.a]
command = ["/bin/sh", "-c", '''
readlink /proc/$PPID/fd/0 /proc/$PPID/fd/1 /proc/$PPID/fd/2 > {folder}/now
mv {folder}/now {folder}/fds; echo word; exec sleep 1000''']
"""
    with container(
        tmp_path, services, wrapper=("/bin/sh", "-c", f'exec "$@" {closed}', "-")
    ) as run:
        run.until((tmp_path / "fds").exists, "its service runs")
        streams = (tmp_path / "fds").read_text().split()
        missing = 3 if closed.count("&-") == 3 else 1
        assert streams.count("/dev/null") >= missing
        assert set(streams) <= {"/dev/null", str(tmp_path / "out")}
        run.process.send_signal(signal.SIGTERM)
        assert run.process.wait(DEADLINE_S) == 0


def test_neither_a_follower_nor_a_start_holds_up_the_end(tmp_path: Path) -> None:
    services = """
[services.talker]
command = ["/bin/sh", "-c", "echo value $VALUE; exec sleep 1000"]
environment = { VALUE = "100% of $HOME, `x` %(y)s ${z}" }
[services.starting]
command = ["sleep", "1000"]
ready = { file = "{folder}/never", timeout_s = 600 }
[services.later]
command = ["sleep", "1000"]
after = ["starting"]
[services.missing]
command = ["/no/such/program"]
max_restarts = 1000000
backoff_initial_s = 0.01
backoff_max_s = 0.01
"""
    with container(tmp_path, services) as run:
        # One that cannot be executed is tried again and again; the control plane answers.
        run.until(lambda: run.service("missing").get("restarts", 0) > 3, "it was tried again")
        assert "/no/such/program: command not found" in run.service("missing")["message"]
        assert run.service("starting")["state"] == "starting"
        assert run.service("later")["state"] == "waiting"
        with subprocess.Popen(
            run.command("logs", "talker", "-f"), env=run.environment, stdout=subprocess.PIPE
        ) as follower:
            assert follower.stdout is not None
            assert b"value 100% of $HOME, `x` %(y)s ${z}" in follower.stdout.readline()
            run.process.send_signal(signal.SIGTERM)
            assert run.process.wait(DEADLINE_S) == 0  # and not after 600 s
            follower.wait(DEADLINE_S)


@pytest.mark.needs("root")
def test_a_service_of_another_user_finds_no_secret_of_ours(tmp_path: Path) -> None:
    services = """
[services.spy]
user = "nobody"
command = ["/bin/sh", "-c", '''
env; echo I am $(id -u)
init=$(awk '/^PPid/{print $2}' /proc/$PPID/status)
for pid in $PPID $init; do
    echo looking at $pid; cat /proc/$pid/environ; cat /proc/$pid/mem; ls /proc/$pid/fd
done
echo done; exec sleep 1000''']
"""
    with container(tmp_path, services) as run:
        out = tmp_path / "out"
        run.until(lambda: "| done" in out.read_text(), "it has looked")
        supervisor = Path(f"/proc/{run.process.pid}/task/{run.process.pid}/children").read_text()
        for pid in (supervisor.split()[0], run.process.pid):
            assert f"looking at {pid}\n" in out.read_text()
        run.until(lambda: out.read_text().count("ermission denied") == 6, "all was refused")
    assert f"I am {pwd.getpwnam('nobody').pw_uid}\n" in out.read_text()
    assert "R2_SECRET_ACCESS_KEY" not in out.read_text()
