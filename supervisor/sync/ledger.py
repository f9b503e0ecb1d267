"""The journal of sync: what is known of every file, on the disk before it is acted upon.

SQLite in WAL mode; docs/adr/0003-sync-journal.md argues why. Every method is one
transaction (``together`` makes one of several), blocks on the disk and may be called from
any thread.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path

from supervisor.core.clock import wall_time_s
from supervisor.errors import JournalError
from supervisor.sync.model import FileState, Identity, Resume, Row

_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
    tree TEXT NOT NULL, path BLOB NOT NULL,
    inode INTEGER NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
    state TEXT NOT NULL, key TEXT NOT NULL, sha256 TEXT NOT NULL, etag TEXT,
    upload_id TEXT, part_size INTEGER, incomplete INTEGER NOT NULL DEFAULT 0,
    verified INTEGER NOT NULL DEFAULT 0, stored_at REAL,
    PRIMARY KEY (tree, path)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS files_inode ON files (inode);
CREATE INDEX IF NOT EXISTS files_state ON files (state);
CREATE TABLE IF NOT EXISTS parts (
    tree TEXT NOT NULL, path BLOB NOT NULL, number INTEGER NOT NULL, etag TEXT NOT NULL,
    PRIMARY KEY (tree, path, number)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS objects (
    key TEXT PRIMARY KEY, sha256 TEXT NOT NULL, etag TEXT NOT NULL
) WITHOUT ROWID;
"""
_COLUMNS = (
    "tree, path, inode, size, mtime_ns, state, key, sha256, etag, upload_id, part_size,"
    " incomplete, verified, stored_at"
)
_SELECT = f"SELECT {_COLUMNS} FROM files "  # noqa: S608 (a constant)
_LOCKED_HINT = "is another supervisor using the same state directory?"
_OPEN_HINT = "check that the state directory is writable and has free space"
_SETTLED = (FileState.STORED, FileState.DONE)


