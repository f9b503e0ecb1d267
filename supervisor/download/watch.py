"""Spans under way, as who watches over them sees them: stalled, crawling, or well. No I/O."""

from __future__ import annotations

import time
from collections.abc import Sequence

from supervisor.download.segments import Span

SLOW_SHARE = 0.1  # of the median of its siblings: such a connection is replaced
SLOW_AFTER_S = 5.0
FADING_A_S = 0.8  # what one second leaves of the rate that is remembered


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


class Watch:
    """Judges the connections of one file, and remembers what one of them usually brings.

    The last one of a file has no siblings any more: without the memory its rest, too short to
    be shared, could take minutes.
    """

    def __init__(self, stall_timeout_s: float) -> None:
        self._stall_timeout_s = stall_timeout_s
        self._usual = 0.0  # fades: when the network got slow, that is no connection's fault

    def judge(self, stretches: Sequence[Stretch], *, elapsed_s: float) -> None:
        """Measure all since the last time, ``elapsed_s`` ago; abort what is not worth it."""
        now_s = time.monotonic()
        for stretch in stretches:
            span = stretch.span
            rate = (span.position - stretch.bytes_at_tick) / max(elapsed_s, 0.001)
            stretch.bytes_at_tick = span.position
            span.rate_bytes_per_s += 0.2 * (rate - span.rate_bytes_per_s)
        slow = SLOW_SHARE * self._expected(stretches, elapsed_s)
        for stretch in stretches:
            if stretch.held:
                stretch.slow_since_s = now_s
            elif now_s - stretch.last_byte_s > self._stall_timeout_s:
                stretch.abort("it stalled")
            elif stretch.span.rate_bytes_per_s >= slow:
                stretch.slow_since_s = now_s
            elif now_s - stretch.slow_since_s > SLOW_AFTER_S:
                stretch.abort("far slower than its siblings")

    def _expected(self, stretches: Sequence[Stretch], elapsed_s: float) -> float:
        rates = sorted(stretch.span.rate_bytes_per_s for stretch in stretches)
        # The upper median. ``statistics`` would take a tenth of the engine's time to import.
        median = rates[len(rates) // 2] if rates else 0.0
        self._usual = max(median, self._usual * FADING_A_S**elapsed_s)
        return median if len(rates) > 2 else self._usual
