"""How many bytes of one file a crash would lose right now, kept by several threads."""

from __future__ import annotations

import threading
from collections.abc import Callable

MIB = 1024 * 1024
EXPOSED_LIMIT_BYTES = 8 * MIB


class Ledger:
    """Counts bytes from their arrival until they are safe: written, or with fsync synced.

    ``exposed`` never passes the limit: who wants to receive waits for the disk, which
    would be the limit anyway. ``fetched`` counts every byte that has arrived.
    """

    def __init__(self, *, durable: bool) -> None:
        """``durable``: only what is synced is safe."""
        self.on_room: Callable[[], None] | None = None  # from any thread, when it was full
        self._durable = durable
        self._changed = threading.Condition()
        self._exposed = 0
        self._unsynced = 0
        self._syncing = False
        self.fetched = 0

    def left(self) -> int:
        """Bytes that may still arrive; negative after a last small read too many."""
        return EXPOSED_LIMIT_BYTES - self._exposed

    def arrived(self, count: int) -> None:
        """Bytes have come that nobody reserved."""
        with self._changed:
            self._exposed += count
            self.fetched += count

    def reserve(self, count: int, *, timeout_s: float) -> bool:
        """Wait for room for ``count`` bytes and take it; False when there is none in time."""
        with self._changed:
            found = self._changed.wait_for(lambda: self.left() >= count, timeout_s)
            if found:
                self._exposed += count
            return found

    def filled(self, reserved: int, count: int) -> None:
        """Of the reserved bytes so many have come; the others are given back."""
        with self._changed:
            self.fetched += count
            self._lower(reserved - count)

    def written(self, count: int) -> None:
        """So many bytes are in the file now."""
        with self._changed:
            if self._durable:
                self._unsynced += count
            else:
                self._lower(count)

    def begin_sync(self, at_least: int) -> int:
        """The bytes that a sync begun now will cover; 0 when none is due or one runs."""
        with self._changed:
            if self._syncing or not self._durable or self._unsynced < at_least:
                return 0
            self._syncing = True
            return self._unsynced

    def end_sync(self, covered: int) -> None:
        """That sync is over; it failed when ``covered`` is 0."""
        with self._changed:
            self._syncing = False
            self._unsynced -= covered
            self._lower(covered)

    def _lower(self, count: int) -> None:
        full, self._exposed = self.left() <= 0, self._exposed - count
        self._changed.notify_all()
        if full and self.left() > 0 and self.on_room is not None:
            self.on_room()
