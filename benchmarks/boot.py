"""From exec of the entrypoint to exec of the first service, beside the usual entrypoints.

    python -m benchmarks.boot [--runs 7] [--json]

Peers in the same run: a bash ``start.sh`` with the usual serial checks (nvidia-smi, ffmpeg,
mkdir, exec), circus and supervisord, the last two from the package index in environments of
their own. The supervisor does all of its detection: the fake NVML library of the tests
answers when a C compiler is there. Also shown: the time of ``supervisor status`` against
``python -c pass``, and memory and CPU of the idle pod.

Runs alternate between the peers, so that a machine that slows down slows all of them;
medians and ratios are what to quote.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT_S = 30.0
IDLE_S = 10.0

# Says when it was executed, then stays. EPOCHREALTIME costs no further process.
SERVICE = """#!/bin/bash
printf '%s' "$EPOCHREALTIME" > "{stamp}.new" && mv "{stamp}.new" "{stamp}"
exec sleep 60
"""
START_SH = """#!/bin/bash
set -u
GPU=$(nvidia-smi --query-gpu=name,memory.total --format=csv,noheader | head -1)
VRAM=$(nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits | head -1)
if ffmpeg -hide_banner -encoders 2>/dev/null | grep -q nvenc; then export NVENC=1; fi
mkdir -p "{folder}/output" "{folder}/models"
df -P "{folder}" | tail -1 > /dev/null
ARGS=""; [ "${{VRAM:-0}}" -lt 12000 ] && ARGS="--lowvram"
exec "{service}" $ARGS
"""
CIRCUS = """[circus]
endpoint = ipc://{folder}/circus.ep
pubsub_endpoint = ipc://{folder}/circus.pub
[watcher:comfyui]
cmd = {service}
"""
SUPERVISORD = """[supervisord]
nodaemon = true
logfile = /dev/null
logfile_maxbytes = 0
pidfile = {folder}/supervisord.pid
[program:comfyui]
command = {service}
"""
POD = """[supervisor]
state_dir = "{folder}/state"
socket = "{folder}/supervisor.sock"
[comfyui]
root = "{folder}/ComfyUI"
python = "{service}"
port = {port}
listen = "127.0.0.1"
[models]
bundles = []
[health]
host = "127.0.0.1"
port = 0
"""


class Bench:
    """One temporary folder with the service and every peer's configuration."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stamp = folder / "stamp"
        self.service = self._script("service", SERVICE.format(stamp=self.stamp))
        self.environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
        self.environment.pop("SUPERVISOR_CONFIG", None)
        self._fake_gpu()
        comfyui = folder / "ComfyUI"
        (comfyui / "comfy").mkdir(parents=True)
        (comfyui / "main.py").touch()
        flags = (ROOT / "supervisor" / "demo" / "cli_args.py").read_text()
        (comfyui / "comfy" / "cli_args.py").write_text(flags)

    def _script(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def _fake_gpu(self) -> None:
        tools = self.folder / "bin"
        tools.mkdir()
        (tools / "nvidia-smi").write_text("#!/bin/sh\necho 23028\n")
        (tools / "nvidia-smi").chmod(0o755)
        self.environment["PATH"] = f"{tools}:{self.environment['PATH']}"
        library = self.folder / "libnvidia-ml.so.1"
        source = ROOT / "tests" / "fake_nvml" / "nvml.c"
        command = ["gcc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            print("no C compiler: the supervisor finds no GPU here")
        else:
            self.environment["LD_LIBRARY_PATH"] = str(self.folder)

    def config(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text.format(folder=self.folder, service=self.service, port=_free_port()))
        return path

    def launch_s(self, command: list[str]) -> float:
        """Seconds from exec of ``command`` to exec of its first service."""
        process, took_s = self.launch(command)
        self.stop(process)
        return took_s

    def launch(self, command: list[str]) -> tuple[subprocess.Popen[bytes], float]:
        self.stamp.unlink(missing_ok=True)
        begun_s = time.time()
        process = subprocess.Popen(
            command,
            cwd=self.folder,
            env=_environment_of(command, self.environment),
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while not self.stamp.exists():
            if process.poll() is not None or time.time() - begun_s > TIMEOUT_S:
                self.stop(process)
                raise RuntimeError(f"{command[0]} did not start the service")
            time.sleep(0.001)
        return process, float(self.stamp.read_text()) - begun_s

    def stop(self, process: subprocess.Popen[bytes]) -> None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(15)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _environment_of(command: list[str], environment: dict[str, str]) -> dict[str, str]:
    """supervisord's package has our package's name: only our own interpreter may see ours."""
    return environment | ({"PYTHONPATH": str(ROOT)} if command[0] == sys.executable else {})


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _install(folder: Path, *packages: str) -> Path | None:
    """Make an environment with a peer; None when the index does not have it."""
    venv.create(folder, with_pip=True)
    command = [str(folder / "bin" / "pip"), "install", "-q", *packages]
    done = subprocess.run(command, capture_output=True, check=False)
    return folder / "bin" if done.returncode == 0 else None


def _own(bench: Bench) -> list[str]:
    config = bench.config("supervisor.toml", POD)
    return [sys.executable, "-m", "supervisor", "run", "--config", str(config)]


def _peers(bench: Bench) -> dict[str, list[str]]:
    script = bench.config("start.sh", START_SH)
    script.chmod(0o755)
    commands = {"start.sh": ["/bin/bash", str(script)]}
    circus = _install(bench.folder / "circus-env", "circus")
    if circus is not None:
        commands["circus"] = [str(circus / "circusd"), str(bench.config("circus.ini", CIRCUS))]
    supervisord = _install(bench.folder / "supervisord-env", "supervisor", "setuptools<81")
    if supervisord is not None:
        config = bench.config("supervisord.conf", SUPERVISORD)
        commands["supervisord"] = [str(supervisord / "supervisord"), "-c", str(config)]
    for name in {"circus", "supervisord"} - set(commands):
        print(f"{name} cannot be installed here: left out")
    return commands


def measure_launch(bench: Bench, runs: int) -> dict[str, list[float]]:
    commands = {"supervisor": _own(bench), **_peers(bench)}
    times: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(runs + 1):
        for name in list(commands):
            try:
                took_s = bench.launch_s(commands[name])
            except RuntimeError as error:
                print(f"{name} left out: {error}")
                del commands[name], times[name]
                continue
            if number:  # the first one warms the caches
                times[name].append(took_s)
    return times


def measure_idle(bench: Bench) -> dict[str, float]:
    """Memory and CPU of the pod's own two processes while nothing happens."""
    process, _ = bench.launch(_own(bench))
    time.sleep(5.0)
    pids = [process.pid, *_children(process.pid)]
    before = sum(_cpu_s(pid) for pid in pids)
    time.sleep(IDLE_S)
    used = sum(_cpu_s(pid) for pid in pids) - before
    result = {
        "rss_mib": sum(_memory_kib(pid, "Rss") for pid in pids) / 1024,
        "pss_mib": sum(_memory_kib(pid, "Pss") for pid in pids) / 1024,
        "cpu_percent_of_a_core": 100 * used / IDLE_S,
    }
    status = [sys.executable, "-m", "supervisor", "status"]
    bench.environment["SUPERVISOR_SOCKET"] = str(bench.folder / "supervisor.sock")
    result["status_over_python_pass"] = _ratio(
        lambda: _run_s(status, bench), lambda: _run_s([sys.executable, "-c", "pass"], bench)
    )
    bench.stop(process)
    return result


def _ratio(ours: Callable[[], float], theirs: Callable[[], float], runs: int = 15) -> float:
    pairs = [(ours(), theirs()) for _ in range(runs)]
    return statistics.median(a for a, _ in pairs) / statistics.median(b for _, b in pairs)


def _run_s(command: list[str], bench: Bench) -> float:
    begun_s = time.perf_counter()
    environment = _environment_of(command, bench.environment)
    subprocess.run(command, env=environment, capture_output=True, check=False)
    return time.perf_counter() - begun_s


def _children(pid: int) -> list[int]:
    """The supervisor below the init; its own children are the services."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _memory_kib(pid: int, name: str) -> int:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) if found else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-boot-") as folder:
        bench = Bench(Path(folder))
        times = measure_launch(bench, args.runs)
        idle = measure_idle(bench)
    medians = {name: statistics.median(values) for name, values in times.items()}
    if args.json:
        print(json.dumps({"launch_s": medians, "idle": idle}))
        return
    print(f"exec of the entrypoint to exec of the first service, median of {args.runs}:")
    for name, median_s in medians.items():
        spread = f"{min(times[name]) * 1000:.0f}-{max(times[name]) * 1000:.0f}"
        ratio = medians["supervisor"] / median_s
        print(
            f"  {name:<12} {median_s * 1000:7.0f} ms ({spread})   supervisor/{name} = {ratio:.2f}"
        )
    print("idle pod, init and supervisor together:")
    for name, value in idle.items():
        print(f"  {name:<26} {value:.2f}")


if __name__ == "__main__":
    main()
