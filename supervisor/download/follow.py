"""What follows the contiguous prefix of a growing file: its first checks, and its hash."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import Executor

from supervisor.download.intake import Intake, in_thread
from supervisor.download.ledger import MIB
from supervisor.download.partial import PartFile
from supervisor.download.storage import disk_errors
from supervisor.download.verify import check_hash, check_start, hash_range
from supervisor.errors import ChecksumMismatchError, TransientTransferError

HASH_STEP_BYTES = 4 * MIB
HASH_MOST_BYTES = 32 * MIB
FIRST_BYTES = 512  # that tell a web page from a model


class Follower:
    """Checks and hashes one part file from its start on, in the threads for that."""

    def __init__(
        self, part: PartFile, *, expected: str | None, threads: Executor, drop_cache: bool
    ) -> None:
        """``expected`` is the sha256 that was announced; None: nothing is hashed."""
        self._part = part
        self._expected = expected
        self._threads = threads
        self._drop_cache = drop_cache
        self._digest = hashlib.sha256() if expected else None
        self._position = 0
        self._checked = False

    async def run(self, intake: Intake, size: int) -> None:
        """Follow until ``size``, or until writing has failed.

        Raises:
            MalformedFileError: the first bytes are not those of such a file.
        """
        while self._position < size and intake.error is None:
            end = self._part.prefix_end()
            if end - self._position >= HASH_STEP_BYTES or end == size:
                await self.advance(min(end, self._position + HASH_MOST_BYTES), size)
            elif not self._checked and end > 0:
                await self._advance(self._position, self._position, end, size)
                if not self._checked:
                    await intake.prefix_beyond(min(size, end + 1))
            else:
                await intake.prefix_beyond(min(size, self._position + HASH_STEP_BYTES))

    async def advance(self, end: int, size: int) -> None:
        """Check and hash up to ``end``; those bytes are on the disk."""
        start, self._position = self._position, end
        await self._advance(start, end, end, size)

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

    async def _advance(self, start: int, end: int, available: int, size: int) -> None:
        fd, name, digest = self._part.fd, self._part.destination.name, self._digest

        def work() -> bool:
            done = self._checked or check_start(fd, size, name, available)
            if digest is not None:
                hash_range(fd, digest, start, end)
            if self._drop_cache and end > start:
                os.posix_fadvise(fd, start, end - start, os.POSIX_FADV_DONTNEED)
            return done

        with disk_errors(self._part.destination):
            self._checked = await in_thread(self._threads, work)
