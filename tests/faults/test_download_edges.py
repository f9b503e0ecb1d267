"""Corners where an engine trips over its surroundings: netrc, tight disks, few buffers."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import pytest

from supervisor.download import engine as engine_module
from supervisor.download import storage, transport
from supervisor.download.engine import SegmentedDownloader
from supervisor.download.ledger import Ledger
from supervisor.download.limits import BufferPool, HostGate
from supervisor.download.partial import PartFile
from supervisor.download.request import DownloadRequest, Progress
from supervisor.download.wire import Wire
from supervisor.errors import DiskFullError, PermanentTransferError, TransientTransferError
from tests.support.bad_origin import Ask, Fault, serve
from tests.support.downloads import QUICK, Direct, Log, only, random_bytes, wanted

pytestmark = pytest.mark.anyio

MIB = 1024 * 1024
DATA = random_bytes(40 * MIB + 99)


def make(**options: Any) -> SegmentedDownloader:
    settings = {"stall_timeout_s": 5.0, "attempts": 5, "backoff": QUICK, "fsync": False}
    return SegmentedDownloader(**{**settings, **options})


async def test_netrc_is_left_to_the_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither does it clash with a source's own header, nor reach a host that gave none."""
    netrc = tmp_path / "netrc"
    netrc.write_text("default login somebody password hidden\n")
    monkeypatch.setenv("NETRC", str(netrc))
    folder = tmp_path / "models"
    async with serve(DATA[: 2 * MIB]) as storage_host:
        moved = Fault(status=302, headers=(("Location", storage_host.url),))
        async with serve(b"", lambda _: moved) as hub, make() as engine:
            token = {"Authorization": "Bearer mine"}
            await engine.fetch(wanted(folder, hub.url), Direct(headers=token), Log())
            assert {ask.headers["authorization"] for ask in hub.asks} == {"Bearer mine"}
        assert storage_host.asks
        assert not any("authorization" in ask.headers for ask in storage_host.asks)
    only(folder, "model.bin")


async def test_the_environment_names_the_proxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serve(DATA) as proxy, make() as engine:
        monkeypatch.setenv("http_proxy", f"http://user:p%40ss@127.0.0.1:{proxy.port}")
        monkeypatch.setenv("no_proxy", "")
        transport._proxies.cache_clear()
        await engine.fetch(wanted(tmp_path, "http://models.invalid/m"), Direct(), Log())

        assert {ask.path for ask in proxy.asks} == {"http://models.invalid/m"}
        transport._proxies.cache_clear()
        # "user:p@ss" in base64
        assert {ask.headers["proxy-authorization"] for ask in proxy.asks} == {"Basic dXNlcjpwQHNz"}
        assert (tmp_path / "model.bin").read_bytes() == DATA


async def test_a_proxy_of_another_kind_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("all_proxy", "socks5://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    transport._proxies.cache_clear()
    async with make() as engine:
        with pytest.raises(PermanentTransferError, match="socks5") as caught:
            await engine.fetch(wanted(tmp_path, "http://models.invalid/m"), Direct(), Log())
    transport._proxies.cache_clear()
    assert "no_proxy" in (caught.value.hint or "")


async def test_few_buffers_slow_down_but_break_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "BufferPool", lambda: BufferPool(3))
    async with serve(DATA, lambda _: Fault(bytes_per_s=40e6)) as origin:
        async with make(connections=16, attempts=1) as engine:
            request = wanted(tmp_path, origin.url, sha256=origin.sha256)
            result = await engine.fetch(request, Direct(), Log())
        assert result.bytes_fetched == len(DATA)
        assert (tmp_path / "model.bin").read_bytes() == DATA


@pytest.mark.parametrize("lanes", [0, 16])
@pytest.mark.parametrize("slow", ["write", "flush"])
async def test_a_slow_disk_never_exposes_more_than_8_mib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: str, lanes: int
) -> None:
    """Whatever crash comes: received but not yet safe stays bounded, whoever is slow."""
    write, checkpoint = PartFile.write, PartFile.checkpoint
    arrived, receive = Ledger.arrived, Wire.receive
    received = written = safe = most = 0
    counter = threading.Lock()

    def slow_write(part: PartFile, offset: int, data: memoryview) -> None:
        nonlocal written
        time.sleep(0.02 if slow == "write" else 0.0)
        write(part, offset, data)
        with counter:
            written += len(data)

    def slow_checkpoint(part: PartFile) -> None:
        nonlocal safe
        covered = written
        time.sleep(0.1 if slow == "flush" else 0.0)
        checkpoint(part)
        safe = max(safe, covered)

    def count_in(count: int) -> None:
        nonlocal received, most
        with counter:
            received += count
            most = max(most, received - safe)

    def counting(ledger: Ledger, count: int) -> None:
        count_in(count)
        arrived(ledger, count)

    def receiving(wire: Wire, into: memoryview, *, expected: int) -> int:
        count = receive(wire, into, expected=expected)
        count_in(count)
        return count

    monkeypatch.setattr(PartFile, "write", slow_write)
    monkeypatch.setattr(PartFile, "checkpoint", slow_checkpoint)
    monkeypatch.setattr(Ledger, "arrived", counting)
    monkeypatch.setattr(Wire, "receive", receiving)
    log = Log()
    async with serve(DATA) as origin, make(connections=32, fsync=True, lanes=lanes) as engine:
        await engine.fetch(wanted(tmp_path, origin.url), Direct(), log)
    assert log.called == len(log.steps)  # also for what went on when the disk had room again
    # Each of 32 connections may take one last small read, and what aiohttp held already.
    assert 4 * MIB < most <= 8 * MIB + 32 * 64 * 1024
    assert (tmp_path / "model.bin").read_bytes() == DATA


