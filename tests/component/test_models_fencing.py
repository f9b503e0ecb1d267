"""Who lost a lock, or never had it, publishes nothing: also in the moments that are hard to hit."""

from __future__ import annotations

import hashlib
from pathlib import Path

import anyio
import pytest

from supervisor.download.request import (
    DownloadRequest,
    ProgressCallback,
    Resolver,
    TransferResult,
)
from supervisor.errors import TransientTransferError
from supervisor.models import leases as leases_module
from supervisor.models.leases import Lease, Leases
from supervisor.models.store import ModelStore
from supervisor.models.transfers import StoreDownloader
from tests.support.pod import NoResolver

pytestmark = pytest.mark.anyio

DATA = b"weights"
DIGEST = hashlib.sha256(DATA).hexdigest()


async def test_a_lock_that_was_lost_while_fetching_publishes_nothing(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "store")

    class Engine:
        async def fetch(
            self, request: DownloadRequest, resolver: Resolver, progress: ProgressCallback
        ) -> TransferResult:
            request.destination.write_bytes(DATA)
            (store.locks / DIGEST / "0000000002").write_text("{}")  # another pod took over
            return TransferResult(request.destination, len(DATA), DIGEST, len(DATA))

    place = tmp_path / "models" / "m.bin"
    request = DownloadRequest("m.bin", "http://h/m", place, sha256=DIGEST, size_bytes=len(DATA))
    # It is the look before publishing that notices: the next beat is seconds away.
    downloader = StoreDownloader(Engine(), store, Leases(store.locks, lease_s=3600.0))
    with pytest.raises(TransientTransferError, match="another pod took over"):
        await downloader.fetch(request, NoResolver(), lambda _: None)
    assert not store.has(DIGEST)
    assert not place.exists()


async def test_who_looked_too_long_ago_does_not_get_in_beside_the_holder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its generation was given, used and swept away meanwhile, so that it can be created."""
    looks, got = 0, list[Lease]()
    observe = leases_module._observe

    def late(folder: Path) -> tuple[int, bytes]:
        nonlocal looks
        looks += 1
        return (0, b"") if looks == 1 else observe(folder)

    async def other() -> None:
        async with Leases(tmp_path, lease_s=5.0).hold("k") as lease:
            got.append(lease)

    leases = Leases(tmp_path, lease_s=5.0)
    async with leases.hold("k"):
        pass
    with anyio.fail_after(60):
        async with anyio.create_task_group() as group, leases.hold("k"):
            monkeypatch.setattr(leases_module, "_observe", late)
            group.start_soon(other)
            while looks < 3 and not got:
                await anyio.sleep(0.01)
            assert not got
    assert [lease.generation for lease in got] == [3]
