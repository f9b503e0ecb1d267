"""What follows the contiguous prefix of a growing file: its first checks, and its hash."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from concurrent.futures import Executor

from supervisor.download.ledger import MIB
from supervisor.download.partial import PartFile
from supervisor.download.storage import disk_errors
from supervisor.download.threads import in_thread
from supervisor.download.verify import check_hash, check_start, hash_range
from supervisor.errors import ChecksumMismatchError, TransientTransferError

LAG_BYTES = 4 * MIB
MOST_BYTES = 32 * MIB  # in one go, of what a processor's cache no longer holds


class Follower:
    """Checks and hashes one part file from its start on.

    Who writes to the file also reads and hashes the end of the prefix, while the processor's
    cache still holds it. ``run`` catches up with what arrived out of order.
    """

    def __init__(
        self, part: PartFile, *, expected: str | None, threads: Executor, drop_cache: bool
    ) -> None:
        """``expected`` is the sha256 that was announced; None: nothing is hashed."""
        self._part = part
        self._expected = expected
        self._threads = threads
        self._drop_cache = drop_cache
        self._digest = hashlib.sha256() if expected else None
        self._size = 0
        self._position = 0
        self._dropped = 0
        self._checked = False
        self._seen = 0  # bytes that were there when the start was looked at
        self._turn = threading.Lock()  # who has it hashes
        self._loop: asyncio.AbstractEventLoop | None = None
        self._moved = asyncio.Event()
        self._waits = self._stopped = False

    async def run(self, size: int) -> None:
        """Follow until ``size``, or until it is stopped.

        Raises:
            MalformedFileError: the first bytes are not those of such a file.
        """
        self._size, self._loop = size, asyncio.get_running_loop()
        while not self._stopped and (self._position < size or not self._checked):
            if self._due():
                with disk_errors(self._part.destination):
                    await in_thread(self._threads, self._catch_up)
                continue
            self._moved.clear()
            self._waits = True
            if not self._due():
                await self._moved.wait()

    def written(self, scratch: memoryview) -> None:
        """Go along with a write that has just ended; the memory may be used. From any thread.

        Raises:
            OSError: the file cannot be read.
        """
        if self._lag() <= LAG_BYTES and self._turn.acquire(blocking=False):
            try:
                self._hash(self._part.prefix_end(), scratch)
            finally:
                self._turn.release()
        if self._waits and self._due():
            self._wake()

    def stop(self) -> None:
        """The file will not get whole. From any thread."""
        self._stopped = True
        self._wake()

    async def verify(self, name: str) -> str | None:
        """Compare the hash of a complete file; locate what the disk has damaged.

        Raises:
            TransientTransferError: some blocks are to be fetched again.
            ChecksumMismatchError: the server's bytes are not the announced ones.
        """
        if self._expected is None or self._digest is None:
            return None
        try:
            check_hash(name, expected=self._expected, actual=self._digest.hexdigest())
        except ChecksumMismatchError:
            damaged = await in_thread(self._threads, self._part.damaged)
            if not damaged:
                raise
            await in_thread(self._threads, lambda: self._part.forget(damaged))
            raise TransientTransferError(
                f"Cannot use {name}: the disk changed {len(damaged)} blocks"
            ) from None
        return self._expected

    def _wake(self) -> None:
        self._waits = False
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._moved.set)

    def _lag(self) -> int:
        return self._part.prefix_end() - self._position

    def _due(self) -> bool:
        end = self._part.prefix_end()
        unseen = not self._checked and end > self._seen
        return self._stopped or unseen or end - self._position > LAG_BYTES or end == self._size

    def _catch_up(self) -> None:
        with self._turn:
            end = self._part.prefix_end()
            if not self._checked:
                name, self._seen = self._part.destination.name, end
                self._checked = check_start(self._part.fd, self._size, name, end)
            self._hash(min(end, self._position + MOST_BYTES))

    def _hash(self, end: int, scratch: memoryview | None = None) -> None:
        fd = self._part.fd
        if self._digest is not None:
            hash_range(fd, self._digest, self._position, end, scratch)
        self._position = end
        if self._drop_cache and (end - self._dropped >= MOST_BYTES or end == self._size):
            os.posix_fadvise(fd, self._dropped, end - self._dropped, os.POSIX_FADV_DONTNEED)
            self._dropped = end
