"""The container's share of the machine: CPU, memory, mounts, tcmalloc. Blocking, a few ms.

Sources: Documentation/admin-guide/cgroup-v1 and cgroup-v2.rst, proc(5), mount table of
proc_pid_mountinfo(5). ``system_root`` replaces "/" so that tests can use recorded trees.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from supervisor.hardware.facts import HostFacts, MountFacts

TCMALLOC_NAMES = ("libtcmalloc_minimal.so.4", "libtcmalloc.so.4", "libtcmalloc_minimal.so")
LIBRARY_FOLDERS = ("usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu", "usr/lib64",
                   "usr/lib", "usr/local/lib")  # fmt: skip
SYSCTL_PROBE = "proc/sys/net/core/rmem_max"
PRELOAD_TIMEOUT_S = 2.0
NO_LIMIT_BYTES = 1 << 60  # cgroup v1 says "unlimited" with a number near 2**63


@dataclass(frozen=True, slots=True)
class CgroupLimits:
    """The tightest limits between this process's cgroup and the root."""

    version: int | None = None
    cpu_cores: float | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class MountEntry:
    """One line of /proc/self/mounts."""

    device: str
    mount_point: Path
    kind: str
    options: frozenset[str]


def read_host(paths: Iterable[Path], *, system_root: Path = Path("/")) -> HostFacts:
    """Everything about the host; never raises: what cannot be read is unknown."""
    limits = read_cgroup(system_root)
    count = _cpu_count(system_root)
    cores = min(count, limits.cpu_cores) if limits.cpu_cores else float(count)
    memory = _memory_info(system_root)
    entries = read_mounts(system_root)
    return HostFacts(
        cpu_limit=cores,
        cpu_count=count,
        memory_limit_bytes=limits.memory_bytes,
        memory_total_bytes=memory.get("MemTotal", 0),
        memory_available_bytes=memory.get("MemAvailable"),
        cgroup_version=limits.version,
        mounts={path: mount_of(path, entries, system_root) for path in paths},
        tcmalloc=find_tcmalloc(system_root),
        sysctl_writable=os.access(system_root / SYSCTL_PROBE, os.W_OK),
    )


def find_programs(
    names: Iterable[str], *, environ: Mapping[str, str], folders: Iterable[Path] = ()
) -> dict[str, str | None]:
    """Where each program is: on PATH, else in ``folders`` (ComfyUI's own environment)."""
    search = os.pathsep.join([environ.get("PATH") or os.defpath, *map(str, folders)])
    return {name: shutil.which(name, path=search) for name in names}


def read_cgroup(system_root: Path = Path("/")) -> CgroupLimits:
    """Limits of this process's cgroup and of all its parents, v2 or v1."""
    memberships = _memberships(system_root)
    mounts = [m for m in read_mounts(system_root) if m.kind in ("cgroup", "cgroup2")]
    unified = next((m for m in mounts if m.kind == "cgroup2"), None)
    v1 = {c: m for m in mounts if m.kind == "cgroup" for c in m.options}
    if "memory" in v1 or "cpu" in v1:
        return CgroupLimits(
            1,
            _v1_cpu(system_root, v1.get("cpu"), memberships.get("cpu")),
            _v1_memory(system_root, v1.get("memory"), memberships.get("memory")),
        )
    if unified is None:
        return CgroupLimits()
    cpu: list[float] = []
    memory: list[int] = []
    for folder in _ancestry(system_root, unified, memberships.get("")):
        quota, _, period = (_text(folder / "cpu.max") or "max").partition(" ")
        if quota.isdigit() and period.isdigit() and int(period):
            cpu.append(int(quota) / int(period))
        limit = _number(folder / "memory.max")
        if limit is not None:
            memory.append(limit)
    return CgroupLimits(2, min(cpu, default=None), min(memory, default=None))


def read_mounts(system_root: Path = Path("/")) -> tuple[MountEntry, ...]:
    """The mount table, in the kernel's order: a later mount on a path hides an earlier."""
    text = _text(system_root / "proc/self/mounts") or _text(system_root / "proc/mounts") or ""
    entries = []
    for line in text.splitlines():
        fields = [_unescape(field) for field in line.split(" ")]
        if len(fields) >= 4:
            options = frozenset(fields[3].split(","))
            entries.append(MountEntry(fields[0], Path(fields[1]), fields[2], options))
    return tuple(entries)


def mount_of(
    path: Path, entries: Iterable[MountEntry], system_root: Path = Path("/")
) -> MountFacts:
    """The mount that holds ``path``, or will hold it once it is created."""
    existing = _nearest_existing(path, system_root)
    entry = _covering(existing, entries)
    real = system_root / existing.relative_to("/")
    total, free, read_only = 0, 0, False
    try:
        stat = os.statvfs(real)
        total, free = stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize
        read_only = bool(stat.f_flag & os.ST_RDONLY)
    except OSError:
        read_only = True
    writable = not read_only and "ro" not in entry.options and os.access(real, os.W_OK)
    return MountFacts(
        path=path,
        mount_point=entry.mount_point,
        kind=entry.kind,
        device=entry.device,
        total_bytes=total,
        free_bytes=free,
        writable=writable,
        exists=existing == _resolved(path, system_root),
    )


