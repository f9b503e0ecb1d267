"""An append-only journal of JSON records that survives ``kill -9`` and power cuts.

One record a line: eight hex digits of CRC-32 over the payload, a space, the payload, a
newline. A crash can only leave a torn tail: opening truncates the file after the last
intact record. Replaying is up to the caller and must be idempotent.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from supervisor.errors import JournalError

Record = dict[str, Any]


class Journal:
    """Appends records to ``path``; blocking, so call it from a worker thread when it syncs."""

    def __init__(self, path: Path) -> None:
        """Open or create the journal.

        Raises:
            JournalError: the file cannot be opened or truncated.
        """
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            data = path.read_bytes()
            self.records, intact = decode(data)
            if intact < len(data):
                os.ftruncate(self._fd, intact)
            self._end = intact
        except OSError as exc:
            raise JournalError(
                f"Cannot open the journal {path}: {exc.strerror or exc}",
                hint="check that the state directory is writable and has free space",
            ) from exc

    def append(self, record: Record, *, sync: bool = True) -> None:
        """Write one record; with ``sync`` it is on the disk when this returns.

        Raises:
            JournalError: the disk is full or broken; the record does not count.
        """
        self._write(encode(record), sync=sync)

    def compact(self, records: Iterable[Record]) -> None:
        """Replace the whole journal by ``records`` in one atomic step."""
        temporary = self.path.with_name(self.path.name + ".new")
        try:
            with temporary.open("wb") as file:
                for record in records:
                    file.write(encode(record))
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path)
            sync_directory(self.path.parent)
            replacement = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as exc:
            raise JournalError(f"Cannot compact the journal {self.path}: {exc}") from exc
        os.close(self._fd)
        self._fd = replacement
        self._end = os.fstat(replacement).st_size

    def close(self) -> None:
        """Release the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _write(self, line: bytes, *, sync: bool) -> None:
        try:
            written = os.pwrite(self._fd, line, self._end)
            if written != len(line):
                raise OSError(f"short write of {written} of {len(line)} bytes")
            if sync:
                os.fdatasync(self._fd)
        except OSError as exc:
            # Take the half record back, or the next append would be glued to it.
            os.ftruncate(self._fd, self._end)
            raise JournalError(f"Cannot write the journal {self.path}: {exc}") from exc
        self._end += written


def encode(record: Record) -> bytes:
    """Render one record as a line."""
    payload = json.dumps(record, separators=(",", ":"), ensure_ascii=True).encode()
    return b"%08x %s\n" % (zlib.crc32(payload), payload)


def decode(data: bytes) -> tuple[list[Record], int]:
    """Return the intact records from the start and the number of bytes they take."""
    records: list[Record] = []
    position = 0
    while (end := data.find(b"\n", position)) >= 0:
        line = data[position:end]
        if len(line) < 10 or line[:9] != b"%08x " % zlib.crc32(line[9:]):
            break
        records.append(json.loads(line[9:]))
        position = end + 1
    return records, position


def sync_directory(directory: Path) -> None:
    """Make a rename in ``directory`` durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
