"""CPU, memory and network of the container, from files. Blocking, under a millisecond.

Sources: cgroup-v2.rst, cgroup-v1/memory.rst, cgroup-v1/cpuacct.rst, proc(5).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Reading:
    """Counters as of one instant; None where the kernel does not tell."""

    cpu_s: float | None = None
    memory_bytes: int | None = None
    received_bytes: int = 0
    sent_bytes: int = 0
    group_memory_bytes: Mapping[int, int] = field(default_factory=dict)


def read(
    system_root: Path = Path("/"),
    groups: Collection[int] = (),
    group_of: Callable[[int], int] = os.getpgid,
) -> Reading:
    """Read all counters; of the machine where there is no cgroup for them.

    ``groups`` are the process groups whose memory is wanted.
    """
    received, sent = _network(system_root)
    cpu_s, memory = _cgroup_cpu(system_root), _cgroup_memory(system_root)
    return Reading(
        cpu_s=cpu_s if cpu_s is not None else _machine_cpu(system_root),
        memory_bytes=memory if memory is not None else _machine_memory(system_root),
        received_bytes=received,
        sent_bytes=sent,
        group_memory_bytes=_group_memory(system_root, groups, group_of),
    )


def _folder(system_root: Path, controller: str) -> Path:
    """This process's cgroup of a v1 controller ("" = v2), or its mount in a container."""
    mount = system_root / "sys/fs/cgroup" / controller
    for line in _text(system_root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(",") and ".." not in path:
            below = mount / path.strip("/")
            return below if below.is_dir() else mount
    return mount


def _cgroup_cpu(system_root: Path) -> float | None:
    v2 = _fields(_folder(system_root, "") / "cpu.stat").get("usage_usec")
    if v2 is not None:
        return v2 / 1e6
    text = _text(_folder(system_root, "cpuacct") / "cpuacct.usage").strip()
    return int(text) / 1e9 if text.isdigit() else None


def _cgroup_memory(system_root: Path) -> int | None:
    """Memory without the file cache that the kernel drops when it is needed."""
    for controller, usage, inactive in (
        ("", "memory.current", "inactive_file"),
        ("memory", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        folder = _folder(system_root, controller)
        text = _text(folder / usage).strip()
        if text.isdigit():
            return max(int(text) - _fields(folder / "memory.stat").get(inactive, 0), 0)
    return None


def _machine_cpu(system_root: Path) -> float | None:
    fields = _text(system_root / "proc/stat").partition("\n")[0].split()[1:]
    if len(fields) < 8:
        return None
    # user nice system idle iowait irq softirq steal; guest time is part of user
    busy = [int(fields[i]) for i in (0, 1, 2, 5, 6)]
    return sum(busy) / _TICKS_PER_S


def _machine_memory(system_root: Path) -> int | None:
    found = _fields(system_root / "proc/meminfo")
    if "MemTotal:" not in found or "MemAvailable:" not in found:
        return None
    return (found["MemTotal:"] - found["MemAvailable:"]) * 1024


def _network(system_root: Path) -> tuple[int, int]:
    received = sent = 0
    for line in _text(system_root / "proc/net/dev").splitlines()[2:]:
        name, _, rest = line.partition(":")
        fields = rest.split()
        if name.strip() != "lo" and len(fields) >= 9:
            received += int(fields[0])
            sent += int(fields[8])
    return received, sent


def _group_memory(
    system_root: Path, groups: Collection[int], group_of: Callable[[int], int]
) -> dict[int, int]:
    """Resident bytes per process group; pages that processes share count in each."""
    found: dict[int, int] = {}
    for name in os.listdir(system_root / "proc") if groups else ():  # noqa: PTH208 - names only
        try:
            group = group_of(int(name)) if name.isdigit() else None
        except ProcessLookupError:
            continue
        if group is None or group not in groups:
            continue
        fields = _text(system_root / "proc" / name / "statm").split()
        if len(fields) > 1:
            found[group] = found.get(group, 0) + int(fields[1]) * _PAGE_BYTES
    return found


def _fields(path: Path) -> dict[str, int]:
    """Lines of a name and a number."""
    found = {}
    for line in _text(path).splitlines():
        parts = line.split()
        if len(parts) >= 2 and parts[1].isdigit():
            found[parts[0]] = int(parts[1])
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
