"""What the store asks of single files: their hash, who has them open, whether two are one."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

_CHUNK_BYTES = 8 * 1024 * 1024
_SAMPLES, _SAMPLE_BYTES = 128, 4096


def is_object(place: Path, target: Path) -> bool:
    """Whether ``place`` leads to the object at ``target``."""
    try:
        return place.samefile(target)
    except OSError:
        return False


def look_alike(one: Path, other: Path, size_bytes: int) -> bool:
    """Whether two files of that size agree in many small places, the ends among them.

    Trained and merged models differ in whole tensors, if at all; most of a file is not read.

    Raises:
        OSError: one of them cannot be read.
    """
    last = max(size_bytes - _SAMPLE_BYTES, 0)
    with one.open("rb", buffering=0) as first, other.open("rb", buffering=0) as second:
        for offset in {last * number // (_SAMPLES - 1) for number in range(_SAMPLES)}:
            if os.pread(first.fileno(), _SAMPLE_BYTES, offset) != os.pread(
                second.fileno(), _SAMPLE_BYTES, offset
            ):
                return False
    return True


def hash_file(path: Path, *, pause: Callable[[], None] = lambda: None) -> str:
    """sha256 of a file; ``pause`` is called before every few MiB (to check cancellation).

    The page cache is not filled with it: other programs need that more.
    """
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        offset = 0
        while chunk := file.read(_CHUNK_BYTES):
            pause()
            digest.update(chunk)
            with contextlib.suppress(OSError):
                os.posix_fadvise(file.fileno(), offset, len(chunk), os.POSIX_FADV_DONTNEED)
            offset += len(chunk)
    return digest.hexdigest()


def open_files(proc: Path = Path("/proc")) -> frozenset[tuple[int, int]]:
    """(device, inode) of every file that a visible process has open or mapped.

    A model that is mapped need not be open any more. Which files a process has mapped is
    asked of map_files and, since most containers lack the capability for that, of maps.
    """
    found: set[tuple[int, int]] = set()
    for process in proc.iterdir():
        if not process.name.isdigit():
            continue
        for entry in (*listed(process / "fd"), *listed(process / "map_files")):
            _add(found, entry)
        for path in _mapped(process):
            _add(found, path)
    return frozenset(found)


def _mapped(process: Path) -> Iterator[Path]:
    """Paths in /proc/PID/maps, as that process sees them: proc(5)."""
    try:
        text = (process / "maps").read_bytes()
    except OSError:
        return
    names = {line.split(None, 5)[5] for line in text.splitlines() if b" /" in line}
    for name in names:
        yield process / "root" / os.fsdecode(name).lstrip("/")


def _add(found: set[tuple[int, int]], path: Path) -> None:
    with contextlib.suppress(OSError):
        info = path.stat()
        found.add((info.st_dev, info.st_ino))


def has_writer(path: Path) -> bool:
    """Whether some process of this machine has the file open for writing: F_SETLEASE, fcntl(2).

    False also where nobody can tell: another user's file without CAP_LEASE, some network disks.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        # A writer that comes in these microseconds sends a signal: SIGIO would end the
        # process, SIGURG is ignored by default.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as exc:
        return exc.errno == errno.EAGAIN
    finally:
        os.close(descriptor)
    return False


def checked_copy(
    source: Path, target: Path, sha256: str, *, pause: Callable[[], None] = lambda: None
) -> None:
    """Copy a file, flush it and hash the copy; ``pause`` as in ``hash_file``.

    Raises:
        OSError: the copy failed, or differs.
    """
    _copy(source, target, pause=pause)
    descriptor = os.open(target, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if hash_file(target, pause=pause) != sha256:
        raise OSError(errno.EIO, "the copy differs from its source")


def _copy(source: Path, target: Path, *, pause: Callable[[], None]) -> None:
    with source.open("rb", buffering=0) as reader, target.open("wb") as writer:
        while chunk := reader.read(_CHUNK_BYTES):
            writer.write(chunk)
            pause()


def copy_if_possible(source: Path, target: Path, *, pause: Callable[[], None]) -> None:
    """Copy a folder; where there is no room for it, the fetch begins anew."""
    half = target.with_name(f".{target.name}.{secrets.token_hex(4)}")

    def copy(file: str, place: str) -> None:
        _copy(Path(file), Path(place), pause=pause)

    try:
        shutil.copytree(source, half, copy_function=copy)
        half.rename(target)
    except BaseException as exc:
        shutil.rmtree(half, ignore_errors=True)
        if not isinstance(exc, OSError):  # shutil.Error is one
            raise


def listed(folder: Path) -> list[Path]:
    """What is in a folder; nothing when it cannot be read."""
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def changed_s(path: Path) -> float:
    """The last change of a file, or of anything in a folder."""
    newest = 0.0
    for entry in (path, *path.rglob("*")):
        with contextlib.suppress(OSError):
            newest = max(newest, entry.lstat().st_ctime)
    return newest


def delete(path: Path) -> None:
    """Remove a file, or a folder with all that is in it, as far as possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