class Ledger:
    """The one connection to the journal file."""

    def __init__(self, path: Path) -> None:
        """Open or create the journal; one that is not readable as such is set aside.

        Raises:
            JournalError: it cannot be opened, or another supervisor has it open.
        """
        self.path = path
        self._lock = threading.RLock()
        self._together = False
        self.set_aside: Path | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = self._open()
        except OSError as exc:
            raise JournalError(
                f"Cannot open the sync journal {path}: {exc.strerror or exc}",
                hint=_OPEN_HINT,
            ) from exc

    def _open(self) -> sqlite3.Connection:
        try:
            return _connect(self.path)
        except sqlite3.OperationalError as exc:
            raise JournalError(
                f"Cannot open the sync journal {self.path}: {exc}",
                hint=_LOCKED_HINT if "locked" in str(exc) else _OPEN_HINT,
            ) from exc
        except sqlite3.DatabaseError:
            # Damaged beyond SQLite's own recovery. The rescan rebuilds it: what is stored
            # already is recognised by its checksum at the target.
            self.set_aside = self.path.with_name(f"{self.path.name}.damaged-{wall_time_s():.0f}")
            self.path.replace(self.set_aside)
            for companion in ("-wal", "-shm"):
                self.path.with_name(self.path.name + companion).unlink(missing_ok=True)
            return _connect(self.path)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                with nullcontext() if self._together else self._connection:
                    yield self._connection
            except sqlite3.Error as exc:
                raise JournalError(
                    f"Cannot write the sync journal {self.path}: {exc}",
                    hint="check the free space of the state directory",
                ) from exc

    @contextmanager
    def together(self) -> Iterator[None]:
        """Make one transaction of what this thread writes inside: all of it counts, or nothing."""
        with self._transaction():
            self._together = True
            try:
                yield
            finally:
                self._together = False

    def get(self, tree: str, path: str) -> Row | None:
        """Return what is known of a path."""
        return next(self._rows("WHERE tree = ? AND path = ?", tree, os.fsencode(path)), None)

    def news(self, tree: str, found: Iterable[tuple[str, Identity]]) -> list[tuple[str, Identity]]:
        """Keep those that are not settled with this very identity."""
        fresh: list[tuple[str, Identity]] = []
        with self._transaction() as connection:
            for path, identity in found:
                row = connection.execute(
                    "SELECT 1 FROM files WHERE tree = ? AND path = ? AND inode = ? AND size = ?"
                    " AND mtime_ns = ? AND state IN (?, ?)",
                    (tree, os.fsencode(path), *_flat(identity), *_SETTLED),
                ).fetchone()
                if row is None:
                    fresh.append((path, identity))
        return fresh

    def namesakes(self, identity: Identity) -> list[Row]:
        """Return the settled rows with this identity: the same file under other names."""
        return list(
            self._rows(
                "WHERE inode = ? AND size = ? AND mtime_ns = ? AND state IN (?, ?)",
                *_flat(identity),
                *_SETTLED,
            )
        )

    def intend(self, row: Row) -> None:
        """Record that the file is going to its key; forgets any earlier upload of the path."""
        with self._transaction() as connection:
            _drop_parts(connection, row.tree, row.path)
            connection.execute(
                f"INSERT OR REPLACE INTO files ({_COLUMNS}) VALUES (?{', ?' * 13})",  # noqa: S608
                (
                    row.tree, os.fsencode(row.path), *_flat(row.identity), row.state, row.key,
                    row.sha256, row.etag, row.upload_id, row.part_size_bytes, row.incomplete,
                    row.verified, row.stored_at_s,
                ),
            )  # fmt: skip

    def uploading(self, tree: str, path: str, upload_id: str | None, part_size: int | None) -> None:
        """Record a multipart upload: "" before it is created, its id after, None when gone."""
        state = FileState.PENDING if upload_id is None else FileState.UPLOADING
        with self._transaction() as connection:
            _drop_parts(connection, tree, path)
            connection.execute(
                "UPDATE files SET state = ?, upload_id = ?, part_size = ?"
                " WHERE tree = ? AND path = ?",
                (state, upload_id, part_size, tree, os.fsencode(path)),
            )

    def part(self, tree: str, path: str, number: int, etag: str) -> None:
        """Record a part that the target has accepted."""
        with self._transaction() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO parts VALUES (?, ?, ?, ?)",
                (tree, os.fsencode(path), number, etag),
            )

    def resume(self, row: Row) -> Resume | None:
        """Return the multipart upload of a dead run that ``row`` was in."""
        if row.state is not FileState.UPLOADING or not row.upload_id or not row.part_size_bytes:
            return None
        with self._transaction() as connection:
            parts = connection.execute(
                "SELECT number, etag FROM parts WHERE tree = ? AND path = ?",
                (row.tree, os.fsencode(row.path)),
            ).fetchall()
        return Resume(row.upload_id, row.part_size_bytes, dict(parts))

    def stored(self, tree: str, path: str, *, etag: str, verified: bool) -> None:
        """Record that the target has the file."""
        with self._transaction() as connection:
            _drop_parts(connection, tree, path)
            connection.execute(
                "UPDATE files SET state = ?, etag = ?, verified = ?, upload_id = NULL,"
                " stored_at = ? WHERE tree = ? AND path = ?",
                (FileState.STORED, etag, verified, wall_time_s(), tree, os.fsencode(path)),
            )
            connection.execute(
                "INSERT OR REPLACE INTO objects SELECT key, sha256, etag FROM files"
                " WHERE tree = ? AND path = ?",
                (tree, os.fsencode(path)),
            )

    def done(self, tree: str, path: str) -> None:
        """Record that the local file was deleted after it was stored."""
        with self._transaction() as connection:
            connection.execute(
                "UPDATE files SET state = ? WHERE tree = ? AND path = ?",
                (FileState.DONE, tree, os.fsencode(path)),
            )

    def rename(self, tree: str, old: str, new: str) -> None:
        """Record that a settled file has another name now; its object stays where it is."""
        with self._transaction() as connection:
            connection.execute(
                "UPDATE OR REPLACE files SET path = ? WHERE tree = ? AND path = ?",
                (os.fsencode(new), tree, os.fsencode(old)),
            )

    def forget(self, tree: str, path: str) -> None:
        """Drop a path that is gone."""
        with self._transaction() as connection:
            _drop_parts(connection, tree, path)
            connection.execute(
                "DELETE FROM files WHERE tree = ? AND path = ?", (tree, os.fsencode(path))
            )

    def object_sha256(self, key: str) -> str | None:
        """Return the checksum of what this journal knows to be at a key."""
        with self._transaction() as connection:
            row = connection.execute("SELECT sha256 FROM objects WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def unfinished(self, *, after: tuple[str, str] = ("", ""), limit: int = 500) -> list[Row]:
        """Return files that were on their way: the first ones behind a tree's name and a path."""
        tree, path = after
        return list(
            self._rows(
                "WHERE state IN (?, ?) AND (tree, path) > (?, ?) ORDER BY tree, path LIMIT ?",
                FileState.PENDING,
                FileState.UPLOADING,
                tree,
                os.fsencode(path),
                limit,
            )
        )

    def deletable(
        self, tree: str, *, before_s: float, after: str = "", limit: int = 500
    ) -> list[Row]:
        """Return verified files that were stored before an instant and are not broken.

        In the order of their paths; those behind ``after`` only.
        """
        return list(
            self._rows(
                "WHERE tree = ? AND path > ? AND state = ? AND verified AND NOT incomplete"
                " AND stored_at <= ? ORDER BY path LIMIT ?",
                tree,
                os.fsencode(after),
                FileState.STORED,
                before_s,
                limit,
            )
        )

    def _rows(self, where: str, *values: object) -> Iterator[Row]:
        with self._transaction() as connection:
            found = connection.execute(_SELECT + where, values).fetchall()
        return map(_row, found)

    def close(self) -> None:
        """Fold the log into the file and release it."""
        with self._lock, suppress(sqlite3.Error):
            self._connection.close()


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=1.0, check_same_thread=False)
    try:
        # Exclusive: no shared memory file, so that WAL also works on network volumes, and
        # a second supervisor on the same journal is refused instead of corrupting it.
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA journal_mode = WAL")
        # Not FULL: a power cut may take back the last records, which costs sending those
        # files again to the same keys; it never corrupts, and kill -9 loses nothing.
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA cache_size = -2048")
        with closing(connection.cursor()) as cursor:
            cursor.executescript(_SCHEMA)
    except BaseException:
        connection.close()
        raise
    return connection


def _drop_parts(connection: sqlite3.Connection, tree: str, path: str) -> None:
    connection.execute("DELETE FROM parts WHERE tree = ? AND path = ?", (tree, os.fsencode(path)))


def _flat(identity: Identity) -> tuple[int, int, int]:
    return identity.inode, identity.size_bytes, identity.mtime_ns


def _row(values: tuple[object, ...]) -> Row:
    (tree, path, inode, size, mtime_ns, state, key, sha256, etag, upload_id, part_size,
     incomplete, verified, stored_at) = values  # fmt: skip
    return Row(
        tree=str(tree),
        path=os.fsdecode(path),  # type: ignore[arg-type]
        identity=Identity(inode, size, mtime_ns),  # type: ignore[arg-type]
        state=FileState(str(state)),
        key=str(key),
        sha256=str(sha256),
        etag=etag,  # type: ignore[arg-type]
        upload_id=upload_id,  # type: ignore[arg-type]
        part_size_bytes=part_size,  # type: ignore[arg-type]
        incomplete=bool(incomplete),
        verified=bool(verified),
        stored_at_s=stored_at,  # type: ignore[arg-type]
    )
