"""Everything at once: many files, an origin whose every answer may be bad, random cancels.

``DOWNLOAD_SOAK_S=600`` runs the long form; ``DOWNLOAD_SOAK_SEED`` repeats one.
"""

from __future__ import annotations

import asyncio
import os
import random
import threading
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import anyio
import pytest

from supervisor.download.engine import SegmentedDownloader
from supervisor.download.files import journal_path, part_path
from supervisor.download.request import DownloadRequest, Resolved
from supervisor.errors import AuthRequiredError, TransientTransferError
from tests.support.bad_origin import Ask, Fault, Origin, serve
from tests.support.downloads import QUICK, Log, only, random_bytes

pytestmark = pytest.mark.anyio

MIB = 1024 * 1024
SOAK_S = float(os.environ.get("DOWNLOAD_SOAK_S", "6"))
SEED = int(os.environ.get("DOWNLOAD_SOAK_SEED", "1"))
# Around every boundary that the engine knows: piece, block, nothing at all.
SIZES = (0, 1, MIB, 8 * MIB, 8 * MIB + 1, 13 * MIB + 7, 33 * MIB)


@dataclass
class Weather:
    """Decides how bad the next answer is."""

    rng: random.Random
    faults: dict[str, int] = field(default_factory=dict)

    def __call__(self, ask: Ask) -> Fault:
        if self.rng.random() < 0.6:
            return Fault(bytes_per_s=self.rng.choice((None, None, 30e6)))
        length = (ask.end or 8 * MIB) - ask.start
        at = self.rng.randrange(max(length, 1))
        expired = Fault(status=403) if "signature" in ask.path else Fault(status=502)
        name, fault = self.rng.choice(
            (
                ("cut", Fault(cut_after=at)),
                ("cut at once", Fault(cut_after=0)),
                ("stall", Fault(stall_after=at)),
                ("busy", Fault(status=503)),
                ("too many", Fault(status=429, headers=(("Retry-After", "0"),))),
                ("expired", expired),
                ("wrong range", Fault(shift=1)),
                ("no ranges", Fault(ranges=False)),
                ("chunked", Fault(chunked=True)),
                ("compressed", Fault(gzipped=True)),
                ("no length", Fault(no_length=True)),
                ("no size", Fault(unsized=True)),
                ("closing", Fault(close=True)),
                ("loris", Fault(bytes_per_s=2e4, cut_after=min(at, 4096))),
            )
        )
        self.faults[name] = self.faults.get(name, 0) + 1
        return fault


@dataclass
class Signed:
    """Another signature each time."""

    origin: Origin
    asked: int = 0

    async def resolve(self, request: DownloadRequest) -> Resolved:
        self.asked += 1
        url = f"{self.origin.url}?signature={self.asked}"
        digest = sha256(self.origin.data).hexdigest()
        return Resolved(url, size_bytes=len(self.origin.data), sha256=digest)


async def _until_whole(
    engine: SegmentedDownloader, request: DownloadRequest, source: Signed, rng: random.Random
) -> None:
    """What the manager does: again and again; now and then it is cancelled."""
    while True:
        try:
            with anyio.move_on_after(rng.choice((0.05, 0.3, 1.0, 30.0))):
                await engine.fetch(request, source, Log())
                return
        except (TransientTransferError, AuthRequiredError):
            continue  # three fresh addresses may expire in a row, in this weather


async def test_whatever_happens_the_files_are_right(tmp_path: Path) -> None:
    rng = random.Random(SEED)
    weather = Weather(rng)
    tasks = asyncio.all_tasks()
    files = 0
    deadline_s = anyio.current_time() + SOAK_S
    while anyio.current_time() < deadline_s:
        size = rng.choice(SIZES)
        async with (
            serve(random_bytes(size, seed=rng.randrange(1 << 30)), weather) as origin,
            SegmentedDownloader(
                connections=rng.choice((1, 2, 5, 16, 32)),
                per_host=rng.choice((1, 8, 32)),
                stall_timeout_s=0.3,
                fsync=rng.random() < 0.5,
                drop_cache=rng.random() < 0.5,
                attempts=3,
                backoff=QUICK,
            ) as engine,
            anyio.create_task_group() as group,
        ):
            source = Signed(origin)
            for number in range(rng.choice((1, 3))):
                request = DownloadRequest(f"{number}", "", tmp_path / f"{number}.bin")
                group.start_soon(_until_whole, engine, request, source, rng)
                files += 1
        _check(tmp_path, origin)
    assert files
    assert SOAK_S < 5 or len(weather.faults) > 5
    assert asyncio.all_tasks() == tasks
    assert not [t.name for t in threading.enumerate() if t.name.startswith("download")]


def _check(folder: Path, origin: Origin) -> None:
    names = sorted(path.name for path in folder.iterdir())
    only(folder, *[name for name in names if name.endswith(".bin") and name[0] != "."])
    for name in names:
        path = folder / name
        assert path.read_bytes() == origin.data
        assert not part_path(path).exists()
        assert not journal_path(path).exists()
        path.unlink()
