"""Supervision side by side: this supervisor, supervisord, s6 and circus in one run.

    python benchmarks/supervision.py [--setup] [--rounds 3] [--only NAME]…

``--setup`` installs supervisord and circus from the package index into environments of
their own below .cache/benchmarks; s6 comes from the distribution (apt install s6). A peer
that is not there is skipped and named. Every number is a median over the rounds; a ratio
above 1 means that the peer needs more (or moves less) than this supervisor. Services are
the same tiny programs for all. "-" means that there is no result.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".cache" / "benchmarks"
SERVICES = 20
ORPHANS = 2000
FLOOD_BYTES = 200_000_000
IDLE_S = 10.0
LIMIT_S = 60.0

# Writes its pid by a rename, so that a reader never sees half of it.
BEAT = 'echo $$ > "$1.new"; mv "$1.new" "$1"; exec sleep 100000'
DONE = """
def done(seconds):
    open(sys.argv[1] + ".new", "w").write(str(seconds))
    os.rename(sys.argv[1] + ".new", sys.argv[1])
    time.sleep(100000)
"""
FLOOD = f"""
import os, sys, time
{DONE}
line = b"a line of output of a hundred bytes, as services like to write them".ljust(99) + b"\\n"
block, left, begun = line * 655, int(sys.argv[2]), time.monotonic()
while left > 0: left -= os.write(1, block)
done(time.monotonic() - begun)
"""
# Leaves grandchildren without a parent, which all end at once, and waits until init has
# taken them. Runs in a PID namespace, where the supervisor is PID 1.
ORPHAN = f"""
import os, sys, time
{DONE}
count, gate = int(sys.argv[2]), os.pipe()
def of_init():
    found = 0
    for name in os.listdir("/proc"):
        if name.isdigit():
            try: found += open(f"/proc/{{name}}/stat").read().rpartition(")")[2].split()[1] == "1"
            except OSError: pass
    return found
before = of_init()
for _ in range(count):
    if (child := os.fork()) == 0:
        if os.fork() == 0:
            os.close(gate[1]); os.read(gate[0], 1); os._exit(0)
        os._exit(0)
    os.waitpid(child, 0)
begun = time.monotonic()
os.close(gate[1])
while of_init() > before + 2 and time.monotonic() - begun < 60: time.sleep(0.005)
done(time.monotonic() - begun)
"""


@dataclass(frozen=True)
class Program:
    """A service: its name and what to execute."""

    name: str
    command: tuple[str, ...]


@dataclass(frozen=True)
class Peer:
    """A supervisor: ``write`` puts its configuration into a folder and returns its command."""

    name: str
    available: Callable[[], bool]
    write: Callable[[Path, list[Program]], list[str]]
    advice: str = ""


def beat(folder: Path, name: str) -> Program:
    """A service that writes its pid and sleeps."""
    return Program(name, ("/bin/sh", "-c", BEAT, "beat", str(folder / name)))


def write_ours(folder: Path, programs: list[Program]) -> list[str]:
    """TOML; JSON's strings are TOML's too."""
    parts = [
        f'[supervisor]\nstate_dir = "{folder}/state"\nsocket = "{folder}/s.sock"',
        "[comfyui]\nenabled = false\n[jupyter]\nenabled = false\n[ssh]\nenabled = false",
        '[health]\nport = 0\nhost = "127.0.0.1"\n[gpu]\nnvenc = false\n[sync]\nenabled = false',
        *(
            f"[services.{p.name}]\ncommand = {json.dumps(p.command)}\nhealthy_after_s = 0\n"
            "max_restarts = 100000"
            for p in programs
        ),
    ]
    (folder / "supervisor.toml").write_text("\n".join(parts) + "\n")
    return [sys.executable, "-m", "supervisor", "run", "--config", str(folder / "supervisor.toml")]


def write_supervisord(folder: Path, programs: list[Program]) -> list[str]:
    """No minimal life (startsecs), so that every restart counts as one of a good program."""
    parts = [f"[supervisord]\nnodaemon=true\nlogfile={folder}/s.log\npidfile={folder}/s.pid"]
    for p in programs:
        script = write_script(folder / f"{p.name}.run", p)
        parts.append(
            f"[program:{p.name}]\ncommand={script}\nautorestart=true\nstartsecs=0\n"
            f"redirect_stderr=true\nstdout_logfile={folder}/{p.name}.log\n"
            "stdout_logfile_maxbytes=10MB"
        )
    (folder / "supervisord.conf").write_text("\n".join(parts) + "\n")
    return [str(tool("supervisord", "supervisord")), "-c", str(folder / "supervisord.conf")]


def write_circus(folder: Path, programs: list[Program]) -> list[str]:
    """The check delay is the smallest that its documentation shows."""
    parts = [
        "[circus]\ncheck_delay = 0.1\nwarmup_delay = 0",
        f"endpoint = ipc://{folder}/e\npubsub_endpoint = ipc://{folder}/p",
    ]
    for p in programs:
        script = write_script(folder / f"{p.name}.run", p)
        parts.append(
            f"[watcher:{p.name}]\ncmd = {script}\nnumprocesses = 1\ncopy_env = true\n"
            f"stdout_stream.class = FileStream\nstdout_stream.filename = {folder}/{p.name}.log\n"
            "stdout_stream.max_bytes = 10000000\nstdout_stream.backup_count = 2"
        )
    (folder / "circus.ini").write_text("\n".join(parts) + "\n")
    return [str(tool("circus", "circusd")), str(folder / "circus.ini")]


def write_s6(folder: Path, programs: list[Program]) -> list[str]:
    """Each service with a logger, as s6 is used."""
    scan = folder / "scan"
    for p in programs:
        (scan / p.name / "log").mkdir(parents=True)
        write_script(scan / p.name / "run", p)
        log = Program("log", ("s6-log", "n2", "s10000000", f"{folder}/{p.name}.logs"))
        write_script(scan / p.name / "log" / "run", log)
    return ["s6-svscan", str(scan)]


def write_script(path: Path, program: Program) -> Path:
    """A script that executes the program: quoting differs between the peers, this does not."""
    path.write_text(f"#!/bin/sh\nexec {shlex.join(program.command)}\n")
    path.chmod(0o755)
    return path


def tool(environment: str, name: str) -> Path:
    """Where a peer's program is: in its own environment, else on PATH."""
    own = CACHE / environment / "bin" / name
    return own if own.exists() else Path(shutil.which(name) or own)


