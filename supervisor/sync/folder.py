"""A local folder as the target: the embedded default, with the guarantees of a bucket."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self, cast

from anyio import to_thread

from supervisor.core.clock import wall_time_s
from supervisor.core.journal import sync_directory
from supervisor.errors import (
    ChecksumMismatchError,
    PermanentTransferError,
    TransferError,
    TransientTransferError,
)
from supervisor.sync.model import Identity, RemoteFile, Stored, Upload
from supervisor.sync.pacing import RateLimiter
from supervisor.sync.stability import on_network
from supervisor.sync.target import (
    CHUNK_BYTES,
    KeyTakenError,
    TargetRefusedError,
    read_chunks,
    sha256_of,
)

_INCOMING = ".supervisor-incoming"
_STALE_S = 24 * 3600.0
# One thread call copies so much, so that a stop never waits for a whole video.
_HOP_BYTES = 64 * CHUNK_BYTES
# What not every file system has: fsync of a folder, times that anybody may set.
_UNSUPPORTED = frozenset(
    {errno.EINVAL, errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTTY, errno.EBADF}
)


class FolderTarget:
    """Copies to a temporary name on the same disk, flushes, and renames."""

    def __init__(self, folder: Path, *, limiter: RateLimiter) -> None:
        self._folder = folder
        self._limiter = limiter
        self._mount: Mount | None = None

    @property
    def description(self) -> str:
        """The path of the folder."""
        return str(self._folder)

    async def __aenter__(self) -> Self:
        await to_thread.run_sync(self._clean)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    async def prepare(self) -> None:
        """Nothing has to be loaded."""

    async def store(self, upload: Upload) -> Stored:
        """Store one file; see ``Target.store``."""
        try:
            return await self._store(upload)
        except OSError as exc:
            raise _refused(exc, self._folder) from exc

    async def _store(self, upload: Upload) -> Stored:
        destination = self._folder / upload.key
        if await to_thread.run_sync(self._holds, destination, upload):
            return Stored(upload.sha256, verified=True, sent=False)
        temporary = await to_thread.run_sync(self._prepare, destination, upload)
        try:
            await self._copy(upload, temporary)
            await to_thread.run_sync(self._publish, temporary, destination, upload)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        return Stored(upload.sha256, verified=True)

    async def _copy(self, upload: Upload, temporary: Path) -> None:
        digest = hashlib.sha256()
        chunks = read_chunks(upload.source, upload.identity)
        count = max(1, self._limiter.piece_bytes(_HOP_BYTES) // CHUNK_BYTES)
        with await to_thread.run_sync(_create, temporary) as file:
            while size := await to_thread.run_sync(_copy_some, chunks, file, digest, count):
                await self._limiter.spend(size)
            await to_thread.run_sync(os.fsync, file.fileno())
        if digest.hexdigest() != upload.sha256:
            raise ChecksumMismatchError(f"Cannot store {upload.key}: it was read differently twice")

    def _prepare(self, destination: Path, upload: Upload) -> Path:
        """Make the folders of a destination; returns a temporary name on the same disk.

        Raises:
            OSError: the folders cannot be made, or the disk has no room: it is not filled
                to its last byte in vain, others write there, too.
        """
        self._expect_mount()
        _make_folder(self._folder)
        try:
            _make_folder(destination.parent)
        except (FileExistsError, NotADirectoryError) as exc:
            raise PermanentTransferError(
                f"Cannot store {destination}: a file is in the place of one of its folders",
                hint="move that file away, then `supervisor sync retry`",
            ) from exc
        # A link below the folder may lead to another disk.
        device = destination.parent.stat().st_dev
        parents = [*reversed(destination.relative_to(self._folder).parents)]
        place = next(p for p in parents if (self._folder / p).stat().st_dev == device)
        incoming = self._folder / place / _INCOMING
        incoming.mkdir(exist_ok=True)
        if shutil.disk_usage(incoming).free < upload.identity.size_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return incoming / secrets.token_hex(16)

    def _expect_mount(self) -> None:
        """Refuse to fill the empty folder that an unmounted disk leaves behind.

        Raises:
            TargetRefusedError: the folder was on a disk that is not there any more.
        """
        now = Mount.of(self._folder)
        if self._mount is not None and self._mount.is_gone(now):
            raise TargetRefusedError(
                f"Cannot store in {self._folder}: the disk that was mounted at"
                f" {self._mount.point} is gone",
                reason="unmounted",
                hint="mount it again; files wait until then",
                act=True,
            )
        self._mount = now

    def _holds(self, destination: Path, upload: Upload) -> bool:
        """Whether the very bytes are there already.

        Raises:
            KeyTakenError: others are, and may not be replaced.
        """
        try:
            found = destination.lstat()
        except OSError:
            return False
        same = (
            stat.S_ISREG(found.st_mode)
            and found.st_size == upload.identity.size_bytes
            and sha256_of(destination, Identity.of(found)) == upload.sha256
        )
        if not same and not upload.replace:
            raise KeyTakenError(f"Cannot store {upload.key}: another file has that name")
        return same

    def _publish(self, temporary: Path, destination: Path, upload: Upload) -> None:
        mtime_ns = upload.identity.mtime_ns
        with _where_supported():
            os.utime(temporary, ns=(mtime_ns, mtime_ns))
        if upload.replace:
            temporary.replace(destination)
        else:
            self._link(temporary, destination, upload)
        with _where_supported():
            sync_directory(destination.parent)

    def _link(self, temporary: Path, destination: Path, upload: Upload) -> None:
        try:
            destination.hardlink_to(temporary)  # unlike a rename it never replaces
        except FileExistsError:
            self._holds(destination, upload)
        except OSError as exc:
            if exc.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
                raise
            # No hard links here (exFAT, some FUSE): the check and the rename are two steps.
            if not self._holds(destination, upload):
                temporary.replace(destination)

    async def abandon(self, key: str, upload_id: str) -> None:
        """Nothing outlives a store here."""

    async def list(self, prefix: str) -> AsyncIterator[RemoteFile]:
        """Yield the files below a prefix."""
        for found in await to_thread.run_sync(lambda: [*self._walk(prefix)]):
            yield found

    def _walk(self, prefix: str) -> Iterator[RemoteFile]:
        for folder, _, names in os.walk(self._folder / prefix):
            for name in names:
                path = Path(folder, name)
                with suppress(OSError):
                    found = path.stat()
                    key = str(path.relative_to(self._folder))
                    yield RemoteFile(key, found.st_size, found.st_mtime)

    async def fetch(self, key: str, destination: Path, *, newer_than_s: float | None) -> bool:
        """Copy a stored file to ``destination``; see ``Target.fetch``."""
        try:
            return await to_thread.run_sync(self._fetch, key, destination, newer_than_s)
        except OSError as exc:
            raise TransientTransferError(f"Cannot restore {key}: {exc.strerror or exc}") from exc

    def _fetch(self, key: str, destination: Path, newer_than_s: float | None) -> bool:
        source = self._folder / key
        if newer_than_s is not None and source.stat().st_mtime <= newer_than_s:
            return False
        destination.parent.mkdir(parents=True, exist_ok=True)
        temporary = destination.with_name(f".{secrets.token_hex(8)}.part")
        try:
            shutil.copy2(source, temporary)
            temporary.replace(destination)
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def _clean(self) -> None:
        """Remove what killed runs have left; what another pod writes now stays."""
        network = on_network(self._folder)
        for incoming in (self._folder / _INCOMING, *self._folder.glob(f"*/{_INCOMING}")):
            with suppress(OSError):
                for leftover in incoming.iterdir():
                    with suppress(OSError):
                        if _is_abandoned(leftover, network=network):
                            leftover.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Mount:
    """Where the disk of a folder is mounted. ``beneath``: the device that is seen without it."""

    point: Path
    device: int
    beneath: int

    @classmethod
    def of(cls, folder: Path) -> Self:
        """Find the mount of a folder, or of what there is on the way to it."""
        there = folder.absolute()
        while not there.exists() and there != there.parent:
            there = there.parent
        there = there.resolve()
        device = there.stat().st_dev
        point = next((p for p in (there, *there.parents) if os.path.ismount(p)), Path("/"))
        return cls(point, device, point.parent.stat().st_dev)

    def is_gone(self, now: Mount) -> bool:
        """Whether what is there ``now`` is only what the mounted disk had hidden."""
        return now.device != self.device and now.device == self.beneath


def _make_folder(folder: Path) -> None:
    """Make a folder and its parents so that a power cut does not take their names back."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    with _where_supported():
        sync_directory(folder.parent)


