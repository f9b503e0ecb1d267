"""Output sync side by side: this package, a shell loop, rclone and aws s3 sync.

``python -m benchmarks.sync [--quick] [--only NAME,…] [--scenario NAME,…] [--json FILE]``

Every contender runs alone, as a process of its own, against a local S3 server that answers
after 0.1 s over a line of 125 MB/s, and watches the same folder. The server has a process of
its own, too: looking at it must not slow it down. The clock runs from the writer's close to the
moment the server has the bytes. What is not installed is skipped and said so. Contenders
that are not done at the deadline are stopped: the files that are missing count as lost,
those whose last bytes differ as torn.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.sync_stage import Meter, Server

ROOT = Path(__file__).parents[1]
MIB = 1024 * 1024

SHELL_LOOP = """
inotifywait -m -q -r -e create -e moved_to --format '%w%f' "$SOURCE" | while read -r FILE; do
  [ -f "$FILE" ] || continue
  sleep 1
  "$PYTHON" -c '
import os, sys, datetime, boto3
path = sys.argv[1]
day = datetime.date.today().isoformat()
key = f"outputs/{day}/" + os.path.relpath(path, os.environ["SOURCE"])
boto3.client("s3", endpoint_url=os.environ["ENDPOINT"]).upload_file(path, "bucket", key)
' "$FILE"
done
"""
TIMER = "while true; do {command}; sleep 2; done"
RCLONE = 'rclone copy "$SOURCE" "bucket:bucket/outputs/$(date -u +%F)" --no-traverse --transfers 4'
AWS = (
    '"$AWS" s3 sync "$SOURCE" "s3://bucket/outputs/$(date -u +%F)" '
    "--endpoint-url $ENDPOINT --only-show-errors"
)
S5CMD = (
    's5cmd --endpoint-url "$ENDPOINT" cp --no-clobber "$SOURCE/" '
    '"s3://bucket/outputs/$(date -u +%F)/"'
)
OURS = """
import sys, anyio
from pathlib import Path
from supervisor.config.settings import SyncSection
from supervisor.core.events import EventBus
from supervisor.core.state import StateStore
from supervisor.sync.syncer import Syncer

endpoint, source, state = sys.argv[1:]
settings = SyncSection(target="s3", endpoint=endpoint, bucket="bucket", access_key_id="key",
                       secret_access_key="secret", region="us-east-1", concurrency=8)
syncer = Syncer(settings=settings, source=Path(source), state_directory=Path(state),
                state=StateStore(), bus=EventBus())
