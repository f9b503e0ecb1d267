"""How much a download slows down a start that needs the processor, as ComfyUI's does.

    python -m benchmarks.download_impact --runs 5

The start is a stand-in: one process that compiles modules of the standard library, all CPU.
It runs alone, beside a verified download that the server limits to 20 MB/s a connection,
and beside one without limit, the engine's threads as nice as in the daemon. The server runs
at the lowest priority: a pod does not host it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.download_origin import make_case, nginx
from benchmarks.downloads import ROOT, sha256

NICE = 10  # as supervisor.models.runtime sets it
START = """
import sysconfig
from pathlib import Path
files = sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py"))[:900]
for path in files:
    try:
        compile(path.read_bytes(), str(path), "exec")
    except (SyntaxError, ValueError):
        pass  # the standard library's tests hold broken files
"""


def main() -> int:
    """Run the three in turn and print medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--directory", type=Path, default=Path("/dev/shm"))
    options = parser.parse_args()
    base = Path(tempfile.mkdtemp(prefix="downloads-", dir=options.directory))
    seconds: dict[str, list[float]] = {"alone": [], "throttled": [], "plain": []}
    try:
        with nginx(base, nice=19) as ports:
            for _ in range(options.runs):
                for name, measured in seconds.items():
                    case = None if name == "alone" else _spec(name, base, ports)
                    measured.append(measure(case, base))
    finally:
        shutil.rmtree(base, ignore_errors=True)
    alone_s = statistics.median(seconds["alone"])
    for name, measured in seconds.items():
        median_s = statistics.median(measured)
        print(f"{name:12}{median_s:8.2f} s{(median_s / alone_s - 1) * 100:+8.1f} %")
    return 0


def _spec(name: str, base: Path, ports: dict[str, int]) -> Path:
    case = make_case(name, base, ports, 1_000_000_000)
    path = base / "spec.json"
    files = {file: sha256(base / "www" / file) for file in case.files}
    path.write_text(
        json.dumps(
            {
                "url": case.url,
                "files": json.dumps(files),
                "out": str(base / "out"),
                "ca": str(case.ca),
            }
        )
    )
    return path


def measure(spec: Path | None, base: Path) -> float:
    """Seconds of one start, beside a download when there is a ``spec``."""
    shutil.rmtree(base / "out", ignore_errors=True)
    (base / "out").mkdir()
    download = None
    if spec is not None:
        command = [sys.executable, str(ROOT / "benchmarks/download_once.py"), str(spec)]
        command += ["--verify", "--nice", str(NICE), "--for-s", "600"]
        download = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while not any(path.stat().st_blocks for path in (base / "out").iterdir()):
            time.sleep(0.05)
        time.sleep(1)  # past the first growth
    try:
        began_s = time.monotonic()
        subprocess.run([sys.executable, "-W", "ignore", "-c", START], check=True)
        return time.monotonic() - began_s
    finally:
        if download is not None:
            download.kill()
            download.wait()


if __name__ == "__main__":
    sys.exit(main())
