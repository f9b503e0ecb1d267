"""What sources and downloaders may be able to do besides ``resolve`` and ``fetch``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from supervisor.download.request import DownloadRequest, ProgressCallback, TransferResult


@runtime_checkable
class Expander(Protocol):
    """Can turn one request into the files it stands for."""

    async def expand(self, request: DownloadRequest) -> tuple[DownloadRequest, ...]:
        """Name every file of a folder, repository or version, with its destination.

        Raises:
            TransferError: as ``Resolver.resolve``.
        """
        ...


@runtime_checkable
class DirectFetcher(Protocol):
    """Needs no HTTP engine: ``fetch`` is ``Downloader.fetch`` without a resolver."""

    async def fetch(self, request: DownloadRequest, progress: ProgressCallback) -> TransferResult:
        """Publish the file at its destination, or raise ``TransferError``."""
        ...


@runtime_checkable
class Mirrored(Protocol):
    """Knows the addresses under which its endpoint has what lies at others."""

    def mirrors(self, addresses: Sequence[str]) -> tuple[str, ...]:
        """Other addresses of a file, of which some may be of no use here."""
        ...


@runtime_checkable
class Restorer(Protocol):
    """A downloader that knows what it once fetched for a file, wherever its place went."""

    async def restore(self, request: DownloadRequest) -> None:
        """Put that in the place of a file that is gone; do nothing when there is none."""
        ...
