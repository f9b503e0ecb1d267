"""Compare the download engine with aria2c, curl, rclone and huggingface_hub.

    python -m benchmarks.downloads --size 2G --runs 3 --directory /dev/shm

Starts nginx on loopback (plain, TLS, and 20 MB/s per connection) and runs every
contestant in turn, in a process of its own, several rounds; prints medians of MB/s, CPU
seconds per GB and peak RSS, and ratios to aria2c. Contestants that are not installed are
left out and named. For this engine also: MB/s inside a running loop, as the daemon sees it,
without the start of an interpreter, and how late that loop ever was (p99 and worst).

The case ``roundtrip`` is ``plain`` with 30 ms of round trip: loopback of a network namespace
with ``tc netem``, where the kernel has it and allows it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.download_origin import Case, make_case, nginx

UNITS = {"K": 1000, "M": 1000**2, "G": 1000**3}
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Run:
    """What one run cost."""

    mb_per_s: float
    cpu_s_per_gb: float
    rss_mib: float
    inside_mb_per_s: float = 0.0
    late_p99_ms: float = 0.0
    late_worst_ms: float = 0.0


Contestant = Callable[[Case, Path, Path], list[list[str]]]


def main() -> int:
    """Run the cases asked for and print a table each."""
    options = _options()
    if "roundtrip" in options.cases.split(",") and (why := enter_slow_network()) is not None:
        print(f"roundtrip: skipped: {why}")
        rest = [name for name in options.cases.split(",") if name != "roundtrip"]
        options.cases = ",".join(rest)
    base = Path(tempfile.mkdtemp(prefix="downloads-", dir=options.directory))
    try:
        with nginx(base) as ports:
            for name in filter(None, options.cases.split(",")):
                report(make_case(name, base, ports, options.size), base, options)
    finally:
        shutil.rmtree(base, ignore_errors=True)
    return 0


def enter_slow_network() -> str | None:  # noqa: RET503  (exec does not return)
    """Move this process, alone, to a network with 30 ms of round trip; why not, when not."""
    if sys.argv[-1:] == ["--inside"]:
        return None
    setup = (
        "ip link set lo up && tc qdisc add dev lo root netem delay 15ms limit 200000 && "
        'exec "$@" --inside'
    )
    test = ["unshare", "--net", "sh", "-c", setup.rpartition(" && ")[0]]
    try:
        tried = subprocess.run(test, check=False, capture_output=True, text=True)
    except OSError as exc:
        return str(exc)
    if tried.returncode != 0:
        return tried.stderr.strip().replace("\n", "; ") or "refused"
    if any(name != "roundtrip" for name in _options().cases.split(",")):
        return "needs a run of its own: --cases roundtrip"
    again = [sys.executable, "-m", "benchmarks.downloads", *sys.argv[1:]]
    os.execvp("unshare", ["unshare", "--net", "sh", "-c", setup, "sh", *again])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--size", type=_bytes, default=2_000_000_000, help="of the big file")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--directory", type=Path, default=Path("/dev/shm"))
    parser.add_argument("--cases", default="plain,tls,throttled,medium,small")
    parser.add_argument("--only", default="", help="contestants, comma separated")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, help="also write the medians here")
    return parser.parse_args()


def _bytes(text: str) -> int:
    return int(float(text.rstrip("KMGB")) * UNITS.get(text.rstrip("B")[-1:], 1))


def ours(*flags: str) -> Contestant:
    """The engine of this package."""

    def commands(case: Case, base: Path, out: Path) -> list[list[str]]:
        spec = base / "spec.json"
        spec.write_text(
            json.dumps(
                {
                    "url": case.url,
                    "files": json.dumps({name: sha256(base / "www" / name) for name in case.files}),
                    "out": str(out),
                    "ca": str(case.ca),
                }
            )
        )
        return [[sys.executable, str(ROOT / "benchmarks/download_once.py"), str(spec), *flags]]

    return commands


_hashes: dict[tuple[str, int], str] = {}


def sha256(path: Path) -> str:
    """The hash of a file, computed once."""
    key = (str(path), path.stat().st_mtime_ns)
    if key not in _hashes:
        with path.open("rb") as file:
            _hashes[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _hashes[key]


def aria2c(checksum: bool = False) -> Contestant:
    """aria2c with 16 connections a file."""

    def commands(case: Case, base: Path, out: Path) -> list[list[str]]:
        lines = []
        for name in case.files:
            lines.append(f"{case.url}/{name}")
            lines.append(f"  out={name}")
            if checksum:
                lines.append(f"  checksum=sha-256={sha256(base / 'www' / name)}")
        listing = base / "aria2.txt"
        listing.write_text("\n".join(lines) + "\n")
        at_once = "16" if len(case.files) > 1 else "1"
        return [
            [
                *("aria2c", "-q", "-x16", "-s16", "-k1M", f"-j{at_once}", "-d", str(out)),
                *(f"--ca-certificate={case.ca}", "--file-allocation=none", "-i", str(listing)),
            ]
        ]

    return commands


def curl(case: Case, base: Path, out: Path) -> list[list[str]]:
    """curl, 16 files at once."""
    listing = base / "curl.txt"
    listing.write_text(
        "".join(f'url = "{case.url}/{n}"\noutput = "{out}/{n}"\n' for n in case.files)
    )
    command = [
        "curl",
        "-sS",
        "--no-progress-meter",
        "--cacert",
        str(case.ca),
        "--parallel",
        "--parallel-max",
        "16",
    ]
    return [[*command, "-K", str(listing)]]


def rclone(case: Case, base: Path, out: Path) -> list[list[str]]:
    """rclone with 16 streams or 16 transfers."""
    return [
        [
            *("rclone", "copy", "-q", "--http-url", case.url, ":http:", str(out)),
            *("--transfers", "16", "--checkers", "16", "--multi-thread-streams", "16"),
            *("--ca-cert", str(case.ca), "--config", "/dev/null", "--no-traverse"),
            *("--files-from-raw", str(_listing(case, base))),
        ]
    ]


def _listing(case: Case, base: Path) -> Path:
    path = base / "files.txt"
    path.write_text("\n".join(case.files) + "\n")
    return path


def hub(case: Case, base: Path, out: Path) -> list[list[str]]:
    """The HTTP path of huggingface_hub, file after file."""
    code = (
        "import sys; from huggingface_hub.file_download import http_get\n"
        "url, out, *names = sys.argv[1:]\n"
        "for n in names:\n"
        "    with open(f'{out}/{n}', 'wb') as f: http_get(f'{url}/{n}', f)\n"
    )
    return [[sys.executable, "-c", code, case.url, str(out), *case.files]]


CONTESTANTS: dict[str, Contestant] = {
    "ours verified": ours("--verify"),
    "ours verified uvloop": ours("--verify", "--uvloop"),
    "ours unverified": ours(),
    "ours unverified uvloop": ours("--uvloop"),
    "ours without lanes": ours("--verify", "--lanes", "0"),
    "aria2c": aria2c(),
    "aria2c checksum": aria2c(checksum=True),
    "curl": curl,
    "rclone": rclone,
    "huggingface_hub": hub,
}


def installed(name: str) -> bool:
    """Whether a contestant can run here."""
    if name == "huggingface_hub":
        code = "import huggingface_hub"
        command = [sys.executable, "-c", code]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0
    return name.startswith("ours") or shutil.which(name.split(maxsplit=1)[0]) is not None


def warm_memory(size_bytes: int) -> None:
    """Touch and free as many bytes as a run will write, in a process that ends.

    A virtual machine gives idle pages back to its host; the first write to such a page then
    costs more than the download itself, for every contestant alike, and hides who is faster.
    """
    code = (
        "import mmap, sys\n"
        "size = int(sys.argv[1])\n"
        "room = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_POPULATE)\n"
    )
    free_bytes = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    size_bytes = min(size_bytes, free_bytes // 2)
    subprocess.run([sys.executable, "-c", code, str(size_bytes)], check=True)


def measure(case: Case, base: Path, contestant: Contestant) -> Run:
    """Run one contestant once, from an empty folder, and check what it brought."""
    out = base / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    commands = contestant(case, base, out)
    warm_memory(case.size * len(case.files))
    # A process of its own per run, so that peak RSS and CPU are this run's alone.
    code = (
        "import json,resource,subprocess,sys,time\n"
        "t=time.monotonic(); rc=0\n"
        "for c in json.loads(sys.argv[1]): rc = rc or subprocess.run(c).returncode\n"
        "u=resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "print(json.dumps([time.monotonic()-t,u.ru_utime+u.ru_stime,u.ru_maxrss/1024,rc]))\n"
    )
    environment = {**os.environ, "SSL_CERT_FILE": str(case.ca)}
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(commands)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=environment,
    )
    wall_s, cpu_s, rss_mib, code_ = json.loads(done.stdout.splitlines()[-1])
    sizes = [(out / name).stat().st_size for name in case.files if (out / name).exists()]
    if code_ != 0 or sizes != [case.size] * len(case.files):
        raise RuntimeError(f"exit {code_}, {len(sizes)} of {len(case.files)} files")
    total = case.size * len(case.files)
    told: dict[str, float] = next(
        (json.loads(x) for x in done.stdout.splitlines() if x.startswith("{")), {}
    )
    return Run(
        total / wall_s / 1e6,
        cpu_s / (total / 1e9),
        rss_mib,
        total / told["inside_s"] / 1e6 if told else 0.0,
        told.get("late_p99_ms", 0.0),
        told.get("late_worst_ms", 0.0),
    )


def report(case: Case, base: Path, options: argparse.Namespace) -> None:
    """Run everybody ``runs`` times in turn; print medians."""
    chosen = [n for n in CONTESTANTS if not options.only or n in options.only.split(",")]
    missing = [name for name in chosen if not installed(name)]
    runs: dict[str, list[Run]] = {name: [] for name in chosen if name not in missing}
    for _ in range(options.runs):  # round by round: a busy moment hits everybody
        for name in list(runs):
            try:
                runs[name].append(measure(case, base, CONTESTANTS[name]))
            except (RuntimeError, subprocess.CalledProcessError) as exc:
                print(f"  {name}: failed: {exc}", file=sys.stderr)
                del runs[name]
    print(f"\n{case.name}: {len(case.files)} x {case.size / 1e6:.0f} MB, {options.runs} runs")
    print(
        f"{'':24}{'MB/s':>8}{'CPU s/GB':>10}{'RSS MiB':>9}{'x aria2c':>10}"
        f"{'in loop':>9}{'p99 ms':>8}{'worst':>7}"
    )
    medians = {
        name: Run(
            *(
                statistics.median(getattr(run, key) for run in done)
                for key in Run.__dataclass_fields__
            )
        )
        for name, done in runs.items()
    }
    base_rate = medians["aria2c"].mb_per_s if "aria2c" in medians else float("nan")
    for name, run in medians.items():
        print(
            f"{name:24}{run.mb_per_s:8.0f}{run.cpu_s_per_gb:10.2f}{run.rss_mib:9.0f}"
            f"{run.mb_per_s / base_rate:10.2f}" + inside_of(run)
        )
    if missing:
        print("not installed:", ", ".join(missing))
    sys.stdout.flush()
    if options.json:
        known = json.loads(options.json.read_text()) if options.json.exists() else {}
        known[case.name] = {name: vars_of(run) for name, run in medians.items()}
        options.json.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


def inside_of(run: Run) -> str:
    """The columns that only this engine has."""
    if not run.inside_mb_per_s:
        return ""
    return f"{run.inside_mb_per_s:9.0f}{run.late_p99_ms:8.1f}{run.late_worst_ms:7.0f}"


def vars_of(run: Run) -> dict[str, float]:
    """A run as JSON."""
    return {
        "mb_per_s": round(run.mb_per_s),
        "cpu_s_per_gb": round(run.cpu_s_per_gb, 2),
        "rss_mib": round(run.rss_mib),
    }


if __name__ == "__main__":
    sys.exit(main())
