"""First questions asked by threads: small files in one trip, and larger ones that go on."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import anyio
import pytest

from supervisor.core.status import DownloadState
from supervisor.download.engine import SegmentedDownloader
from supervisor.download.partial import PartFile
from supervisor.errors import ChecksumMismatchError, NotFoundError, TransientTransferError
from tests.support.bad_origin import Ask, Fault, Origin, serve
from tests.support.downloads import QUICK, Direct, Log, only, random_bytes, safetensors, wanted

MIB = 1024 * 1024
FIRST = random_bytes(MIB)  # long enough to be seen while it comes, so that the host is known
SIZES = {"small": MIB + 700_001, "one byte": 1, "eight": 8 * MIB, "larger": 12 * MIB + 5}


def make(**options: Any) -> SegmentedDownloader:
    settings = {"stall_timeout_s": 1.0, "attempts": 6, "backoff": QUICK, "fsync": False}
    return SegmentedDownloader(**{**settings, **options})


def lane_threads() -> int:
    return sum(thread.name.startswith("download-lane") for thread in threading.enumerate())


class Once:
    """A fault for the second file's first request, none for its others."""

    def __init__(self, fault: Fault) -> None:
        self.fault: Fault | None = fault

    def __call__(self, ask: Ask) -> Fault:
        if "second" not in ask.headers.get("authorization", "") or self.fault is None:
            return Fault()
        fault, self.fault = self.fault, None
        return fault


async def show_the_way(origin: Origin, engine: SegmentedDownloader, folder: Path) -> None:
    """Fetch a file by way of aiohttp; threads may ask this host from now on."""
    behave, origin.behave = origin.behave, lambda _: Fault(data=FIRST)
    await engine.fetch(wanted(folder, origin.url, name="first.bin"), Direct(), Log())
    origin.behave = behave


