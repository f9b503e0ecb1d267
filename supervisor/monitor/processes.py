"""Memory and CPU time of services with all that they started, from proc_pid_stat(5)."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Usage:
    """``memory_bytes`` is resident; pages that processes share count in each of them."""

    memory_bytes: int = 0
    cpu_s: float = 0.0


class Processes:
    """Remembers whose a process is, so that those of others cost nothing after the first look.

    A process belongs to a service when it is in the leader's group or descends from it: the
    kernels of Jupyter have sessions of their own. Once known it stays so, also as an orphan.
    """

    def __init__(self, system_root: Path = Path("/")) -> None:
        self._proc = str(system_root / "proc")
        self._leaders: frozenset[int] = frozenset()
        self._owners: dict[int, int | None] = {}  # process → leader; None = of no service

    def read(self, leaders: Collection[int]) -> dict[int, Usage]:
        """Return the usage by leader. Blocking, some 10 µs for each process of a service."""
        wanted = frozenset(leaders)
        alive = {int(name) for name in _names(self._proc) if name.isdecimal()} if wanted else set()
        # Who was of no service may be of one that has been started since.
        forgotten = {None} if wanted != self._leaders else set()
        self._owners = {
            pid: owner
            for pid, owner in self._owners.items()
            if pid in alive and owner not in forgotten and (owner is None or owner in wanted)
        }
        self._owners.update((pid, pid) for pid in wanted & alive)
        self._leaders = wanted
        stats: dict[int, list[str]] = {}
        for pid in alive - self._owners.keys():
            self._assign(pid, stats)
        return self._sum(stats)

    def _assign(self, pid: int, stats: dict[int, list[str]]) -> None:
        """Go up from a new process until one is known; all on the way have the same owner."""
        way, owner = [], None
        while pid not in self._owners:
            fields = stats[pid] = _stat(self._proc, pid)
            if not fields:  # ended meanwhile, or there is nothing above
                break
            way.append(pid)
            parent, group = int(fields[1]), int(fields[2])
            if group in self._leaders:
                owner = group
                break
            pid = parent
        else:
            owner = self._owners[pid]
        self._owners.update(dict.fromkeys(way, owner))

    def _sum(self, stats: dict[int, list[str]]) -> dict[int, Usage]:
        found: dict[int, Usage] = {}
        for pid, owner in self._owners.items():
            if owner is None:
                continue
            fields = stats.get(pid) or _stat(self._proc, pid)
            if not fields:
                continue
            before = found.get(owner, Usage())
            # utime, stime, and those of ended children: what they used is not lost
            ticks = sum(int(field) for field in fields[11:15])
            found[owner] = Usage(
                before.memory_bytes + int(fields[21]) * _PAGE_BYTES,
                before.cpu_s + ticks / _TICKS_PER_S,
            )
        return found


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 - names only
    except OSError:
        return []


def _stat(proc: str, pid: int) -> list[str]:
    """The fields from the state on; empty when there is no such process."""
    try:
        with open(f"{proc}/{pid}/stat", "rb") as file:  # noqa: PTH123 - paths are slow to build
            text = file.read()
    except OSError:
        return []
    # The name may hold anything, also ")".
    fields = text.rpartition(b")")[2].decode("ascii", "replace").split()
    return fields if len(fields) > 21 else []