async def test_an_idle_engine_holds_no_buffers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = BufferPool(8)
    monkeypatch.setattr(engine_module, "BufferPool", lambda: pool)
    async with serve(DATA) as origin, make(connections=8) as engine:
        await engine.fetch(wanted(tmp_path, origin.url), Direct(), Log())
        assert pool.held_bytes == 0
        block = pool.take()
        assert block is not None
        assert pool.held_bytes == len(block)


async def test_who_is_waited_for_gets_the_next_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    done: list[str] = []

    class Counted(HostGate):
        async def acquire(self, host: str, priority: int) -> None:
            asked.append(priority)
            await super().acquire(host, priority)

    gate = Counted(1)
    monkeypatch.setattr(engine_module, "HostGate", lambda _: gate)
    async with serve(DATA) as origin, make() as engine, anyio.create_task_group() as group:
        first = wanted(tmp_path, origin.url, name="first")
        required = replace(wanted(tmp_path, origin.url, name="required"), required=True)
        urgent = replace(wanted(tmp_path, origin.url, name="urgent"), urgent=True)

        async def fetch(request: DownloadRequest) -> None:
            await engine.fetch(request, Direct(), Log())
            done.append(request.name)

        async with gate.slot(urlsplit(origin.url).netloc, 0):
            for number, request in enumerate((first, required, urgent), start=2):
                group.start_soon(fetch, request)
                while len(asked) < number:
                    await anyio.sleep(0.01)
    assert done == ["urgent", "required", "first"]


@pytest.mark.parametrize("offered", [False, True], ids=["waiting", "offered"])
async def test_who_gives_up_keeps_no_connection(offered: bool) -> None:
    """Also when the one that was waited for is handed over in the same moment."""
    gate = HostGate(1)
    await gate.acquire("host", 0)
    async with anyio.create_task_group() as group:
        group.start_soon(gate.acquire, "host", 0)
        await anyio.wait_all_tasks_blocked()
        group.cancel_scope.cancel()
        if offered:
            gate.release("host")
    if not offered:
        gate.release("host")
    with anyio.fail_after(10):
        await gate.acquire("host", 0)


async def test_a_long_pause_is_left_to_the_caller(tmp_path: Path) -> None:
    """It has other files to fetch meanwhile."""

    def busy(ask: Ask) -> Fault:
        return Fault(status=429, headers=(("Retry-After", "600"),)) if ask.number else Fault()

    async with serve(DATA, busy) as origin, make() as engine:
        with anyio.fail_after(10), pytest.raises(TransientTransferError) as caught:
            await engine.fetch(wanted(tmp_path, origin.url), Direct(), Log())
        assert caught.value.retry_after_s == 600


@pytest.mark.parametrize(
    ("lanes", "refusal"),
    [(16, Fault(status=429)), (16, Fault(cut_after=0)), (0, Fault(status=503))],
    ids=["429", "cut", "503 on the loop"],
)
async def test_a_host_that_serves_four_at_a_time_is_not_pestered(
    tmp_path: Path, refusal: Fault, lanes: int
) -> None:
    """Who is turned away while others are served waits for them to end."""
    refused = 0

    def four(_: Ask) -> Fault:
        nonlocal refused
        if origin.open <= 4:
            return Fault(bytes_per_s=10 * MIB)
        refused += 1
        return refusal

    async with serve(DATA, four) as origin, make(lanes=lanes) as engine:
        await engine.fetch(wanted(tmp_path, origin.url), Direct(), Log())
    assert 0 < refused < 60
    assert (tmp_path / "model.bin").read_bytes() == DATA


