"""A pod for tests of the shared store: fetches one file slowly, as its own process.

    python -m tests.support.pod ROOT NAME SHA256 SOURCE LEASE_S [STEP]

Prints "started" when its transfer begins and "done FETCHED" at the end. Every transfer
adds a line to ROOT/transfers and has 20 pieces, with POD_PAUSE_S (0.1) after each. With STEP
(put, _place or clear_incoming, a method of the store; none for none) it prints "at STEP"
there and waits to be killed.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import anyio

from supervisor.core.status import DownloadState
from supervisor.download.request import (
    DownloadRequest,
    Progress,
    ProgressCallback,
    Resolved,
    Resolver,
    TransferResult,
)
from supervisor.errors import TransferError
from supervisor.models.leases import Leases
from supervisor.models.store import ModelStore
from supervisor.models.transfers import StoreDownloader


class SlowEngine:
    """Appends the rest of the source to what is there, a piece at a time."""

    def __init__(self, log: Path, source: Path, pause_s: float) -> None:
        self._log, self._source, self._pause_s = log, source, pause_s

    async def fetch(
        self, request: DownloadRequest, resolver: Resolver, progress: ProgressCallback
    ) -> TransferResult:
        data = self._source.read_bytes()
        request.destination.parent.mkdir(parents=True, exist_ok=True)
        part = request.destination.with_suffix(".part")
        done = part.stat().st_size if part.exists() else 0
        with self._log.open("a") as log:
            log.write(f"{done}\n")
        print("started", flush=True)
        fetched = 0
        if request.destination.exists():  # whole: it was renamed to this name
            return TransferResult(request.destination, len(data), None, 0)
        with part.open("ab") as file:
            while done < len(data):
                piece = data[done : done + max(len(data) // 20, 1)]
                file.write(piece)
                file.flush()
                done += len(piece)
                fetched += len(piece)
                progress(Progress(DownloadState.ACTIVE, done, len(data)))
                await anyio.sleep(self._pause_s)
        part.replace(request.destination)
        return TransferResult(request.destination, len(data), None, fetched)


class NoResolver:
    async def resolve(self, request: DownloadRequest) -> Resolved:
        return Resolved(url=request.url, etag="same")


def halted(step: str) -> Callable[..., None]:
    """Stands in for a method of the store."""

    def halt(*_: object, **__: object) -> None:
        print(f"at {step}", flush=True)
        threading.Event().wait()

    return halt


async def main(
    root: Path, name: str, digest: str, source: tuple[Path, int], lease_s: float
) -> None:
    origin, size = source
    store = ModelStore(root / "store")
    engine = SlowEngine(root / "transfers", origin, float(os.environ.get("POD_PAUSE_S", "0.1")))
    leases = Leases(store.locks, lease_s=lease_s, pod=os.environ.get("RUNPOD_POD_ID", ""))
    downloader = StoreDownloader(engine, store, leases)
    request = DownloadRequest(
        name="f.bin",
        url="https://example.com/f.bin",
        destination=root / name / "loras" / "f.bin",
        sha256=None if digest == "unknown" else digest,
        size_bytes=size,
    )
    try:
        result = await downloader.fetch(request, NoResolver(), lambda _: None)
    except TransferError as error:
        print(f"failed {type(error).__name__}: {error.message}", flush=True)
        raise
    print(f"done {result.bytes_fetched}", flush=True)


if __name__ == "__main__":
    path = Path(sys.argv[4])
    for name_of_step in set(sys.argv[6:7]) - {"none"}:
        setattr(ModelStore, name_of_step, halted(name_of_step))
    source_of = (path, path.stat().st_size)
    anyio.run(main, Path(sys.argv[1]), sys.argv[2], sys.argv[3], source_of, float(sys.argv[5]))
