"""What is found beyond what memory should hold: paths only, on the disk, in their order.

Nothing is lost when they are: the next sweep finds them again. SQLite keeps a database
without a name in a temporary file of its own that dies with the process.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from supervisor.errors import JournalError
from supervisor.sync.backlog import PathKey

_SCHEMA = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA cache_size = -512;
CREATE TABLE waiting (
    number INTEGER PRIMARY KEY, tree TEXT NOT NULL, path BLOB NOT NULL,
    old INTEGER NOT NULL, sweep INTEGER NOT NULL, UNIQUE (tree, path)
);
"""


class Overflow:
    """A queue of paths; its methods block and may be called from any thread."""

    def __init__(self) -> None:
        self._connection: sqlite3.Connection | None = None
        self._lock = threading.Lock()
        self._sweeps: Counter[str] = Counter()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, tree: str, paths: Iterable[str], *, old: bool) -> None:
        """Append paths; one that waits already keeps its place.

        Raises:
            JournalError: the temporary folder has no room, and nothing waits any more.
        """
        rows = [(tree, os.fsencode(path), old, self._sweeps[tree]) for path in paths]
        with self._transaction() as connection:
            connection.executemany(
                "UPDATE waiting SET sweep = ?4 WHERE tree = ?1 AND path = ?2", rows
            )
            added = connection.executemany(
                "INSERT OR IGNORE INTO waiting VALUES (NULL, ?, ?, ?, ?)", rows
            )
            self._count += added.rowcount

    def take(self, limit: int) -> list[tuple[PathKey, bool]]:
        """Remove and return the first ones, and whether they were there before this run.

        They count until they are ``settled``.

        Raises:
            JournalError: they cannot be read, and nothing waits any more.
        """
        with self._transaction() as connection:
            found = connection.execute(
                "SELECT number, tree, path, old FROM waiting ORDER BY number LIMIT ?", (limit,)
            ).fetchall()
            if found:
                connection.execute("DELETE FROM waiting WHERE number <= ?", (found[-1][0],))
        return [(PathKey(tree, os.fsdecode(path)), bool(old)) for _, tree, path, old in found]

    def settled(self, count: int) -> None:
        """Note that so many of those taken are known elsewhere now."""
        with self._lock:
            self._count = max(0, self._count - count)

    def sweeping(self, tree: str) -> None:
        """Note that everything in a tree is looked at anew."""
        self._sweeps[tree] += 1

    def swept(self, tree: str) -> None:
        """Drop what the sweep of a tree that has just ended did not see: it is gone.

        Raises:
            JournalError: see ``take``.
        """
        if not self._count:
            return
        with self._transaction() as connection:
            gone = connection.execute(
                "DELETE FROM waiting WHERE tree = ? AND sweep < ?", (tree, self._sweeps[tree])
            )
            self._count -= gone.rowcount

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                if self._connection is None:
                    self._connection = sqlite3.connect("", check_same_thread=False)
                    self._connection.executescript(_SCHEMA)
                with self._connection:
                    yield self._connection
            except sqlite3.Error as exc:
                self._drop()
                raise JournalError(
                    f"Cannot note which files wait: {exc}",
                    hint="check the free space of the temporary folder",
                ) from exc

    def _drop(self) -> None:
        with suppress(sqlite3.Error):
            if self._connection is not None:
                self._connection.close()
        self._connection = None
        self._count = 0

    def close(self) -> None:
        """Give the temporary file back."""
        with self._lock:
            self._drop()