anyio.run(syncer.run)
"""


@dataclass
class Written:
    """What the writer did: the last content and close of every file."""

    sha256: dict[str, str] = field(default_factory=dict)
    closed_at: dict[str, float] = field(default_factory=dict)

    def note(self, name: str, digest: str) -> None:
        """Remember a file at the moment it was closed."""
        self.closed_at[name] = time.time()
        self.sha256[name] = digest


@dataclass
class Result:
    """One contender in one scenario."""

    contender: str
    scenario: str
    files: int
    stored: int
    lost: int
    torn: int
    p50_s: float | None
    p99_s: float | None
    all_stored_s: float | None
    cpu_s: float
    rss_mib: float


def png(size: int, seed: int) -> bytes:
    """Build a whole PNG of about so many bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    noise = os.urandom(min(size, 4096)) * max(1, size // 4096) + seed.to_bytes(4, "big")
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", noise) + chunk(b"IEND", b"")


def images(source: Path, done: Written, scale: float) -> None:
    """200 images of 1.5 MB over 20 s."""
    for number in range(int(200 * scale)):
        data = png(1_500_000, number)
        (source / f"image_{number:05}.png").write_bytes(data)
        done.note(f"image_{number:05}.png", hashlib.sha256(data).hexdigest())
        time.sleep(0.1)


def burst(source: Path, done: Written, scale: float) -> None:
    """2 000 small files at once."""
    for number in range(int(2000 * scale)):
        data = png(4096, number)
        (source / f"small_{number:05}.png").write_bytes(data)
        done.note(f"small_{number:05}.png", hashlib.sha256(data).hexdigest())


def video(source: Path, done: Written, scale: float) -> None:
    """A video of 2 GB that grows over 20 s, its moov box written last."""
    steps, piece = int(200 * scale), os.urandom(10 * MIB)
    digest = hashlib.sha256()
    with (source / "video.mp4").open("wb") as file:
        boxes = [struct.pack(">I4s", 16, b"ftyp") + b"isom\0\0\2\0"]
        boxes.append(struct.pack(">I4sQ", 1, b"mdat", steps * len(piece) + 16))
        for data in boxes:
            file.write(data)
            digest.update(data)
        for _ in range(steps):
            file.write(piece)
            digest.update(piece)
            time.sleep(0.07)
        tail = struct.pack(">I4s", 24, b"moov") + b"\0" * 16
        file.write(tail)
        digest.update(tail)
        result = digest.hexdigest()
    done.note("video.mp4", result)


def nested(source: Path, done: Written, scale: float) -> None:
    """200 files, each at once in a new folder of a new folder."""
    for number in range(int(200 * scale)):
        folder = source / f"run{number}" / "deep"
        folder.mkdir(parents=True)
        data = png(100_000, number)
        (folder / "x.png").write_bytes(data)
        done.note(f"run{number}/deep/x.png", hashlib.sha256(data).hexdigest())


def slow(source: Path, done: Written, scale: float) -> None:
    """20 files that are written in four pieces over 4 s, side by side."""

    def write(number: int) -> None:
        data = png(400_000, number)
        with (source / f"slow_{number}.png").open("wb") as file:
            for start in range(0, len(data), 110_000):
                file.write(data[start : start + 110_000])
                file.flush()
                time.sleep(1)
        done.note(f"slow_{number}.png", hashlib.sha256(data).hexdigest())

    threads = [threading.Thread(target=write, args=(n,)) for n in range(int(20 * scale))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


SCENARIOS: dict[str, Callable[[Path, Written, float], None]] = {
    "images": images, "burst": burst, "video": video, "nested": nested, "slow": slow,
}  # fmt: skip


def contenders(endpoint: str, source: Path, state: Path) -> dict[str, list[str] | None]:
    """Return the command of each; None: not installed here."""
    has = shutil.which
    return {
        "supervisor": [sys.executable, "-c", OURS, endpoint, str(source), str(state)],
        "shell-loop": ["bash", "-c", SHELL_LOOP] if has("inotifywait") else None,
        "rclone": ["bash", "-c", TIMER.format(command=RCLONE)] if has("rclone") else None,
        "aws-sync": ["bash", "-c", TIMER.format(command=AWS)] if _aws() else None,
        "s5cmd": ["bash", "-c", TIMER.format(command=S5CMD)] if has("s5cmd") else None,
    }


def _aws() -> str | None:
    return os.environ.get("AWS_CLI") or shutil.which("aws")


@contextmanager
def running(command: list[str], environment: dict[str, str]) -> Iterator[Meter]:
    """Run a contender in a group of its own and end all of it."""
    process = subprocess.Popen(
        command,
        env=environment,
        cwd=ROOT,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=None if os.environ.get("VERBOSE") else subprocess.DEVNULL,
    )
    try:
        time.sleep(3)  # ready to watch
        with Meter(process.pid) as meter:
            yield meter
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def measure(name: str, scenario: str, *, scale: float, wait_s: float) -> Result | None:
    """Run one contender through one scenario."""
    with tempfile.TemporaryDirectory() as folder, Server() as server:
        source, state = Path(folder, "output"), Path(folder, "state")
        source.mkdir()
        command = contenders(server.endpoint, source, state)[name]
        if command is None:
            return None
        environment = {
            **os.environ,
            "SOURCE": str(source),
            "ENDPOINT": server.endpoint,
            "PYTHON": sys.executable,
            "AWS": _aws() or "",
            # For https only; rclone 1.60 does not start with it.
            "AWS_CA_BUNDLE": "",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "RCLONE_CONFIG_BUCKET_TYPE": "s3",
            "RCLONE_CONFIG_BUCKET_PROVIDER": "Other",
            "RCLONE_CONFIG_BUCKET_ENV_AUTH": "true",
            "RCLONE_CONFIG_BUCKET_ENDPOINT": server.endpoint,
            "RCLONE_CONFIG_BUCKET_NO_CHECK_BUCKET": "true",
            # The stand-in refuses what R2 refused.
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
            "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
        }
        done = Written()
        with running(command, environment) as meter:
            # Programs and clients are loaded: what is measured is the steady state.
            (source / "warm-up.png").write_bytes(png(1000, 0))
            _wait_until(lambda: server.count() > 0, 10)
            SCENARIOS[scenario](source, done, scale)
            _wait(server, done, wait_s)
        return _judge(name, scenario, server, done, meter)


def _wait(server: Server, done: Written, wait_s: float) -> None:
    def complete() -> bool:
        if server.count() < len(done.sha256):
            return False
        stored = server.objects()
        return all(stored.get(n, ("",))[0] == digest for n, digest in done.sha256.items())

    _wait_until(complete, wait_s)


def _wait_until(condition: Callable[[], bool], wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)


def _judge(name: str, scenario: str, server: Server, done: Written, meter: Meter) -> Result:
    stored = server.objects()
    good = [n for n, digest in done.sha256.items() if n in stored and stored[n][0] == digest]
    latencies = sorted(max(0.0, stored[n][1] - done.closed_at[n]) for n in good)
    complete = len(good) == len(done.sha256)
    began = min(done.closed_at.values())
    return Result(
        contender=name,
        scenario=scenario,
        files=len(done.sha256),
        stored=len(good),
        lost=sum(n not in stored for n in done.sha256),
        torn=sum(n in stored and stored[n][0] != digest for n, digest in done.sha256.items()),
        p50_s=statistics.median(latencies) if latencies else None,
        p99_s=latencies[int(len(latencies) * 0.99)] if latencies else None,
        all_stored_s=max(stored[n][1] for n in good) - began if complete else None,
        cpu_s=meter.cpu_s,
        rss_mib=meter.rss_mib,
    )


def _show(result: Result) -> None:
    def seconds(value: float | None) -> str:
        return "     -" if value is None else f"{value:6.2f}"

    print(
        f"{result.scenario:8} {result.contender:11} stored {result.stored:5}/{result.files:<5}"
        f" lost {result.lost:4} torn {result.torn:3}  p50 {seconds(result.p50_s)} s"
        f"  p99 {seconds(result.p99_s)} s  all {seconds(result.all_stored_s)} s"
        f"  cpu {result.cpu_s:6.1f} s  rss {result.rss_mib:5.0f} MiB",
        flush=True,
    )


def main() -> None:
    """Run what was asked for and print one line a run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the files")
    parser.add_argument("--only", default="supervisor,shell-loop,rclone,aws-sync,s5cmd")
    parser.add_argument("--scenario", default=",".join(SCENARIOS))
    parser.add_argument("--wait", type=float, default=60.0, help="seconds after the last close")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = []
    for scenario in options.scenario.split(","):
        for name in options.only.split(","):
            scale = 0.1 if options.quick else 1.0
            result = measure(name, scenario, scale=scale, wait_s=options.wait)
            if result is None:
                print(f"{scenario:8} {name:11} not installed here: skipped")
                continue
            _show(result)
            results.append(asdict(result))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
