"""What is to be downloaded, and the interfaces between the engine and its sources."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from supervisor.core.status import DownloadState


@dataclass(frozen=True, slots=True)
class DownloadRequest:
    """One file that is wanted at ``destination`` (absolute, below ``root``).

    ``reference`` is what the source understands: the URL for ``http``, "repo:path@revision"
    for ``huggingface``, the version id for ``civitai``. ``url`` is for people and never holds
    a secret. ``size_bytes`` and ``sha256`` are None while unknown. A destination that ends
    in "/" (see ``directory``) takes the name that the source announces.
    """

    name: str  # unique; shown in status, usually the path below the models folder
    url: str
    destination: Path
    source: str = "http"
    reference: str = ""
    size_bytes: int | None = None
    sha256: str | None = None
    bundle: str | None = None
    required: bool = False
    mirrors: tuple[str, ...] = ()
    directory: bool = False
    urgent: bool = False  # somebody waits for it: its connections go before all others


@dataclass(frozen=True, slots=True)
class Resolved:
    """Where the bytes are right now. ``headers`` go to the host of ``url`` only.

    ``signed``: another host handed the address out, and it may expire.
    """

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    size_bytes: int | None = None
    sha256: str | None = None
    etag: str | None = None
    file_name: str | None = None
    signed: bool = False


class Resolver(Protocol):
    """A source of models; ``models.sources`` implements one each."""

    async def resolve(self, request: DownloadRequest) -> Resolved:
        """Find the bytes; called again when a signed URL has expired.

        Raises:
            PermanentTransferError: no access, no such file.
            TransientTransferError: worth another try.
        """
        ...


@dataclass(frozen=True, slots=True)
class Progress:
    """A step of one transfer, handed to the callback at most a few times a second."""

    state: DownloadState
    bytes_done: int
    bytes_total: int | None
    rate_bytes_per_s: float = 0.0
    message: str | None = None  # why it waits or retries

    @property
    def eta_s(self) -> float | None:
        """Seconds until the last byte at this rate; None while unknown."""
        if self.bytes_total is None or self.rate_bytes_per_s <= 0:
            return None
        return (self.bytes_total - self.bytes_done) / self.rate_bytes_per_s


ProgressCallback = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class TransferResult:
    """A finished file. ``bytes_fetched`` counts what came over the network this time."""

    path: Path
    size_bytes: int
    sha256: str | None
    bytes_fetched: int


class Downloader(Protocol):
    """An engine: fetches one file completely, or raises."""

    async def fetch(
        self, request: DownloadRequest, resolver: Resolver, progress: ProgressCallback
    ) -> TransferResult:
        """Resume or start, verify, publish by atomic rename.

        Cancellation leaves the partial file and its state, so that a later call resumes.

        Raises:
            PermanentTransferError: with a hint.
            TransientTransferError: the retries of this call are used up.
        """
        ...
