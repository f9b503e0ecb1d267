"""Reading large files beside a pod at work: idle I/O priority, a slow pace, nothing twice."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import anyio

from supervisor.core.clock import wall_time_s
from supervisor.download.verify import mark_verified, verified_sha256

# The part of the time that is spent reading: most disks of pods know no I/O priority.
SHARE = 0.25
_MARK = "user.supervisor.read"


@contextmanager
def idle_io() -> Iterator[None]:
    """Read only when nobody else wants the disk: the idle class of ioprio_set(2).

    Works on this thread alone; where the call is not known, nothing happens.
    """
    number = {"x86_64": 251, "aarch64": 30}.get(platform.machine())
    if number is None:
        yield
        return
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    who_process, this_thread, idle, none = 1, 0, 3 << 13, 0
    syscall(number, who_process, this_thread, idle)
    try:
        yield
    finally:
        syscall(number, who_process, this_thread, none)


class Pace:
    """Lets a reader work a fixed share of the time, and not at all while others are busy.

    A slow disk makes long steps and gets long pauses, so the share holds on any disk.
    """

    def __init__(
        self,
        quiet: Callable[[], Awaitable[None]],
        *,
        share: float = SHARE,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
        now_s: Callable[[], float] = anyio.current_time,
    ) -> None:
        """``quiet`` returns when nobody else is busy."""
        self._quiet = quiet
        self._pause_per_second = 1 / share - 1
        self._sleep, self._now_s = sleep, now_s
        self._began_s: float | None = None

    async def breathe(self) -> None:
        """Call this before every step."""
        if self._began_s is not None:
            await self._sleep((self._now_s() - self._began_s) * self._pause_per_second)
        await self._quiet()
        self._began_s = self._now_s()


class ReadMarks:
    """Remembers when files were read and found whole: on the file, and here where that fails.

    The mark on the file spares the next boot, and other pods on the same volume, the work.
    """

    def __init__(self, now_s: Callable[[], float] = wall_time_s) -> None:
        self._now_s = now_s
        self._seen: dict[tuple[int, int, int], float] = {}

    def begin(self, path: Path) -> Callable[[str], None]:
        """Return what to call with the sha256 once the file was read and found whole.

        Nothing is noted about a file that was written meanwhile. Both calls block.
        """
        before = None
        with suppress(OSError):  # it is gone: whoever reads it will say so
            before = _identity(path.stat())

        def note(sha256: str) -> None:
            with suppress(OSError):
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    if before is None or _identity(os.fstat(descriptor)) != before:
                        return
                    self._seen[before] = self._now_s()
                    mark_verified(descriptor, sha256)
                    os.setxattr(descriptor, _MARK, f"{self._now_s():.0f}".encode())
                finally:
                    os.close(descriptor)

        return note

    def fresh(self, path: Path, max_age_s: float) -> bool:
        """Whether it was read within ``max_age_s`` and has not been written since. Blocking."""
        try:
            info = path.stat()
        except OSError:
            return False
        times = [self._seen.get(_identity(info), 0.0)]
        # The downloader's mark says: the bytes were hashed while, or after, they were written.
        if verified_sha256(path) is not None:
            times += [info.st_mtime, _marked_s(path)]
        return 0 <= self._now_s() - max(times) < max_age_s


def _identity(info: os.stat_result) -> tuple[int, int, int]:
    return info.st_dev, info.st_ino, info.st_mtime_ns


def _marked_s(path: Path) -> float:
    try:
        return float(os.getxattr(path, _MARK))
    except (OSError, ValueError):
        return 0.0
