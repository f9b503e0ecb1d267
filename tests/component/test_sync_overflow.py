"""More files than memory should hold: the paths wait on the disk, and none is forgotten."""

from __future__ import annotations

import os
from pathlib import Path

import anyio
import pytest

from supervisor.errors import JournalError
from supervisor.sync import tracker
from supervisor.sync.backlog import Backlog, PathKey, Work
from supervisor.sync.model import Identity, Tree
from supervisor.sync.overflow import Overflow
from tests.support.sync import DEADLINE_S, Pod, contents, png

pytestmark = pytest.mark.anyio

_COUNT = 60


@pytest.fixture(autouse=True)
def few_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker, "_MOST", 12)
    monkeypatch.setattr(tracker, "_BATCH", 4)


def _write(pod: Pod, numbers: range) -> None:
    for number in numbers:
        (pod.source / f"{number}.png").write_bytes(png(str(number)))


async def _pending(pod: Pod, count: int) -> None:
    with anyio.fail_after(DEADLINE_S):
        await pod.state.wait(lambda s: s.sync.pending == count)


async def test_a_long_line_before_a_dead_target_is_counted_and_then_stored(tmp_path: Path) -> None:
    pod = Pod(tmp_path)
    pod.bucket.write_text("no folder")  # the target refuses
    _write(pod, range(_COUNT // 2))
    async with pod.running():
        await _pending(pod, _COUNT // 2)
        _write(pod, range(_COUNT // 2, _COUNT))  # and those that are heard of
        await _pending(pod, _COUNT)
        assert len(pod.syncer._backlog) <= 12
        status = await pod.syncer.flush(0.1)
        assert status.retained == status.unflushed == _COUNT
        assert any("more files wait for their turn" in line for line in pod.syncer.waiting())
        pod.bucket.unlink()
        await pod.syncer.retry()
        await pod.uploaded(_COUNT)
    assert len(contents(pod.bucket)) == _COUNT
    assert pod.status.uploaded == _COUNT


async def test_a_flush_waits_for_those_on_the_disk(tmp_path: Path) -> None:
    pod = Pod(tmp_path)
    _write(pod, range(_COUNT))
    async with pod.running():
        status = await pod.syncer.flush(DEADLINE_S)
        assert (status.retained, status.unflushed) == (0, 0)
        assert len(contents(pod.bucket)) == _COUNT


async def test_what_is_deleted_meanwhile_is_not_waited_for(tmp_path: Path) -> None:
    pod = Pod(tmp_path)
    pod.bucket.write_text("no folder")
    _write(pod, range(_COUNT))
    async with pod.running():
        await _pending(pod, _COUNT)
        for path in pod.source.iterdir():
            path.unlink()
        await pod.syncer.retry()  # looks at everything anew
        await _pending(pod, 0)


async def test_files_that_are_held_open_keep_no_room_from_others(tmp_path: Path) -> None:
    pod = Pod(tmp_path)
    files = [(pod.source / f"open{n}.png").open("wb") for n in range(20)]
    try:
        async with pod.running():
            await _pending(pod, 20)
            _write(pod, range(_COUNT))
            with anyio.fail_after(DEADLINE_S):
                await pod.state.wait(lambda s: s.sync.uploaded == _COUNT)
    finally:
        for file in files:
            file.close()


def test_the_queue_keeps_order_names_and_count() -> None:
    overflow = Overflow()
    odd = os.fsdecode(b"not utf-8 \xff\n.png")
    overflow.add("outputs", ["b.png", odd], old=True)
    overflow.add("logs", ["a.log"], old=False)
    overflow.add("outputs", ["b.png", "c.png"], old=False)
    assert len(overflow) == 4
    assert overflow.take(2) == [
        (PathKey("outputs", "b.png"), True),
        (PathKey("outputs", odd), True),
    ]
    assert len(overflow) == 4
    overflow.settled(2)
    overflow.sweeping("outputs")
    overflow.add("outputs", ["d.png"], old=False)
    overflow.swept("outputs")  # c.png was not seen again
    assert len(overflow) == 2
    assert [key.path for key, _ in overflow.take(9)] == ["a.log", "d.png"]
    overflow.close()


def test_a_queue_that_cannot_be_written_starts_anew() -> None:
    overflow = Overflow()
    overflow.add("outputs", ["a.png"], old=False)
    assert overflow._connection is not None
    overflow._connection.execute("DROP TABLE waiting")
    with pytest.raises(JournalError):
        overflow.add("outputs", ["b.png"], old=False)
    assert not overflow
    overflow.add("outputs", ["c.png"], old=False)
    assert [key.path for key, _ in overflow.take(9)] == ["c.png"]
    overflow.close()


def test_a_file_that_is_rewritten_all_the_time_does_not_fill_the_heap() -> None:
    backlog = Backlog(1)
    tree = Tree("outputs", Path("/nowhere"), "outputs")
    for number in range(10_000):
        backlog.add(Work(tree, "a.json", Identity(1, 1, number)))
    assert len(backlog) == 1
    assert sum(map(len, backlog._heaps.values())) < 200
