"""Files that are already on this machine: ``file://`` addresses."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from urllib.parse import unquote, urlsplit

import anyio
import anyio.from_thread
import anyio.to_thread

from supervisor.core.journal import sync_directory
from supervisor.core.status import DownloadState
from supervisor.download.request import (
    DownloadRequest,
    Progress,
    ProgressCallback,
    Resolved,
    TransferResult,
)
from supervisor.errors import (
    ChecksumMismatchError,
    DiskFullError,
    NotFoundError,
    PermanentTransferError,
)
from supervisor.models.folders import safe_file_name
from supervisor.models.sources.base import SourceContext, require_agreement

_CHUNK_BYTES = 8 * 1024 * 1024


class FileSource:
    """Copies a local file into place, hashing it on the way."""

    def __init__(self, context: SourceContext) -> None:
        del context  # nothing to authenticate

    async def resolve(self, request: DownloadRequest) -> Resolved:
        """Look at the file.

        Raises:
            PermanentTransferError: it is not a readable regular file.
        """
        path = _path(request)
        try:
            info = await anyio.to_thread.run_sync(path.stat)
        except OSError as exc:
            raise NotFoundError(
                f"Cannot fetch {request.name}: {path}: {exc.strerror}",
                hint="check the path, and that the volume is mounted",
            ) from exc
        if not path.is_file():
            raise PermanentTransferError(f"Cannot fetch {request.name}: {path} is not a file")
        return require_agreement(
            request,
            Resolved(
                url=path.as_uri(),
                size_bytes=info.st_size,
                etag=f"{info.st_mtime_ns:x}-{info.st_size:x}",
                file_name=safe_file_name(path.name),
            ),
        )

    async def fetch(self, request: DownloadRequest, progress: ProgressCallback) -> TransferResult:
        """Copy in a thread; published by rename once complete and verified.

        A copy has its source's time: what was not touched since is not copied again.
        Cancellation removes the partial copy.

        Raises:
            TransferError: see ``Downloader.fetch``.
        """
        resolved = await self.resolve(request)
        source = _path(request)
        if request.sha256 is None and await anyio.to_thread.run_sync(_is_copy, source, request):
            return TransferResult(request.destination, resolved.size_bytes or 0, None, 0)
        return await anyio.to_thread.run_sync(
            partial(_copy, source, request, resolved.size_bytes or 0, progress),
        )


def _path(request: DownloadRequest) -> Path:
    parts = urlsplit(request.reference or request.url)
    path = Path(unquote(parts.path))
    if parts.scheme != "file" or parts.netloc not in ("", "localhost") or not path.is_absolute():
        raise PermanentTransferError(
            f"Cannot fetch {request.name}: {request.url} is not a file:///absolute/path address"
        )
    return path


def _is_copy(source: Path, request: DownloadRequest) -> bool:
    try:
        ours, copy = source.stat(), request.destination.stat()
    except OSError:
        return False
    return (ours.st_size, ours.st_mtime_ns) == (copy.st_size, copy.st_mtime_ns)


def _copy(
    source: Path, request: DownloadRequest, total: int, progress: ProgressCallback
) -> TransferResult:
    destination = request.destination
    partial_path = destination.with_name(f".{destination.name}.copy")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        # ComfyUI may own this folder: what lies there is removed and never written through.
        partial_path.unlink(missing_ok=True)
        with source.open("rb") as reader, partial_path.open("xb") as writer:
            info = os.fstat(reader.fileno())
            digest = _pump(reader.read, writer.write, total, progress)
            writer.flush()
            os.utime(writer.fileno(), ns=(info.st_atime_ns, info.st_mtime_ns))
            os.fsync(writer.fileno())
        if request.sha256 and digest != request.sha256:
            raise ChecksumMismatchError(
                f"Cannot fetch {request.name}: {source} has sha256 {digest}, "
                f"{request.sha256} is expected",
                hint="the file was replaced: update the entry",
            )
        size = partial_path.stat().st_size
        partial_path.replace(destination)
        sync_directory(destination.parent)
    except OSError as exc:
        kind = DiskFullError if exc.errno in (28, 122) else PermanentTransferError
        raise kind(f"Cannot copy {source} to {destination}: {exc.strerror}") from exc
    finally:
        partial_path.unlink(missing_ok=True)
    return TransferResult(destination, size, digest, 0)


def _pump(
    read: Callable[[int], bytes],
    write: Callable[[bytes], int],
    total: int,
    progress: ProgressCallback,
) -> str:
    digest, done = hashlib.sha256(), 0
    while chunk := read(_CHUNK_BYTES):
        anyio.from_thread.check_cancelled()
        digest.update(chunk)
        write(chunk)
        done += len(chunk)
        anyio.from_thread.run_sync(progress, Progress(DownloadState.ACTIVE, done, total))
    return digest.hexdigest()