def _create(temporary: Path) -> BinaryIO:
    """Create a file that tells by its lock that somebody writes it."""
    file = temporary.open("xb", buffering=0)
    with suppress(OSError):  # not every network file system has locks
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return cast("BinaryIO", file)


def _is_abandoned(leftover: Path, *, network: bool) -> bool:
    """Whether nobody writes a temporary file; elsewhere, only its age can tell."""
    if network:
        return leftover.stat().st_mtime < wall_time_s() - _STALE_S
    with leftover.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return True


@contextmanager
def _where_supported() -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        if exc.errno not in _UNSUPPORTED:
            raise


def _copy_some(chunks: Iterator[bytes], file: BinaryIO, digest: hashlib._Hash, count: int) -> int:
    size = 0
    for chunk in islice(chunks, count):
        digest.update(chunk)
        view = memoryview(chunk)
        while view:
            view = view[os.write(file.fileno(), view) :]
        size += len(chunk)
    return size


def _refused(exc: OSError, folder: Path) -> TransferError:
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return TargetRefusedError(
            f"Cannot store in {folder}: no space is left",
            reason="disk-full",
            hint="free some space; files wait until there is room",
            act=True,
        )
    if exc.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
        return TargetRefusedError(
            f"Cannot store in {folder}: {exc.strerror}",
            reason="refused",
            hint="make the folder writable for the supervisor, or set another [sync] folder",
            act=True,
        )
    return TransientTransferError(f"Cannot store in {folder}: {exc.strerror or exc}")
