"""Where log lines are written: files that rotate, and the container's stdout.

Writing can block (a full disk, a reader of stdout that stopped reading), so it happens in
a worker thread, fed from a bounded queue. What does not fit is dropped and reported.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Protocol

import anyio
import anyio.to_thread

from supervisor.core.clock import iso_utc

# All lines of one read have one time, and to render it takes as long as all the rest.
_stamp = lru_cache(maxsize=16)(iso_utc)


class LogLine(NamedTuple):
    """One line of a service's output; a tuple because floods make thousands a second.

    ``at_s`` is wall time, ``stream`` is stdout, stderr or supervisor, ``seq`` grows over
    all services.
    """

    service: str
    at_s: float
    stream: str
    text: str
    seq: int


def to_json_line(line: LogLine) -> str:
    """Render one line as a JSON object (without newline)."""
    return json.dumps(
        {
            "at": _stamp(line.at_s),
            "service": line.service,
            "stream": line.stream,
            "text": line.text,
            "seq": line.seq,
        },
        ensure_ascii=False,
    )


class Writer(Protocol):
    """Writes lines; may block; called from one thread at a time."""

    def write(self, lines: Sequence[LogLine]) -> None:
        """Write them all.

        Raises:
            OSError: the disk is full, or nobody reads.
        """
        ...


class Sink:
    """A bounded queue of lines before a ``Writer``."""

    def __init__(
        self,
        writer: Writer,
        *,
        on_drop: Callable[[str, int], None],
        limit_bytes: int = 8 * 1024 * 1024,
    ) -> None:
        self._writer = writer
        self._on_drop = on_drop
        self._limit_bytes = limit_bytes
        self._queue: list[LogLine] = []
        self._queued_bytes = 0
        self._wake: anyio.Event | None = None
        self._writing = threading.Lock()  # a write that a cancellation left behind may go on
        self.error: str | None = None

    def put(self, lines: Sequence[LogLine], size_bytes: int) -> None:
        """Queue lines; never blocks."""
        if self._queued_bytes + size_bytes > self._limit_bytes:
            self._on_drop(lines[0].service, size_bytes)
            return
        self._queue += lines
        self._queued_bytes += size_bytes
        if self._wake is not None:
            self._wake.set()

    async def run(self) -> None:
        """Write what is queued until cancelled."""
        while True:
            if not self._queue:
                self._wake = anyio.Event()
                await self._wake.wait()
                self._wake = None
            batch = self._take()
            await anyio.to_thread.run_sync(self._write, batch, abandon_on_cancel=True)

    def flush(self) -> None:
        """Write what is queued now, in this thread."""
        if self._queue:
            self._write(self._take())

    async def settle(self, then: Callable[[], None]) -> None:
        """Write what is queued, then call ``then`` while nothing is being written."""
        batch = self._take()

        def work() -> None:
            if batch:
                self._write(batch)
            with self._writing:
                then()

        await anyio.to_thread.run_sync(work, abandon_on_cancel=True)

    def _take(self) -> list[LogLine]:
        batch, self._queue, self._queued_bytes = self._queue, [], 0
        return batch

    def _write(self, batch: list[LogLine]) -> None:
        try:
            with self._writing:
                self._writer.write(batch)
            self.error = None
        except OSError as exc:
            # The ring still has the lines; a broken disk must not end the services.
            self.error = f"Cannot write logs: {exc.strerror or exc}"


class StreamWriter:
    """Prefixes lines for people, or writes JSON, to a file descriptor."""

    def __init__(self, *, descriptor: int = 1, as_json: bool = False) -> None:
        self._descriptor = descriptor
        self._as_json = as_json

    def write(self, lines: Sequence[LogLine]) -> None:
        """Write whole lines, so that other writers do not cut into them."""
        if self._as_json:
            text = "".join(f"{to_json_line(line)}\n" for line in lines)
        else:
            text = "".join(f"{line.service:<12} | {line.text}\n" for line in lines)
        _write_all(self._descriptor, text)


class FileWriter:
    """Writes ``<directory>/<service>.log`` and keeps ``keep`` older ones of ``max_bytes``.

    Without a directory only the files given by ``also`` are written.
    """

    def __init__(
        self, directory: Path | None, *, max_bytes: int = 10 * 1024 * 1024, keep: int = 3
    ) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        self._keep = keep
        self._files: dict[str, RotatedFile] = {}
        self._extra: dict[str, RotatedFile] = {}

    def also(self, service: str, path: Path | None) -> None:
        """Append a service's lines to ``path`` too, as they are."""
        if (old := self._extra.pop(service, None)) is not None:
            old.close()
        if path is not None:
            self._extra[service] = RotatedFile(path, self._max_bytes, self._keep)

    def write(self, lines: Sequence[LogLine]) -> None:
        """Append each line to its service's file."""
        by_service: dict[str, list[LogLine]] = {}
        for line in lines:
            by_service.setdefault(line.service, []).append(line)
        failure: OSError | None = None
        for service, own in by_service.items():
            full = "".join(f"{_stamp(n.at_s)} {n.stream:<6} {n.text}\n" for n in own)
            bare = "".join(f"{n.text}\n" for n in own if n.stream != "supervisor")
            for file, text in ((self._file(service), full), (self._extra.get(service), bare)):
                try:
                    if file is not None:
                        file.append(text)
                except OSError as error:  # one file that cannot be written is no other's loss
                    failure = error
        if failure is not None:
            raise failure

    def _file(self, service: str) -> RotatedFile | None:
        if self._directory is not None and service not in self._files:
            # A name from the configuration must not lead out of the folder.
            path = self._directory / f"{service.replace('/', '_')}.log"
            self._files[service] = RotatedFile(path, self._max_bytes, self._keep)
        return self._files.get(service)

    def close(self) -> None:
        """Close every file."""
        for file in (*self._files.values(), *self._extra.values()):
            file.close()


class RotatedFile:
    """A file that is renamed to ``.1``, ``.2`` … when it has grown to ``max_bytes``."""

    def __init__(self, path: Path, max_bytes: int, keep: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._keep = keep
        self._descriptor = -1
        self._size_bytes = 0

    def append(self, text: str) -> None:
        """Write ``text`` whole into one file."""
        if not text:
            return
        if self._descriptor < 0:
            self._open()
        elif self._size_bytes >= self._max_bytes:
            self._rotate()
        self._size_bytes += _write_all(self._descriptor, text)

    def close(self) -> None:
        """Release the descriptor; the next append opens it again."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _open(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # The folder may belong to a service: what it puts there in the file's place must
        # neither lead elsewhere (a link) nor hold the writer up (a pipe that nobody reads).
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        flags |= os.O_NOFOLLOW | os.O_NONBLOCK
        self._descriptor = os.open(self._path, flags, 0o640)
        self._size_bytes = os.fstat(self._descriptor).st_size

    def _rotate(self) -> None:
        self.close()
        for number in range(self._keep, 0, -1):
            older = self._numbered(number)
            newer = self._numbered(number - 1) if number > 1 else self._path
            if newer.exists():
                newer.replace(older)
        if self._keep == 0:
            self._path.unlink(missing_ok=True)
        self._open()

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")


def _write_all(descriptor: int, text: str) -> int:
    data = text.encode("utf-8", "backslashreplace")
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
    return len(data)


def stdout_descriptor() -> int:
    """Return the descriptor behind ``sys.stdout``, 1 when there is none."""
    try:
        return sys.stdout.fileno()
    except (AttributeError, OSError, ValueError):
        return 1
