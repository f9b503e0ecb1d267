"""Kills, full disks, stalls, two daemons, limits: the segmented engine keeps its word."""

from __future__ import annotations

import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from supervisor.download.engine import SegmentedDownloader
from supervisor.download.files import is_at, journal_path, open_locked, part_path
from supervisor.download.growth import Growth
from supervisor.download.partial import PartFile
from supervisor.download.request import DownloadRequest
from supervisor.errors import PermanentTransferError, TransientTransferError
from tests.support.bad_origin import Ask, Fault, serve
from tests.support.downloads import QUICK, Direct, Log, only, random_bytes, wanted

pytestmark = pytest.mark.anyio

MIB = 1024 * 1024
DATA = random_bytes(24 * MIB + 99)

CHILD = """
import asyncio, json, sys
from pathlib import Path
from supervisor.download.engine import SegmentedDownloader
from tests.support.downloads import Direct, wanted

async def main(folder, url, sha256, connections):
    async with SegmentedDownloader(connections=int(connections)) as engine:
        result = await engine.fetch(
            wanted(Path(folder), url, sha256=sha256), Direct(),
            lambda step: print(step.bytes_done, flush=True))
    print(json.dumps(result.bytes_fetched), flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


def make(**options: object) -> SegmentedDownloader:
    settings: dict[str, object] = {"stall_timeout_s": 1.0, "attempts": 8, "backoff": QUICK}
    return SegmentedDownloader(**{**settings, **options})  # type: ignore[arg-type]


def _kills() -> int:
    return int(os.environ.get("DOWNLOAD_KILLS", "8"))


async def test_killed_at_random_bytes_it_goes_on_where_it_was(tmp_path: Path) -> None:
    """``DOWNLOAD_KILLS=200`` runs the long form."""
    rng = random.Random(4)
    command = [sys.executable, "-c", CHILD, str(tmp_path)]
    async with serve(DATA, lambda _: Fault(bytes_per_s=3e6)) as origin:
        kills = lost = 0
        while kills < _kills():
            connections = str(rng.choice([1, 2, 5, 16, 32]))
            process = await anyio.open_process(
                [*command, origin.url, origin.sha256, connections], stderr=None
            )
            assert process.stdout is not None
            reports = 0
            async for chunk in process.stdout:
                reports += chunk.count(b"\n")
                if reports >= rng.randint(1, 5):
                    process.send_signal(signal.SIGKILL)
                    break
            code = await process.wait()
            await process.aclose()
            if code == 0:
                assert (tmp_path / "model.bin").read_bytes() == DATA
                only(tmp_path, "model.bin")
                (tmp_path / "model.bin").unlink()
                continue
            kills += 1
            if (tmp_path / "model.bin").exists():  # killed between publication and exit
                assert (tmp_path / "model.bin").read_bytes() == DATA
                (tmp_path / "model.bin").unlink()
                continue
            part = PartFile.open(tmp_path / "model.bin")
            assert part.damaged() == []
            part.close()
        async with make() as engine:
            before = PartFile.open(tmp_path / "model.bin")
            have = before.written.total
            before.close()
            origin.behave = lambda _: Fault()
            result = await engine.fetch(
                wanted(tmp_path, origin.url, sha256=origin.sha256), Direct(), Log()
            )
            lost = result.bytes_fetched - (len(DATA) - have)
        assert lost == 0
        assert (tmp_path / "model.bin").read_bytes() == DATA
        only(tmp_path, "model.bin")


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set as soon as a block is on the disk."""
    event, write = threading.Event(), PartFile.write

    def seen(part: PartFile, offset: int, data: memoryview | bytes) -> None:
        write(part, offset, data)
        event.set()

    monkeypatch.setattr(PartFile, "write", seen)
    return event


async def _set(event: threading.Event) -> None:
    while not event.is_set():
        await anyio.sleep(0.01)


async def _begin(
    engine: SegmentedDownloader, request: DownloadRequest, written: threading.Event
) -> None:
    """Fetch until something is written; then cancel."""
    async with anyio.create_task_group() as group:
        group.start_soon(engine.fetch, request, Direct(), Log())
        await _set(written)
        group.cancel_scope.cancel()


