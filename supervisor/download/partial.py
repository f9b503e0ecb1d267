"""The partial file and the journal beside it: what is here, and what survives which crash.

Two kinds of claim. A block counts after ``kill -9`` once it is written and its record is
in the journal: the kernel lives, so the page cache does. After a power cut only blocks
recorded before a ``synced`` mark count, and that mark is written after ``fdatasync`` of
the data has returned. The kernel's boot id, kept in the journal, tells the two apart.

All methods block; call them from a worker thread.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from crc32c import crc32c

from supervisor.core.journal import Journal, sync_directory
from supervisor.download.files import (
    boot_id,
    fallocate,
    is_at,
    journal_path,
    open_locked,
    part_path,
    write_all,
)
from supervisor.download.segments import Intervals
from supervisor.download.verify import mark_verified

_VERSION = 2  # of the journal; 1 had another checksum
_SAMPLE_BYTES = 4 * 1024 * 1024
# A file system with extents needs a hundredth of this for the sample; one that clears pages
# spends processor time, one that writes them out just takes its time.
_SAMPLE_CPU_S = 0.0005
_SAMPLE_S = 0.05


@dataclass(frozen=True, slots=True)
class Identity:
    """Which remote file the bytes are from. ``origin`` is an address without its query."""

    origin: str
    size_bytes: int | None
    etag: str | None
    modified: str | None
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Block:
    """Bytes that were received and written in one go, with their CRC-32C."""

    offset: int
    length: int
    crc: int


class PartFile:
    """An open, locked partial file. Create with ``open``; thread-safe."""

    def __init__(self, destination: Path, fd: int, *, fsync: bool, boot: str) -> None:
        self.destination = destination
        self.fd = fd
        self.identity: Identity | None = None
        self.written = Intervals()
        self._blocks: list[Block] = []
        self._fsync = fsync
        self._boot = boot
        self._journal: Journal | None = None
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._recorded = 0  # blocks in the journal
        self._synced = 0  # of those, how many are covered by a mark

    @classmethod
    def open(cls, destination: Path, *, fsync: bool = True, boot: str | None = None) -> Self:
        """Open or create the partial file, lock it, and read what it holds.

        Raises:
            BusyError: somebody else holds it.
            OSError: the folder is not writable, the disk is full, or a folder is in the way.
            JournalError: the journal cannot be written.
        """
        destination.parent.mkdir(parents=True, exist_ok=True)
        if destination.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(destination))
        fd = open_locked(part_path(destination))
        part = cls(destination, fd, fsync=fsync, boot=boot_id() if boot is None else boot)
        try:
            part._load()
        except BaseException:
            part.close()
            raise
        return part

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Every block that is here, in the order of writing."""
        return tuple(self._blocks)

    def prefix_end(self) -> int:
        """How many bytes from the start are here without a hole."""
        with self._lock:
            return self.written.prefix_end

    def restart(self, identity: Identity, *, journal: bool = True) -> None:
        """Forget every byte and begin anew with ``identity``.

        Without ``journal`` nothing can be resumed: for files so small that it does not pay.
        """
        with self._lock:
            self.identity, self.written, self._blocks = identity, Intervals(), []
            self._recorded = self._synced = 0
            if journal:
                self._open_journal().compact([self._header()])
            elif self._journal is not None:
                self._drop_journal()

    def allocate(self, size_bytes: int) -> None:
        """Reserve the file's whole size, sparse where that is refused or slow.

        On tmpfs, and where a file system fills what it reserves, this would cost as much as
        the download; then only a first part is reserved, and found slow.

        Raises:
            OSError: ENOSPC, EDQUOT, EFBIG.
        """
        if os.fstat(self.fd).st_size > size_bytes:
            os.ftruncate(self.fd, size_bytes)
        sample = min(size_bytes, _SAMPLE_BYTES)
        began_s, began_cpu_s = time.monotonic(), time.thread_time()
        reserved = sample > 0 and fallocate(self.fd, sample)
        quick = time.thread_time() - began_cpu_s < _SAMPLE_CPU_S
        quick = quick and time.monotonic() - began_s < _SAMPLE_S
        if not (reserved and (sample == size_bytes or (quick and fallocate(self.fd, size_bytes)))):
            os.ftruncate(self.fd, size_bytes)

    def write(self, offset: int, data: memoryview | bytes) -> None:
        """Write a block and record it; it survives ``kill -9`` when this returns.

        Raises:
            OSError: the disk is full or broken; the block does not count.
            JournalError: likewise, for the record.
        """
        # The kernel lets one writer at a time into a file, and the others spin for it.
        with self._writing:
            write_all(self.fd, offset, data)
        crc = crc32c(data) if self._journal is not None else 0
        with self._lock:
            if self._journal is not None:
                self._journal.append({"w": [offset, len(data), crc]}, sync=False)
                self._blocks.append(Block(offset, len(data), crc))
                self._recorded += 1
            self.written.add(offset, offset + len(data))

    def checkpoint(self) -> None:
        """Make every block recorded so far survive a power cut as well."""
        with self._lock:
            count = self._recorded
            if self._journal is None or count == self._synced:
                return
        os.fdatasync(self.fd)  # the data first: the mark must never claim what is not there
        with self._lock:
            self._mark(count)

    def damaged(self) -> list[Block]:
        """Re-read every block; return those whose bytes are not the ones received."""
        return [block for block in self._blocks if not self._intact(block)]

    def forget(self, blocks: list[Block]) -> None:
        """Give up ``blocks`` so that they are fetched again."""
        with self._lock:
            gone = set(blocks)
            self._adopt([block for block in self._blocks if block not in gone])

    def publish(self, size_bytes: int, sha256: str | None) -> None:
        """Move the complete file to its destination in one atomic step.

        ``sha256`` is noted on the file when it was checked.

        Raises:
            OSError: the rename or a flush failed; the partial file stays.
        """
        os.ftruncate(self.fd, size_bytes)
        if sha256 is not None:
            mark_verified(self.fd, sha256)
        if self._fsync:
            os.fsync(self.fd)
        part_path(self.destination).replace(self.destination)
        if self._fsync:
            sync_directory(self.destination.parent)
        with self._lock:
            self._drop_journal()

    def close(self) -> None:
        """Release the file and its lock; what was written stays for the next time.

        A file without a single byte is removed: it would only hold its reserved room.
        """
        with self._lock:
            if (
                self.fd >= 0
                and not self.written.total
                and is_at(self.fd, part_path(self.destination))
            ):
                self._drop_journal()
                part_path(self.destination).unlink(missing_ok=True)
            if self._journal is not None:
                self._journal.close()
                self._journal = None
            if self.fd >= 0:
                os.close(self.fd)
                self.fd = -1

    def discard(self) -> None:
        """Remove the partial file and its journal, and release them."""
        with self._lock:
            self._drop_journal()
        part_path(self.destination).unlink(missing_ok=True)
        self.close()

    def _mark(self, count: int) -> None:
        # A restart may have come between: then the count is of blocks that are gone.
        if self._journal is not None and count <= self._recorded:
            self._journal.append({"s": count})
            self._synced = count

    def _load(self) -> None:
        if not journal_path(self.destination).exists():
            return
        records = self._open_journal().records
        header = records[0] if records else {}
        if header.get("v") != _VERSION:
            return
        try:
            self.identity = Identity(**header["file"])
        except (KeyError, TypeError):
            return  # an unreadable journal: everything is fetched again
        blocks, synced = _replay(records)
        same_boot = bool(self._boot) and header.get("boot") == self._boot
        size = os.fstat(self.fd).st_size
        trusted = blocks if same_boot else blocks[:synced]
        kept = [block for block in trusted if block.offset + block.length <= size]
        if kept:
            os.fdatasync(self.fd)
        self._adopt(kept)

    def _adopt(self, blocks: list[Block]) -> None:
        self._blocks = blocks
        self.written = Intervals()
        for block in blocks:
            self.written.add(block.offset, block.offset + block.length)
        self._recorded = self._synced = len(blocks)
        if self._journal is not None:
            records = [{"w": [block.offset, block.length, block.crc]} for block in blocks]
            self._journal.compact([self._header(), *records, {"s": len(blocks)}])

    def _header(self) -> dict[str, Any]:
        identity = self.identity
        assert identity is not None  # noqa: S101  (restart and _load set it first)
        file = {name: getattr(identity, name) for name in Identity.__slots__}
        return {"v": _VERSION, "boot": self._boot, "file": file}

    def _open_journal(self) -> Journal:
        if self._journal is None:
            self._journal = Journal(journal_path(self.destination))
        return self._journal

    def _drop_journal(self) -> None:
        if self._journal is not None:
            self._journal.close()
            self._journal = None
        path = journal_path(self.destination)
        for leftover in (path, path.with_name(path.name + ".new")):
            leftover.unlink(missing_ok=True)

    def _intact(self, block: Block) -> bool:
        crc, position, end = 0, block.offset, block.offset + block.length
        while position < end:
            data = os.pread(self.fd, min(1 << 20, end - position), position)
            if not data:
                return False
            crc = crc32c(data, crc)
            position += len(data)
        return crc == block.crc


def _replay(records: list[dict[str, Any]]) -> tuple[list[Block], int]:
    blocks: list[Block] = []
    synced = 0
    for record in records[1:]:
        if "w" in record:
            blocks.append(Block(*record["w"]))
        elif "s" in record:
            synced = min(int(record["s"]), len(blocks))
    return blocks, synced