PEERS = [
    Peer("ours", (ROOT / "supervisor" / "app.py").exists, write_ours),
    Peer(
        "supervisord",
        lambda: tool("supervisord", "supervisord").exists(),
        write_supervisord,
        "--setup",
    ),
    Peer("s6", lambda: shutil.which("s6-svscan") is not None, write_s6, "apt install s6"),
    Peer("circus", lambda: tool("circus", "circusd").exists(), write_circus, "--setup"),
]


@contextlib.contextmanager
def running(
    peer: Peer, programs: Callable[[Path], list[Program]], *, as_init: bool = False
) -> Iterator[tuple[Path, int, float]]:
    """Run a peer; yields its folder, its pid and when it was executed."""
    with tempfile.TemporaryDirectory(prefix=f"bench-{peer.name}-") as name:
        folder = Path(name)
        command = peer.write(folder, programs(folder))
        if as_init:
            command = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", *command]
        environment = {"PATH": os.environ["PATH"], "HOME": "/root"}
        if peer.name == "ours":
            environment["PYTHONPATH"] = str(ROOT)
        with (folder / "out").open("wb") as out:
            begun_s = time.monotonic()
            process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=out, stderr=out, start_new_session=True
            )
        try:
            yield folder, process.pid, begun_s
        except TimeoutError:
            print((folder / "out").read_text(errors="replace")[-2000:], file=sys.stderr)
            raise
        finally:
            end(process, gently=not as_init)