async def test_a_cancelled_transfer_leaves_no_task_or_descriptor_and_resumes(
    tmp_path: Path, written: threading.Event
) -> None:
    async with serve(DATA, lambda _: Fault(bytes_per_s=2e6)) as origin, make() as engine:
        request = wanted(tmp_path, origin.url, sha256=origin.sha256)
        await _begin(engine, request, written)
        only(tmp_path, part_path(request.destination).name, journal_path(request.destination).name)
        part = PartFile.open(request.destination)
        have = part.written.total
        part.close()
        assert have > 0
        origin.behave = lambda _: Fault()
        result = await engine.fetch(request, Direct(), Log())
        assert result.bytes_fetched == len(DATA) - have
        assert request.destination.read_bytes() == DATA
        only(tmp_path, "model.bin")


async def test_a_slow_transfer_is_made_safe_before_it_has_filled_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    safe = anyio.Event()
    checkpoint = PartFile.checkpoint

    def seen(part: PartFile) -> None:
        checkpoint(part)
        if part.blocks:
            anyio.from_thread.run_sync(safe.set, token=token)

    token = anyio.lowlevel.current_token()
    monkeypatch.setattr(PartFile, "checkpoint", seen)
    async with serve(DATA, lambda _: Fault(stall_after=300_000)) as origin:
        engine = make(connections=1, stall_timeout_s=600.0)
        async with engine, anyio.create_task_group() as group:
            group.start_soon(engine.fetch, wanted(tmp_path, origin.url), Direct(), Log())
            with anyio.fail_after(60):
                await safe.wait()
            group.cancel_scope.cancel()


async def test_damage_on_the_disk_is_repaired_by_fetching_only_that(
    tmp_path: Path, written: threading.Event
) -> None:
    async with serve(DATA, lambda _: Fault(bytes_per_s=2e6)) as origin, make() as engine:
        request = wanted(tmp_path, origin.url, sha256=origin.sha256)
        await _begin(engine, request, written)
        part = PartFile.open(request.destination)
        have, block = part.written.total, part.blocks[0]
        os.pwrite(part.fd, b"\x00damage", block.offset + 3)
        part.close()
        origin.behave = lambda _: Fault()
        result = await engine.fetch(request, Direct(), Log())
        assert result.bytes_fetched == len(DATA) - have + block.length
        assert request.destination.read_bytes() == DATA


async def test_a_stalled_connection_is_replaced_while_the_others_go_on(tmp_path: Path) -> None:
    def behave(ask: Ask) -> Fault:
        return Fault(stall_after=MIB) if ask.number == 1 else Fault()

    async with serve(DATA, behave) as origin, make() as engine:
        await engine.fetch(wanted(tmp_path, origin.url, sha256=origin.sha256), Direct(), Log())
        assert (tmp_path / "model.bin").read_bytes() == DATA
        # Others take over what it had to bring, some of it after it was sent; never everything.
        assert origin.sent < 2 * len(DATA)


async def test_idle_connections_take_over_from_a_slow_one(tmp_path: Path) -> None:
    def behave(ask: Ask) -> Fault:
        return Fault(bytes_per_s=200_000) if ask.start == 0 else Fault()

    async with serve(DATA, behave) as origin, make(stall_timeout_s=30.0) as engine:
        began_s = time.monotonic()
        await engine.fetch(wanted(tmp_path, origin.url, sha256=origin.sha256), Direct(), Log())
        # 8 MiB at 200 kB/s would take 42 s alone.
        assert time.monotonic() - began_s < 25
        assert (tmp_path / "model.bin").read_bytes() == DATA


async def test_connections_stay_within_their_limits(tmp_path: Path) -> None:
    async with serve(DATA, lambda _: Fault(bytes_per_s=5e6)) as origin:
        async with make(connections=16, per_host=3) as engine, anyio.create_task_group() as group:
            for name in ("a.bin", "b.bin"):
                request = wanted(tmp_path, origin.url, sha256=origin.sha256, name=name)
                group.start_soon(engine.fetch, request, Direct(), Log())
        # The origin sees a closed connection a moment late; 16 would be open without a limit.
        assert 2 <= origin.most_open <= 8
        only(tmp_path, "a.bin", "b.bin")


