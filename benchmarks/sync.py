"""Output sync side by side: this package, a shell loop, rclone and aws s3 sync.

``python -m benchmarks.sync [--quick] [--repeat N] [--only NAME,…] [--scenario NAME,…]``
``[--json FILE]``

Every contender runs alone, as a process of its own, against a local S3 server that answers
after 0.1 s over a line of 125 MB/s, and watches the same folder. The server has a process of
its own, too: looking at it must not slow it down. The clock runs from the writer's close to the
moment the server has the bytes. What is not installed is skipped and said so. Contenders
that are not done at the deadline are stopped: the files that are missing count as lost,
those whose last bytes differ as torn. The shell loop takes seconds a file: it gets a tenth of
the files, and what is compared is CPU for 200 files and files a second. Each row is the median
of the runs, the worst of lost, torn and memory. CPU counts from the first file, without the start.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from benchmarks.sync_scenarios import SCENARIOS, Written, png
from benchmarks.sync_stage import Meter, Server, line_s

ROOT = Path(__file__).parents[1]
MIB = 1024 * 1024
LOOP = ("images", "burst", "nested")  # where the shell loop gets a tenth of the files

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
S5CMD = 's5cmd --endpoint-url "$ENDPOINT" sync "$SOURCE/" "s3://bucket/outputs/$(date -u +%F)/"'
OURS = """
import sys, anyio
from pathlib import Path
from supervisor.config.settings import SyncSection
from supervisor.core.events import EventBus
from supervisor.core.state import StateStore
from supervisor.sync.syncer import Syncer

endpoint, source, state, on_conflict = sys.argv[1:]
settings = SyncSection(target="s3", endpoint=endpoint, bucket="bucket", access_key_id="key",
                       secret_access_key="secret", region="us-east-1", on_conflict=on_conflict)
syncer = Syncer(settings=settings, source=Path(source), state_directory=Path(state),
                state=StateStore(), bus=EventBus())
anyio.run(syncer.run)
"""


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
    files_per_s: float
    cpu_s: float
    rss_mib: float

    @property
    def cpu_per_200_s(self) -> float:
        """CPU for 200 stored files."""
        return self.cpu_s / max(1, self.stored) * 200


def contenders(
    endpoint: str, source: Path, state: Path, scenario: str
) -> dict[str, list[str] | None]:
    """Return the command of each; None: not installed here."""
    on_conflict = "overwrite" if scenario == "rewrites" else "keep-both"
    has = shutil.which
    return {
        "supervisor": [sys.executable, "-c", OURS, endpoint, str(source), str(state), on_conflict],
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
        command = contenders(server.endpoint, source, state, scenario)[name]
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
            meter.reset()
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
    took_s = max((stored[n][1] for n in good), default=began) - began
    return Result(
        contender=name,
        scenario=scenario,
        files=len(done.sha256),
        stored=len(good),
        lost=sum(n not in stored for n in done.sha256),
        torn=sum(n in stored and stored[n][0] != digest for n, digest in done.sha256.items()),
        p50_s=statistics.median(latencies) if latencies else None,
        p99_s=latencies[int(len(latencies) * 0.99)] if latencies else None,
        all_stored_s=took_s if complete else None,
        files_per_s=len(good) / took_s if took_s > 0 else 0.0,
        cpu_s=meter.cpu_s,
        rss_mib=meter.rss_mib,
    )


def _median(runs: list[Result]) -> Result:
    def middle(values: Iterable[float | None]) -> float | None:
        known = [v for v in values if v is not None]
        return statistics.median(known) if len(known) == len(runs) else None

    return replace(
        runs[0],
        stored=min(r.stored for r in runs),
        lost=max(r.lost for r in runs),
        torn=max(r.torn for r in runs),
        p50_s=middle(r.p50_s for r in runs),
        p99_s=middle(r.p99_s for r in runs),
        all_stored_s=middle(r.all_stored_s for r in runs),
        files_per_s=statistics.median(r.files_per_s for r in runs),
        cpu_s=statistics.median(r.cpu_s for r in runs),
        rss_mib=max(r.rss_mib for r in runs),
    )


def _show(result: Result) -> None:
    def seconds(value: float | None) -> str:
        return "     -" if value is None else f"{value:6.2f}"

    print(
        f"{result.scenario:8} {result.contender:11} stored {result.stored:5}/{result.files:<5}"
        f" lost {result.lost:4} torn {result.torn:3}  p50 {seconds(result.p50_s)} s"
        f"  p99 {seconds(result.p99_s)} s  all {seconds(result.all_stored_s)} s"
        f"  {result.files_per_s:6.1f} files/s  cpu/200 {result.cpu_per_200_s:6.1f} s"
        f"  rss {result.rss_mib:5.0f} MiB",
        flush=True,
    )


def _compare(rows: dict[str, Result], scenario: str) -> None:
    """Say how many times less CPU and more files a second this package has."""
    ours = rows.get("supervisor")
    for name, other in rows.items():
        if ours is None or other is ours or not ours.cpu_per_200_s:
            continue
        faster = f"{ours.files_per_s / other.files_per_s:.1f}" if other.files_per_s else "-"
        print(
            f"{scenario:8} {name:11} CPU {other.cpu_per_200_s / ours.cpu_per_200_s:.1f} times ours,"
            f" ours stores {faster} times as many files a second",
            flush=True,
        )


def main() -> None:
    """Run what was asked for and print one line for each contender."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the files")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each (median)")
    parser.add_argument("--only", default="supervisor,shell-loop,rclone,aws-sync,s5cmd")
    parser.add_argument("--scenario", default=",".join(SCENARIOS))
    parser.add_argument("--wait", type=float, default=60.0, help="seconds after the last close")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = []
    for scenario in options.scenario.split(","):
        rows: dict[str, Result] = {}
        for name in options.only.split(","):
            scale = 0.1 if options.quick or (name == "shell-loop" and scenario in LOOP) else 1.0
            runs = [
                found
                for _ in range(options.repeat)
                if (found := measure(name, scenario, scale=scale, wait_s=options.wait))
            ]
            if not runs:
                print(f"{scenario:8} {name:11} not installed here: skipped")
                continue
            rows[name] = _median(runs)
            _show(rows[name])
            results += [asdict(run) for run in runs]
        if scenario == "video":
            print(f"{scenario:8} the line alone: {line_s(MIB * 2000):.1f} s", flush=True)
        _compare(rows, scenario)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
