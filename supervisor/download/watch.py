"""Spans under way, as who watches over them sees them: stalled, crawling, or well. No I/O."""

from __future__ import annotations

import time
from collections.abc import Sequence

from supervisor.download.segments import Span

SLOW_SHARE = 0.1  # of the median of its siblings: such a connection is replaced
SLOW_AFTER_S = 5.0


class Stretch:
    """A span that one connection is receiving; ``last_byte_s`` is on the monotonic clock."""

    def __init__(self, span: Span) -> None:
        self.span = span
        self.bytes_at_tick = span.position
        self.last_byte_s = self.slow_since_s = time.monotonic()

    @property
    def held(self) -> bool:
        """Whether it waits for us and not for the server."""
        raise NotImplementedError

    def abort(self, reason: str) -> None:
        """Give this connection up; what is missing is fetched by another."""
        raise NotImplementedError


def judge(stretches: Sequence[Stretch], *, elapsed_s: float, stall_timeout_s: float) -> None:
    """Measure all since the last time, ``elapsed_s`` ago; abort those that are not worth it."""
    now_s = time.monotonic()
    for stretch in stretches:
        span = stretch.span
        rate = (span.position - stretch.bytes_at_tick) / max(elapsed_s, 0.001)
        stretch.bytes_at_tick = span.position
        span.rate_bytes_per_s += 0.2 * (rate - span.rate_bytes_per_s)
    rates = sorted(stretch.span.rate_bytes_per_s for stretch in stretches)
    # The upper median. ``statistics`` would take a tenth of the engine's time to import.
    slow = SLOW_SHARE * rates[len(rates) // 2] if rates else 0.0
    for stretch in stretches:
        if stretch.held:
            stretch.slow_since_s = now_s
        elif now_s - stretch.last_byte_s > stall_timeout_s:
            stretch.abort("it stalled")
        elif len(stretches) <= 2 or stretch.span.rate_bytes_per_s >= slow:
            stretch.slow_since_s = now_s
        elif now_s - stretch.slow_since_s > SLOW_AFTER_S:
            stretch.abort("far slower than its siblings")
