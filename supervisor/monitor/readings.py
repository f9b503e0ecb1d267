"""CPU, memory and network of the container, from files. Blocking, under a millisecond.

Sources: cgroup-v2.rst, cgroup-v1/memory.rst, cgroup-v1/cpuacct.rst, proc(5).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from supervisor.monitor.processes import Processes, Usage

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Reading:
    """Counters as of one instant; None where the kernel does not tell."""

    cpu_s: float | None = None
    memory_bytes: int | None = None
    received_bytes: int = 0
    sent_bytes: int = 0
    services: Mapping[int, Usage] = field(default_factory=dict)  # by leader


class Counters:
    """Reads all counters; those of the machine where there is no cgroup for them.

    Nothing is read before the first ``read``.
    """

    def __init__(self, system_root: Path = Path("/")) -> None:
        self._root = system_root
        self._processes = Processes(system_root)

    def read(self, leaders: Collection[int] = ()) -> Reading:
        """Read them now; ``leaders`` are the processes that services were started as."""
        cpu_s, memory = _cgroup_cpu(self._folders), _cgroup_memory(self._folders)
        received, sent = _network(self._root)
        return Reading(
            cpu_s=cpu_s if cpu_s is not None else _machine_cpu(self._root),
            memory_bytes=memory if memory is not None else _machine_memory(self._root),
            received_bytes=received,
            sent_bytes=sent,
            services=self._processes.read(leaders),
        )

    @cached_property
    def _folders(self) -> Mapping[str, str]:
        """By controller, as text; a process does not change its cgroup by itself."""
        return {name: str(_folder(self._root, name)) for name in ("", "cpuacct", "memory")}


def _folder(system_root: Path, controller: str) -> Path:
    """This process's cgroup of a v1 controller ("" = v2), or its mount in a container."""
    mount = system_root / "sys/fs/cgroup" / controller
    for line in _text(system_root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(",") and ".." not in path:
            below = mount / path.strip("/")
            return below if below.is_dir() else mount
    return mount


def _cgroup_cpu(folders: Mapping[str, str]) -> float | None:
    v2 = _fields(f"{folders['']}/cpu.stat").get("usage_usec")
    if v2 is not None:
        return v2 / 1e6
    text = _text(f"{folders['cpuacct']}/cpuacct.usage").strip()
    return int(text) / 1e9 if text.isdigit() else None


def _cgroup_memory(folders: Mapping[str, str]) -> int | None:
    """Memory without the file cache that the kernel drops when it is needed."""
    for controller, usage, inactive in (
        ("", "memory.current", "inactive_file"),
        ("memory", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        folder = folders[controller]
        text = _text(f"{folder}/{usage}").strip()
        if text.isdigit():
            return max(int(text) - _fields(f"{folder}/memory.stat").get(inactive, 0), 0)
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


def _fields(path: Path | str) -> dict[str, int]:
    """Lines of a name and a number."""
    found = {}
    for line in _text(path).splitlines():
        parts = line.split()
        if len(parts) >= 2 and parts[1].isdigit():
            found[parts[0]] = int(parts[1])
    return found


def _text(path: Path | str) -> str:
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - a Path is slower than the read
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""
