"""Compare the download engine with aria2c, curl, rclone and huggingface_hub.

    python -m benchmarks.downloads --size 2G --runs 3 --directory /dev/shm

Starts nginx on loopback (plain, TLS, and 20 MB/s per connection) and runs every
contestant in turn, in a process of its own, several rounds; prints medians of MB/s, CPU
seconds per GB and peak RSS, and ratios to aria2c. Contestants that are not installed are
left out and named.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

UNITS = {"K": 1000, "M": 1000**2, "G": 1000**3}
LIMIT_BYTES_PER_S = 20_000_000
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Case:
    """One load: files of equal size under one address."""

    name: str
    url: str
    files: tuple[str, ...]
    size: int
    ca: Path
    throttled: bool = False


@dataclass(frozen=True)
class Run:
    """What one run cost."""

    mb_per_s: float
    cpu_s_per_gb: float
    rss_mib: float


Contestant = Callable[[Case, Path, Path], list[list[str]]]


def main() -> int:
    """Run the cases asked for and print a table each."""
    options = _options()
    base = Path(tempfile.mkdtemp(prefix="downloads-", dir=options.directory))
    try:
        with nginx(base) as ports:
            for name in options.cases.split(","):
                report(make_case(name, base, ports, options.size), base, options)
    finally:
        shutil.rmtree(base, ignore_errors=True)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--size", type=_bytes, default=2_000_000_000, help="of the big file")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--directory", type=Path, default=Path("/dev/shm"))
    parser.add_argument("--cases", default="plain,tls,throttled,medium,small")
    parser.add_argument("--only", default="", help="contestants, comma separated")
    parser.add_argument("--json", type=Path, help="also write the medians here")
    return parser.parse_args()


def _bytes(text: str) -> int:
    return int(float(text.rstrip("KMGB")) * UNITS.get(text.rstrip("B")[-1:], 1))


def make_case(name: str, base: Path, ports: dict[str, int], size: int) -> Case:
    """Write the files of a case; the number of files follows ``size``."""
    ca = base / "ca.pem"
    scheme, port = ("https", "tls") if name == "tls" else ("http", name)
    url = f"{scheme}://localhost:{ports.get(port, ports['plain'])}"
    if name == "medium":  # 40 x 100 MB at the default scale
        names, each = tuple(f"m{i}.bin" for i in range(40)), size // 40
    elif name == "small":  # 2 000 x 1 MB
        names, each = tuple(f"s{i}.bin" for i in range(max(50, size // 1_000_000))), 1_000_000
    else:
        names, each = ("big.bin",), size
    for old in (base / "www").glob("*"):
        if old.name not in names:
            old.unlink()
    block = os.urandom(1_000_000)
    for index, file_name in enumerate(names):
        path = base / "www" / file_name
        if path.exists() and path.stat().st_size == each:
            continue
        with path.open("wb") as file:
            left = each
            while left > 0:
                # Every block differs, so that a misplaced one breaks the hash.
                file.write((index * 1_000_003 + left).to_bytes(8, "little"))
                file.write(block[: min(len(block), left) - 8])
                left -= min(len(block), left)
    return Case(name, url, names, each, ca, throttled=name == "throttled")


@contextlib.contextmanager
def nginx(base: Path) -> Iterator[dict[str, int]]:
    """Serve ``base/www`` plain, with TLS, and throttled."""
    (base / "www").mkdir()
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
            *("-keyout", "key.pem", "-out", "ca.pem"),
        ],
        cwd=base,
        check=True,
        capture_output=True,
    )
    ports = {"plain": _port(), "tls": _port(), "throttled": _port()}
    config = base / "nginx.conf"
    common = f"root {base}/www; access_log off;"
    config.write_text(
        f"daemon off; worker_processes auto; pid {base}/pid; error_log {base}/error.log;\n"
        f"user root; events {{ worker_connections 1024; }} http {{ sendfile on; "
        f"sendfile_max_chunk 2m; tcp_nopush on; keepalive_requests 100000;\n"
        f"server {{ listen 127.0.0.1:{ports['plain']}; {common} }}\n"
        f"server {{ listen 127.0.0.1:{ports['throttled']}; limit_rate {LIMIT_BYTES_PER_S}; "
        f"{common} }}\n"
        f"server {{ listen 127.0.0.1:{ports['tls']} ssl; ssl_certificate {base}/ca.pem; "
        f"ssl_certificate_key {base}/key.pem; {common} }} }}\n"
    )
    program = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin")
    if program is None:
        raise SystemExit("nginx is not installed")
    server = subprocess.Popen([program, "-c", str(config), "-e", str(base / "error.log")])
    try:
        for port in ports.values():
            _wait(port)
        yield ports
    finally:
        server.terminate()
        server.wait()


def _port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(port: int) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise SystemExit("nginx does not answer")


def ours(*flags: str) -> Contestant:
    """The engine of this package."""

    def commands(case: Case, base: Path, out: Path) -> list[list[str]]:
        spec = base / "spec.json"
        spec.write_text(
            json.dumps(
                {
                    "url": case.url,
                    "files": {name: _sha256(base / "www" / name) for name in case.files},
                    "out": str(out),
                    "ca": str(case.ca),
                }
            )
        )
        return [[sys.executable, str(ROOT / "benchmarks/download_once.py"), str(spec), *flags]]

    return commands


_hashes: dict[tuple[str, int], str] = {}


def _sha256(path: Path) -> str:
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
                lines.append(f"  checksum=sha-256={_sha256(base / 'www' / name)}")
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


def measure(case: Case, base: Path, contestant: Contestant) -> Run:
    """Run one contestant once, from an empty folder, and check what it brought."""
    out = base / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    commands = contestant(case, base, out)
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
    return Run(total / wall_s / 1e6, cpu_s / (total / 1e9), rss_mib)


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
    print(f"{'':24}{'MB/s':>8}{'CPU s/GB':>10}{'RSS MiB':>9}{'x aria2c':>10}")
    medians = {
        name: Run(
            *(
                statistics.median(getattr(run, key) for run in done)
                for key in ("mb_per_s", "cpu_s_per_gb", "rss_mib")
            )
        )
        for name, done in runs.items()
    }
    base_rate = medians["aria2c"].mb_per_s if "aria2c" in medians else float("nan")
    for name, run in medians.items():
        print(
            f"{name:24}{run.mb_per_s:8.0f}{run.cpu_s_per_gb:10.2f}{run.rss_mib:9.0f}"
            f"{run.mb_per_s / base_rate:10.2f}"
        )
    if missing:
        print("not installed:", ", ".join(missing))
    sys.stdout.flush()
    if options.json:
        known = json.loads(options.json.read_text()) if options.json.exists() else {}
        known[case.name] = {name: vars_of(run) for name, run in medians.items()}
        options.json.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


def vars_of(run: Run) -> dict[str, float]:
    """A run as JSON."""
    return {
        "mb_per_s": round(run.mb_per_s),
        "cpu_s_per_gb": round(run.cpu_s_per_gb, 2),
        "rss_mib": round(run.rss_mib),
    }


if __name__ == "__main__":
    sys.exit(main())