async def test_a_server_that_asks_for_patience_gets_half_the_connections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shrunk: list[tuple[int, int]] = []
    shrink = Growth.shrink

    def seen(growth: Growth, now_s: float) -> None:
        before = growth.target
        shrink(growth, now_s)
        shrunk.append((before, growth.target))

    def behave(ask: Ask) -> Fault:
        busy = ask.number > 0 and not shrunk
        return Fault(status=429, headers=(("Retry-After", "0"),)) if busy else Fault()

    monkeypatch.setattr(Growth, "shrink", seen)
    async with serve(DATA, behave) as origin, make() as engine:
        await engine.fetch(wanted(tmp_path, origin.url), Direct(), Log())
        assert (tmp_path / "model.bin").read_bytes() == DATA
    assert shrunk
    assert all(after == max(1, before // 2) for before, after in shrunk)


async def test_the_bandwidth_cap_holds_for_all_files_together(tmp_path: Path) -> None:
    data = DATA[: 10 * MIB]
    async with serve(data) as origin:
        async with make(rate_limit_bytes_per_s=10 * MIB) as engine:
            began_s = time.monotonic()
            async with anyio.create_task_group() as group:
                for name in ("a.bin", "b.bin", "c.bin"):
                    request = wanted(tmp_path, origin.url, sha256=origin.sha256, name=name)
                    group.start_soon(engine.fetch, request, Direct(), Log())
            # Three seconds' worth, less the burst and the last reads, which nothing waits for;
            # a cap for each file by itself would take one second.
            assert time.monotonic() - began_s > 1.7
        only(tmp_path, "a.bin", "b.bin", "c.bin")


async def test_two_on_the_same_destination_fetch_it_once(tmp_path: Path) -> None:
    async with serve(DATA, lambda _: Fault(bytes_per_s=2e7)) as origin:
        fetched = []
        request = wanted(tmp_path, origin.url, sha256=origin.sha256, size_bytes=len(origin.data))

        async def one() -> None:
            async with make() as engine:
                result = await engine.fetch(request, Direct(), Log())
                fetched.append(result.bytes_fetched)

        async with anyio.create_task_group() as group:
            group.start_soon(one)
            group.start_soon(one)
        assert sorted(fetched) == [0, len(DATA)]
        only(tmp_path, "model.bin")


async def test_a_part_that_is_published_before_the_lock_is_held_is_not_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part, published = tmp_path / ".model.bin.part", tmp_path / "model.bin"
    lock = fcntl.flock

    def publish_first(fd: int, how: int) -> None:
        if not published.exists():
            part.rename(published)
        lock(fd, how)

    monkeypatch.setattr(fcntl, "flock", publish_first)
    fd = open_locked(part)
    try:
        assert is_at(fd, part)
        assert not is_at(fd, published)
    finally:
        os.close(fd)


async def test_many_small_files_over_kept_connections(tmp_path: Path) -> None:
    async with serve(DATA[:100_000]) as origin:
        async with make() as engine, anyio.create_task_group() as group:
            for index in range(60):
                request = wanted(tmp_path, origin.url, sha256=origin.sha256, name=f"{index}.bin")
                group.start_soon(engine.fetch, request, Direct(), Log())
        assert len(origin.asks) == 60
        only(tmp_path, *(f"{index}.bin" for index in range(60)))


async def test_an_empty_file(tmp_path: Path) -> None:
    async with serve(b"") as origin, make() as engine:
        result = await engine.fetch(wanted(tmp_path, origin.url), Direct(), Log())
        assert result.size_bytes == 0
        only(tmp_path, "model.bin")


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)],
        check=False,
        capture_output=True,
    )
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.needs("root")
async def test_no_room_is_told_before_the_first_byte(tiny_disk: Path) -> None:
    async with serve(DATA) as origin, make() as engine:
        (tiny_disk / "other").write_bytes(bytes(40 * MIB))
        with pytest.raises(PermanentTransferError, match="bytes more"):
            await engine.fetch(wanted(tiny_disk, origin.url), Direct(), Log())


