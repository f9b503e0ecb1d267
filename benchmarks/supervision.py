"""Supervision side by side: this supervisor, supervisord, s6, circus, and two inits.

    python -m benchmarks.supervision [--setup] [--rounds 3] [--only NAME]…

``--setup`` installs supervisord and circus from the package index into environments of
their own below .cache/benchmarks; s6, tini and dumb-init (these two reap orphans only) come
from the distribution. A peer that is not there is skipped and named. Every number is a
median over the rounds; a ratio above 1 means that the peer needs more (or moves less) than
this supervisor. Services are the same tiny programs for all. "-" means that there is no
result. Orphans: what counts is the comparison, the machine needs most of it to end 2 000
processes.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.peers import PEERS, ROOT, Peer, Program, setup

SERVICES = 20
SPAWNS = 50
ORPHANS = 2000
FLOOD_BYTES = 200_000_000
IDLE_S = 10.0
LIMIT_S = 60.0

# Writes its pid by a rename, so that a reader never sees half of it.
BEAT = 'echo $$ > "$1.new"; mv "$1.new" "$1"; exec sleep 100000'
MARK = ': > "$1"; exec sleep 100000'
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
# taken them: until then a zombie still takes signal 0. Runs in a PID namespace, where the
# supervisor is PID 1.
ORPHAN = f"""
import os, sys, time
{DONE}
count, gate, told = int(sys.argv[2]), os.pipe(), os.pipe()
orphans = []
for _ in range(count):
    if (child := os.fork()) == 0:
        if os.fork() == 0:
            os.write(told[1], os.getpid().to_bytes(4, "little"))
            os.close(gate[1]); os.read(gate[0], 1); os._exit(0)
        os._exit(0)
    os.waitpid(child, 0)
    orphans.append(int.from_bytes(os.read(told[0], 4), "little"))
begun = time.monotonic()
os.close(gate[1])
while orphans and time.monotonic() - begun < 60:
    try:
        os.kill(orphans[-1], 0)
        time.sleep(0.001)
    except ProcessLookupError:
        orphans.pop()
done(time.monotonic() - begun)
"""


def beat(folder: Path, name: str) -> Program:
    """A service that writes its pid and sleeps."""
    return Program(name, ("/bin/sh", "-c", BEAT, "beat", str(folder / name)))


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


def measure_spawn(peer: Peer) -> float:
    """Milliseconds that each further service takes until it runs, when many start at once."""

    def mark(folder: Path, name: str) -> Program:
        return Program(name, ("/bin/sh", "-c", MARK, "mark", str(folder / name)))

    names = [f"s{number}" for number in range(SPAWNS)]
    with running(peer, lambda f: [mark(f, name) for name in names]) as (folder, _, _):
        paths = [folder / name for name in names]
        wait_for(lambda: all(path.exists() for path in paths))
        times_s = [path.stat().st_mtime for path in paths]
        return (max(times_s) - min(times_s)) * 1000 / (SPAWNS - 1)


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


def measure_idle(peer: Peer) -> tuple[float, float, float, float]:
    """CPU in % of a core, wake-ups per second, PSS and RSS in MiB, with twenty idle services."""
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
        wakes = sum(
            count - old[1].get(thread, 0)
            for new, old in zip(after, before, strict=True)
            for thread, count in new[1].items()
        )
        pss, rss = (sum(memory(p, kind) for p in own) for kind in ("Pss", "Rss"))
        return cpu_s / IDLE_S * 100, wakes / IDLE_S, pss, rss


def usage(pid: int) -> tuple[float, dict[str, int]]:
    """CPU seconds so far, and voluntary context switches (wake-ups) of each thread."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    cpu_s = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    wakes = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        for line in (task / "status").read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches"):
                wakes[task.name] = int(line.split()[1])
    return cpu_s, wakes


def memory(pid: int, kind: str) -> float:
    """MiB of one kind: Pss shares out what several processes have in common, Rss does not."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(f"{kind}:"):
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
    "each further service, ms": False,
    "kill -9 to running again, ms": False,
    "idle CPU, % of a core": False,
    "idle wake-ups per second": False,
    "memory with 20 services, MiB PSS": False,
    "the same, MiB RSS summed": False,
    "service log throughput, MB/s": True,
    "2 000 orphans reaped, ms": False,
}  # whether more is better
MEASURES: list[tuple[int, Callable[[Peer], float | tuple[float, ...]]]] = [
    (0, measure_start),
    (1, measure_spawn),
    (2, measure_restart),
    (3, measure_idle),
    (7, measure_logs),
    (8, measure_orphans),
]  # the first of the rows that each fills


def measure(peer: Peer, rows: Rows) -> None:
    """Take one round of every number."""
    names = list(ROWS)
    for index, function in MEASURES:
        if function is measure_orphans:
            if os.geteuid() != 0 or not shutil.which("unshare"):
                continue
        elif peer.only_init:
            continue
        try:
            found = function(peer)
        except TimeoutError:
            print(f"{peer.name}: no result for {names[index]}", file=sys.stderr)
            continue
        for offset, value in enumerate(found if isinstance(found, tuple) else (found,)):
            rows[names[index + offset]].setdefault(peer.name, []).append(value)


def show(rows: Rows, peers: list[Peer]) -> None:
    """Print medians and ratios to ours."""
    print(f"\n{'median':<34}" + "".join(f"{p.name:>18}" for p in peers))
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
        print(f"{name:<34}" + "".join(f"{cell:>18}" for cell in cells))


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