def find_tcmalloc(system_root: Path = Path("/")) -> Path | None:
    """A tcmalloc that the dynamic linker takes; loading is the only proof that it fits."""
    for folder in LIBRARY_FOLDERS:
        for name in TCMALLOC_NAMES:
            path = system_root / folder / name
            if path.exists() and _loads(path):
                return Path("/") / path.relative_to(system_root)
    return None


def _loads(path: Path) -> bool:
    """Preload it into a program that does nothing: ld.so complains on stderr when it cannot.

    Opening it in this process would be no proof (its static TLS may not fit any more) and
    would bring a second allocator in.
    """
    try:
        done = subprocess.run(
            ["/bin/true"],
            env={"LD_PRELOAD": str(path)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=PRELOAD_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0 and not done.stderr


def _memberships(system_root: Path) -> dict[str, str]:
    """Controller → path of this process's cgroup; "" is the unified hierarchy."""
    found: dict[str, str] = {}
    for line in (_text(system_root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        for controller in controllers.split(","):
            found[controller] = path
    return found


def _ancestry(system_root: Path, mount: MountEntry, path: str | None) -> Iterator[Path]:
    """Folders of the cgroup and its parents that are visible in this mount namespace.

    In a container the path may be the host's, of which the mount shows only the end; then
    the mount's own root is this process's cgroup.
    """
    top = system_root / mount.mount_point.relative_to("/")
    below = top / (path or "/").strip("/")
    folder = below if ".." not in below.parts and below.is_dir() else top
    yield folder
    while folder != top:
        folder = folder.parent
        yield folder


def _v1_cpu(system_root: Path, mount: MountEntry | None, path: str | None) -> float | None:
    if mount is None:
        return None
    found: list[float] = []
    for folder in _ancestry(system_root, mount, path):
        quota = _number(folder / "cpu.cfs_quota_us")
        period = _number(folder / "cpu.cfs_period_us")
        if quota is not None and quota > 0 and period:
            found.append(quota / period)
    return min(found, default=None)


def _v1_memory(system_root: Path, mount: MountEntry | None, path: str | None) -> int | None:
    if mount is None:
        return None
    found: list[int] = []
    for folder in _ancestry(system_root, mount, path):
        limit = _number(folder / "memory.limit_in_bytes")
        if limit is not None and limit < NO_LIMIT_BYTES:
            found.append(limit)
    return min(found, default=None)


def _cpu_count(system_root: Path) -> int:
    """Cores that this process may run on: affinity, which follows the cpuset."""
    if system_root != Path("/"):
        status = _text(system_root / "proc/self/status") or ""
        match = re.search(r"^Cpus_allowed_list:\s*(\S+)", status, re.MULTILINE)
        if match:
            return _count_list(match[1])
    return len(os.sched_getaffinity(0))


def _count_list(text: str) -> int:
    """Number of CPUs in a list like ``0-3,8``."""
    count = 0
    for part in text.split(","):
        first, _, last = part.partition("-")
        count += int(last or first) - int(first) + 1
    return count


def _memory_info(system_root: Path) -> dict[str, int]:
    """Fields of /proc/meminfo in bytes."""
    text = _text(system_root / "proc/meminfo") or ""
    return {
        match[1]: int(match[2]) * 1024
        for match in re.finditer(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)
    }


def _nearest_existing(path: Path, system_root: Path) -> Path:
    """``path`` with links resolved, or its nearest parent that exists."""
    for candidate in (path, *path.parents):
        real = system_root / candidate.relative_to("/")
        if real.exists():
            return _resolved(candidate, system_root)
    return Path("/")


def _resolved(path: Path, system_root: Path) -> Path:
    real = (system_root / path.relative_to("/")).resolve()
    root = system_root.resolve()
    return Path("/") / real.relative_to(root) if real.is_relative_to(root) else path


def _covering(path: Path, entries: Iterable[MountEntry]) -> MountEntry:
    """The last entry with the longest mount point that holds ``path``."""
    best = MountEntry("unknown", Path("/"), "unknown", frozenset())
    for entry in entries:
        if path.is_relative_to(entry.mount_point) and len(entry.mount_point.parts) >= len(
            best.mount_point.parts
        ):
            best = entry
    return best


def _unescape(field: str) -> str:
    """Undo the octal escapes for space, tab, newline and backslash."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape").strip()
    except OSError:
        return None


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text and text.lstrip("-").isdigit() else None