@pytest.mark.needs("root")
async def test_a_disk_that_fills_up_pauses_the_download_and_room_resumes_it(
    tiny_disk: Path, monkeypatch: pytest.MonkeyPatch, written: threading.Event
) -> None:
    # A file system without preallocation, as network volumes are: room can vanish midway.
    monkeypatch.setattr("supervisor.download.partial.fallocate", lambda *_: False)
    monkeypatch.setattr("supervisor.download.storage.RESERVE_BYTES", 0)
    async with serve(DATA, lambda _: Fault(bytes_per_s=2e6)) as origin:
        request = wanted(tiny_disk, origin.url, sha256=origin.sha256)
        engine = make(attempts=1)
        async with engine:

            async def fill() -> None:
                await _set(written)
                with (tiny_disk / "other").open("wb") as file:
                    while True:
                        try:
                            file.write(bytes(MIB))
                            file.flush()
                        except OSError:
                            return

            async with anyio.create_task_group() as group:
                group.start_soon(fill)
                with pytest.raises(TransientTransferError, match="No space") as caught:
                    await engine.fetch(request, Direct(), Log())
            assert caught.value.retry_after_s
            (tiny_disk / "other").unlink()
            origin.behave = lambda _: Fault()
            result = await engine.fetch(request, Direct(), Log())
            assert result.bytes_fetched < len(DATA)
            assert request.destination.read_bytes() == DATA
            only(tiny_disk, "model.bin")


@pytest.mark.needs("root")
async def test_a_read_only_disk_is_a_permanent_error_with_a_hint(tiny_disk: Path) -> None:
    await anyio.run_process(["mount", "-o", "remount,ro", str(tiny_disk)])
    async with serve(DATA) as origin, make() as engine:
        with pytest.raises(PermanentTransferError, match="Read-only") as caught:
            await engine.fetch(wanted(tiny_disk, origin.url), Direct(), Log())
        assert caught.value.hint


async def test_an_io_error_keeps_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = PartFile.write, 0

    def broken(part: PartFile, offset: int, data: memoryview | bytes) -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise OSError(5, "Input/output error")
        real(part, offset, data)

    monkeypatch.setattr(PartFile, "write", broken)
    async with serve(DATA) as origin, make() as engine:
        request = wanted(tmp_path, origin.url, sha256=origin.sha256)
        result = await engine.fetch(request, Direct(), Log())
        assert result.size_bytes == len(DATA)
        assert request.destination.read_bytes() == DATA
        only(tmp_path, "model.bin")


async def test_progress_tells_bytes_rate_and_end(tmp_path: Path) -> None:
    log = Log()
    async with serve(DATA, lambda _: Fault(bytes_per_s=1e7)) as origin, make() as engine:
        await engine.fetch(wanted(tmp_path, origin.url, sha256=origin.sha256), Direct(), log)
    done = [step.bytes_done for step in log.steps]
    assert done == sorted(done)
    assert done[-1] == len(DATA)
    assert any(step.rate_bytes_per_s > 0 and step.eta_s for step in log.steps)
    assert [str(step.state) for step in log.steps[-2:]] == ["verifying", "done"]
    assert json.dumps(log.steps[-1].bytes_total)


async def test_nodes_that_disagree_about_the_etag_do_not_stop_a_file_of_known_hash(
    tmp_path: Path,
) -> None:
    def behave(ask: Ask) -> Fault:
        return Fault(etag=f'"node-{ask.number % 2}"')

    async with serve(DATA, behave) as origin, make() as engine:
        await engine.fetch(wanted(tmp_path, origin.url, sha256=origin.sha256), Direct(), Log())
        assert (tmp_path / "model.bin").read_bytes() == DATA
        only(tmp_path, "model.bin")
