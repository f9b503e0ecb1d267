"""What a source may be able to do besides ``Resolver.resolve``."""

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
