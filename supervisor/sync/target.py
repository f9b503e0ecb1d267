"""What a place to store files offers, and what every implementation needs."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from supervisor.errors import TransferError, TransientTransferError
from supervisor.sync.model import Identity, RemoteFile, Stored, Upload
from supervisor.sync.stability import open_regular

CHUNK_BYTES = 1024 * 1024


class KeyTakenError(TransferError):
    """Other bytes are at the key (or nobody may look): the file needs another key."""


class FileChangedError(TransferError):
    """The local file is no longer what was announced; it will be looked at again."""


class TargetRefusedError(TransientTransferError):
    """The target as a whole refuses or is not there: every file has to wait.

    ``act``: it will not go away until a person changes something.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: str,
        hint: str | None = None,
        retry_after_s: float | None = None,
        act: bool = False,
    ) -> None:
        super().__init__(message, hint=hint, retry_after_s=retry_after_s)
        self.reason = reason
        self.act = act


class Target(Protocol):
    """A place that keeps files. Entering and leaving it must be cheap until it is used."""

    @property
    def description(self) -> str:
        """Where it is, for people; never holds a secret."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    async def prepare(self) -> None:
        """Load and open what the first upload needs; sends nothing."""
        ...

    async def store(self, upload: Upload) -> Stored:
        """Store one file; when it returns the bytes are safe. Repeating it is harmless.

        Cancellation leaves what ``upload.record`` was told, to resume from.

        Raises:
            KeyTakenError: other bytes are there and ``replace`` is off.
            FileChangedError: the local file changed or vanished meanwhile.
            TargetRefusedError: all files have to wait.
            TransientTransferError, PermanentTransferError: this file failed.
        """
        ...

    async def abandon(self, key: str, upload_id: str) -> None:
        """Abort an upload of a dead run whose file is gone or changed."""
        ...

    def list(self, prefix: str) -> AsyncIterator[RemoteFile]:
        """Yield what is stored below a prefix."""
        ...

    async def fetch(self, key: str, destination: Path, *, newer_than_s: float | None) -> bool:
        """Write an object to a local file, atomically and with its mtime.

        Returns False, having written nothing, when it is not newer than the given instant.
        """
        ...


def open_exactly(path: Path, identity: Identity) -> int:
    """Open exactly this content of a file for reading; blocking.

    Raises:
        FileChangedError: it is gone, or something else.
    """
    try:
        fd = open_regular(path)
    except OSError as exc:
        raise FileChangedError(f"Cannot read {path.name}: {exc.strerror}") from exc
    try:
        _expect(path, identity, os.fstat(fd))
    except FileChangedError:
        os.close(fd)
        raise
    return fd


def read_chunks(path: Path, identity: Identity) -> Iterator[bytes]:
    """Yield the bytes of exactly this content of a file; blocking.

    Raises:
        FileChangedError: before, while or after reading it was something else.
    """
    fd = open_exactly(path, identity)
    with os.fdopen(fd, "rb", buffering=0) as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
        _expect(path, identity, os.fstat(fd))


def sha256_of(path: Path, identity: Identity) -> str:
    """Hash exactly this content of a file; blocking.

    Raises:
        FileChangedError: it is no longer that content.
    """
    digest = hashlib.sha256()
    hash_span(path, identity, digest, offset=0, size_bytes=identity.size_bytes)
    return digest.hexdigest()


def hash_span(
    path: Path, identity: Identity, digest: hashlib._Hash, *, offset: int, size_bytes: int
) -> None:
    """Feed a span of exactly this content of a file to ``digest``; blocking.

    Raises:
        FileChangedError: it is no longer that content.
    """
    fd = open_exactly(path, identity)
    # One buffer for all reads: a new one each time would cost as much as the hashing.
    buffer = memoryview(bytearray(min(CHUNK_BYTES, max(1, size_bytes))))
    try:
        while size_bytes > 0:
            got = os.preadv(fd, [buffer[:size_bytes]], offset)
            if not got:
                raise FileChangedError(f"Cannot read {path.name}: it is shorter than before")
            digest.update(buffer[:got])
            offset, size_bytes = offset + got, size_bytes - got
        _expect(path, identity, os.fstat(fd))
    finally:
        os.close(fd)


def read_all(path: Path, identity: Identity) -> bytes:
    """Read exactly this content of a small file; blocking.

    Raises:
        FileChangedError: it is no longer that content.
    """
    return b"".join(read_chunks(path, identity))


def expect_unchanged(path: Path, identity: Identity) -> None:
    """Raise FileChangedError unless the path still holds this content; blocking."""
    try:
        _expect(path, identity, path.lstat())
    except OSError as exc:
        raise FileChangedError(f"Cannot read {path.name}: {exc.strerror}") from exc


def _expect(path: Path, identity: Identity, found: os.stat_result) -> None:
    if Identity.of(found) != identity:
        raise FileChangedError(f"Cannot upload {path.name} yet: it has just changed")
