"""What /proc tells about processes. Blocking: reading ``environ`` of a process that is
stuck in the kernel can hang, so call the scans from a worker thread."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

COOKIE = "SUPERVISOR_SERVICE"
# Two supervisors on one machine (a demo beside a pod, tests) have services of equal names.
INSTANCE = "SUPERVISOR_INSTANCE"
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class ProcessStat:
    """Fields of /proc/PID/stat (proc(5)). ``image`` changes when the process execs.

    It is made of the addresses of code and stack, which the kernel randomises at every
    exec and shows as 0 to those who may not trace the process.
    """

    pid: int
    name: str
    state: str
    parent: int
    group: int
    session: int
    cpu_s: float
    started_ticks: int
    image: tuple[str, str]

    @property
    def dead(self) -> bool:
        """Zombie or being removed: holds no resource any more."""
        return self.state in "ZX"


def read_stat(pid: int) -> ProcessStat | None:
    """Return the stat of a process, None when it is gone."""
    data = _read(f"/proc/{pid}/stat", 4096)
    if data is None:
        return None
    # The name stands in parentheses and may hold spaces and parentheses itself.
    head, _, tail = data.decode(errors="replace").rpartition(")")
    rest = tail.split()
    if len(rest) < 26:
        return None
    return ProcessStat(
        pid=pid,
        name=head.partition("(")[2],
        state=rest[0],
        parent=int(rest[1]),
        group=int(rest[2]),
        session=int(rest[3]),
        cpu_s=(int(rest[11]) + int(rest[12])) / _TICKS_PER_S,
        started_ticks=int(rest[19]),
        image=(rest[23], rest[25]),
    )


def pids() -> Iterator[int]:
    """Yield the ids of all processes."""
    for entry in os.listdir("/proc"):  # noqa: PTH208 - names only, and it must be quick
        if entry.isdigit():
            yield int(entry)


def group_members(group: int) -> list[int]:
    """Return the living members of a process group; zombies hold nothing and do not count."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return []
    except PermissionError:
        pass
    stats = (read_stat(pid) for pid in pids())
    return [stat.pid for stat in stats if stat and stat.group == group and not stat.dead]


def variables_of(pid: int, *names: str) -> dict[str, str]:
    """Return some variables of the environment that a process was started with."""
    data = _read(f"/proc/{pid}/environ", 256 * 1024) or b""
    found: dict[str, str] = {}
    if f"{names[0]}=".encode() in data:
        for item in data.split(b"\0"):
            name, _, value = item.partition(b"=")
            if (text := name.decode(errors="replace")) in names:
                found[text] = value.decode(errors="replace")
    return found


def marked(cookie: str, instance: str) -> list[int]:
    """Return the living processes that one life of a service started, wherever they went."""
    wanted = {COOKIE: cookie, INSTANCE: instance}
    own = os.getpid()
    return [
        pid
        for pid in pids()
        if pid != own and variables_of(pid, COOKIE, INSTANCE) == wanted and is_alive(pid)
    ]


def of_instance(instance: str) -> list[int]:
    """Return the living processes of all services that one supervisor started."""
    return [
        pid
        for pid in pids()
        if variables_of(pid, INSTANCE) == {INSTANCE: instance} and is_alive(pid)
    ]


def descendants(root: int) -> list[int]:
    """Return the living descendants of a process, whatever session they moved to."""
    children: dict[int, list[int]] = {}
    for pid in pids():
        if (stat := read_stat(pid)) and not stat.dead:
            children.setdefault(stat.parent, []).append(pid)
    found: list[int] = []
    queue = [root]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def cpu_seconds(root: int) -> float:
    """Return the CPU time used by a process and its living descendants."""
    stats = (read_stat(pid) for pid in (root, *descendants(root)))
    return sum(stat.cpu_s for stat in stats if stat)


def command_line(pid: int) -> str:
    """Return what was executed, shortened, without anything that looks like an option value."""
    data = _read(f"/proc/{pid}/cmdline", 4096) or b""
    words = [word.decode(errors="replace") for word in data.split(b"\0") if word]
    shown = [word for word in words[:3] if not word.startswith("-") and "=" not in word]
    return " ".join(shown[:2])


def describe(pid: int) -> str:
    """Say in one sentence what a process is doing, for the report of a hang."""
    stat = read_stat(pid)
    if stat is None:
        return "the process is gone"
    states = {"R": "running", "S": "sleeping", "D": "in an uninterruptible wait", "T": "stopped"}
    where = (_read(f"/proc/{pid}/wchan", 200) or b"").decode(errors="replace")
    threads = sum(1 for _ in Path(f"/proc/{pid}/task").iterdir()) if is_alive(pid) else 0
    place = f" in {where}" if where not in ("", "0") else ""
    state = states.get(stat.state, stat.state)
    return f"{state}{place}, {threads} threads, {stat.cpu_s:.1f} s of CPU used"


def is_alive(pid: int) -> bool:
    """Return whether a process runs; a zombie does not."""
    stat = read_stat(pid)
    return stat is not None and not stat.dead


def _read(path: str, limit: int) -> bytes | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        parts = []
        while limit > 0 and (part := os.read(descriptor, min(limit, 65536))):
            parts.append(part)
            limit -= len(part)
        return b"".join(parts)
    except OSError:
        return None
    finally:
        os.close(descriptor)


def oom_kills(system_root: Path = Path("/")) -> int:
    """Return how often the OOM killer struck in our cgroup, 0 when it cannot be read."""
    for path in _oom_files(system_root):
        try:
            text = path.read_text("ascii")
        except (OSError, UnicodeDecodeError):
            continue
        for line in text.splitlines():
            key, _, value = line.partition(" ")
            if key == "oom_kill":
                return int(value)
    return 0


def _oom_files(system_root: Path) -> Iterator[Path]:
    mount = system_root / "sys/fs/cgroup"
    try:
        lines = (system_root / "proc/self/cgroup").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield mount / path.lstrip("/") / "memory.events"
        elif "memory" in controllers.split(","):
            yield mount / "memory" / path.lstrip("/") / "memory.oom_control"
    # Inside a container the path of the host is not there, but the mount is our own group.
    yield mount / "memory.events"
    yield mount / "memory" / "memory.oom_control"