def end(process: subprocess.Popen[bytes], *, gently: bool) -> None:
    """Stop a peer and everything that it had started."""
    below = tree(process.pid)
    if gently:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
    for pid in (*below, process.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def tree(root: int) -> list[int]:
    """All descendants of a process."""
    found: list[int] = []
    queue = [root]
    while queue:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{queue.pop()}/task").iterdir():
                children = [int(c) for c in (task / "children").read_text().split()]
                found += children
                queue += children
    return found


def wait_for(condition: Callable[[], bool], limit_s: float = LIMIT_S) -> None:
    """Look every half millisecond."""
    end_s = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > end_s:
            raise TimeoutError
        time.sleep(0.0005)


def pid_in(path: Path) -> int | None:
    """The pid that a service wrote."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def measure_start(peer: Peer) -> float:
    """Milliseconds from executing the supervisor until its first service runs."""
    with running(peer, lambda f: [beat(f, "one")]) as (folder, _, begun_s):
        wait_for(lambda: pid_in(folder / "one") is not None)
        return (time.monotonic() - begun_s) * 1000


def measure_restart(peer: Peer) -> float:
    """Milliseconds from kill -9 until the service runs again (median of five)."""
    with running(peer, lambda f: [beat(f, "one")]) as (folder, _, _):
        took: list[float] = []
        for _ in range(5):
            wait_for(lambda: pid_in(folder / "one") is not None)
            time.sleep(1.5)  # s6 wants a second of life; the others are idle again
            pid = pid_in(folder / "one")
            assert pid is not None
            begun_s = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda old=pid: pid_in(folder / "one") != old)  # type: ignore[misc]
            took.append((time.monotonic() - begun_s) * 1000)
        return statistics.median(took)


def measure_idle(peer: Peer) -> tuple[float, float, float]:
    """CPU in % of a core, wake-ups per second, and PSS in MiB, with twenty idle services."""
    programs = [f"s{number}" for number in range(SERVICES)]
    with running(peer, lambda f: [beat(f, name) for name in programs]) as (folder, pid, _):
        wait_for(lambda: all(pid_in(folder / name) for name in programs))
        time.sleep(8.0)  # late imports, first checks
        services = {pid_in(folder / name) for name in programs}
        own = [p for p in (pid, *tree(pid)) if p not in services]
        before = [usage(p) for p in own]
        time.sleep(IDLE_S)
        after = [usage(p) for p in own]
        cpu_s = sum(a[0] for a in after) - sum(b[0] for b in before)
        wakes = sum(a[1] for a in after) - sum(b[1] for b in before)
        return cpu_s / IDLE_S * 100, wakes / IDLE_S, sum(map(pss, own))


def usage(pid: int) -> tuple[float, int]:
    """CPU seconds and voluntary context switches (wake-ups) of all threads so far."""
    cpu_s, wakes = 0.0, 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        fields = (task / "stat").read_text().rpartition(")")[2].split()
        cpu_s += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        for line in (task / "status").read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches"):
                wakes += int(line.split()[1])
    return cpu_s, wakes


def pss(pid: int) -> float:
    """Proportional set size in MiB."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return 0.0


def measure_logs(peer: Peer) -> float:
    """MB/s that a service can write to its stdout."""

    def flood(folder: Path) -> list[Program]:
        command = (sys.executable, "-S", "-c", FLOOD, str(folder / "took"), str(FLOOD_BYTES))
        return [Program("flood", command)]

    with running(peer, flood) as (folder, _, _):
        wait_for((folder / "took").exists)
        return FLOOD_BYTES / 1e6 / float((folder / "took").read_text())


def measure_orphans(peer: Peer) -> float:
    """Milliseconds until 2 000 orphans that end at once are gone."""

    def orphans(folder: Path) -> list[Program]:
        command = (sys.executable, "-S", "-c", ORPHAN, str(folder / "took"), str(ORPHANS))
        return [Program("orphans", command)]

    with running(peer, orphans, as_init=True) as (folder, _, _):
        wait_for((folder / "took").exists, 120.0)
        return float((folder / "took").read_text()) * 1000


Rows = dict[str, dict[str, list[float]]]
ROWS = {
    "exec to first service, ms": False,
    "kill -9 to running again, ms": False,
    "idle CPU, % of a core": False,
    "idle wake-ups per second": False,
    "memory with 20 services, MiB PSS": False,
    "service log throughput, MB/s": True,
    "2 000 orphans reaped, ms": False,
}  # whether more is better


def measure(peer: Peer, rows: Rows) -> None:
    """Take one round of every number."""
    names = list(ROWS)

    def take(index: int, function: Callable[[Peer], float | tuple[float, ...]]) -> None:
        try:
            found = function(peer)
        except TimeoutError:
            print(f"{peer.name}: no result for {names[index]}", file=sys.stderr)
            return
        for offset, value in enumerate(found if isinstance(found, tuple) else (found,)):
            rows[names[index + offset]].setdefault(peer.name, []).append(value)

    take(0, measure_start)
    take(1, measure_restart)
    take(2, measure_idle)
    take(5, measure_logs)
    if os.geteuid() == 0 and shutil.which("unshare"):
        take(6, measure_orphans)


def show(rows: Rows, peers: list[Peer]) -> None:
    """Print medians and ratios to ours."""
    print(f"\n{'median':<34}" + "".join(f"{p.name:>20}" for p in peers))
    for name, more_is_better in ROWS.items():
        own = statistics.median(rows[name]["ours"]) if rows[name].get("ours") else 0.0
        cells = []
        for peer in peers:
            values = rows[name].get(peer.name)
            if not values:
                cells.append("-")
                continue
            median = statistics.median(values)
            ratio = ""
            if peer.name != "ours" and min(own, median) > 0:
                ratio = f" ({own / median if more_is_better else median / own:.2g}x)"
            cells.append(f"{median:.4g}{ratio}")
        print(f"{name:<34}" + "".join(f"{cell:>20}" for cell in cells))


def setup() -> None:
    """Install supervisord and circus into environments of their own."""
    for name, package in (("supervisord", "supervisor"), ("circus", "circus")):
        python = CACHE / name / "bin" / "python"
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", str(CACHE / name)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", package], check=True)


def main() -> None:
    """Measure what is there and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--setup", action="store_true", help="install the Python peers first")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", action="append", choices=[peer.name for peer in PEERS])
    args = parser.parse_args()
    if args.setup:
        setup()
    wanted = [p for p in PEERS if args.only is None or p.name in args.only]
    for peer in wanted:
        if not peer.available():
            print(f"skipped: {peer.name} is not here {peer.advice and f'({peer.advice})'}")
    peers = [peer for peer in wanted if peer.available()]
    rows: Rows = {name: {} for name in ROWS}
    for number in range(args.rounds):
        for peer in peers:
            print(f"round {number + 1} of {args.rounds}: {peer.name}", flush=True)
            measure(peer, rows)
    show(rows, peers)


if __name__ == "__main__":
    main()
