"""Power cuts and kills, simulated: the journal never claims bytes that are not on the disk.

Every operation of a part file under concurrent writers is recorded. Then each prefix of
them is turned into the disk that a crash at that moment may leave behind, and opened.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from crc32c import crc32c

from supervisor.core import journal as journal_module
from supervisor.core.journal import Journal
from supervisor.download import partial
from supervisor.download.files import journal_path, part_path
from supervisor.download.partial import Identity, PartFile

BLOCK = 16 * 1024
PAGE = 4096
SIZE = 48 * BLOCK
CONTENT = random.Random(1).randbytes(SIZE)
FILE = Identity("http://h/m.safetensors", SIZE, '"v1"', None, None)
Op = tuple[str, int, bytes]


@dataclass
class Recorder:
    """The operations in the order in which the kernel saw them.

    A flush covers what was written before it began, and counts once it has ended.
    """

    ops: list[Op] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, kind: str, number: int = 0, data: bytes = b"") -> int:
        with self.lock:
            self.ops.append((kind, number, data))
            return len(self.ops)


@contextmanager
def recorded(part: Callable[[], PartFile], recorder: Recorder) -> Iterator[None]:
    """Record the writes and flushes of the part file and of its journal."""
    pwrite, fdatasync, compact = os.pwrite, os.fdatasync, Journal.compact

    def record_pwrite(fd: int, data: memoryview, offset: int) -> int:
        if fd != part().fd:
            # Recorded first: a record that got into the file but not into this list would hide.
            recorder.add("journal", 0, bytes(data))
            return pwrite(fd, data, offset)
        count = pwrite(fd, data, offset)
        recorder.add("data", offset, bytes(data[:count]))
        return count

    def record_sync(fd: int) -> None:
        begun = recorder.add("begin")
        fdatasync(fd)
        recorder.add("data-synced" if fd == part().fd else "journal-synced", begun)

    def record_compact(self: Journal, records: Iterable[journal_module.Record]) -> None:
        kept = list(records)
        compact(self, kept)
        recorder.add("compacted", 0, b"".join(map(journal_module.encode, kept)))

    patch = pytest.MonkeyPatch()
    with patch.context() as context:
        context.setattr(os, "pwrite", record_pwrite)
        context.setattr(os, "fdatasync", record_sync)
        context.setattr(Journal, "compact", record_compact)
        yield


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> list[Op]:
    """Several writers and a checkpointing thread at work on one file."""
    recorder = Recorder()
    destination = tmp_path_factory.mktemp("recorded") / "m.safetensors"
    opened: list[PartFile] = []
    order = list(range(0, SIZE, BLOCK))
    random.Random(2).shuffle(order)
    with recorded(lambda: opened[0], recorder):
        opened.append(PartFile.open(destination, boot="recorded"))
        part = opened[0]
        part.restart(FILE)
        part.allocate(SIZE)

        def write(offset: int) -> None:
            part.write(offset, CONTENT[offset : offset + BLOCK])
            if offset // BLOCK % 5 == 0:
                part.checkpoint()

        with ThreadPoolExecutor(4) as threads:
            list(threads.map(write, order))
        part.close()
    return recorder.ops


@dataclass
class Disk:
    """What a crash leaves behind."""

    data: bytearray
    journal: bytes

    def open(self, folder: Path, boot: str) -> PartFile:
        destination = folder / "m.safetensors"
        part_path(destination).write_bytes(self.data)
        journal_path(destination).write_bytes(self.journal)
        return PartFile.open(destination, boot=boot)


def after_kill(ops: list[Op]) -> Disk:
    """The page cache lives: everything that was written is there."""
    disk = Disk(bytearray(SIZE), b"")
    for kind, number, data in ops:
        if kind == "data":
            disk.data[number : number + len(data)] = data
        elif kind == "journal":
            disk.journal += data
        elif kind == "compacted":
            disk.journal = data
    return disk


def after_power_cut(ops: list[Op], rng: random.Random) -> Disk:
    """Of what was not flushed, any pages may be there, and any part of the journal's tail."""
    data_safe = max((n for kind, n, _ in ops if kind == "data-synced"), default=0)
    journal_safe = max((n for kind, n, _ in ops if kind == "journal-synced"), default=0)
    disk = Disk(bytearray(SIZE), b"")
    tail = b""
    for index, (kind, number, data) in enumerate(ops):
        if kind == "data":
            for at in range(0, len(data), PAGE):
                if index < data_safe or rng.random() < 0.5:
                    disk.data[number + at : number + at + PAGE] = data[at : at + PAGE]
        elif kind == "journal" and index < journal_safe:
            disk.journal += data
        elif kind == "journal":
            tail += data
        elif kind == "compacted":
            disk.journal, tail = data, b""
    kept = rng.randint(0, len(tail))
    # A file system may have extended the file without having written the new page.
    disk.journal += tail[:kept] + bytes(rng.choice((0, len(tail) - kept)))
    return disk


