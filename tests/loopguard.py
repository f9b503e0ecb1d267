"""Catches whoever blocks the event loop, and tells where.

Two things are measured against 50 ms. What a callback computes (CPU time of the thread,
less what the hypervisor took away); one that was preempted is allowed three times as much,
because what a neighbour does to the caches counts as its own time. And what it waits: the
rest of the wall time, less the time in which anything on this machine waited for a processor
(/proc/pressure/cpu), because to start a thread or a child takes until that one gets one;
twice as much is allowed there, because a program that runs for the first time comes from disk.
However full the machine, and where the kernel does not tell, a second of it is too much.
"""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

LIMIT_S = 0.05
WAIT_LIMIT_S = 1.0


@dataclass
class LoopGuard:
    """The callbacks that were too long, each with a stack from while it ran."""

    limit_s: float = LIMIT_S
    blocked: list[str] = field(default_factory=list)
    _thread: int = 0
    _begun_s: float | None = None
    _stack: str = ""
    _stolen: tuple[float, float] = (0.0, 0.0)  # of the last samples: the older, the newer
    _pressure: tuple[float | None, float | None] = (None, None)

    def run(self, run: Any, handle: asyncio.Handle) -> Any:
        """Run one callback and measure it."""
        cpu_s, preempted = time.thread_time(), _preempted()
        self._thread, self._stack = threading.get_ident(), ""
        stolen_s, pressure_s = self._stolen[0], self._pressure[0]
        begun_s = self._begun_s = time.monotonic()
        try:
            return run(handle)
        finally:
            took_s = time.monotonic() - begun_s
            self._begun_s = None
            if took_s > self.limit_s:
                cpu_s = time.thread_time() - cpu_s
                factor = 3 if _preempted() > preempted else 1
                stolen_s = _stolen_s() - stolen_s
                now_s = _pressure_s()
                if now_s is not None and pressure_s is not None:
                    pressure_s = now_s - pressure_s
                self._judge(handle, took_s, (cpu_s, stolen_s, pressure_s), factor)

    def _judge(
        self,
        handle: asyncio.Handle,
        took_s: float,
        causes_s: tuple[float, float, float | None],
        factor: int,
    ) -> None:
        cpu_s, stolen_s, pressure_s = causes_s
        computed_s = cpu_s - stolen_s
        waited_s = took_s - cpu_s - stolen_s
        own_s = 0.0 if pressure_s is None else waited_s - pressure_s
        if (
            computed_s > self.limit_s * factor
            or own_s > self.limit_s * 2
            or waited_s > WAIT_LIMIT_S * factor
        ):
            self.blocked.append(
                f"computed {computed_s * 1000:.0f} and waited {waited_s * 1000:.0f} of "
                f"{took_s * 1000:.0f} ms: {handle!r}\n{self._stack}"
            )

    def sample(self, over: threading.Event) -> None:
        """Note the stack of a callback that is late already."""
        while not over.wait(self.limit_s / 2):
            self._look()
            begun_s = self._begun_s
            if begun_s is not None and time.monotonic() - begun_s > self.limit_s * 0.8:
                frame = sys._current_frames().get(self._thread)
                self._stack = "".join(traceback.format_stack(frame)[-6:])

    def _look(self) -> None:
        self._stolen = (self._stolen[1], _stolen_s())
        self._pressure = (self._pressure[1], _pressure_s())


@contextmanager
def watch_loop(limit_s: float = LIMIT_S) -> Iterator[LoopGuard]:
    """Record every callback of any asyncio loop that holds it for longer than ``limit_s``."""
    guard = LoopGuard(limit_s)
    over = threading.Event()
    sampler = threading.Thread(target=guard.sample, args=(over,), daemon=True)
    run = asyncio.Handle._run

    def measured(handle: asyncio.Handle) -> Any:
        return guard.run(run, handle)

    gc.collect()
    gc.freeze()  # the objects of the test runner are nobody's callback
    asyncio.Handle._run = measured  # type: ignore[method-assign, assignment]
    guard._look()
    guard._look()
    sampler.start()
    try:
        yield guard
    finally:
        asyncio.Handle._run = run  # type: ignore[method-assign]
        over.set()
        sampler.join()
        gc.unfreeze()


def _preempted() -> int:
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw


def _stolen_s() -> float:
    """Seconds that the hypervisor took from the processors of this machine (proc_stat(5))."""
    with open("/proc/stat", "rb", buffering=0) as file:  # noqa: PTH123 - a few microseconds
        fields = file.read(200).split(None, 9)
    return int(fields[8]) / os.sysconf("SC_CLK_TCK")


def _pressure_s() -> float | None:
    """Seconds in which some task of this machine waited for a processor; None if untold."""
    try:
        with open("/proc/pressure/cpu", "rb", buffering=0) as file:  # noqa: PTH123 - the same
            return int(file.read(200).split(b"total=")[1].split()[0]) / 1e6
    except (OSError, IndexError, ValueError):
        return None
