"""Runs ``supervisor run`` in the demo's world and looks at it from outside."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

from supervisor.demo.world import DemoWorld
from tests.pidns.harness import NAMESPACE, children_of, process_state

DEADLINE_S = 60.0
Json = dict[str, Any]
Found = TypeVar("Found")


def wait_for(look: Callable[[], Found], what: str, *, deadline_s: float = DEADLINE_S) -> Found:
    """Poll until ``look`` gives something true, and return that."""
    deadline = time.monotonic() + deadline_s
    while not (found := look()):
        if time.monotonic() > deadline:
            raise AssertionError(f"still not so after {deadline_s:.0f} s: {what}")
        time.sleep(0.05)
    return found


def edit(world: DemoWorld, section: str, **keys: object) -> None:
    """Set keys of a section of the world's configuration file."""
    text = world.config.read_text()
    header = f"[{section}]"
    if header not in text:
        text += f"\n{header}\n"
    before, _, after = text.partition(header + "\n")
    body, bracket, rest = after.partition("\n[")
    for name, value in keys.items():
        body = re.sub(rf"^{name} = .*\n?", "", body + "\n", flags=re.MULTILINE).rstrip("\n")
        written = str(value) if isinstance(value, Path) else value
        body += f"\n{name} = {json.dumps(written)}"
    world.config.write_text(f"{before}{header}\n{body.lstrip()}\n{bracket}{rest}")


def processes_with(*markers: str) -> dict[int, str]:
    """Live processes that carry a marker in environment, arguments or working directory."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        try:
            arguments = (entry / "cmdline").read_bytes()
            seen = b"\0".join(((entry / "environ").read_bytes(), arguments))
            seen += b"\0" + bytes((entry / "cwd").readlink())
        except OSError:
            continue
        if any(marker.encode() in seen for marker in markers):
            found[int(entry.name)] = arguments.replace(b"\0", b" ").decode(errors="replace")
    return found


def environment_of(pid: int) -> dict[str, str]:
    """What /proc says was handed to a process."""
    pairs = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)


class Pod:
    """A running ``supervisor run`` and the eyes of its user."""

    def __init__(
        self,
        world: DemoWorld,
        *,
        environment: Mapping[str, str] | None = None,
        wrapper: Sequence[str] = (),
        arguments: Sequence[str] = (),
    ) -> None:
        self.world = world
        self.environment = {**world.environment, "COLUMNS": "500", **(environment or {})}
        self.log = world.folder / f"log-{time.monotonic_ns()}.txt"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*wrapper, *world.command, *arguments],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    # -- what a user sees -------------------------------------------------------------------

    def cli(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command of ``supervisor`` beside the pod."""
        return subprocess.run(
            [sys.executable, "-m", "supervisor", *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=DEADLINE_S,
        )

    def json(self, *arguments: str) -> Any:
        """The JSON that a command writes; its success is demanded."""
        done = self.cli(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def get(self, path: str, *, token: bool = False) -> tuple[int, str]:
        """Status and body from the health port; 0 while nobody listens."""
        headers = {"Authorization": f"Bearer {self.world.token}"} if token else {}
        url = f"http://127.0.0.1:{self.world.health_port}{path}"
        try:
            request = urllib.request.Request(url, headers=headers)
            with urllib.request.urlopen(request, timeout=DEADLINE_S) as answer:  # noqa: S310
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except (OSError, http.client.HTTPException):
            return 0, ""

    def ping(self) -> int:
        """The status of /ping."""
        return self.get("/ping")[0]

    def status(self) -> Json:
        """The snapshot, by the API of the health port; {} while nobody listens."""
        code, body = self.get("/v1/status", token=True)
        return json.loads(body) if code == 200 else {}

    def wait(self, holds: Callable[[Json], Any], what: str) -> Json:
        """Wait until the status is so; ends at once when the pod has ended."""

        def look() -> Json:
            assert self.process.poll() is None, f"the pod ended: {self.text()[-3000:]}"
            status = self.status()
            return status if status and holds(status) else {}

        try:
            return wait_for(look, what)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.status()}\n{self.text()[-3000:]}") from None

    def service(self, name: str) -> Json:
        """A service's status."""
        found: Json = self.status()["services"][name]
        return found

    def text(self) -> str:
        """All that the pod wrote."""
        return self.log.read_text(errors="replace")

    # -- processes --------------------------------------------------------------------------

    @property
    def init(self) -> int:
        """The init, as seen from here; below ``unshare`` it is the child."""
        if self.process.args[0] == NAMESPACE[0]:  # type: ignore[index]
            return wait_for(lambda: children_of(self.process.pid), "unshare forked")[0]
        return self.process.pid

    @property
    def supervisor(self) -> int:
        """The supervisor below the init."""
        return min(wait_for(lambda: children_of(self.init), "the init forked"))

    def marks(self) -> tuple[str, ...]:
        """What its processes can be told by: the world's folder, the instance's cookie."""
        status = self.status()
        pids = [s["pid"] for s in status.get("services", {}).values() if s["pid"]]
        instances = {environment_of(pid).get("SUPERVISOR_INSTANCE") for pid in pids}
        return (str(self.world.folder), *(mark for mark in instances if mark))

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ask it to end; returns the exit code."""
        if self.process.poll() is None:
            os.kill(self.init, number)
        return self.process.wait(DEADLINE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        served = "supervisor.demo.serve"  # belongs to the world, which ends it
        left = processes_with(str(self.world.folder))
        for pid in (pid for pid, arguments in left.items() if served not in arguments):
            if process_state(pid) not in ("", "Z"):
                os.kill(pid, signal.SIGKILL)


@contextmanager
def ready_pod(world: DemoWorld, **options: Any) -> Iterator[Pod]:
    """A pod that has become ready."""
    with Pod(world, **options) as pod:
        pod.wait(lambda s: s["ready"], "the pod is ready")
        yield pod


def pod_processes(*markers: str) -> dict[int, str]:
    """Processes of a pod; its world's model origin is not one."""
    found = processes_with(*markers)
    return {pid: text for pid, text in found.items() if "supervisor.demo.serve" not in text}
