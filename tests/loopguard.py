"""Catches whoever blocks the event loop.

What counts is the time that a callback kept the loop's thread, less the time in which the
kernel gave the processor to somebody else: a full machine is not the callback's fault.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

LIMIT_S = 0.05


@dataclass
class LoopGuard:
    """The callbacks that were too long."""

    blocked: list[str] = field(default_factory=list)


@contextmanager
def watch_loop(limit_s: float = LIMIT_S) -> Iterator[LoopGuard]:
    """Record every callback of any asyncio loop that holds it for longer than ``limit_s``."""
    guard = LoopGuard()
    run = asyncio.Handle._run

    def measured(handle: asyncio.Handle) -> Any:
        waited_s, cpu_s, begun_s = _waited_s(), time.thread_time(), time.monotonic()
        try:
            return run(handle)
        finally:
            took_s = time.monotonic() - begun_s
            if took_s > limit_s:
                own_s = _own_time_s(took_s, waited_s, time.thread_time() - cpu_s)
                if own_s > limit_s:
                    guard.blocked.append(f"{own_s * 1000:.0f} ms: {handle!r}")

    asyncio.Handle._run = measured  # type: ignore[method-assign, assignment]
    try:
        yield guard
    finally:
        asyncio.Handle._run = run  # type: ignore[method-assign]


def _own_time_s(took_s: float, waited_before_s: float | None, cpu_s: float) -> float:
    waited_s = _waited_s()
    if waited_s is None or waited_before_s is None:
        return cpu_s  # no way to tell sleeping from being preempted: count what was computed
    return took_s - (waited_s - waited_before_s)


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
