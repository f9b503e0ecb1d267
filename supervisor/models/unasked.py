"""What is on the disk is used when its source cannot be asked."""

from __future__ import annotations

from collections.abc import Callable

import anyio.to_thread

from supervisor.download.request import (
    Downloader,
    DownloadRequest,
    ProgressCallback,
    TransferResult,
)
from supervisor.download.storage import existing_file
from supervisor.download.verify import check_file
from supervisor.errors import (
    AuthRequiredError,
    NotFoundError,
    PermanentTransferError,
    TransferError,
    TransientTransferError,
    UnreachableError,
)
from supervisor.models.transfers import ResolvedAhead


async def fetch_or_keep(
    downloader: Downloader,
    request: DownloadRequest,
    resolver: ResolvedAhead,
    progress: ProgressCallback,
    kept: Callable[[TransferError], None],
) -> TransferResult:
    """Fetch a file; one that is whole is used as it is when its source cannot be asked.

    A volume full of models must not wait for a hub that is down, or is left out on purpose.
    ``kept`` is told why.

    Raises:
        TransferError: as ``Downloader.fetch``.
    """
    try:
        return await downloader.fetch(request, resolver, progress)
    except (TransientTransferError, AuthRequiredError, NotFoundError, UnreachableError) as exc:
        size = None if resolver.answered else await anyio.to_thread.run_sync(_whole, request)
        if size is None:
            raise
        kept(exc)
        return TransferResult(request.destination, size, None, 0)


def _whole(request: DownloadRequest) -> int | None:
    """Size of the file that is there, if it is whole as far as can be told without its source."""
    place, size, sha256 = request.destination, request.size_bytes, request.sha256
    if size is not None or sha256 is not None:
        return existing_file(place, size, sha256)
    try:
        check_file(place)
        return place.stat().st_size
    except (OSError, PermanentTransferError):
        return None
