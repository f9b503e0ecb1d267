"""What the models take from the machine they run on: netrc, and room on its disk."""

from __future__ import annotations

import os
from pathlib import Path

import anyio
import pytest

from supervisor.config.settings import ModelsSection
from supervisor.core.events import EventBus
from supervisor.core.state import StateStore
from supervisor.core.status import DownloadState
from supervisor.download.files import part_path
from supervisor.download.request import (
    DownloadRequest,
    ProgressCallback,
    Resolved,
    Resolver,
    TransferResult,
)
from supervisor.models.manager import ModelManager
from supervisor.models.preflight import Preflight
from supervisor.models.queue import Job
from supervisor.models.runtime import opened_downloader, opened_sources
from tests.support.hub import Hub, serve

pytestmark = pytest.mark.anyio

GB = 10**9


async def test_a_file_behind_netrc_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password word\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))  # where aiohttp would look by itself
    hub = Hub()
    hub.files["/files/f.bin"] = (b"data", {})
    hub.users["/files/f.bin"] = ("me", "word")
    async with serve(hub):
        url = hub.hub_url + "/files/f.bin"
        request = DownloadRequest("f.bin", url, tmp_path / "models" / "f.bin", reference=url)
        section = ModelsSection()
        async with (
            opened_sources(section, {"NETRC": str(netrc)}) as sources,
            opened_downloader(section, {}) as engine,
        ):
            await engine.fetch(request, sources["http"], lambda _: None)
    assert await anyio.Path(request.destination).read_bytes() == b"data"


async def test_urgency_reaches_the_engine(tmp_path: Path) -> None:
    """Of two files, one was put to the front by a person."""
    seen: dict[str, bool] = {}

    class Engine:
        async def fetch(
            self, request: DownloadRequest, resolver: Resolver, progress: ProgressCallback
        ) -> TransferResult:
            seen[request.name] = request.urgent
            return TransferResult(request.destination, 1, None, 1)

    class Source:
        async def resolve(self, request: DownloadRequest) -> Resolved:
            return Resolved(request.url, size_bytes=1)

    requests = [DownloadRequest(n, "http://h/" + n, tmp_path / n) for n in ("a", "b")]
    manager = ModelManager(
        settings=ModelsSection(),
        state=StateStore(),
        bus=EventBus(),
        downloader=Engine(),
        resolvers={"http": Source()},
    )
    manager.enqueue(requests)
    manager.prioritise("b")
    assert await manager.run_until_done([])
    assert seen == {"a": False, "b": True}


async def test_what_is_cancelled_in_the_last_moment_stays_left_out(tmp_path: Path) -> None:
    class Engine:
        async def fetch(
            self, request: DownloadRequest, resolver: Resolver, progress: ProgressCallback
        ) -> TransferResult:
            manager.cancel(request.name)  # nothing is awaited any more: the result still comes
            return TransferResult(request.destination, 1, None, 1)

    class Source:
        async def resolve(self, request: DownloadRequest) -> Resolved:
            return Resolved(request.url, size_bytes=1)

    manager = ModelManager(
        settings=ModelsSection(),
        state=StateStore(),
        bus=(bus := EventBus()),
        downloader=Engine(),
        resolvers={"http": Source()},
    )
    assert await manager.run_until_done([DownloadRequest("a", "http://h/a", tmp_path / "a")])
    assert [event.kind for event in bus.recent() if event.subject == "a"] == ["download.cancelled"]


async def test_room_reserved_by_a_file_under_way_is_not_counted_twice(tmp_path: Path) -> None:
    moving, waiting = (
        Job(DownloadRequest(n, "", tmp_path / n, size_bytes=6 * GB), index)
        for index, n in enumerate(("moving", "waiting"))
    )
    moving.state = DownloadState.ACTIVE
    part = part_path(moving.request.destination)
    descriptor = os.open(part, os.O_RDWR | os.O_CREAT)
    try:
        os.posix_fallocate(descriptor, 0, 1_000_000)
        moving.bytes_total = 1_000_000
        preflight = Preflight({}, free=lambda _: 6 * GB + 1024**3)

        assert await preflight.without_room([waiting], [moving], lambda j: j.request.name) == {}
    finally:
        os.close(descriptor)


async def test_the_files_of_a_folder_are_asked_about_side_by_side(tmp_path: Path) -> None:
    class Barrier:
        """Answers about nobody before it was asked about four."""

        asked = 0

        async def expand(self, request: DownloadRequest) -> tuple[DownloadRequest, ...]:
            return tuple(DownloadRequest(f"f/{n}", "", tmp_path / str(n)) for n in range(4))

        async def resolve(self, request: DownloadRequest) -> Resolved:
            self.asked += 1
            while self.asked < 4:
                await anyio.sleep(0.01)
            return Resolved(url=request.url, size_bytes=1)

    folder = DownloadRequest("f", "", tmp_path, directory=True)
    with anyio.fail_after(30):
        checked = await Preflight({"http": Barrier()}).check([folder])
    assert [c.request.name for c in checked] == ["f/0", "f/1", "f/2", "f/3"]
