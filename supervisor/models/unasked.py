"""What is on the volume is used when its source cannot be asked.

A volume full of models must not wait for a hub that is down, or is left out on purpose.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar
from urllib.parse import urlsplit

import anyio
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
from supervisor.models.abilities import Restorer
from supervisor.models.preflight import Preflight
from supervisor.models.transfers import ResolvedAhead

_UNASKABLE = (TransientTransferError, AuthRequiredError, NotFoundError, UnreachableError)
# A source gets less time to speak about what is there than about what is not.
_ANSWER_S = 10.0
# Who has just been silent is not waited for again with every file.
_SILENT_S = 60.0

T = TypeVar("T")
Kept = Callable[[DownloadRequest, TransferError], None]


class Unasked:
    """Asks sources about what is on the volume already, and does without their answer."""

    def __init__(self, preflight: Preflight, kept: Kept, *, answer_s: float = _ANSWER_S) -> None:
        """``kept`` is told what is used as it is, and why."""
        self._preflight = preflight
        self._memory = preflight.memory
        self._kept = kept
        self._answer_s = answer_s
        self._silent_since_s: dict[str, float] = {}
        self._folders: dict[str, DownloadRequest] = {}

    @property
    def unanswered(self) -> tuple[DownloadRequest, ...]:
        """Folders that are taken for what they were when their source last answered."""
        return tuple(self._folders.values())

    async def fetch(
        self,
        downloader: Downloader,
        request: DownloadRequest,
        resolver: ResolvedAhead,
        progress: ProgressCallback,
    ) -> TransferResult:
        """Fetch a file; one that is whole is used as it is when its source cannot be asked.

        Whether the file is the one with a known hash is no question to its source.

        Raises:
            TransferError: as ``Downloader.fetch``.
        """
        if request.sha256 is None:
            if isinstance(downloader, Restorer):
                await downloader.restore(request)
            size = await anyio.to_thread.run_sync(_whole, request)
            if size is not None:
                try:
                    await self._ask(request, partial(resolver.ask, request))
                except _UNASKABLE as exc:
                    self._kept(request, exc)
                    return TransferResult(request.destination, size, None, 0)
        return await downloader.fetch(request, resolver, progress)

    async def unfold(self, folder: DownloadRequest) -> tuple[DownloadRequest, ...]:
        """Name the files of a folder; as they were last time when all of those are there
        and its source cannot be asked.

        Raises:
            TransferError: as ``Preflight.expand``.
        """
        known = await anyio.to_thread.run_sync(self._memory.recall, folder)
        if not known:
            return await self.ask_again(folder)
        try:
            return await self._ask(folder, partial(self.ask_again, folder))
        except _UNASKABLE as exc:
            if folder.name not in self._folders:
                self._kept(folder, exc)
            self._folders[folder.name] = folder
            return known

    async def ask_again(self, folder: DownloadRequest) -> tuple[DownloadRequest, ...]:
        """Ask for the files of a folder, however long the answer takes, and note it.

        Raises:
            TransferError: as ``Preflight.expand``.
        """
        files = await self._preflight.expand(folder)
        self._folders.pop(folder.name, None)
        await anyio.to_thread.run_sync(self._memory.remember, folder, files)
        return files

    async def _ask(self, request: DownloadRequest, question: Callable[[], Awaitable[T]]) -> T:
        host = urlsplit(request.url).netloc
        since_s = self._silent_since_s.get(host)
        if since_s is not None and anyio.current_time() - since_s < _SILENT_S:
            raise TransientTransferError(f"Cannot ask about {request.name}: {host} is silent")
        try:
            with anyio.fail_after(self._answer_s):
                return await question()
        except TimeoutError:
            self._silent_since_s[host] = anyio.current_time()
            raise TransientTransferError(
                f"Cannot ask about {request.name}: no answer from {host or 'its source'} "
                f"within {self._answer_s:g} s"
            ) from None


def _whole(request: DownloadRequest) -> int | None:
    """Size of the file that is there, if it is whole as far as can be told without its source."""
    place = request.destination
    if request.size_bytes is not None:
        return existing_file(place, request.size_bytes, None)
    try:
        check_file(place)
        return place.stat().st_size
    except (OSError, PermanentTransferError):
        return None
