"""The only place that reads the wall clock.

Durations come from the event loop (``anyio.current_time``), which never steps and which
Trio's autojump clock can drive in tests. Wall time is for people and for records only.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime


def wall_time_s() -> float:
    """Seconds since the epoch. May step; never subtract two of these for a duration."""
    return time.time()


def iso_utc(at_s: float) -> str:
    """Render seconds since the epoch as ISO 8601 in UTC with milliseconds."""
    stamp = datetime.fromtimestamp(at_s, tz=UTC)
    return stamp.isoformat(timespec="milliseconds").replace("+00:00", "Z")
