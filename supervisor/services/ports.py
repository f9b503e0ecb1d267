"""Whether a TCP port is free, and who holds it when it is not."""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from supervisor.services import procfs

_LISTEN = "0A"  # TCP_LISTEN of include/net/tcp_states.h, as /proc/net/tcp writes it


@dataclass(frozen=True, slots=True)
class PortHolder:
    """The process that listens on a port; ``pid`` None when it may not be seen."""

    port: int
    pid: int | None = None
    name: str = ""
    service: str | None = None

    def __str__(self) -> str:
        if self.pid is None:
            return "a process that cannot be inspected from here"
        service = f", of the service {self.service}" if self.service else ""
        return f"{self.name} (pid {self.pid}{service})"


def is_free(port: int) -> bool:
    """Return whether nobody listens on ``port``; a port that needs privileges counts as free."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # Connections of a former life in TIME_WAIT do not hold the port, a listener does.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", port))  # noqa: S104 - asks, never listens
        except OSError as exc:
            return exc.errno != errno.EADDRINUSE
    return True


def holder(port: int) -> PortHolder | None:
    """Return who listens on ``port``, None when nobody does. Blocking: reads all of /proc."""
    inodes = _listening_inodes(port)
    if not inodes:
        return None
    wanted = {f"socket:[{inode}]" for inode in inodes}
    for pid in procfs.pids():
        if _holds(pid, wanted):
            stat = procfs.read_stat(pid)
            name = procfs.command_line(pid) or (stat.name if stat else "")
            cookie = procfs.variables_of(pid, procfs.COOKIE).get(procfs.COOKIE, "")
            return PortHolder(port, pid, name, cookie.partition("/")[0] or None)
    return PortHolder(port)


def _listening_inodes(port: int) -> set[str]:
    found: set[str] = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text("ascii").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                found.add(fields[9])
    return found


def _holds(pid: int, wanted: set[str]) -> bool:
    folder = f"/proc/{pid}/fd"
    try:
        names = os.listdir(folder)  # noqa: PTH208 - names only, and it must be quick
    except OSError:
        return False
    for name in names:
        try:
            if os.readlink(f"{folder}/{name}") in wanted:  # noqa: PTH115 - the same
                return True
        except OSError:
            continue
    return False
