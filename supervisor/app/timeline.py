"""The boot timeline: seconds from exec to the end of each span."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from supervisor.core.clock import iso_utc, wall_time_s
from supervisor.core.status import BootStatus


class Timeline:
    """Collects spans; every mark is the time from exec until now."""

    def __init__(self, started_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._started_s = started_s  # on the clock's scale
        self._clock = clock
        self._started_wall_s = wall_time_s() - (clock() - started_s)
        self._spans_s: dict[str, float] = {}

    @classmethod
    def since_exec(cls) -> Timeline:
        """Start at the exec of the entrypoint, which is the parent: the init (see pid1)."""
        return cls(time.monotonic() - _age_s(os.getppid()))

    def mark(self, name: str) -> float:
        """Note that the span ``name`` ends now; the first time counts. Returns its seconds."""
        return self._spans_s.setdefault(name, self._clock() - self._started_s)

    @property
    def status(self) -> BootStatus:
        """The spans so far."""
        return BootStatus(
            started_at=iso_utc(self._started_wall_s),
            spans_s={name: round(at_s, 3) for name, at_s in self._spans_s.items()},
        )


def _age_s(pid: int) -> float:
    """Seconds since a process was started; field 22 of proc_pid_stat(5), in clock ticks."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        started_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return 0.0
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started_s)
