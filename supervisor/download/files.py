"""A partial file and its journal on the disk: names, locks, room, and whole writes.

All functions block; call them from a worker thread.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import os
from contextlib import suppress
from functools import cache
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_NO_LOCKS = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})
_NO_FALLOCATE = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})
_LONGEST_NAME = 200  # of 255; leaves room for the dot and the suffixes


class BusyError(Exception):
    """Another process, or another task, is downloading to the same place."""


def part_path(destination: Path) -> Path:
    """Where the bytes for ``destination`` gather: hidden, same folder, no model suffix."""
    name = destination.name
    if len(os.fsencode(name)) > _LONGEST_NAME:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return destination.with_name(f".{name}.part")


def journal_path(destination: Path) -> Path:
    """The journal of that file."""
    part = part_path(destination)
    return part.with_name(part.name + ".journal")


def reserved_bytes(destination: Path) -> int:
    """Bytes of the disk that the partial file of ``destination`` occupies already."""
    try:
        return part_path(destination).stat().st_blocks * 512  # stat(2): units of 512 bytes
    except OSError:
        return 0


def boot_id() -> str:
    """Identify the running kernel; empty when it cannot be read (then nothing is trusted)."""
    try:
        return _read_boot_id()
    except OSError:
        return ""


@cache  # the answer, never a failure
def _read_boot_id() -> str:
    return _BOOT_ID.read_text(encoding="ascii").strip()


def discard_leftovers(destination: Path) -> None:
    """Remove what a crash between the rename and the clean-up left behind."""
    with suppress(OSError):
        if not part_path(destination).exists():
            path = journal_path(destination)
            for leftover in (path, path.with_name(path.name + ".new")):
                leftover.unlink(missing_ok=True)


def open_locked(path: Path) -> int:
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise BusyError(str(path)) from None
        except OSError as exc:
            if exc.errno not in _NO_LOCKS:
                os.close(fd)
                raise
        if is_at(fd, path):
            return fd
        os.close(fd)  # it was published or discarded between the open and the lock


def is_at(fd: int, path: Path) -> bool:
    with suppress(OSError):
        named, mine = path.stat(), os.fstat(fd)
        return (named.st_dev, named.st_ino) == (mine.st_dev, mine.st_ino)
    return False


def write_all(fd: int, offset: int, data: memoryview | bytes) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(fd, view, offset)
        view, offset = view[count:], offset + count


_libc = ctypes.CDLL(None, use_errno=True)


def fallocate(fd: int, size_bytes: int) -> bool:
    # os.posix_fallocate is not used: where the file system refuses, glibc emulates it by
    # writing into every block, which on a network volume takes as long as the download.
    call = getattr(_libc, "fallocate64", None) or getattr(_libc, "fallocate", None)
    if call is None:
        return False
    if call(fd, 0, ctypes.c_int64(0), ctypes.c_int64(size_bytes)) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NO_FALLOCATE:
        return False
    raise OSError(code, os.strerror(code))