async def test_a_short_pause_is_kept_and_shown(tmp_path: Path) -> None:
    def busy(ask: Ask) -> Fault:
        return Fault(status=429, headers=(("Retry-After", "1"),)) if ask.number < 2 else Fault()

    log = Log()
    async with serve(DATA, busy) as origin, make() as engine:
        start_s = anyio.current_time()
        await engine.fetch(wanted(tmp_path, origin.url), Direct(), log)
        assert anyio.current_time() - start_s >= 2.0
    assert any("429" in (step.message or "") for step in log.steps)


@pytest.mark.parametrize(
    "part",
    [
        Fault(gzipped=True),
        Fault(shift=5),
        Fault(unsized=True),
    ],
    ids=["compressed", "elsewhere", "of unknown size"],
)
async def test_a_part_never_passes_for_the_whole(tmp_path: Path, part: Fault) -> None:
    """Not even when nobody knows how large the file is, or what its hash is."""

    def behave(ask: Ask) -> Fault:
        return part if ask.ranged else Fault(ranges=False)

    async with serve(DATA, behave) as origin, make() as engine:
        result = await engine.fetch(wanted(tmp_path, origin.url), Direct(), Log())
        assert result.size_bytes == len(DATA)
        assert (tmp_path / "model.bin").read_bytes() == DATA


async def test_parts_that_turn_useless_midway_end_in_the_whole(tmp_path: Path) -> None:
    data = DATA[: 12 * MIB]  # compressing is what takes long here

    def behave(ask: Ask) -> Fault:
        if ask.number == 0:
            return Fault(cut_after=3 * MIB)
        return Fault(gzipped=True) if ask.ranged else Fault(ranges=False)

    async with serve(data, behave) as origin, make() as engine:
        await engine.fetch(wanted(tmp_path, origin.url), Direct(), Log())
        assert (tmp_path / "model.bin").read_bytes() == data


async def test_an_address_from_another_host_that_is_refused_is_asked_for_again(
    tmp_path: Path,
) -> None:
    async with serve(DATA, lambda ask: Fault(status=403) if ask.number == 0 else Fault()) as cdn:
        source = Direct(cdn.url + "?signature=1", cdn.url + "?signature=2")
        async with make() as engine:
            await engine.fetch(wanted(tmp_path, "https://hub.invalid/m"), source, Log())
        assert source.calls == 2
        assert (tmp_path / "model.bin").read_bytes() == DATA


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system that takes the file, and the reserve, once."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def faltering(_: Ask) -> Fault:
    """However late the interruption comes, most of the file is still missing."""
    return Fault(stall_after=2 * MIB)


async def _interrupt(folder: Path, url: str, at_bytes: int) -> None:
    with anyio.CancelScope() as scope:

        def stop(step: Progress) -> None:
            if step.bytes_done >= at_bytes:
                scope.cancel()

        async with make() as engine:
            await engine.fetch(wanted(folder, url), Direct(), stop)
    assert scope.cancelled_caught


@pytest.mark.needs("root", "mount")
async def test_room_that_is_reserved_already_is_not_asked_for_again(disk: Path) -> None:
    async with serve(DATA, faltering) as origin:
        await _interrupt(disk, origin.url, 4 * MIB)
        assert not (disk / "model.bin").exists()
        origin.behave = lambda _: Fault()
        async with make() as engine:
            await engine.fetch(wanted(disk, origin.url), Direct(), Log())
    assert (disk / "model.bin").read_bytes() == DATA


@pytest.mark.needs("root", "mount")
async def test_a_disk_that_another_fills_meanwhile_is_waited_for(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even preallocated, as on network volumes: still no permanent failure."""
    monkeypatch.setattr("supervisor.download.partial.fallocate", lambda *_: False)
    async with serve(DATA, faltering) as origin:
        await _interrupt(disk, origin.url, 4 * MIB)
        other = disk / "other"
        other.write_bytes(bytes(shutil.disk_usage(disk).free - MIB))
        origin.behave = lambda _: Fault()
        async with make() as engine:
            with pytest.raises(TransientTransferError, match="bytes more") as caught:
                await engine.fetch(wanted(disk, origin.url), Direct(), Log())
            assert caught.value.retry_after_s == storage.ROOM_POLL_S
            other.unlink()
            result = await engine.fetch(wanted(disk, origin.url), Direct(), Log())
    assert result.bytes_fetched < len(DATA)
    assert (disk / "model.bin").read_bytes() == DATA


@pytest.mark.needs("root", "mount")
async def test_a_file_that_never_fits_fails_at_once(disk: Path) -> None:
    (disk / "other").write_bytes(bytes(70 * MIB))
    async with serve(DATA) as origin, make() as engine:
        with pytest.raises(DiskFullError, match="bytes more"):
            await engine.fetch(wanted(disk, origin.url), Direct(), Log())
        assert origin.sent < 16 * MIB
