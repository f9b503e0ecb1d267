"""Is anybody still writing this file? Decided by asking the kernel, not by a quiet period.

Measured on Linux 6.18: a read lease is refused with EAGAIN while any process has the file
open for writing, or maps it shared and writable; 9 µs on ext4 and tmpfs, 11 on overlayfs,
65 on FUSE. It cannot see a writer on another machine.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import signal
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path, PurePath

from supervisor.sync.model import Identity

_VIDEO = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif"})
_IMAGE = frozenset({".png", ".jpg", ".jpeg", ".webp", ".avif", ".svg", ".exr", ".tiff"})

# File systems on which another machine may write, or events may be missing.
NETWORK_KINDS = frozenset(
    {
        "9p", "afs", "beegfs", "ceph", "cifs", "drvfs", "fuse", "fuseblk", "gfs2", "glusterfs",
        "gpfs", "juicefs", "lustre", "mfs", "moosefs", "ncpfs", "nfs", "nfs4", "ocfs2", "smb",
        "smb2", "smb3", "smbfs", "sshfs", "vboxsf", "virtiofs", "wekafs",
    }
)  # fmt: skip
# FUSE, but nobody else's: the roots of rootless containers, and pools of local disks.
_LOCAL_KINDS = frozenset({"fuse.fuse-overlayfs", "fuse.mergerfs", "fuse.unionfs"})
# How the kernel writes spaces, tabs, newlines and backslashes in its tables.
_OCTAL = re.compile(r"\\([0-7]{3})")


class Writers(StrEnum):
    """Answer of one test."""

    NONE = "none"
    SOME = "some"
    UNKNOWN = "unknown"


class Method(StrEnum):
    """How writers are found on a file system."""

    LEASE = "lease"
    PROC = "proc"
    WINDOW = "window"


@dataclass(frozen=True, slots=True)
class Stability:
    """The tests that hold for one tree. ``network``: writers elsewhere go unseen."""

    method: Method
    network: bool = False

    def writers(self, fd: int) -> Writers:
        """Ask the kernel whether anybody has the file behind ``fd`` open for writing.

        ``fd`` must have been opened read-only. UNKNOWN leaves ``asks_processes`` and the
        quiet period.
        """
        return lease_test(fd) if self.method is Method.LEASE else Writers.UNKNOWN

    @property
    def asks_processes(self) -> bool:
        """Whether a census of the processes tells more than the kernel did."""
        return self.method is not Method.WINDOW

    def needs_window(self, answer: Writers) -> bool:
        """Whether the file must also stay unchanged for a while to count as finished."""
        return answer is Writers.UNKNOWN or self.network


def window_s(path: PurePath, identity: Identity) -> float:
    """Seconds without change after which a file counts as finished when nobody can tell.

    Videos are written in bursts minutes apart in the worst case; images are not. The
    window grows with the size, because what took long to write pauses for longer.
    """
    suffix = path.suffix.lower()
    base_s = 15.0 if suffix in _VIDEO else 2.0 if suffix in _IMAGE else 5.0
    return base_s + min(15.0, identity.size_bytes / 64e6)


def lease_test(fd: int) -> Writers:
    """Try to take a read lease and give it back at once."""
    try:
        # A writer that opens the file in these microseconds makes the kernel send a
        # signal; SIGIO would end the process, SIGURG is ignored by default.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as exc:
        return Writers.SOME if exc.errno == errno.EAGAIN else Writers.UNKNOWN
    return Writers.NONE


@dataclass(frozen=True, slots=True)
class Census:
    """Which of some files processes have open for writing, and whose could not be asked."""

    writing: frozenset[tuple[int, int]]
    hidden: frozenset[int | None]

    def writers(self, file: os.stat_result) -> Writers:
        """Answer for one of the files; UNKNOWN when its owner's or root's may write it."""
        if (file.st_dev, file.st_ino) in self.writing:
            return Writers.SOME
        return Writers.UNKNOWN if self.hidden & {0, file.st_uid, None} else Writers.NONE


def census(files: Iterable[os.stat_result], proc: Path = Path("/proc")) -> Census:
    """Look for files among the descriptors of every process; blocking, milliseconds."""
    wanted = frozenset((file.st_dev, file.st_ino) for file in files)
    writing: set[tuple[int, int]] = set()
    hidden: set[int | None] = set()
    for name in filter(str.isdecimal, os.listdir(proc)):  # noqa: PTH208 (names are enough)
        try:
            writing.update(_written_by(proc / name, wanted))
        except PermissionError:
            hidden.add(_owner(proc / name))
        except OSError:
            continue  # it has just ended
    return Census(frozenset(writing), frozenset(hidden))


def _written_by(process: Path, wanted: frozenset[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    for name in os.listdir(process / "fd"):  # noqa: PTH208 (names are enough)
        try:
            found = (process / "fd" / name).stat()
            if (file := (found.st_dev, found.st_ino)) not in wanted:
                continue
            flags = (process / "fdinfo" / name).read_text()
        except FileNotFoundError:
            continue
        octal = next((s.split()[1] for s in flags.splitlines() if s.startswith("flags:")), "0")
        if int(octal, 8) & os.O_ACCMODE != os.O_RDONLY:
            yield file


def _owner(process: Path) -> int | None:
    try:
        return process.stat().st_uid
    except OSError:
        return None


def choose(root: Path, *, kind: str | None = None) -> Stability:
    """Find out by trying what works in ``root``; blocking, a millisecond.

    A hidden file is created and removed there. Where that is not allowed the lease is
    assumed: a refusal later falls back file by file.
    """
    root = root if root.is_dir() else root.parent
    network = on_network(root, kind=kind)
    probe = root / f".supervisor-probe-{secrets.token_hex(4)}"
    try:
        method = _try(probe)
    except OSError:
        method = Method.LEASE
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
    return Stability(method, network)


def _try(probe: Path) -> Method:
    writer = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        reader = open_regular(probe)
        try:
            leased = lease_test(reader) is Writers.SOME
            file = os.fstat(reader)
            seen = leased or census([file]).writers(file) is Writers.SOME
            os.close(writer)
            writer = -1
            if leased and lease_test(reader) is Writers.NONE:
                return Method.LEASE
            return Method.PROC if seen else Method.WINDOW
        finally:
            os.close(reader)
    finally:
        if writer >= 0:
            os.close(writer)


def open_regular(path: Path) -> int:
    """Open a regular file for reading, following no link and waiting for no pipe.

    Raises:
        OSError: it is gone, a link, or not a regular file (EINVAL).
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return fd


def on_network(path: Path, *, kind: str | None = None) -> bool:
    """Whether other machines may write where ``path`` is."""
    kind = filesystem_kind(path) if kind is None else kind
    return kind not in _LOCAL_KINDS and kind.partition(".")[0] in NETWORK_KINDS


def filesystem_kind(path: Path, mountinfo: Path = Path("/proc/self/mountinfo")) -> str:
    """Name the kind of file system that holds ``path``, "" when that is unknown."""
    try:
        lines = mountinfo.read_text(errors="surrogateescape").splitlines()
        resolved = path.resolve()
    except (OSError, RuntimeError):
        return ""
    best, kind = -1, ""
    for line in lines:
        fields, _, rest = line.partition(" - ")
        mount = _OCTAL.sub(lambda found: chr(int(found[1], 8)), fields.split(" ")[4])
        # Later lines shadow earlier ones on the same mount point.
        if len(mount) >= best and resolved.is_relative_to(mount):
            best, kind = len(mount), rest.split(" ")[0]
    return kind
