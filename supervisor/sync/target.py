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


def read_chunks(path: Path, identity: Identity) -> Iterator[bytes]:
    """Yield the bytes of exactly this content of a file; blocking.

    Raises:
        FileChangedError: before, while or after reading it was something else.
    """
    try:
        fd = open_regular(path)
    except OSError as exc:
        raise FileChangedError(f"Cannot read {path.name}: {exc.strerror}") from exc
    with os.fdopen(fd, "rb", buffering=0) as file:
        _expect(path, identity, os.fstat(fd))
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
        _expect(path, identity, os.fstat(fd))


def sha256_of(path: Path, identity: Identity) -> str:
    """Hash exactly this content of a file; blocking.

    Raises:
        FileChangedError: it is no longer that content.
    """
    digest = hashlib.sha256()
    for chunk in read_chunks(path, identity):
        digest.update(chunk)
    return digest.hexdigest()


def read_part(path: Path, identity: Identity, *, offset: int, size_bytes: int) -> bytes:
    """Read one part of exactly this content of a file; blocking.

    Raises:
        FileChangedError: it is no longer that content.
    """
    try:
        fd = open_regular(path)
    except OSError as exc:
        raise FileChangedError(f"Cannot read {path.name}: {exc.strerror}") from exc
    try:
        data = os.pread(fd, size_bytes, offset)
        while len(data) < size_bytes and (
            more := os.pread(fd, size_bytes - len(data), offset + len(data))
        ):
            data += more
        _expect(path, identity, os.fstat(fd))
    finally:
        os.close(fd)
    if len(data) != size_bytes:
        raise FileChangedError(f"Cannot read {path.name}: it is shorter than before")
    return data


def expect_unchanged(path: Path, identity: Identity) -> None:
    """Raise FileChangedError unless the path still holds this content; blocking."""
    try:
        _expect(path, identity, path.lstat())
    except OSError as exc:
        raise FileChangedError(f"Cannot read {path.name}: {exc.strerror}") from exc


def _expect(path: Path, identity: Identity, found: os.stat_result) -> None:
    if Identity.of(found) != identity:
        raise FileChangedError(f"Cannot upload {path.name} yet: it has just changed")
