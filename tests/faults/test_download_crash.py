"""A power cut after any operation: what the journal claims is on the disk.

The operations of a real ``PartFile`` are recorded, then the machine "fails" after each of
them. The disk of this simulation keeps what was synced, and of everything else keeps an
arbitrary part: nothing, all, or the journal without the data, which is the worst case.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from supervisor.core import journal as journal_module
from supervisor.download import files, partial
from supervisor.download.files import journal_path, part_path
from supervisor.download.partial import Identity, PartFile

SIZE = 256 * 1024
BLOCK = 16 * 1024
Operation = tuple[str, str, int, bytes]  # kind, file, offset, data


class Recorder:
    """Stands before ``os`` in the modules that write, and remembers."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.names: dict[int, str] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def open(self, path: Any, *args: Any, **kwargs: Any) -> int:
        fd = os.open(path, *args, **kwargs)
        self.names[fd] = "journal" if str(path).endswith(".journal") else "data"
        return fd

    def pwrite(self, fd: int, data: Any, offset: int) -> int:
        self.operations.append(("write", self.names[fd], offset, bytes(data)))
        return os.pwrite(fd, data, offset)

    def fdatasync(self, fd: int) -> None:
        self.operations.append(("sync", self.names[fd], 0, b""))


def _download(folder: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> list[Operation]:
    """Write a file in random order with checkpoints; return what was done to the disk."""
    recorder, rng = Recorder(), random.Random(seed)
    monkeypatch.setattr(files, "os", recorder)
    monkeypatch.setattr(partial, "os", recorder)
    monkeypatch.setattr(journal_module, "os", recorder)
    part = PartFile.open(folder / "m.bin", boot="before")
    part.restart(Identity("http://o/m.bin", SIZE, '"v1"', None))
    start = (journal_path(folder / "m.bin")).read_bytes()
    recorder.operations = [("write", "journal", 0, start), ("sync", "journal", 0, b"")]
    offsets = list(range(0, SIZE, BLOCK))
    rng.shuffle(offsets)
    for offset in offsets:
        part.write(offset, bytes([1 + offset // BLOCK]) * BLOCK)
        if rng.random() < 0.4:
            part.checkpoint()
    part.close()
    monkeypatch.undo()
    return recorder.operations


def _disk(operations: list[Operation], keeps: Callable[[str], bool]) -> dict[str, bytearray]:
    """The two files after a power cut; ``keeps`` decides about writes that were not synced."""
    disk = {"data": bytearray(SIZE), "journal": bytearray()}
    synced = {
        name: max((i for i, op in enumerate(operations) if op[:2] == ("sync", name)), default=-1)
        for name in disk
    }
    for index, (kind, name, offset, data) in enumerate(operations):
        if kind == "write" and (index < synced[name] or keeps(name)):
            content = disk[name]
            content.extend(bytes(max(0, offset + len(data) - len(content))))
            content[offset : offset + len(data)] = data
    return disk


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("luck", ["journal only", "nothing", "everything", "random"])
def test_no_power_cut_makes_the_journal_claim_missing_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, luck: str
) -> None:
    operations = _download(tmp_path, monkeypatch, seed)
    rng = random.Random(seed)
    keeps: dict[str, Callable[[str], bool]] = {
        "journal only": lambda name: name == "journal",
        "nothing": lambda _: False,
        "everything": lambda _: True,
        "random": lambda _: rng.random() < 0.5,
    }
    claimed = 0
    for count in range(1, len(operations) + 1):
        disk = _disk(operations[:count], keeps[luck])
        part_path(tmp_path / "m.bin").write_bytes(disk["data"])
        journal_path(tmp_path / "m.bin").write_bytes(disk["journal"])
        part = PartFile.open(tmp_path / "m.bin", boot="after")
        try:
            for start, end in part.written:
                for offset in range(start, end, BLOCK):
                    assert disk["data"][offset] == 1 + offset // BLOCK
            assert part.damaged() == []
            claimed = max(claimed, part.written.total)
        finally:
            part.close()
    assert claimed > 0, "a journal that never claims anything would pass too"


def test_a_killed_process_keeps_every_recorded_block(tmp_path: Path) -> None:
    part = PartFile.open(tmp_path / "m.bin", boot="same")
    part.restart(Identity("http://o/m.bin", SIZE, None, None))
    part.write(BLOCK, b"x" * BLOCK)  # recorded, not synced
    part.close()
    for boot, kept in (("same", BLOCK), ("same", BLOCK)):
        part = PartFile.open(tmp_path / "m.bin", boot=boot)
        assert part.written.total == kept
        part.close()


def test_another_boot_trusts_only_what_was_synced(tmp_path: Path) -> None:
    part = PartFile.open(tmp_path / "m.bin", boot="one")
    part.restart(Identity("http://o/m.bin", SIZE, None, None))
    part.write(0, b"x" * BLOCK)
    part.checkpoint()
    part.write(BLOCK, b"x" * BLOCK)
    part.close()
    part = PartFile.open(tmp_path / "m.bin", boot="two")
    assert list(part.written) == [(0, BLOCK)]
    part.close()


def test_damage_on_the_disk_is_located(tmp_path: Path) -> None:
    part = PartFile.open(tmp_path / "m.bin")
    part.restart(Identity("http://o/m.bin", 4 * BLOCK, None, None))
    for offset in range(0, 4 * BLOCK, BLOCK):
        part.write(offset, b"x" * BLOCK)
    os.pwrite(part.fd, b"y", 2 * BLOCK + 5)
    damaged = part.damaged()
    assert [block.offset for block in damaged] == [2 * BLOCK]
    part.forget(damaged)
    assert list(part.written) == [(0, 2 * BLOCK), (3 * BLOCK, 4 * BLOCK)]
    part.close()


def test_only_one_holds_a_destination(tmp_path: Path) -> None:
    part = PartFile.open(tmp_path / "m.bin")
    with pytest.raises(files.BusyError):
        PartFile.open(tmp_path / "m.bin")
    part.discard()
    again = PartFile.open(tmp_path / "m.bin")
    again.discard()
    assert list(tmp_path.iterdir()) == []