SECOND = {"Authorization": "Bearer second"}
FAULTS = {
    "none": Fault(),
    "cut": Fault(cut_after=MIB // 2),
    "cut at once": Fault(cut_after=0),
    "stalled": Fault(stall_after=MIB // 2),
    "shifted": Fault(shift=1),
    "whole": Fault(ranges=False),
    "chunked": Fault(chunked=True),
    "compressed": Fault(gzipped=True),
    "unsized": Fault(unsized=True),
    "refused": Fault(status=503),
    "too many": Fault(status=429, headers=(("Retry-After", "0"),)),
    "closing": Fault(close=True),
    "flipped": Fault(flip_at=0),
}


@pytest.mark.anyio
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("fault", FAULTS)
async def test_a_bad_first_answer_is_repaired(tmp_path: Path, size: str, fault: str) -> None:
    data = random_bytes(SIZES[size])
    async with serve(data, Once(FAULTS[fault])) as origin, make() as engine:
        await show_the_way(origin, engine, tmp_path)
        log = Log()
        request = wanted(tmp_path, origin.url, sha256=origin.sha256, name="second.bin")
        result = await engine.fetch(request, Direct(headers=SECOND), log)
        assert request.destination.read_bytes() == data
        assert result.size_bytes == len(data)
        assert log.steps[-1].state is DownloadState.DONE
        assert log.steps[-1].bytes_done == len(data)
        assert lane_threads() > 0
    only(tmp_path, "first.bin", "second.bin")
    assert lane_threads() == 0


@pytest.mark.anyio
async def test_small_files_share_their_connections(tmp_path: Path) -> None:
    async with serve(random_bytes(100_000)) as origin, make() as engine:
        await show_the_way(origin, engine, tmp_path)
        for index in range(20):
            request = wanted(tmp_path, origin.url, sha256=origin.sha256, name=f"{index}.bin")
            await engine.fetch(request, Direct(), Log())
        assert origin.connections == 2  # aiohttp's and one of the threads
        assert len(origin.asks) == 21


@pytest.mark.anyio
async def test_an_empty_file_after_others(tmp_path: Path) -> None:
    async with serve(b"") as origin, make() as engine:
        await show_the_way(origin, engine, tmp_path)
        await engine.fetch(wanted(tmp_path, origin.url, name="empty.bin"), Direct(), Log())
        assert (tmp_path / "empty.bin").read_bytes() == b""
    only(tmp_path, "empty.bin", "first.bin")


@pytest.mark.anyio
async def test_refusals_keep_their_class(tmp_path: Path) -> None:
    """What the thread cannot take, aiohttp asks for again and tells apart."""
    data = random_bytes(300_000)
    answers = {
        NotFoundError: Fault(status=404),
        ChecksumMismatchError: Fault(flip_at=5),
        TransientTransferError: Fault(cut_after=0),
    }
    async with serve(data) as origin, make(attempts=2) as engine:
        await show_the_way(origin, engine, tmp_path)
        for error, fault in answers.items():
            origin.behave = lambda _, fault=fault: fault  # type: ignore[misc]
            with pytest.raises(error):
                await engine.fetch(
                    wanted(tmp_path, origin.url, sha256=origin.sha256), Direct(), Log()
                )
            only(tmp_path, "first.bin")
        assert lane_threads() > 0


@pytest.mark.anyio
async def test_another_size_or_a_page_is_refused(tmp_path: Path) -> None:
    page = b"<!DOCTYPE html><title>log in</title>" + b" " * 1000
    async with serve(safetensors(b"0123456789")) as origin, make() as engine:
        await show_the_way(origin, engine, tmp_path)
        await engine.fetch(wanted(tmp_path, origin.url, name="a.safetensors"), Direct(), Log())
        with pytest.raises(ChecksumMismatchError, match="bytes"):
            await engine.fetch(wanted(tmp_path, origin.url, size_bytes=5), Direct(), Log())
        origin.behave = lambda _: Fault(data=page)
        with pytest.raises(Exception, match="web page"):
            await engine.fetch(wanted(tmp_path, origin.url, name="b.safetensors"), Direct(), Log())
        assert lane_threads() > 0
    only(tmp_path, "a.safetensors", "first.bin")


@pytest.mark.anyio
@pytest.mark.parametrize("size", ["small", "larger"])
async def test_a_cancelled_first_question_ends_at_once(tmp_path: Path, size: str) -> None:
    data = random_bytes(SIZES[size])
    async with serve(data) as origin, make(stall_timeout_s=600.0) as engine:
        await show_the_way(origin, engine, tmp_path)
        before = origin.sent
        origin.behave = lambda _: Fault(stall_after=MIB // 2)
        async with anyio.create_task_group() as group:
            group.start_soon(engine.fetch, wanted(tmp_path, origin.url), Direct(), Log())
            while origin.sent < before + MIB // 2:
                await anyio.sleep(0.01)
            group.cancel_scope.cancel()
        if size == "small":
            only(tmp_path, "first.bin")  # nothing stays of what has no journal
        origin.behave = lambda _: Fault()
        await engine.fetch(wanted(tmp_path, origin.url), Direct(), Log())
        assert (tmp_path / "model.bin").read_bytes() == data
    only(tmp_path, "first.bin", "model.bin")


@pytest.mark.anyio
async def test_what_was_begun_is_gone_on_with(tmp_path: Path) -> None:
    """A journal from before is not thrown away by a thread's first question."""
    data = random_bytes(20 * MIB)
    async with serve(data) as origin:
        async with make() as engine, anyio.create_task_group() as group:
            origin.behave = lambda ask: Fault(bytes_per_s=4 * MIB) if ask.start else Fault()
            group.start_soon(engine.fetch, wanted(tmp_path, origin.url), Direct(), Log())
            while origin.sent < 9 * MIB:
                await anyio.sleep(0.01)
            group.cancel_scope.cancel()
        begun = PartFile.open(tmp_path / "model.bin")
        have = begun.written.total
        begun.close()
        assert have >= 8 * MIB
        origin.behave = lambda _: Fault()
        async with make() as engine:
            await show_the_way(origin, engine, tmp_path)
            result = await engine.fetch(wanted(tmp_path, origin.url), Direct(), Log())
        assert result.bytes_fetched == len(data) - have
        assert (tmp_path / "model.bin").read_bytes() == data


@pytest.mark.anyio
async def test_two_downloads_to_one_place_take_turns(tmp_path: Path) -> None:
    data = random_bytes(SIZES["small"])
    async with serve(data) as origin, make(stall_timeout_s=30.0) as engine:
        await show_the_way(origin, engine, tmp_path)
        origin.behave = lambda _: Fault(bytes_per_s=4 * MIB)
        request = wanted(tmp_path, origin.url, sha256=origin.sha256)
        async with anyio.create_task_group() as group:
            for _ in range(2):
                group.start_soon(engine.fetch, request, Direct(), Log())
        assert request.destination.read_bytes() == data
    only(tmp_path, "first.bin", "model.bin")


@pytest.mark.anyio
async def test_the_rate_limit_and_progress_hold_for_small_files(tmp_path: Path) -> None:
    data = random_bytes(2 * MIB)
    async with serve(data) as origin, make(rate_limit_bytes_per_s=2 * MIB) as engine:
        await show_the_way(origin, engine, tmp_path)
        log, began_s = Log(), anyio.current_time()
        await engine.fetch(wanted(tmp_path, origin.url), Direct(), log)
        assert anyio.current_time() - began_s > 0.5
    assert log.called == len(log.steps)
    counts = [step.bytes_done for step in log.steps]
    assert counts == sorted(counts)
    assert any(0 < count < len(data) for count in counts)
