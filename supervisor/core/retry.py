"""Exponential backoff with full jitter, as a pure value.

Full jitter spreads the retries of many clients over the whole window instead of letting
them come back in step: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
"""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """Delays that double from ``initial_s`` to at most ``max_s`` seconds."""

    initial_s: float = 1.0
    max_s: float = 60.0
    jitter: bool = True

    def ceiling_s(self, attempt: int) -> float:
        """Upper bound of the delay before try ``attempt`` + 1; attempts count from 0."""
        # 2.0**1024 overflows; past 64 doublings every sane maximum has long been reached.
        return min(self.max_s, self.initial_s * 2.0 ** min(attempt, 64))

    def delay_s(self, attempt: int, rng: random.Random | None = None) -> float:
        """Seconds to wait after failed try number ``attempt`` (from 0)."""
        ceiling_s = self.ceiling_s(attempt)
        if not self.jitter:
            return ceiling_s
        return (rng or random).uniform(0.0, ceiling_s)
