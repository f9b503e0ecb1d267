"""A small inotify reader that shows what watchfiles does not: IN_CLOSE_WRITE.

It also costs nothing while nothing happens, where a polling wait would wake up many times
a second. Flags and layout: ``man 7 inotify``, ``linux/inotify.h``.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from pathlib import Path
from typing import NamedTuple

IN_CLOSE_WRITE = 0x008
IN_MOVED_FROM = 0x040
IN_MOVED_TO = 0x080
IN_CREATE = 0x100
IN_DELETE = 0x200
IN_MOVE_SELF = 0x800
IN_UNMOUNT = 0x2000
IN_Q_OVERFLOW = 0x4000
IN_IGNORED = 0x8000
IN_ONLYDIR = 0x01000000
IN_DONT_FOLLOW = 0x02000000
IN_ISDIR = 0x40000000

_GONE = IN_DELETE | IN_MOVED_FROM
_MASK = IN_CLOSE_WRITE | IN_MOVED_TO | IN_CREATE | IN_MOVE_SELF | IN_ONLYDIR | _GONE
_HEADER = struct.Struct("iIII")
_READ_BYTES = 64 * 1024
_READS = 16  # in one go: a flood of events must not hold the event loop


class Change(NamedTuple):
    """Something happened to ``path``, as the watched folders are named.

    ``overflow``: so much happened that some of it got lost. ``lost``: the folder ``path``
    is no longer watched, because it went away.
    """

    path: str
    folder: bool = False
    closed: bool = False
    overflow: bool = False
    lost: bool = False


class Inotify:
    """Watches folders one by one; the caller adds new sub-folders as they appear."""

    def __init__(self) -> None:
        """Open an inotify instance.

        Raises:
            OSError: the kernel has none to give (EMFILE: fs.inotify.max_user_instances).
        """
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._folders: dict[int, tuple[str, Path]] = {}
        self.fd = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))

    def add(self, folder: Path, name: str, *, follow: bool = False) -> bool:
        """Watch a folder and call it ``name``; False when it is gone or is not a folder.

        Raises:
            OSError: no watch is left (ENOSPC), or no permission.
        """
        mask = _MASK if follow else _MASK | IN_DONT_FOLLOW
        number = self._libc.inotify_add_watch(self.fd, os.fsencode(folder), mask)
        if number < 0:
            code = ctypes.get_errno()
            if code in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                return False
            raise OSError(code, os.strerror(code), str(folder))
        self._folders[number] = (name, folder)
        return True

    def read(self) -> list[Change]:
        """Return what has happened, not more than a few thousand things; never blocks."""
        changes: list[Change] = []
        for _ in range(_READS):
            try:
                data = os.read(self.fd, _READ_BYTES)
            except BlockingIOError:
                break
            changes += self._parse(data)
        return changes

    def _parse(self, data: bytes) -> list[Change]:
        changes: list[Change] = []
        position = 0
        while position < len(data):
            number, mask, _cookie, length = _HEADER.unpack_from(data, position)
            position += _HEADER.size + length
            if mask & IN_Q_OVERFLOW:
                changes.append(Change("", overflow=True))
                continue
            folder, _ = self._folders.get(number, (None, None))
            if folder is None:
                continue
            if mask & (IN_IGNORED | IN_MOVE_SELF):
                # What has the name now may be another folder, which nobody watches yet.
                gone = self._forget(number, mask)
                changes.append(Change(folder, folder=not gone, lost=gone or not folder))
            elif not mask & IN_UNMOUNT and not (mask & IN_ISDIR and mask & _GONE):
                name = os.fsdecode(data[position - length : position].rstrip(b"\0"))
                path = f"{folder}/{name}" if folder else name
                changes.append(Change(path, bool(mask & IN_ISDIR), bool(mask & IN_CLOSE_WRITE)))
        return changes

    def _forget(self, number: int, mask: int) -> bool:
        # A folder that was moved keeps its watch, under a name that is no longer true. Its new
        # place may have added it again already, under the name that is.
        if mask & IN_MOVE_SELF:
            if self._folders[number][1].is_dir():
                return False
            self._libc.inotify_rm_watch(self.fd, number)
        del self._folders[number]
        return True

    def close(self) -> None:
        """Release everything."""
        os.close(self.fd)
