"""Catches whoever blocks the event loop, and tells where.

What counts is the time that a callback kept the loop's thread, less the time in which the
kernel gave the processor to somebody else: a full machine is not the callback's fault. A
callback that was preempted is allowed three times as much, because what a neighbour does to
caches and (on a virtual machine) to the clock counts as its own time.
"""

from __future__ import annotations

import asyncio
import gc
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


@dataclass
class LoopGuard:
    """The callbacks that were too long, each with a stack from while it ran."""

    limit_s: float = LIMIT_S
    blocked: list[str] = field(default_factory=list)
    _thread: int = 0
    _begun_s: float | None = None
    _stack: str = ""

    def run(self, run: Any, handle: asyncio.Handle) -> Any:
        """Run one callback and measure it."""
        waited_s, cpu_s, preempted = _waited_s(), time.thread_time(), _preempted()
        self._thread, self._stack = threading.get_ident(), ""
        begun_s = self._begun_s = time.monotonic()
        try:
            return run(handle)
        finally:
            took_s = time.monotonic() - begun_s
            self._begun_s = None
            if took_s > self.limit_s:
                own_s = _own_time_s(took_s, waited_s, time.thread_time() - cpu_s)
                factor = 3 if _preempted() > preempted else 1
                if own_s > self.limit_s * factor:
                    self.blocked.append(f"{own_s * 1000:.0f} ms: {handle!r}\n{self._stack}")

    def sample(self, over: threading.Event) -> None:
        """Note the stack of a callback that is late already."""
        while not over.wait(self.limit_s / 2):
            begun_s = self._begun_s
            if begun_s is not None and time.monotonic() - begun_s > self.limit_s * 0.8:
                frame = sys._current_frames().get(self._thread)
                self._stack = "".join(traceback.format_stack(frame)[-6:])


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
    sampler.start()
    try:
        yield guard
    finally:
        asyncio.Handle._run = run  # type: ignore[method-assign]
        over.set()
        sampler.join()
        gc.unfreeze()


def _own_time_s(took_s: float, waited_before_s: float | None, cpu_s: float) -> float:
    waited_s = _waited_s()
    if waited_s is None or waited_before_s is None:
        return cpu_s  # no way to tell sleeping from being preempted: count what was computed
    return took_s - (waited_s - waited_before_s)


def _preempted() -> int:
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw


def _waited_s() -> float | None:
    """Seconds that this thread was runnable and had no processor (schedstat, if kept)."""
    try:
        with open("/proc/thread-self/schedstat", "rb", buffering=0) as file:  # noqa: PTH123
            fields = file.read(100).split()
    except OSError:
        return None
    if fields[0] == b"0":  # the kernel keeps no scheduler statistics
        return None
    return int(fields[1]) / 1e9
