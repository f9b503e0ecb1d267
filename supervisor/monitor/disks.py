"""Free space of the disks, how fast it goes, and which of them do not answer."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import anyio

from supervisor.core.status import DiskStatus
from supervisor.core.threads import LoneThread

_PATIENCE_S = 10.0
# A download fills a disk in bursts; a minute tells where it is going.
_FILL_WINDOW_S = 60.0


@dataclass(slots=True)
class FillRate:
    """Free bytes over the last minute."""

    _seen: deque[tuple[float, int]] = field(default_factory=deque)

    def full_in_s(self, now_s: float, free_bytes: int) -> float | None:
        """Take a reading; return the seconds until the disk is full at this pace. None = never."""
        self._seen.append((now_s, free_bytes))
        while now_s - self._seen[0][0] > _FILL_WINDOW_S:
            self._seen.popleft()
        first_s, first_bytes = self._seen[0]
        if now_s - first_s < _FILL_WINDOW_S / 2 or first_bytes <= free_bytes:
            return None
        return round(free_bytes / (first_bytes - free_bytes) * (now_s - first_s), 0)


class Disk:
    """One mount point. ``silent`` while it does not answer; ``last`` is what was seen last."""

    def __init__(self, path: Path, *, patience_s: float = _PATIENCE_S) -> None:
        self.path = path
        self.silent = False
        self.last: DiskStatus | None = None
        self._rate = FillRate()
        self._space = LoneThread(
            lambda: _space(path), name=f"disk {path}", timeout_s=patience_s
        )  # a network volume whose server is gone blocks for ever

    async def look(self) -> None:
        """Read the free space."""
        try:
            found = await self._space.call()
        except TimeoutError:
            self.silent = True
            return
        self.silent, self.last = False, None
        if found is not None:
            free, total = found
            full_in_s = self._rate.full_in_s(anyio.current_time(), free)
            self.last = DiskStatus(free, total, full_in_s)


class Disks:
    """Several disks, asked side by side: one that hangs does not hide the others."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._disks = tuple(Disk(path) for path in paths)

    async def look(self) -> None:
        """Ask all of them; takes as long as the slowest, at most its patience."""
        async with anyio.create_task_group() as tasks:
            for disk in self._disks:
                tasks.start_soon(disk.look)

    @property
    def known(self) -> dict[str, DiskStatus]:
        """What is known, by mount point; of a silent one, what was."""
        return {str(disk.path): disk.last for disk in self._disks if disk.last is not None}

    @property
    def silent(self) -> tuple[str, ...]:
        """The mount points that do not answer."""
        return tuple(str(disk.path) for disk in self._disks if disk.silent)


def _space(path: Path) -> tuple[int, int] | None:
    """Free and usable bytes; None where there is no disk (any more)."""
    try:
        stat = os.statvfs(path)
    except OSError:
        return None
    total = stat.f_blocks - stat.f_bfree + stat.f_bavail
    return (stat.f_bavail * stat.f_frsize, total * stat.f_frsize) if total else None
