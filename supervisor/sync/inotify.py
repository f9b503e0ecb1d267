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
IN_MOVED_TO = 0x080
IN_CREATE = 0x100
IN_DELETE_SELF = 0x400
IN_MOVE_SELF = 0x800
IN_Q_OVERFLOW = 0x4000
IN_IGNORED = 0x8000
IN_ONLYDIR = 0x01000000
IN_DONT_FOLLOW = 0x02000000
IN_ISDIR = 0x40000000

_MASK = IN_CLOSE_WRITE | IN_MOVED_TO | IN_CREATE | IN_MOVE_SELF | IN_ONLYDIR | IN_DONT_FOLLOW
_HEADER = struct.Struct("iIII")
_READ_BYTES = 64 * 1024


class Change(NamedTuple):
    """Something happened to ``path``; ``overflow``: so much that some of it got lost."""

    path: Path
    folder: bool = False
    closed: bool = False
    overflow: bool = False


class Inotify:
    """Watches folders one by one; the caller adds new sub-folders as they appear."""

    def __init__(self) -> None:
        """Open an inotify instance.

        Raises:
            OSError: the kernel has none to give.
        """
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._folders: dict[int, Path] = {}
        self.fd = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1 failed")

    def add(self, folder: Path) -> bool:
        """Watch a folder; False when it is gone or is not a folder.

        Raises:
            OSError: no watch is left (ENOSPC), or no permission.
        """
        number = self._libc.inotify_add_watch(self.fd, os.fsencode(folder), _MASK)
        if number < 0:
            code = ctypes.get_errno()
            if code in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                return False
            raise OSError(code, os.strerror(code), str(folder))
        self._folders[number] = folder
        return True

    def read(self) -> list[Change]:
        """Return what has happened; never blocks."""
        changes: list[Change] = []
        while True:
            try:
                data = os.read(self.fd, _READ_BYTES)
            except BlockingIOError:
                return changes
            changes += self._parse(data)

    def _parse(self, data: bytes) -> list[Change]:
        changes: list[Change] = []
        position = 0
        while position < len(data):
            number, mask, _cookie, length = _HEADER.unpack_from(data, position)
            position += _HEADER.size + length
            if mask & IN_Q_OVERFLOW:
                changes.append(Change(Path(), overflow=True))
                continue
            folder = self._folders.get(number)
            if mask & (IN_IGNORED | IN_MOVE_SELF):
                self._forget(number, mask)
            elif folder is not None:
                name = os.fsdecode(data[position - length : position].rstrip(b"\0"))
                is_folder = bool(mask & IN_ISDIR)
                changes.append(Change(folder / name, is_folder, bool(mask & IN_CLOSE_WRITE)))
        return changes

    def _forget(self, number: int, mask: int) -> None:
        # A folder that was moved keeps its watch under a name that is no longer true; its
        # new place reports it as created and is added again.
        if self._folders.pop(number, None) is not None and mask & IN_MOVE_SELF:
            self._libc.inotify_rm_watch(self.fd, number)

    def close(self) -> None:
        """Release everything."""
        os.close(self.fd)
