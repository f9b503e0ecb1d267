"""What the disk says: errors by class, and files that are already in place."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from supervisor.download.files import discard_leftovers
from supervisor.download.verify import check_file, sha256_of, verified_sha256
from supervisor.errors import (
    DiskFullError,
    JournalError,
    PermanentTransferError,
    TransferError,
    TransientTransferError,
)

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_REFUSED = frozenset({errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG})
# A folder where a file should be, or the other way round.
_OTHER_KIND = frozenset({errno.ENOTDIR, errno.EISDIR, errno.EEXIST})
ROOM_POLL_S = 15.0
# Left free for everything else that writes to the same disk.
RESERVE_BYTES = 64 * 1024 * 1024


def existing_file(destination: Path, size_bytes: int | None, sha256: str | None) -> int | None:
    """Size of the file at ``destination`` when it is whole, else None. Blocking.

    Whole means: the announced size, an intact header, and the announced hash. A hash that
    was checked before is not computed again while the file is unchanged.
    """
    try:
        size = destination.stat().st_size
        if size_bytes is None and sha256 is None:
            return None
        if size_bytes is not None and size != size_bytes:
            return None
        check_file(destination)
        if sha256 is not None and sha256.lower() != (
            verified_sha256(destination) or sha256_of(destination)
        ):
            return None
    except (OSError, PermanentTransferError):
        return None
    discard_leftovers(destination)
    return size


def check_room(destination: Path, needed_bytes: int, *, begun: bool = False) -> None:
    """Refuse a file that the disk cannot take, before its first byte. Blocking.

    Raises:
        DiskFullError: with the numbers.
        TransientTransferError: likewise, for a file that had room when it was ``begun``:
            somebody else took it and may give it back.
    """
    folder = destination.parent
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < needed_bytes + min(RESERVE_BYTES, needed_bytes):
        message = (
            f"Cannot download {destination.name}: it needs {needed_bytes} bytes more, "
            f"{folder} has {free} free"
        )
        if begun:
            hint = "free space; the download goes on where it stopped"
            raise TransientTransferError(message, hint=hint, retry_after_s=ROOM_POLL_S)
        raise DiskFullError(message, hint="free space or use a larger volume")


class disk_errors:  # noqa: N801  (a context manager that reads as a statement)
    """Turns errors of the disk into transfer errors; full and broken disks may recover."""

    def __init__(self, destination: Path) -> None:
        self._destination = destination

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, JournalError) and isinstance(error.__cause__, OSError):
            error = error.__cause__
        if not isinstance(error, OSError) or isinstance(error, TransferError):
            return
        reason = error.strerror or str(error)
        message = f"Cannot write {self._destination}: {reason}"
        if error.errno in _FULL:
            raise TransientTransferError(
                message,
                hint="free space; the download goes on where it stopped",
                retry_after_s=ROOM_POLL_S,
            ) from error
        if error.errno in _REFUSED:
            raise PermanentTransferError(
                message, hint="the folder must be writable for the supervisor"
            ) from error
        if error.errno in _OTHER_KIND:
            raise PermanentTransferError(
                message, hint="something else of that name is in the way; move it elsewhere"
            ) from error
        raise TransientTransferError(message) from error
