"""Whether the owner of a lock still lives, as far as one machine and one pod can tell.

An owner leaves two signs in its record besides its name: the pod that it belongs to, and a
file of its own that it keeps locked by ``flock``, which its kernel lets go when it dies.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Any

# An owner that lives rewrites its record again and again; so many misses are no hiccup.
_MISSED_BEATS = 3


class Fate(Enum):
    """What became of an owner."""

    ALIVE = auto()  # or nobody can tell: wait
    SILENT = auto()  # taken for dead; should it come back, it finds itself fenced off
    GONE = auto()  # dead for sure: its half-made files have no writer


def process_owner() -> str:
    """Name this process among all on all machines, and as dead once it has ended.

    Boot id, PID namespace, pid and start time: field 22 of /proc/self/stat, proc(5).
    """
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    namespace = str(Path("/proc/self/ns/pid").readlink())
    return f"{boot}/{namespace}/{os.getpid()}/{_start_time(os.getpid())}"


def is_dead(owner: str) -> bool:
    """Whether ``owner`` was a process of this PID namespace that is gone. False = unknown."""
    parts, mine = owner.split("/"), process_owner().split("/")
    if len(parts) != 4 or parts[:2] != mine[:2] or not parts[2].isdigit():
        return False
    return _start_time(int(parts[2])) != parts[3]


def _start_time(pid: int) -> str:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[19]


@dataclass(slots=True)
class SignOfLife:
    """What an owner adds to its record; ``record`` says it in JSON."""

    record: Mapping[str, Any]
    path: Path
    descriptor: int = -1

    @classmethod
    def give(cls, folder: Path, generation: int, *, pod: str, beat_s: float) -> SignOfLife:
        """Lock a new file in ``folder``; where that is not possible, do without. Blocking."""
        record = {"pod": pod, "beat_s": beat_s}
        sign = cls(record, folder / f"{generation:010d}.{secrets.token_hex(4)}.alive")
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            sign.descriptor = os.open(sign.path, flags, 0o644)
            fcntl.flock(sign.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            sign.withdraw()
            return sign
        device = os.fstat(sign.descriptor).st_dev
        sign.record = {**record, "alive": sign.path.name, "device": device}
        return sign

    def close(self) -> None:
        """Let go. The file stays until the next generation sweeps it away."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def withdraw(self) -> None:
        """Undo it: nobody is to look for it. Blocking."""
        self.close()
        with suppress(OSError):
            self.path.unlink(missing_ok=True)


def judged(folder: Path, record: Mapping[str, Any], *, pod: str, silent_s: float) -> Fate:
    """Judge the owner behind ``record``, which has not changed for ``silent_s``. Blocking.

    A pod runs one container at a time, so an owner of this pod in another PID namespace was
    in an earlier one. That alone is not believed: the lock of that container must be gone
    from this kernel, or its beats must be missing.
    """
    owner = str(record.get("owner", ""))
    if is_dead(owner):
        return Fate.GONE
    beat_s = record.get("beat_s")
    silent = isinstance(beat_s, int | float) and silent_s >= _MISSED_BEATS * beat_s
    mine, theirs = process_owner().split("/")[:2], owner.split("/")[:2]
    earlier = bool(pod) and record.get("pod") == pod and mine != theirs
    if (earlier or silent) and mine[0] == theirs[0] and _let_go(folder, record):
        return Fate.GONE
    return Fate.SILENT if earlier and silent else Fate.ALIVE


def _let_go(folder: Path, record: Mapping[str, Any]) -> bool:
    """Whether the lock of a process of this kernel is free.

    Locks of one kernel meet where both see the same disk. A network disk may forget the lock
    of a process that lives: therefore a free one is never the only evidence.
    """
    name = record.get("alive")
    if not isinstance(name, str) or "/" in name or not name.endswith(".alive"):
        return False
    try:
        descriptor = os.open(folder / name, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.fstat(descriptor).st_dev == record.get("device")
    except OSError:
        return False
    finally:
        os.close(descriptor)
