"""What sampling costs: CPU time of a sample, and its share of a core at the default pace.

    python -m benchmarks.monitor [--samples 100] [--rounds 5]

Contestants, in turn, in one process each: ours (everything that the pod samples and judges,
with the fake NVML of the tests where a C compiler is there), the same figures through psutil,
and the shell tools that a ``start.sh`` loop would call. CPU time of the process and its
children, threads included, not wall time: it hardly depends on what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
INTERVAL_S = 5.0  # default of alerts.interval_s

COMMON = """
import json, os, resource, sys
COUNT = int(sys.argv[1])
def cpu_s():
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(used.ru_utime + used.ru_stime for used in both)
"""
OURS = """
import anyio
from pathlib import Path
from supervisor.config.settings import AlertsSection
from supervisor.core.events import EventBus
from supervisor.core.state import StateStore
from supervisor.core.status import GpuDeviceStatus, GpuStatus, Snapshot
from supervisor.hardware.gpu import GpuSampler, start_gpu_probe
from supervisor.monitor.alerts import Alerts
from supervisor.monitor.sampler import Limits, Sampler

async def main():
    found = start_gpu_probe().result(5.0).devices
    devices = tuple(GpuDeviceStatus(d.index, d.name, memory_total_bytes=d.memory_total_bytes)
                    for d in found)
    state, gpu = StateStore(Snapshot(gpu=GpuStatus(devices=devices))), GpuSampler()
    async def read_gpu():
        return await anyio.to_thread.run_sync(gpu.sample)
    sampler = Sampler(
        state=state, limits=Limits(2.0, 2**34), pids=lambda: {"self": os.getpid()},
        disks=[Path("/")], read_gpu=read_gpu if devices else None,
    )
    alerts = Alerts(settings=AlertsSection(), state=state, bus=EventBus())
    await sampler.sample()
    begun_s = cpu_s()
    for _ in range(COUNT):
        await sampler.sample()
        alerts.check()
    print(json.dumps((cpu_s() - begun_s) / COUNT))

anyio.run(main)
"""
PSUTIL = """
import psutil
group = os.getpgrp()
def sample():
    psutil.cpu_percent(), psutil.virtual_memory(), psutil.disk_usage("/")
    psutil.net_io_counters()
    total = 0
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == group:
                total += process.memory_info().rss
        except (psutil.Error, ProcessLookupError):
            pass
sample()
begun_s = cpu_s()
for _ in range(COUNT):
    sample()
print(json.dumps((cpu_s() - begun_s) / COUNT))
"""
SHELL = """
import subprocess
script = "free -b; df -P /; cat /proc/net/dev; ps -eo pgid,rss; nvidia-smi"
begun_s = cpu_s()
for _ in range(COUNT):
    subprocess.run(["bash", "-c", script], capture_output=True)
print(json.dumps((cpu_s() - begun_s) / COUNT))
"""


def environment(folder: Path) -> dict[str, str]:
    """Our package on the path, and the fake library where it can be compiled."""
    found = {**os.environ, "PYTHONPATH": str(ROOT)}
    source, library = ROOT / "tests/fake_nvml/nvml.c", folder / "libnvidia-ml.so.1"
    try:
        subprocess.run(
            ["gcc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source)],
            check=True,
            capture_output=True,
        )
    except (OSError, subprocess.CalledProcessError):
        print("no C compiler: no GPU is sampled")
        return found
    return {**found, "LD_LIBRARY_PATH": str(folder)}


def main() -> None:
    """Print medians and ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    contestants = {"ours": OURS, "psutil": PSUTIL, "shell tools": SHELL}
    times: dict[str, list[float]] = {name: [] for name in contestants}
    with tempfile.TemporaryDirectory(prefix="bench-monitor-") as folder:
        env = environment(Path(folder))
        for _ in range(options.rounds):
            for name, code in contestants.items():
                command = [sys.executable, "-c", COMMON + code, str(options.samples)]
                done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
                if done.returncode:
                    said = done.stderr.strip().splitlines()
                    print(f"{name} left out: {said[-1] if said else done.returncode}")
                    continue
                times[name].append(json.loads(done.stdout))
    processes = sum(entry.name.isdecimal() for entry in Path("/proc").iterdir())
    print(f"CPU time of one sample on a machine with {processes} processes, "
          f"medians of {options.rounds} rounds of {options.samples}:")  # fmt: skip
    ours = statistics.median(times["ours"])
    for name, found in times.items():
        if found:
            each_s = statistics.median(found)
            print(
                f"  {name:<12}{each_s * 1000:8.2f} ms   "
                f"{each_s / INTERVAL_S:8.3%} of a core at one in {INTERVAL_S:g} s   "
                f"{name}/ours = {each_s / ours:.2f}"
            )


if __name__ == "__main__":
    main()
