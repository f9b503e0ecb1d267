"""A local folder as the target: the embedded default, with the guarantees of a bucket."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from anyio import to_thread

from supervisor.core.clock import wall_time_s
from supervisor.core.journal import sync_directory
from supervisor.errors import ChecksumMismatchError, TransferError, TransientTransferError
from supervisor.sync.model import Identity, RemoteFile, Stored, Upload
from supervisor.sync.pacing import RateLimiter
from supervisor.sync.target import (
    KeyTakenError,
    TargetRefusedError,
    read_chunks,
    sha256_of,
)

_INCOMING = ".supervisor-incoming"
_STALE_S = 24 * 3600.0
# One thread call copies so much, so that a stop never waits for a whole video.
_CHUNKS_PER_HOP = 64


class FolderTarget:
    """Copies to a temporary name on the same disk, flushes, and renames."""

    def __init__(self, folder: Path, *, limiter: RateLimiter) -> None:
        self._folder = folder
        self._limiter = limiter
        self._incoming = folder / _INCOMING

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
        temporary = self._incoming / secrets.token_hex(16)
        try:
            return await self._store(upload, temporary)
        except OSError as exc:
            raise _refused(exc, self._folder) from exc
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)

    async def _store(self, upload: Upload, temporary: Path) -> Stored:
        destination = self._folder / upload.key
        stored = Stored(upload.sha256, verified=True)
        if await to_thread.run_sync(self._holds, destination, upload):
            return Stored(upload.sha256, verified=True, sent=False)
        await to_thread.run_sync(self._prepare, destination)
        digest = hashlib.sha256()
        chunks = read_chunks(upload.source, upload.identity)
        with await to_thread.run_sync(lambda: temporary.open("xb", buffering=0)) as file:
            while size := await to_thread.run_sync(_copy_some, chunks, file, digest):
                await self._limiter.spend(size)
            await to_thread.run_sync(os.fsync, file.fileno())
        if digest.hexdigest() != upload.sha256:
            raise ChecksumMismatchError(f"Cannot store {upload.key}: it was read differently twice")
        await to_thread.run_sync(self._publish, temporary, destination, upload)
        return stored

    def _prepare(self, destination: Path) -> None:
        self._incoming.mkdir(parents=True, exist_ok=True)
        destination.parent.mkdir(parents=True, exist_ok=True)

    def _holds(self, destination: Path, upload: Upload) -> bool:
        """Whether the very bytes are there already.

        Raises:
            KeyTakenError: others are, and may not be replaced.
        """
        try:
            found = destination.lstat()
        except OSError:
            return False
        same = found.st_size == upload.identity.size_bytes and (
            sha256_of(destination, Identity.of(found)) == upload.sha256
        )
        if not same and not upload.replace:
            raise KeyTakenError(f"Cannot store {upload.key}: another file has that name")
        return same

    def _publish(self, temporary: Path, destination: Path, upload: Upload) -> None:
        mtime_ns = upload.identity.mtime_ns
        os.utime(temporary, ns=(mtime_ns, mtime_ns))
        if upload.replace:
            temporary.replace(destination)
        else:
            self._link(temporary, destination, upload)
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
        """Remove what a killed run has left; another pod's fresh files stay."""
        with suppress(OSError):
            for leftover in self._incoming.iterdir():
                if leftover.stat().st_mtime < wall_time_s() - _STALE_S:
                    leftover.unlink(missing_ok=True)


def _copy_some(chunks: Iterator[bytes], file: object, digest: hashlib._Hash) -> int:
    size = 0
    for _ in range(_CHUNKS_PER_HOP):
        chunk = next(chunks, b"")
        if not chunk:
            break
        digest.update(chunk)
        view = memoryview(chunk)
        while view:
            view = view[os.write(file.fileno(), view) :]  # type: ignore[attr-defined]
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
    if exc.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
        return TargetRefusedError(
            f"Cannot store in {folder}: {exc.strerror}",
            reason="refused",
            hint="make the folder writable for the supervisor, or set another [sync] folder",
            act=True,
        )
    return TransientTransferError(f"Cannot store in {folder}: {exc.strerror or exc}")
