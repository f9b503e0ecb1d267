"""Terminals in which somebody works: `docker exec -it`, web terminals, logins, tmux.

The kernel notes on a pseudo-terminal when it was read from and written to, in steps of
8 seconds (tty_update_time in drivers/tty/tty_io.c), as ``w`` shows it.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

DIRECTORY = Path("/dev/pts")


class Terminals:
    """Tells how many terminals were used since the last look.

    ``own`` are device numbers that do not count: the supervisor's log goes to one of them
    when its container has a terminal.
    """

    def __init__(self, directory: Path = DIRECTORY, own: Collection[int] | None = None) -> None:
        self._directory = directory
        self._own = _standard_streams() if own is None else own
        self._seen: dict[str, float] | None = None

    def used(self) -> int | None:
        """How many showed life, new ones included; None when it cannot be found out."""
        now: dict[str, float] = {}
        try:
            with os.scandir(self._directory) as entries:
                for entry in entries:
                    with suppress(FileNotFoundError):  # closed at this moment
                        found = entry.stat()
                        if entry.name.isdecimal() and found.st_rdev not in self._own:
                            now[entry.name] = max(found.st_atime, found.st_mtime)
        except FileNotFoundError:
            return 0  # a container without terminals
        except OSError:
            return None
        before, self._seen = self._seen, now
        if before is None:
            return 0
        return sum(before.get(name) != used_s for name, used_s in now.items())


def _standard_streams() -> frozenset[int]:
    devices = set()
    for descriptor in (0, 1, 2):
        with suppress(OSError):  # closed
            if os.isatty(descriptor):
                devices.add(os.fstat(descriptor).st_rdev)
    return frozenset(devices)
