"""A service floods its pipe at 200 MB/s: what reading its log for known troubles costs.

A real child, the real pump, and the same once more with the diagnosis beside it: bytes and
lines taken off the pipe, CPU of the supervisor, and how late the event loop was at worst.

    python -m benchmarks.diagnosis [--rate MB/s] [--seconds N] [--runs N] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from functools import partial
from pathlib import Path

import anyio

sys.path.insert(0, str(Path(__file__).parents[1]))

from supervisor.app.diagnosis import Diagnostician
from supervisor.core.events import EventBus
from supervisor.core.state import StateStore
from supervisor.monitor.diagnosis import Diagnosis
from supervisor.monitor.rulebook import Context, load_rules
from supervisor.services.logs import LogStore
from supervisor.services.manager import ServiceManager
from supervisor.services.spec import ServiceSpec

LINES = {
    "ordinary": "[2026-11-21 10:00:00] INFO module.sub: a line of an ordinary flood, 80 bytes",
    "troubles": "OSError: No space left on device; Allocation on device; CUDA error: all fit",
}
CHILD = """
import os, sys, time
line, rate = (sys.argv[1] + "\\n").encode() * 800, float(sys.argv[2])
begun, written = time.monotonic(), 0
while True:
    written += os.write(1, line)
    if written > rate * (time.monotonic() - begun):
        time.sleep(0.001)
"""
WARM_UP_S = 1.0


async def flood(
    text: str, *, rate_bytes_per_s: float, seconds: float, diagnose: bool
) -> dict[str, float]:
    """Measure one flood."""
    state, bus = StateStore(), EventBus()
    logs = LogStore(None, str, console=False)
    manager = ServiceManager(state=state, bus=bus, logs=logs, base_environment={})
    command = (sys.executable, "-c", CHILD, text, str(rate_bytes_per_s))
    taken_bytes = 0
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(logs.run)
        if diagnose:
            doctor = Diagnostician(
                load_rules(),
                logs=logs,
                state=state,
                bus=bus,
                context=Context,
                command=lambda _groups: None,
                seen=lambda _sighting: None,
            )
            tasks.start_soon(doctor.run)
        await tasks.start(manager.run, [ServiceSpec(name="flood", command=command)])
        log = logs.service("flood")
        feed = log.feed

        def counted(stream: str, data: bytes, now_s: float) -> bool:
            nonlocal taken_bytes
            taken_bytes += len(data)
            return feed(stream, data, now_s)

        log.feed = counted  # type: ignore[method-assign]
        await anyio.sleep(WARM_UP_S)
        taken_bytes, cpu_s, begun_s, latest_s = 0, time.process_time(), time.perf_counter(), 0.0
        while time.perf_counter() - begun_s < seconds:
            before_s = time.perf_counter()
            await anyio.sleep(0.01)
            latest_s = max(latest_s, time.perf_counter() - before_s - 0.01)
        took_s = time.perf_counter() - begun_s
        found = {
            "mb_per_s": taken_bytes / took_s / 1e6,
            "lines_per_s": taken_bytes / took_s / (len(text) + 1),
            "cpu_ratio": (time.process_time() - cpu_s) / took_s,
            "loop_late_ms": latest_s * 1000,
        }
        await manager.stop_all(2.0)
        tasks.cancel_scope.cancel()
    return found


def filter_us_per_line(lines: int = 50_000) -> float:
    """Time to see that a line of an ordinary log is no symptom."""
    text = "\n".join(f"{LINES['ordinary']} {number}" for number in range(lines))
    diagnosis = Diagnosis(load_rules())
    begun_s = time.perf_counter()
    assert not diagnosis.examine(text, service="comfyui", run=1, now_s=0.0, context=Context())
    return (time.perf_counter() - begun_s) / lines * 1e6


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=200.0, help="MB/s of the flood")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results: dict[str, object] = {"filter_us_per_line": round(filter_us_per_line(), 2)}
    for kind, text in LINES.items():
        for diagnose in (False, True):
            measure = partial(
                flood,
                text,
                rate_bytes_per_s=options.rate * 1e6,
                seconds=options.seconds,
                diagnose=diagnose,
            )
            runs = [anyio.run(measure) for _ in range(options.runs)]
            name = f"{kind} lines, {'with' if diagnose else 'without'} diagnosis"
            results[name] = {
                key: round(statistics.median(run[key] for run in runs), 3) for key in runs[0]
            }
    if options.json:
        print(json.dumps(results))
        return
    for name, values in results.items():
        print(f"{name}: {values}")


if __name__ == "__main__":
    main()