def assert_honest(part: PartFile) -> int:
    """Every claim is true; return how many bytes are claimed."""
    held = 0
    for block in part.blocks:
        end = block.offset + block.length
        stored = os.pread(part.fd, block.length, block.offset)
        assert stored == CONTENT[block.offset : end], f"claims {block}, which is not there"
        assert block.crc == crc32c(stored)
        held += block.length
    assert held == part.written.total
    assert part.damaged() == []
    return held


def claims_after_power_cuts(ops: list[Op], folder: Path, times: int) -> int:
    """Cut the power at every step; return the most that was claimed afterwards."""
    rng = random.Random(3)
    most = 0
    for step in range(len(ops) + 1):
        for _ in range(times):
            part = after_power_cut(ops[:step], rng).open(folder, "after the power cut")
            try:
                most = max(most, assert_honest(part))
            finally:
                part.close()
    return most


def test_the_history_holds_what_can_go_wrong(history: list[Op]) -> None:
    kinds = [kind for kind, _, _ in history]
    assert kinds.count("data") == SIZE // BLOCK
    assert kinds.count("data-synced") >= 3
    assert "journal-synced" in kinds


def test_a_kill_at_every_step_loses_at_most_what_was_being_written(
    history: list[Op], tmp_path: Path
) -> None:
    for step in range(len(history) + 1):
        ops = history[:step]
        part = after_kill(ops).open(tmp_path, "recorded")
        try:
            held = assert_honest(part)
        finally:
            part.close()
        written = sum(len(data) for kind, _, data in ops if kind == "data")
        assert written - held <= 4 * BLOCK  # one block a writer


def test_a_power_cut_at_every_step_leaves_no_false_claim(history: list[Op], tmp_path: Path) -> None:
    claimed = claims_after_power_cuts(history, tmp_path, times=3)
    assert claimed > SIZE // 2  # and checkpoints do keep what they cover


def test_the_simulation_finds_a_mark_before_the_flush(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The check can fail: a journal that marks first and flushes later is caught."""

    def too_early(self: PartFile) -> None:
        self._mark(self._recorded)
        os.fdatasync(self.fd)

    monkeypatch.setattr(PartFile, "checkpoint", too_early)
    recorder = Recorder()
    opened: list[PartFile] = []
    (tmp_path / "a").mkdir()
    with recorded(lambda: opened[0], recorder):
        opened.append(PartFile.open(tmp_path / "a" / "m.safetensors", boot="recorded"))
        opened[0].restart(FILE)
        opened[0].allocate(SIZE)
        for offset in range(0, SIZE, BLOCK):
            opened[0].write(offset, CONTENT[offset : offset + BLOCK])
            opened[0].checkpoint()
        opened[0].close()

    with pytest.raises(AssertionError, match="which is not there"):
        claims_after_power_cuts(recorder.ops, tmp_path, times=1)


def _write_blocks(part: PartFile, count: int) -> None:
    for offset in range(0, count * BLOCK, BLOCK):
        part.write(offset, CONTENT[offset : offset + BLOCK])


def test_a_block_that_the_disk_changed_is_found_and_only_that_is_given_up(
    tmp_path: Path,
) -> None:
    part = PartFile.open(tmp_path / "m.safetensors")
    part.restart(FILE)
    _write_blocks(part, SIZE // BLOCK)
    os.pwrite(part.fd, b"\0" * 10, 5 * BLOCK + 77)

    damaged = part.damaged()
    part.forget(damaged)

    assert [block.offset for block in damaged] == [5 * BLOCK]
    assert list(part.written.gaps(SIZE)) == [(5 * BLOCK, 6 * BLOCK)]
    part.close()


def test_what_somebody_cut_off_is_not_claimed(tmp_path: Path) -> None:
    part = PartFile.open(tmp_path / "m.safetensors", boot="same")
    part.restart(FILE)
    _write_blocks(part, 4)
    part.close()
    os.truncate(part_path(tmp_path / "m.safetensors"), 3 * BLOCK - 1)

    part = PartFile.open(tmp_path / "m.safetensors", boot="same")

    assert part.written.prefix_end == 2 * BLOCK
    assert_honest(part)
    part.close()


def test_a_flush_that_a_restart_overtakes_covers_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    part = PartFile.open(tmp_path / "m.safetensors", boot="before")
    part.restart(FILE)
    _write_blocks(part, 2)
    flush = os.fdatasync

    def restart_meanwhile(fd: int) -> None:
        monkeypatch.setattr(os, "fdatasync", flush)
        part.restart(FILE)
        flush(fd)

    monkeypatch.setattr(os, "fdatasync", restart_meanwhile)
    part.checkpoint()
    _write_blocks(part, 2)
    part.checkpoint()  # the one of the blocks that are there, not taken for done already
    part.close()

    part = PartFile.open(tmp_path / "m.safetensors", boot="after")
    assert part.written.total == 2 * BLOCK
    part.close()


def test_without_fallocate_the_file_is_sparse(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(partial, "fallocate", lambda fd, size: False)
    part = PartFile.open(tmp_path / "m.safetensors")
    part.allocate(1 << 30)
    stat = os.fstat(part.fd)
    part.close()

    assert (stat.st_size, stat.st_blocks) == (1 << 30, 0)
