"""Everything at once, before real S3 servers: what is counted at the end must be nothing.

``SYNC_FAULTS_FULL=10000 pytest -s`` runs it with so many files and prints the counts.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.support import s3_servers
from tests.support.s3_proxy import FaultyProxy
from tests.support.s3_servers import Server
from tests.support.sync import png

_ROOT = Path(__file__).parents[2]
_FULL = int(os.environ.get("SYNC_FAULTS_FULL", "0"))
_DAY_S = 86_400.0


def _weather(seed: int, *, hangs: bool) -> Callable[[int], int | str | None]:
    """A fifth of all requests goes wrong, each in its own way."""
    rng = random.Random(seed)
    faults: tuple[int | str, ...] = (500, 502, 503, 429, "reset", "lost", "lost", "cut", "slow")

    def fault(_count: int) -> int | str | None:
        if hangs and rng.random() < 0.0005:
            return "hang"
        return rng.choice(faults) if rng.random() < 0.2 else None

    return fault


@dataclass
class Storm:
    """A supervisor that is killed again and again while files appear."""

    root: Path
    config: dict[str, Any]
    proxy: FaultyProxy
    rng: random.Random = field(default_factory=lambda: random.Random(1))
    done: Counter[str] = field(default_factory=Counter)
    written: dict[str, str] = field(default_factory=dict)  # sha256 of all bytes ever: name
    last: dict[str, str] = field(default_factory=dict)  # name: sha256
    seen: int = 0  # requests before the last kill
    victim: subprocess.Popen[str] | None = None

    @property
    def source(self) -> Path:
        return self.root / "comfyui" / "output"

    def start(self, step: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.support.sync_victim", json.dumps(self.config), step],
            cwd=_ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def kill(self) -> None:
        """Kill the supervisor in the middle of its work; the next one starts at once."""
        deadline = time.monotonic() + 15
        while self.victim and self.proxy.requests < self.seen + 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        self.seen = self.proxy.requests
        self.end()
        self.victim = self.start("stay")

    def end(self) -> None:
        """Kill the supervisor."""
        if self.victim is not None:
            assert self.victim.poll() is None, "it ended by itself"
            self.victim.kill()
            self.victim.communicate()
            self.done["kill -9"] += 1
            self.victim = None

    def write(self, number: int) -> None:
        """Write a file as one of several programs would."""
        rng = self.rng
        name = f"{number % 7}/run {number // 50}/{number}.png"
        if number % 40 == 7 and self.last:  # an old name, other bytes
            name = rng.choice([*self.last])
            self.done["rewritten"] += 1
        data = png(f"{number} " + rng.randbytes(rng.randrange(1, 30_000)).hex())
        if number % 400 == 13 or number == 30:
            name = name.removesuffix(".png") + ".ply"
            data = rng.randbytes(rng.randrange(9, 20) * 1024 * 1024)
            self.done["multipart"] += 1
        path = self.source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256(data).hexdigest()
        self.written[digest], self.last[name] = name, digest
        if number % 3:
            path.write_bytes(data)
            return
        scratch = path.with_suffix(".tmp")
        scratch.write_bytes(data)
        if number % 4 == 0:  # the clock was elsewhere when it was written
            at = time.time() + rng.uniform(-30, 30) * _DAY_S
            os.utime(scratch, (at, at))
            self.done["clock"] += 1
        scratch.rename(path)

    def fill_disk(self) -> None:
        """Take the journal's disk away, or give it back."""
        ballast = self.root / "state" / "ballast"
        if not os.path.ismount(ballast.parent):
            return
        if ballast.exists():
            ballast.unlink()
            return
        self.done["journal disk full"] += 1
        with suppress(OSError), ballast.open("wb", buffering=0) as file:
            while file.write(bytes(65536)):
                pass

    def rage(self, count: int) -> None:
        """Write all files; between them things break."""
        self.kill()
        for number in range(count):
            self.write(number)
            pace = max(20, count // 40)
            if number % pace == pace - 1:
                self.kill()
            if number % pace in (pace // 2, pace // 2 + pace // 4):
                self.proxy.outage(down=number % pace == pace // 2)
            if number % pace in (pace // 4, pace // 3):
                self.fill_disk()
            time.sleep(0.03)  # the storm should last as long as the uploads
        self.proxy.outage(down=False)
        self.kill()

    def calm(self) -> None:
        """Let it finish on a good day."""
        self.proxy.fault = None
        self.proxy.outage(down=False)
        (self.root / "state" / "ballast").unlink(missing_ok=True)
        self.end()
        for _ in range(20):
            output, _ = self.start("never").communicate(timeout=120)
            if json.loads(output.removeprefix("done"))["retained"] == 0:
                return
        raise AssertionError(output)

    def report(self, server: Server) -> dict[str, Any]:
        """Compare the bucket with what was written."""
        if server.strict is not None:
            found = Counter(o.sha256 for o in server.strict.objects.values())
        else:
            found = Counter(hashlib.sha256(d).hexdigest() for d in server.objects().values())
        return {
            "files": len(self.last),
            "stored": found.total(),
            "lost": sum(1 for digest in self.last.values() if digest not in found),
            "truncated": sum(1 for digest in found if digest not in self.written),
            "duplicates": sum(n - 1 for n in found.values()),
            "uploads left open": _left_open(server),
            "requests": self.proxy.requests,
            "done": dict(self.done),
            "faults": dict(self.proxy.faults),
        }


def _left_open(server: Server) -> int:
    try:
        return len(server.uploads())
    except ClientError:
        return 0  # s3rver does not list them


@contextmanager
def _small_disk(folder: Path) -> Iterator[None]:
    """Give the journal a disk of its own where one may be mounted."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode == 0
    except OSError:
        mounted = False
    try:
        yield
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(params=["moto", "s3rver", "strict"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    with ExitStack() as stack:
        if request.param == "moto":
            yield stack.enter_context(s3_servers.moto())
        elif request.param == "s3rver":
            yield stack.enter_context(s3_servers.s3rver(tmp_path / "s3rver"))
        else:
            yield stack.enter_context(s3_servers.strict(pace_s=0.0))


@pytest.mark.parametrize(
    "count",
    [
        45,
        pytest.param(
            _FULL,
            id="full",
            marks=[
                pytest.mark.slow,
                pytest.mark.timeout(7200),
                pytest.mark.skipif(not _FULL, reason="set SYNC_FAULTS_FULL to a count of files"),
            ],
        ),
    ],
)
def test_a_storm_loses_truncates_and_doubles_nothing(
    server: Server, tmp_path: Path, count: int
) -> None:
    weather = _weather(2, hangs=count == _FULL)
    with FaultyProxy(server.endpoint, weather) as proxy, _small_disk(tmp_path / "state"):
        settings = {**server.settings, "endpoint": proxy.endpoint, "rescan_interval_s": 5}
        storm = Storm(tmp_path, {"root": str(tmp_path), **settings}, proxy)
        try:
            storm.rage(count)
            storm.calm()
        finally:
            storm.end()
        report = storm.report(server)
    print(json.dumps(report, indent=1))
    bad = {name: report[name] for name in ("lost", "truncated", "duplicates", "uploads left open")}
    assert bad == dict.fromkeys(bad, 0), report
